// Rotary position embedding in place, half-split (NeoX) layout.
#pragma once

#include "arrays.h"
#include "parallel.h"

namespace radix {

struct RopeArgs {
  Heads query, key;
  const int64_t* positions;  // [tokens]
  const float* cos_sin;      // [max_positions, dim]: cosines, then sines
  int64_t cos_sin_stride;
};

}  // namespace radix
