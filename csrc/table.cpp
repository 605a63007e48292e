// Compiled once per instruction set, like every kernel.
#include "kernels.h"

#define RADIX_QUOTE(x) #x
#define RADIX_NAME(x) RADIX_QUOTE(x)

namespace radix::RADIX_ISA {

const KernelTable table = {
    RADIX_NAME(RADIX_ISA), linear, gemm, attention, rms_norm, rope, gated_act, token_mask,
};

}  // namespace radix::RADIX_ISA
