#include "mask.h"

#include "kernels.h"
#include "simd.h"

namespace radix::RADIX_ISA {
namespace {

void mask_words(float* logits, const int32_t* bits, int64_t words, int64_t vocab) {
  Bits lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = 1u << i;
  const Vec minus_infinity = splat(-__builtin_inff());
  for (int64_t word = 0; word < words; ++word) {
    const auto allowed = static_cast<uint32_t>(bits[word]);
    float* at = logits + word * 32;
    if (allowed == UINT32_MAX) continue;
    if (vocab - word * 32 < 32) {
      for (int64_t i = 0; i < vocab - word * 32; ++i)
        if ((allowed >> i & 1) == 0) at[i] = -__builtin_inff();
      continue;
    }
    for (int i = 0; i < 32; i += kLanes) {
      const Bits mine = (Bits{} + (allowed >> i)) & lane;
      store(at + i, select((Ints)(mine != 0), load(at + i), minus_infinity));
    }
  }
}

}  // namespace

void token_mask(const MaskArgs& args, ThreadPool& pool) {
  constexpr int64_t kWords = 1024;
  const int64_t words = (args.vocab + 31) / 32;
  const int64_t blocks = (words + kWords - 1) / kWords;
  parallel_for(pool, args.rows * blocks, [&](int64_t task) {
    const int64_t row = task / blocks, first = task % blocks * kWords;
    mask_words(args.logits + row * args.logits_stride + first * 32,
               args.bits + row * args.bits_stride + first, smaller(kWords, words - first),
               args.vocab - first * 32);
  });
}

}  // namespace radix::RADIX_ISA
