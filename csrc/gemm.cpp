#include "gemm.h"

#include "kernels.h"
#include "outer_tile.h"
#include "scratch.h"

namespace radix::RADIX_ISA {
namespace {

constexpr int64_t kDepthBlock = 256;  // words; a panel of W of this depth stays in the L1 cache
constexpr int64_t kColBlock = 64;     // rows of W a task packs: these panels stay in the L2 cache
constexpr int64_t kTokenBlock = 528;  // most rows of x of a task
static_assert(kColBlock % kTileCols == 0 && kTokenBlock % kTileRows == 0);

// What one word of the packed operands holds: an element in f32 ...
struct WordsF32 {
  using Mul = OuterF32;
  static constexpr int kElements = 1;

  template <class In>
  static RADIX_INLINE float word(const In* p, int64_t) {
    return to_float(*p);
  }
  // Elements [0, count) of kLanes rows -> columns of the panel.
  template <class In>
  static RADIX_INLINE void columns(const In* const (&rows)[kLanes], int64_t count, float* panel) {
    store_columns(rows, count, panel, kTileCols);
  }
};

// ... or two neighbours in bf16.
struct WordsPairs {
  using Mul = OuterPairs;
  static constexpr int kElements = 2;

  static RADIX_INLINE uint32_t word(const bf16* p, int64_t left) {
    return p[0] | (left > 1 ? static_cast<uint32_t>(p[1]) << 16 : 0u);
  }
  static RADIX_INLINE void columns(const bf16* const (&rows)[kLanes], int64_t count,
                                   uint32_t* panel) {
    // Pairs move as f32 words would; only an odd last element needs a partner.
    const float* words[kLanes];
    for (int r = 0; r < kLanes; ++r) words[r] = reinterpret_cast<const float*>(rows[r]);
    store_columns(words, count / 2, reinterpret_cast<float*>(panel), kTileCols);
    if (count % 2 == 0) return;
    for (int r = 0; r < kLanes; ++r) panel[count / 2 * kTileCols + r] = rows[r][count - 1];
  }
};

// x [tokens, K] -> [ceil(tokens / kTileRows)][words][kTileRows]
template <class Words, class In>
void pack_tokens(const Matrix& x, int64_t words, typename Words::Mul::Word* out, ThreadPool& pool) {
  const int64_t tiles = (x.rows + kTileRows - 1) / kTileRows;
  parallel_for(pool, tiles, [&](int64_t tile) {
    auto* to = out + tile * words * kTileRows;
    for (int m = 0; m < kTileRows; ++m) {
      const int64_t row = tile * kTileRows + m;
      const In* from = static_cast<const In*>(x.data) + smaller(row, x.rows - 1) * x.stride;
      for (int64_t w = 0; w < words; ++w) {
        const int64_t k = w * Words::kElements;
        to[w * kTileRows + m] = row < x.rows ? Words::word(from + k, x.cols - k) : 0;
      }
    }
  });
}

// Elements [first, first + count) of kTileCols rows of W -> panel [words][kTileCols].
template <class Words, class In>
void pack_panel(const Matrix& weight, int64_t row0, int64_t first, int64_t count,
                typename Words::Mul::Word* panel) {
  for (int half = 0; half < 2; ++half) {
    const In* rows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      // Past the last row anything finite will do: those columns are not stored.
      const int64_t row = smaller(row0 + half * kLanes + i, weight.rows - 1);
      rows[i] = static_cast<const In*>(weight.data) + row * weight.stride + first;
    }
    Words::columns(rows, count, panel + half * kLanes);
  }
}

RADIX_INLINE float bias_at(const LinearArgs& args, int64_t n) {
  if (args.bias == nullptr) return 0.0f;
  return args.bias_dtype == DType::f32 ? static_cast<const float*>(args.bias)[n]
                                       : to_float(static_cast<const bf16*>(args.bias)[n]);
}

template <class Out>
void finish(const LinearArgs& args, const float* sums, int64_t token0, int64_t tokens, int64_t col0,
            int64_t cols) {
  float bias[kColBlock];
  for (int64_t n = 0; n < cols; ++n) bias[n] = bias_at(args, col0 + n);
  for (int64_t t = 0; t < tokens; ++t) {
    Out* to = static_cast<Out*>(args.out.data) + (token0 + t) * args.out.stride + col0;
    const float* from = sums + t * kColBlock;
    int64_t n = 0;
    for (; n + kLanes <= cols; n += kLanes) store(to + n, load(from + n) + load(bias + n));
    for (; n < cols; ++n) store_one(to + n, from[n] + bias[n]);
  }
}

template <class Words, class XIn, class WIn>
void product(const LinearArgs& args, ThreadPool& pool) {
  using Word = typename Words::Mul::Word;
  const int64_t tokens = args.x.rows, cols = args.weight.rows;
  const int64_t words = (args.x.cols + Words::kElements - 1) / Words::kElements;
  const Scratch packed(round_up(tokens, kTileRows) * words * 4);
  pack_tokens<Words, XIn>(args.x, words, packed.as<Word>(), pool);

  // Even blocks, so that none is short.
  const int64_t depth_blocks = (words + kDepthBlock - 1) / kDepthBlock;
  const int64_t depth_block = (words + depth_blocks - 1) / depth_blocks;
  const int64_t col_blocks = (cols + kColBlock - 1) / kColBlock;
  const int64_t wanted = (2 * pool.num_threads() + col_blocks - 1) / col_blocks;
  const int64_t token_blocks =
      larger((tokens + kTokenBlock - 1) / kTokenBlock, smaller(wanted, (tokens + 63) / 64));
  const int64_t token_block = round_up((tokens + token_blocks - 1) / token_blocks, kTileRows);
  constexpr int64_t kPanels = kColBlock / kTileCols;

  parallel_for(pool, col_blocks * token_blocks, [&](int64_t task) {
    const int64_t col0 = task / token_blocks * kColBlock;
    const int64_t token0 = task % token_blocks * token_block;
    const int64_t num_cols = smaller(kColBlock, cols - col0);
    const int64_t num_tokens = smaller(token_block, tokens - token0);
    if (num_tokens <= 0) return;
    const int64_t tiles = (num_tokens + kTileRows - 1) / kTileRows;
    const int64_t panels = (num_cols + kTileCols - 1) / kTileCols;
    const int64_t panel_size = depth_block * kTileCols;
    const Scratch memory((kPanels * panel_size + tiles * kTileRows * kColBlock) * 4);
    auto* packed_weight = memory.as<Word>();
    auto* sums = memory.as<float>() + kPanels * panel_size;
    for (int64_t first = 0; first < words; first += depth_block) {
      const int64_t depth = smaller(depth_block, words - first);
      const int64_t element = first * Words::kElements;
      for (int64_t p = 0; p < panels; ++p) {
        pack_panel<Words, WIn>(args.weight, col0 + p * kTileCols, element,
                               smaller(depth * Words::kElements, args.x.cols - element),
                               packed_weight + p * panel_size);
      }
      for (int64_t tile = 0; tile < tiles; ++tile) {
        const Word* x =
            packed.as<Word>() + ((token0 / kTileRows + tile) * words + first) * kTileRows;
        for (int64_t p = 0; p < panels; ++p) {
          float* c = sums + tile * kTileRows * kColBlock + p * kTileCols;
          const Word* panel = packed_weight + p * panel_size;
          const LeftOperand<Word> a{x, 1, kTileRows};
          using Mul = typename Words::Mul;
          first == 0 ? outer_tile<Mul, kTileRows, false>(a, panel, kTileCols, depth, c, kColBlock)
                     : outer_tile<Mul, kTileRows, true>(a, panel, kTileCols, depth, c, kColBlock);
        }
      }
    }
    args.out.dtype == DType::f32 ? finish<float>(args, sums, token0, num_tokens, col0, num_cols)
                                 : finish<bf16>(args, sums, token0, num_tokens, col0, num_cols);
  });
}

}  // namespace

void gemm(const LinearArgs& args, ThreadPool& pool) {
  const bool x_f32 = args.x.dtype == DType::f32, w_f32 = args.weight.dtype == DType::f32;
  if constexpr (kMultipliesPairs<bf16>) {
    if (!x_f32 && !w_f32) return product<WordsPairs, bf16, bf16>(args, pool);
  }
  if (x_f32 && w_f32) return product<WordsF32, float, float>(args, pool);
  if (x_f32) return product<WordsF32, float, bf16>(args, pool);
  if (w_f32) return product<WordsF32, bf16, float>(args, pool);
  product<WordsF32, bf16, bf16>(args, pool);
}

}  // namespace radix::RADIX_ISA
