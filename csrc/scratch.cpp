#include "scratch.h"

#include <cstdlib>
#include <new>

namespace radix {

Scratch::Scratch(int64_t num_bytes)
    : data_(std::aligned_alloc(64, static_cast<size_t>((num_bytes + 127) / 64 * 64))) {
  if (data_ == nullptr) throw std::bad_alloc();
}

Scratch::~Scratch() { std::free(data_); }

}  // namespace radix
