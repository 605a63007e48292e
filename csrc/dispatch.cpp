#include "kernels.h"

namespace radix {
namespace {

struct Variants {
  const KernelTable* tables[4];
  int count = 0;

  Variants() {
#if defined(RADIX_X86_VARIANTS)
    __builtin_cpu_init();
    const bool fma = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool v4 = fma && __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
    const bool pairs = v4 && __builtin_cpu_supports("avx512bf16");
    // Measured: a Sapphire Rapids core retires vdpbf16ps at half the multiply rate of plain f32, so
    // there converting to f32 is faster. Zen 4 and 5 double the rate.
    const bool pairs_first = pairs && !__builtin_cpu_is("intel");
    if (pairs_first) tables[count++] = &avx512bf16::table;
    if (v4) tables[count++] = &avx512::table;
    if (pairs && !pairs_first) tables[count++] = &avx512bf16::table;
    if (fma) tables[count++] = &avx2::table;
#endif
    tables[count++] = &generic::table;
  }
};

const Variants& variants() {
  static const Variants found;
  return found;
}

}  // namespace

int num_variants() { return variants().count; }
const KernelTable& variant(int index) { return *variants().tables[index]; }

}  // namespace radix
