// C (+)= A . B by outer products: the inner loop of matrix products that are bound by arithmetic.
#pragma once

#include "simd.h"

namespace radix::RADIX_ISA {

// A tile has kTileRows x kTileCols sums, all in registers.
constexpr int kTileRows = kRegisters == 32 ? 12 : 6;
constexpr int kTileCols = 2 * kLanes;

// One word of A times a vector of words of B.
struct OuterF32 {
  using Word = float;
  static RADIX_INLINE Vec add(Vec sum, float a, const float* b) { return sum + a * load(b); }
};

// A word is two bf16 neighbours of the summed dimension. Worth it where the processor multiplies
// them; elsewhere only the tests of a build with -DRADIX_EMULATE_PAIRS come here.
struct OuterPairs {
  using Word = uint32_t;
  static RADIX_INLINE Vec add(Vec sum, uint32_t a, const uint32_t* b) {
#if defined(__AVX512BF16__)
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(Bits{} + a), (__m512bh)load_bits(b));
#else
    const Bits pairs = load_bits(b);
    sum += to_float(static_cast<bf16>(a)) * (Vec)(pairs << 16);
    return sum + to_float(static_cast<bf16>(a >> 16)) * (Vec)(pairs & 0xffff0000u);
#endif
  }
};

template <class T>
constexpr bool kMultipliesPairs = false;
#if defined(__AVX512BF16__) || defined(RADIX_EMULATE_PAIRS)
template <>
constexpr bool kMultipliesPairs<bf16> = true;
#endif

// One operand of a product, words apart: A is read at row * row_stride + k * k_stride.
template <class Word>
struct LeftOperand {
  const Word* data;
  int64_t row_stride, k_stride;
};

template <class Mul, int M, bool accumulate>
RADIX_INLINE void outer_tile(LeftOperand<typename Mul::Word> a, const typename Mul::Word* b,
                             int64_t b_stride, int64_t depth, float* c, int64_t c_stride) {
  Vec sums[M][2];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    sums[m][0] = accumulate ? load(c + m * c_stride) : Vec{};
    sums[m][1] = accumulate ? load(c + m * c_stride + kLanes) : Vec{};
  }
  const typename Mul::Word* rows[M];
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) rows[m] = a.data + m * a.row_stride;
  int64_t at = 0;
  for (int64_t k = 0; k < depth; ++k, at += a.k_stride, b += b_stride) {
#pragma GCC unroll 12
    for (int m = 0; m < M; ++m) {
      const typename Mul::Word word = rows[m][at];
      sums[m][0] = Mul::add(sums[m][0], word, b);
      sums[m][1] = Mul::add(sums[m][1], word, b + kLanes);
    }
  }
#pragma GCC unroll 12
  for (int m = 0; m < M; ++m) {
    store(c + m * c_stride, sums[m][0]);
    store(c + m * c_stride + kLanes, sums[m][1]);
  }
}

// The last `left` < kTileRows rows.
template <class Mul, bool accumulate, int M>
inline void outer_rest(int64_t left, LeftOperand<typename Mul::Word> a, const typename Mul::Word* b,
                       int64_t b_stride, int64_t depth, float* c, int64_t c_stride) {
  if constexpr (M > 0) {
    if (left == M) return outer_tile<Mul, M, accumulate>(a, b, b_stride, depth, c, c_stride);
    outer_rest<Mul, accumulate, M - 1>(left, a, b, b_stride, depth, c, c_stride);
  }
}

// C [rows, kTileCols] (+)= A [rows, depth] . B [depth, kTileCols].
template <class Mul, bool accumulate>
inline void outer_panel(int64_t rows, LeftOperand<typename Mul::Word> a,
                        const typename Mul::Word* b, int64_t b_stride, int64_t depth, float* c,
                        int64_t c_stride) {
  int64_t m = 0;
  for (; m + kTileRows <= rows; m += kTileRows) {
    outer_tile<Mul, kTileRows, accumulate>({a.data + m * a.row_stride, a.row_stride, a.k_stride}, b,
                                           b_stride, depth, c + m * c_stride, c_stride);
  }
  outer_rest<Mul, accumulate, kTileRows - 1>(rows - m,
                                             {a.data + m * a.row_stride, a.row_stride, a.k_stride},
                                             b, b_stride, depth, c + m * c_stride, c_stride);
}

}  // namespace radix::RADIX_ISA
