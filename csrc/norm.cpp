#include "norm.h"

#include "dot_tile.h"
#include "kernels.h"

namespace radix::RADIX_ISA {
namespace {

template <class T, class W>
RADIX_INLINE void norm_row(const T* x, const T* residual, T* total, T* out, const W* weight,
                           int64_t dim, float eps, float offset) {
  Vec squares0{}, squares1{};
  float tail = 0;
  int64_t i = 0;
  const auto input = [&](int64_t at) {
    Vec v = load(x + at);
    if (residual != nullptr) {
      v += load(residual + at);
      store(total + at, v);
      v = load(total + at);
    }
    return v;
  };
  for (; i + 2 * kLanes <= dim; i += 2 * kLanes) {
    const Vec a = input(i), b = input(i + kLanes);
    squares0 += a * a;
    squares1 += b * b;
  }
  for (; i < dim; ++i) {
    float v = to_float(x[i]);
    if (residual != nullptr) {
      store_one(total + i, v + to_float(residual[i]));
      v = to_float(total[i]);
    }
    tail += v * v;
  }
  const float mean = (lane_sum(squares0 + squares1) + tail) / static_cast<float>(dim);
  const float scale = 1.0f / __builtin_sqrtf(mean + eps);
  const T* from = residual != nullptr ? total : x;
  for (i = 0; i + kLanes <= dim; i += kLanes)
    store(out + i, load(from + i) * scale * (load(weight + i) + offset));
  for (; i < dim; ++i)
    store_one(out + i, to_float(from[i]) * scale * (to_float(weight[i]) + offset));
}

template <class T, class W>
void norm(const NormArgs& args, ThreadPool& pool) {
  const int64_t rows = args.x.tokens * args.x.heads, dim = args.x.dim;
  const int64_t chunk = larger<int64_t>(1, 16384 / dim);
  parallel_for(pool, (rows + chunk - 1) / chunk, [&](int64_t task) {
    const int64_t end = smaller(rows, (task + 1) * chunk);
    for (int64_t row = task * chunk; row < end; ++row) {
      const int64_t token = row / args.x.heads, head = row % args.x.heads;
      norm_row(static_cast<const T*>(args.x.data) + token * args.x.token_stride +
                   head * args.x.head_stride,
               args.residual ? static_cast<const T*>(args.residual) + row * dim : nullptr,
               static_cast<T*>(args.sum) + row * dim, static_cast<T*>(args.out) + row * dim,
               static_cast<const W*>(args.weight), dim, args.eps, args.offset);
    }
  });
}

}  // namespace

void rms_norm(const NormArgs& args, ThreadPool& pool) {
  const bool x_f32 = args.x.dtype == DType::f32, weight_f32 = args.weight_dtype == DType::f32;
  if (x_f32 && weight_f32) norm<float, float>(args, pool);
  if (x_f32 && !weight_f32) norm<float, bf16>(args, pool);
  if (!x_f32 && weight_f32) norm<bf16, float>(args, pool);
  if (!x_f32 && !weight_f32) norm<bf16, bf16>(args, pool);
}

}  // namespace radix::RADIX_ISA
