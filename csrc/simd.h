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

RADIX_INLINE float maximum(Vec v) {
  float lanes[kLanes];
  store(lanes, v);
  float best = lanes[0];
  for (int i = 1; i < kLanes; ++i) best = larger(best, lanes[i]);
  return best;
}

// Four words of each of kLanes rows, transposed: out[j] holds word j of every row, row r in lane r.
// Each 128-bit lane takes rows 4 * lane + i of vector i, so the shuffles stay within lanes.
RADIX_INLINE void load_columns(const void* const (&rows)[kLanes], Bits (&out)[4]) {
  Bits v[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    typedef uint32_t Four __attribute__((vector_size(16)));
    Four quads[kLanes / 4];
#pragma GCC unroll 4
    for (int lane = 0; lane < kLanes / 4; ++lane)
      __builtin_memcpy(&quads[lane], rows[4 * lane + i], sizeof(Four));
#if defined(__AVX512F__)
    const auto low = __builtin_shufflevector(quads[0], quads[1], 0, 1, 2, 3, 4, 5, 6, 7);
    const auto high = __builtin_shufflevector(quads[2], quads[3], 0, 1, 2, 3, 4, 5, 6, 7);
    v[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(__AVX2__)
    v[i] = __builtin_shufflevector(quads[0], quads[1], 0, 1, 2, 3, 4, 5, 6, 7);
#else
    v[i] = quads[0];
#endif
  }
#if defined(__AVX512F__)
#define RADIX_PICK(a, b, w, x, y, z)                                                         \
  __builtin_shufflevector(a, b, w, x, y, z, w + 4, x + 4, y + 4, z + 4, w + 8, x + 8, y + 8, \
                          z + 8, w + 12, x + 12, y + 12, z + 12)
#elif defined(__AVX2__)
#define RADIX_PICK(a, b, w, x, y, z) \
  __builtin_shufflevector(a, b, w, x, y, z, w + 4, x + 4, y + 4, z + 4)
#else
#define RADIX_PICK(a, b, w, x, y, z) __builtin_shufflevector(a, b, w, x, y, z)
#endif
  constexpr int b = kLanes;  // index of the second operand's first word
  const Bits ab_low = RADIX_PICK(v[0], v[1], 0, b, 1, b + 1);
  const Bits ab_high = RADIX_PICK(v[0], v[1], 2, b + 2, 3, b + 3);
  const Bits cd_low = RADIX_PICK(v[2], v[3], 0, b, 1, b + 1);
  const Bits cd_high = RADIX_PICK(v[2], v[3], 2, b + 2, 3, b + 3);
  out[0] = RADIX_PICK(ab_low, cd_low, 0, 1, b, b + 1);
  out[1] = RADIX_PICK(ab_low, cd_low, 2, 3, b + 2, b + 3);
  out[2] = RADIX_PICK(ab_high, cd_high, 0, 1, b, b + 1);
  out[3] = RADIX_PICK(ab_high, cd_high, 2, 3, b + 2, b + 3);
#undef RADIX_PICK
}

// Stores kLanes rows of `count` elements as columns of f32: to[k * stride + r] = rows[r][k]. Reads
// nothing past the rows' ends.
template <class T>
RADIX_INLINE void store_columns(const T* const (&rows)[kLanes], int64_t count, float* to,
                                int64_t stride) {
  constexpr int kGroup = 16 / sizeof(T);  // elements of four words
  int64_t k = 0;
  for (; k < count; k += kGroup) {
    const void* from[kLanes];
    T rest[kLanes][kGroup];
    const int64_t some = smaller<int64_t>(kGroup, count - k);
#pragma GCC unroll 16
    for (int r = 0; r < kLanes; ++r) {
      from[r] = rows[r] + k;
      if (some < kGroup) {
        for (int64_t i = 0; i < kGroup; ++i) rest[r][i] = i < some ? rows[r][k + i] : T{};
        from[r] = rest[r];
      }
    }
    Bits words[4];
    load_columns(from, words);
    float* at = to + k * stride;
    for (int64_t i = 0; i < some; ++i, at += stride) {
      if constexpr (sizeof(T) == 4) {
        store(at, (Vec)words[i]);
      } else {
        store(at, (Vec)(i % 2 == 0 ? words[i / 2] << 16 : words[i / 2] & 0xffff0000u));
      }
    }
  }
}

// e^x to about 2 ulp (Cody-Waite reduction, a polynomial of degree 6); 0 below -87.3, saturates
// above 88.
RADIX_INLINE Vec exp(Vec x) {
  const Vec low = splat(-87.3f);
  const Ints under = x < low;
  x = select(x > 88.0f, splat(88.0f), select(under, low, x));
  const Vec shifted =
      x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: the sum's low bits are round(x / ln 2)
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
