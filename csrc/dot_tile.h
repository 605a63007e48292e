// Dot products of a few rows with a few other rows, both dense along the summed dimension: the
// inner loop of matrix products that are bound by reading `w` once.
#pragma once

#include "simd.h"

namespace radix::RADIX_ISA {

// Sums four vectors at once; the result's lanes 0..3 are the sums of a, b, c, d.
typedef float Quad __attribute__((vector_size(16)));

RADIX_INLINE Quad quad_of(Vec v) {
#if defined(__AVX2__)
  typedef float Octet __attribute__((vector_size(32)));
#if defined(__AVX512F__)
  const Octet o = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                  __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  const Octet o = v;
#endif
  return __builtin_shufflevector(o, o, 0, 1, 2, 3) + __builtin_shufflevector(o, o, 4, 5, 6, 7);
#else
  return v;
#endif
}

RADIX_INLINE float lane_sum(Vec v) {
  const Quad q = quad_of(v);
  const Quad h = q + __builtin_shufflevector(q, q, 2, 3, 0, 1);
  return h[0] + h[1];
}

// The four sums in a row: a transpose that adds as it goes.
RADIX_INLINE Quad lane_sums(Vec a, Vec b, Vec c, Vec d) {
  const Quad qa = quad_of(a), qb = quad_of(b), qc = quad_of(c), qd = quad_of(d);
  const Quad ab =
      __builtin_shufflevector(qa, qb, 0, 4, 1, 5) + __builtin_shufflevector(qa, qb, 2, 6, 3, 7);
  const Quad cd =
      __builtin_shufflevector(qc, qd, 0, 4, 1, 5) + __builtin_shufflevector(qc, qd, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}

// How one element type of `w` is multiplied. `kStep` elements of w are read at a time.
struct DotF32 {
  using W = float;
  using X = float;
  using Operand = Vec;
  static constexpr int kStep = kLanes;
  static constexpr int kParts = 1;

  static RADIX_INLINE Vec w(const float* p, int) { return load(p); }
  static RADIX_INLINE Vec x(const float* p, int) { return load(p); }
  static RADIX_INLINE Vec add(Vec sum, Vec a, Vec b) { return sum + a * b; }
};

// bf16 read as pairs: the high halves are f32 once the low ones are cleared, the low ones once
// shifted, so `x` is f32 in the order of `pair_order` and nothing is unpacked.
struct DotPairs {
  using W = bf16;
  using X = float;
  using Operand = Vec;
  static constexpr int kStep = 2 * kLanes;
  static constexpr int kParts = 2;

  static RADIX_INLINE Vec w(const bf16* p, int part) {
    const Bits pairs = load_bits(p);
    return part == 0 ? (Vec)(pairs << 16) : (Vec)(pairs & 0xffff0000u);
  }
  static RADIX_INLINE Vec x(const float* p, int part) { return load(p + part * kLanes); }
  static RADIX_INLINE Vec add(Vec sum, Vec a, Vec b) { return sum + a * b; }
};

#if defined(__AVX512BF16__)
struct DotNative {
  using W = bf16;
  using X = bf16;
  using Operand = Bits;
  static constexpr int kStep = 2 * kLanes;
  static constexpr int kParts = 1;

  static RADIX_INLINE Bits w(const bf16* p, int) { return load_bits(p); }
  static RADIX_INLINE Bits x(const bf16* p, int) { return load_bits(p); }
  static RADIX_INLINE Vec add(Vec sum, Bits a, Bits b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// acc[.][r][t] += w[r, k : k + kStep] . x[t, k : k + kStep], the parts in S sums of their own.
template <class Dot, int S, int R, int T>
RADIX_INLINE void dot_step(Vec (&acc)[S][R][T], const typename Dot::W* const (&w)[R],
                           const typename Dot::X* const (&x)[T], int64_t k) {
#pragma GCC unroll 2
  for (int part = 0; part < Dot::kParts; ++part) {
    typename Dot::Operand xv[T];
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) xv[t] = Dot::x(x[t] + k, part);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const typename Dot::Operand wv = Dot::w(w[r] + k, part);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) acc[part % S][r][t] = Dot::add(acc[part % S][r][t], wv, xv[t]);
    }
  }
}

// out[t * out_stride + r] = w[r] . x[t] for R rows of w and T rows of x, over `depth` elements.
// x is padded with zeros to a multiple of kStep; w is not read past its end. `ahead` is how many
// elements further w is prefetched. With few sums at a time, each is split U ways to hide the
// latency of an addition.
template <class Dot, int R, int T, int U = 1>
RADIX_INLINE void dot_tile(const typename Dot::W* w, int64_t w_stride, const typename Dot::X* x,
                           int64_t x_stride, int64_t depth, int64_t ahead, float* out,
                           int64_t out_stride) {
  const typename Dot::W* ws[R];
  const typename Dot::X* xs[T];
  constexpr int S = 4 * U * R * T * Dot::kParts <= 3 * kRegisters ? Dot::kParts : 1;
  Vec acc[U][S][R][T] = {};
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) xs[t] = x + t * x_stride;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) ws[r] = w + r * w_stride;
  int64_t k = 0;
  for (; k + U * Dot::kStep <= depth; k += U * Dot::kStep) {
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) {
      if (ahead != 0) {
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) __builtin_prefetch(ws[r] + k + u * Dot::kStep + ahead);
      }
      dot_step<Dot, S, R, T>(acc[u], ws, xs, k + u * Dot::kStep);
    }
  }
  for (; k + Dot::kStep <= depth; k += Dot::kStep) dot_step<Dot, S, R, T>(acc[0], ws, xs, k);
  if (k < depth) {
    typename Dot::W rest[R][Dot::kStep] = {};
    const typename Dot::W* rests[R];
    const typename Dot::X* xr[T];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      for (int64_t i = k; i < depth; ++i) rest[r][i - k] = ws[r][i];
      rests[r] = rest[r];
    }
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) xr[t] = xs[t] + k;
    dot_step<Dot, S, R, T>(acc[0], rests, xr, 0);
  }
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    Vec totals[R] = {};
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) {
#pragma GCC unroll 2
        for (int part = 0; part < S; ++part) totals[r] += acc[u][part][r][t];
      }
    }
    if constexpr (R == 4) {
      const Quad sums = lane_sums(totals[0], totals[1], totals[2], totals[3]);
      __builtin_memcpy(out + t * out_stride, &sums, sizeof sums);
    } else {
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) out[t * out_stride + r] = lane_sum(totals[r]);
    }
  }
}

}  // namespace radix::RADIX_ISA
