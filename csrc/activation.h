// Gated activations of a feed-forward layer.
#pragma once

#include "arrays.h"
#include "parallel.h"

namespace radix {

enum class Activation : uint8_t { silu, gelu_tanh };

// out[t] = act(gate_up[t, :F]) * gate_up[t, F:]; gate_up and out are of one dtype.
struct ActivationArgs {
  Matrix gate_up, out;
  Activation kind;
};

}  // namespace radix
