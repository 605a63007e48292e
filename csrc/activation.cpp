#include "activation.h"

#include "kernels.h"
#include "simd.h"

namespace radix::RADIX_ISA {
namespace {

template <Activation kind>
RADIX_INLINE Vec activate(Vec x) {
  if constexpr (kind == Activation::silu) return x / (1.0f + exp(-x));
  const Vec inner = 0.7978845608f * (x + 0.044715f * x * x * x);
  return 0.5f * x * (1.0f + tanh(inner));
}

template <class T, Activation kind>
RADIX_INLINE void gate(const T* x, const T* up, T* out, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(out + i, activate<kind>(load(x + i)) * load(up + i));
  if (i == n) return;
  T rest[3][kLanes] = {};
  for (int64_t j = i; j < n; ++j) {
    rest[0][j - i] = x[j];
    rest[1][j - i] = up[j];
  }
  store(rest[2], activate<kind>(load(rest[0])) * load(rest[1]));
  for (int64_t j = i; j < n; ++j) out[j] = rest[2][j - i];
}

template <class T, Activation kind>
void gated(const ActivationArgs& args, ThreadPool& pool) {
  constexpr int64_t kBlock = 1024;
  const int64_t width = args.out.cols;
  const int64_t blocks = (width + kBlock - 1) / kBlock;
  const int64_t rows_a_task = larger<int64_t>(1, kBlock / width);
  const int64_t groups = (args.out.rows + rows_a_task - 1) / rows_a_task;
  parallel_for(pool, groups * blocks, [&](int64_t task) {
    const int64_t first = task % blocks * kBlock, n = smaller(kBlock, width - first);
    const int64_t end = smaller(args.out.rows, (task / blocks + 1) * rows_a_task);
    for (int64_t row = task / blocks * rows_a_task; row < end; ++row) {
      const T* x = static_cast<const T*>(args.gate_up.data) + row * args.gate_up.stride + first;
      T* out = static_cast<T*>(args.out.data) + row * args.out.stride + first;
      gate<T, kind>(x, x + width, out, n);
    }
  });
}

}  // namespace

void gated_act(const ActivationArgs& args, ThreadPool& pool) {
  const bool f32 = args.out.dtype == DType::f32;
  if (args.kind == Activation::silu) {
    f32 ? gated<float, Activation::silu>(args, pool) : gated<bf16, Activation::silu>(args, pool);
  } else {
    f32 ? gated<float, Activation::gelu_tanh>(args, pool)
        : gated<bf16, Activation::gelu_tanh>(args, pool);
  }
}

}  // namespace radix::RADIX_ISA
