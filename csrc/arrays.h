// Plain views of the arrays that kernels read and write. No ownership, no checks: bindings.cpp made
// them. Strides are in elements; the last dimension is always dense.
#pragma once

#include <cstdint>

namespace radix {

enum class DType : uint8_t { f32, bf16 };

struct Matrix {
  void* data;
  DType dtype;
  int64_t rows, cols;
  int64_t stride;
};

// [tokens, heads, dim]: a query, a key or a value, often a slice of a fused projection.
struct Heads {
  void* data;
  DType dtype;
  int64_t tokens, heads, dim;
  int64_t token_stride, head_stride;
};

// [num_pages, page_size, heads, dim]: one layer's pool of keys or values.
struct Pages {
  void* data;
  DType dtype;
  int64_t num_pages, page_size, heads, dim;
  int64_t page_stride, slot_stride, head_stride;
};

}  // namespace radix
