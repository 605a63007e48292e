// Vectors of one instruction set. Every kernel is compiled once per instruction set with RADIX_ISA
// naming the namespace; everything here lives in it, and kernels use no inline function of the
// standard library, so that the linker can never pick a copy made for a larger instruction set.
#pragma once

#include <cstdint>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

#ifndef RADIX_ISA
#error "compile kernels with -DRADIX_ISA=<namespace>"
#endif

#define RADIX_INLINE inline __attribute__((always_inline))

namespace radix::RADIX_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kRegisters = 16;
#else
constexpr int kLanes = 4;
constexpr int kRegisters = 16;
#endif

using bf16 = uint16_t;

typedef float Vec __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Bits __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));

template <class T>
RADIX_INLINE T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
RADIX_INLINE T larger(T a, T b) {
  return a < b ? b : a;
}
RADIX_INLINE int64_t round_up(int64_t n, int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

RADIX_INLINE Vec splat(float x) { return x - Vec{}; }

RADIX_INLINE Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
RADIX_INLINE void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }

RADIX_INLINE Bits load_bits(const void* p) {
  Bits v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

RADIX_INLINE float to_float(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x) << 16;
  float f;
  __builtin_memcpy(&f, &bits, sizeof f);
  return f;
}
RADIX_INLINE float to_float(float x) { return x; }

// Round to nearest even; every NaN becomes the quiet one.
RADIX_INLINE bf16 to_bf16(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  if (x != x) return 0x7fc0;
  return static_cast<bf16>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

RADIX_INLINE Vec load(const bf16* p) {
  Halves h;
  __builtin_memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, Bits) << 16);
}
RADIX_INLINE void store(bf16* p, Vec v) {
#if defined(__AVX512BF16__)
  const __m256bh h = _mm512_cvtneps_pbh((__m512)v);
  __builtin_memcpy(p, &h, sizeof h);
#else
  Bits u = (Bits)v;
  u = (u + 0x7fff + ((u >> 16) & 1)) >> 16;
  const Bits nan = (Bits)(v != v);
  u = (nan & 0x7fc0) | (~nan & u);
  const Halves h = __builtin_convertvector(u, Halves);
  __builtin_memcpy(p, &h, sizeof h);
#endif
}
RADIX_INLINE void store_one(bf16* p, float x) { *p = to_bf16(x); }
RADIX_INLINE void store_one(float* p, float x) { *p = x; }

RADIX_INLINE Vec select(Ints mask, Vec a, Vec b) {
  return (Vec)(((Bits)mask & (Bits)a) | (~(Bits)mask & (Bits)b));
}
RADIX_INLINE Vec maximum(Vec a, Vec b) { return a > b ? a : b; }

RADIX_INLINE float sum(Vec v) {
  float total = 0;
  float lanes[kLanes];
  store(lanes, v);
  for (int width = kLanes / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  total = lanes[0];
  return total;
}
RADIX_INLINE float maximum(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  float best = lanes[0];
  for (int i = 1; i < kLanes; ++i) best = larger(best, lanes[i]);
  return best;
}

// Interleaves a and b; `high` takes their upper halves.
template <bool high>
RADIX_INLINE Bits interleave(Bits a, Bits b) {
  constexpr int o = high ? kLanes / 2 : 0;
#if defined(__AVX512F__)
  return __builtin_shuffle(a, b, (Bits){o, o + 16, o + 1, o + 17, o + 2, o + 18, o + 3, o + 19,
                                        o + 4, o + 20, o + 5, o + 21, o + 6, o + 22, o + 7, o + 23});
#elif defined(__AVX2__)
  return __builtin_shuffle(a, b, (Bits){o, o + 8, o + 1, o + 9, o + 2, o + 10, o + 3, o + 11});
#else
  return __builtin_shuffle(a, b, (Bits){o, o + 4, o + 1, o + 5});
#endif
}

// Transposes the square whose rows are v[0 .. kLanes): log2(kLanes) perfect shuffles.
RADIX_INLINE void transpose(Bits (&v)[kLanes]) {
  Bits u[kLanes];
#pragma GCC unroll 4
  for (int stage = 1; stage < kLanes; stage *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      u[2 * i] = interleave<false>(v[i], v[i + kLanes / 2]);
      u[2 * i + 1] = interleave<true>(v[i], v[i + kLanes / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) v[i] = u[i];
  }
}

// e^x to about 2 ulp (Cody-Waite reduction, a polynomial of degree 6); 0 below -87.3, saturates
// above 88.
RADIX_INLINE Vec exp(Vec x) {
  const Vec low = splat(-87.3f);
  const Ints under = x < low;
  x = select(x > 88.0f, splat(88.0f), select(under, low, x));
  const Vec shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are round(x / ln 2)
  const Vec n = shifted - 12582912.0f;
  Vec r = x - n * 0.693145752f;
  r = r - n * 1.42860677e-6f;
  Vec p = splat(1.3888889e-3f);
  p = p * r + 8.3333333e-3f;
  p = p * r + 4.1666667e-2f;
  p = p * r + 1.6666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Vec scaled = (Vec)((Bits)p + ((Bits)shifted << 23));
  return select(under, Vec{}, scaled);
}

RADIX_INLINE Vec tanh(Vec x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

}  // namespace radix::RADIX_ISA
