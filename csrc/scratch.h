// Temporary memory of one kernel call.
#pragma once

#include <cstdint>

namespace radix {

// Cache-line aligned memory, freed with the object; not initialised.
class Scratch {
 public:
  explicit Scratch(int64_t num_bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_;
};

}  // namespace radix
