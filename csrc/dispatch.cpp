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
    const bool v4 = fma && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    if (v4 && __builtin_cpu_supports("avx512bf16")) tables[count++] = &avx512bf16::table;
    if (v4) tables[count++] = &avx512::table;
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
