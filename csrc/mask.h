// Token masks of constrained decoding.
#pragma once

#include <cstdint>

#include "parallel.h"

namespace radix {

// logits[r, v] = -inf where bit v % 32 of bits[r, v / 32] is 0.
struct MaskArgs {
  float* logits;
  int64_t rows, vocab, logits_stride;
  const int32_t* bits;
  int64_t bits_stride;
};

}  // namespace radix
