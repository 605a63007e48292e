// y = x . W^T + bias for few rows of x: W is read once, at memory bandwidth.
#pragma once

#include "arrays.h"
#include "parallel.h"

namespace radix {

struct LinearArgs {
  Matrix x;          // [T, K], f32 or bf16
  Matrix weight;     // [N, K], f32 or bf16
  const void* bias;  // [N] of bias_dtype, or null
  DType bias_dtype;
  Matrix out;  // [T, N], f32 or bf16
};

}  // namespace radix
