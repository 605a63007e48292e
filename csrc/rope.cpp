#include "rope.h"

#include "kernels.h"
#include "simd.h"

namespace radix::RADIX_ISA {
namespace {

template <class T>
RADIX_INLINE void rotate(T* x, const float* cosine, const float* sine, int64_t half) {
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec a = load(x + i), b = load(x + half + i), c = load(cosine + i), s = load(sine + i);
    store(x + i, a * c - b * s);
    store(x + half + i, b * c + a * s);
  }
  for (; i < half; ++i) {
    const float a = to_float(x[i]), b = to_float(x[half + i]);
    store_one(x + i, a * cosine[i] - b * sine[i]);
    store_one(x + half + i, b * cosine[i] + a * sine[i]);
  }
}

template <class T>
void rotate_token(const Heads& x, int64_t token, const float* cos_sin) {
  T* heads = static_cast<T*>(x.data) + token * x.token_stride;
  const int64_t half = x.dim / 2;
  for (int64_t head = 0; head < x.heads; ++head)
    rotate(heads + head * x.head_stride, cos_sin, cos_sin + half, half);
}

}  // namespace

void rope(const RopeArgs& args, ThreadPool& pool) {
  const int64_t tokens = args.query.tokens;
  const int64_t per_token = (args.query.heads + args.key.heads) * args.query.dim;
  const int64_t chunk = larger<int64_t>(1, 16384 / per_token);
  parallel_for(pool, (tokens + chunk - 1) / chunk, [&](int64_t task) {
    const int64_t end = smaller(tokens, (task + 1) * chunk);
    for (int64_t token = task * chunk; token < end; ++token) {
      const float* cos_sin = args.cos_sin + args.positions[token] * args.cos_sin_stride;
      if (args.query.dtype == DType::f32) {
        rotate_token<float>(args.query, token, cos_sin);
        rotate_token<float>(args.key, token, cos_sin);
      } else {
        rotate_token<bf16>(args.query, token, cos_sin);
        rotate_token<bf16>(args.key, token, cos_sin);
      }
    }
  });
}

}  // namespace radix::RADIX_ISA
