// Python tensors in and out through DLPack's C exchange table (`__dlpack_c_exchange_api__`, which
// torch has from 2.10 on): tens of nanoseconds a tensor, where `__dlpack__()` costs microseconds.
#pragma once

#include <Python.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace radix {

// Layouts of DLPack 1.x, https://dmlc.github.io/dlpack/latest/c_api.html
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t ndim;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};

enum class Element : uint8_t { f32, bf16, i32, i64, other };

// A tensor of the caller, valid while the call that received it runs.
struct Tensor {
  PyObject* object;
  const char* argument;
  Element element;
  DLTensor dl;

  int64_t size(int i) const { return dl.shape[i]; }
  int64_t stride(int i) const { return dl.strides[i]; }
  int ndim() const { return dl.ndim; }
  template <class T>
  T* data() const {
    return reinterpret_cast<T*>(static_cast<char*>(dl.data) + dl.byte_offset);
  }
  bool is_dense() const;
  // "bf16 [3, 4]", for messages.
  std::string describe() const;
};

// A bad argument: becomes radixrt.errors.InvalidArgument(argument, value, way_out).
struct ArgumentError : std::runtime_error {
  ArgumentError(std::string argument_, std::string value_, std::string way_out_)
      : std::runtime_error(way_out_),
        argument(std::move(argument_)),
        value(std::move(value_)),
        way_out(std::move(way_out_)) {}
  std::string argument, value, way_out;
};

// A Python exception is set.
struct PythonError {};

// The tensor type of one framework.
class Exchange {
 public:
  // Throws ArgumentError if the type has no exchange table of DLPack 1.
  explicit Exchange(PyObject* tensor_type);

  Tensor view(PyObject* object, const char* argument) const;
  // A new, uninitialised CPU tensor; the caller owns the reference. `out` views it.
  PyObject* allocate(Element element, int ndim, const int64_t* shape, Tensor& out) const;

 private:
  PyTypeObject* type_;
  const struct ExchangeTable* table_;
};

}  // namespace radix
