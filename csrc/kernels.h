// All kernels of one instruction set, as a table that is chosen once at run time.
#pragma once

#include "activation.h"
#include "attention.h"
#include "gemm.h"
#include "kv.h"
#include "linear.h"
#include "mask.h"
#include "norm.h"
#include "parallel.h"
#include "rope.h"

namespace radix {

struct KernelTable {
  const char* name;
  void (*linear)(const LinearArgs&, ThreadPool&);
  void (*gemm)(const LinearArgs&, ThreadPool&);
  void (*attention)(const AttentionArgs&, ThreadPool&);
  void (*rms_norm)(const NormArgs&, ThreadPool&);
  void (*rope)(const RopeArgs&, ThreadPool&);
  void (*gated_act)(const ActivationArgs&, ThreadPool&);
  void (*token_mask)(const MaskArgs&, ThreadPool&);
};

// The tables this build has and this processor can run, best first. The last one is "generic".
int num_variants();
const KernelTable& variant(int index);

#define RADIX_DECLARE(isa)                            \
  namespace isa {                                     \
  extern const KernelTable table;                     \
  void linear(const LinearArgs&, ThreadPool&);        \
  void gemm(const LinearArgs&, ThreadPool&);          \
  void attention(const AttentionArgs&, ThreadPool&);  \
  void rms_norm(const NormArgs&, ThreadPool&);        \
  void rope(const RopeArgs&, ThreadPool&);            \
  void gated_act(const ActivationArgs&, ThreadPool&); \
  void token_mask(const MaskArgs&, ThreadPool&);      \
  }

RADIX_DECLARE(generic)
RADIX_DECLARE(avx2)
RADIX_DECLARE(avx512)
RADIX_DECLARE(avx512bf16)

}  // namespace radix
