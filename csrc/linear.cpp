#include "linear.h"

#include "dot_tile.h"
#include "kernels.h"
#include "scratch.h"

namespace radix::RADIX_ISA {
namespace {

// Position of element k of a row of x: within each step, even elements first, then odd ones.
RADIX_INLINE int64_t pair_order(int64_t k) {
  const int64_t step = 2 * kLanes;
  const int64_t within = k % step;
  return k - within + within / 2 + (within & 1) * kLanes;
}

template <class Dot, class XIn>
void arrange(const Matrix& x, typename Dot::X* out, int64_t stride) {
  for (int64_t t = 0; t < x.rows; ++t) {
    const XIn* row = static_cast<const XIn*>(x.data) + t * x.stride;
    typename Dot::X* to = out + t * stride;
    if constexpr (Dot::kStep == kLanes) {
      for (int64_t k = 0; k < x.cols; ++k) to[k] = to_float(row[k]);
      for (int64_t k = x.cols; k < stride; ++k) to[k] = 0;
    } else if constexpr (Dot::kParts == 2) {
      int64_t k = 0;
      if constexpr (sizeof(XIn) == 2) {
        for (; k + Dot::kStep <= x.cols; k += Dot::kStep) {
          const Bits pairs = load_bits(row + k);
          store(to + k, (Vec)(pairs << 16));
          store(to + k + kLanes, (Vec)(pairs & 0xffff0000u));
        }
      }
      for (int64_t i = k; i < stride; ++i) to[pair_order(i)] = i < x.cols ? to_float(row[i]) : 0.0f;
    } else {
      for (int64_t k = 0; k < x.cols; ++k) {
        if constexpr (sizeof(XIn) == 2) {
          to[k] = row[k];
        } else {
          to[k] = to_bf16(row[k]);
        }
      }
      for (int64_t k = x.cols; k < stride; ++k) to[k] = 0;
    }
  }
}

// How a group of rows is finished: bias added, stored as the output's type.
void finish(const LinearArgs& args, const float* sums, int64_t row, int count, int64_t tokens) {
  for (int64_t t = 0; t < tokens; ++t) {
    for (int r = 0; r < count; ++r) {
      float y = sums[t * count + r];
      if (args.bias != nullptr) {
        y += args.bias_dtype == DType::f32 ? static_cast<const float*>(args.bias)[row + r]
                                           : to_float(static_cast<const bf16*>(args.bias)[row + r]);
      }
      const int64_t at = t * args.out.stride + row + r;
      if (args.out.dtype == DType::f32) {
        static_cast<float*>(args.out.data)[at] = y;
      } else {
        static_cast<bf16*>(args.out.data)[at] = to_bf16(y);
      }
    }
  }
}

constexpr int64_t kMaxTokens = 64;
constexpr int kTileTokens = 6;
constexpr int kRows = kRegisters == 32 ? 4 : 2;

// Up to 3 tokens: one row of W at a time, so that memory is read in one stream.
template <class Dot, int T>
void one_row(const typename Dot::W* w, const typename Dot::X* x, int64_t x_stride, int64_t depth,
             float* sums) {
  constexpr int kSums = 8 / (T * Dot::kParts);
  constexpr int64_t kAhead = 1024 / sizeof(typename Dot::W);
  dot_tile<Dot, 1, T, kSums == 0 ? 1 : kSums>(w, 0, x, x_stride, depth, kAhead, sums, 1);
}

template <class Dot, int R, int T = kTileTokens>
void some_tokens(int64_t count, const typename Dot::W* w, int64_t w_stride,
                 const typename Dot::X* x, int64_t x_stride, int64_t depth, int64_t ahead,
                 float* sums) {
  if constexpr (T > 0) {
    if (count == T) return dot_tile<Dot, R, T>(w, w_stride, x, x_stride, depth, ahead, sums, R);
    some_tokens<Dot, R, T - 1>(count, w, w_stride, x, x_stride, depth, ahead, sums);
  }
}

// sums[t * R + r] for R rows of W and all tokens, in passes of equal size.
template <class Dot, int R>
void row_group(const typename Dot::W* w, int64_t w_stride, const typename Dot::X* x,
               int64_t x_stride, int64_t tokens, int64_t depth, float* sums) {
  if constexpr (R == 1) {
    if (tokens == 1) return one_row<Dot, 1>(w, x, x_stride, depth, sums);
    if (tokens == 2) return one_row<Dot, 2>(w, x, x_stride, depth, sums);
    if (tokens == 3) return one_row<Dot, 3>(w, x, x_stride, depth, sums);
  }
  const int64_t passes = (tokens + kTileTokens - 1) / kTileTokens;
  int64_t done = 0;
  for (int64_t pass = 0; pass < passes; ++pass) {
    const int64_t count = (tokens - done + passes - pass - 1) / (passes - pass);
    some_tokens<Dot, R>(count, w, w_stride, x + done * x_stride, x_stride, depth,
                        pass == 0 ? R * w_stride : 0, sums + done * R);
    done += count;
  }
}

template <class Dot>
void product(const LinearArgs& args, ThreadPool& pool) {
  const int64_t tokens = args.x.rows, depth = args.x.cols, rows = args.weight.rows;
  // The odd line keeps rows of x with a power-of-two length out of the same cache sets.
  const int64_t x_stride = round_up(depth, Dot::kStep) + 16;
  const Scratch arranged(tokens * x_stride * static_cast<int64_t>(sizeof(typename Dot::X)));
  auto* x = arranged.as<typename Dot::X>();
  args.x.dtype == DType::f32 ? arrange<Dot, float>(args.x, x, x_stride)
                             : arrange<Dot, bf16>(args.x, x, x_stride);

  const int64_t row_bytes = depth * static_cast<int64_t>(sizeof(typename Dot::W));
  int64_t num_tasks = larger<int64_t>(1, rows * row_bytes * (1 + tokens / 4) / 65536);
  num_tasks = smaller<int64_t>(num_tasks, 16 * pool.num_threads());
  const int64_t chunk = round_up((rows + num_tasks - 1) / num_tasks, kRows);
  num_tasks = (rows + chunk - 1) / chunk;

  parallel_for(pool, num_tasks, [&](int64_t task) {
    const int64_t end = smaller(rows, (task + 1) * chunk);
    float sums[kRows * kMaxTokens];
    int64_t row = task * chunk;
    const auto* weight = static_cast<const typename Dot::W*>(args.weight.data);
    const int64_t stride = args.weight.stride;
    if (tokens > 3) {
      for (; row + kRows <= end; row += kRows) {
        row_group<Dot, kRows>(weight + row * stride, stride, x, x_stride, tokens, depth, sums);
        finish(args, sums, row, kRows, tokens);
      }
    }
    for (; row < end; ++row) {
      row_group<Dot, 1>(weight + row * stride, stride, x, x_stride, tokens, depth, sums);
      finish(args, sums, row, 1, tokens);
    }
  });
}

}  // namespace

void linear(const LinearArgs& args, ThreadPool& pool) {
  for (int64_t first = 0; first < args.x.rows; first += kMaxTokens) {
    LinearArgs part = args;
    part.x.rows = part.out.rows = smaller(kMaxTokens, args.x.rows - first);
    const int64_t x_size = args.x.dtype == DType::f32 ? 4 : 2;
    const int64_t out_size = args.out.dtype == DType::f32 ? 4 : 2;
    part.x.data = static_cast<char*>(args.x.data) + first * args.x.stride * x_size;
    part.out.data = static_cast<char*>(args.out.data) + first * args.out.stride * out_size;
    if (args.weight.dtype == DType::f32) {
      product<DotF32>(part, pool);
      continue;
    }
#if defined(__AVX512BF16__)
    if (args.x.dtype == DType::bf16) {
      product<DotNative>(part, pool);
      continue;
    }
#endif
    product<DotPairs>(part, pool);
  }
}

}  // namespace radix::RADIX_ISA
