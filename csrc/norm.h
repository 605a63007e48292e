// RMSNorm, with or without the residual sum in front of it.
#pragma once

#include "arrays.h"
#include "parallel.h"

namespace radix {

// out = x * rsqrt(mean(x^2) + eps) * (weight + offset), in f32, one row of `x.dim` at a time.
// With `residual`, x + residual is what is normalised; it is rounded to the dtype of x and written
// to `sum` first. All of x, residual, out and sum are of one dtype and may be the same memory.
struct NormArgs {
  Heads x;
  const void* residual;  // dense rows, or null
  void* sum;             // dense rows, or null
  void* out;             // dense rows
  const void* weight;    // [x.dim]
  DType weight_dtype;
  float eps, offset;
};

}  // namespace radix
