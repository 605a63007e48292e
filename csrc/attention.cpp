#include "attention.h"

#include "dot_tile.h"
#include "kernels.h"
#include "outer_tile.h"
#include "scratch.h"

namespace radix::RADIX_ISA {
namespace {

constexpr int64_t kKeys = 64;        // keys of a tile
constexpr int64_t kBlockRows = 132;  // query rows (tokens x heads of one KV head) of a task
constexpr int64_t kFewRows = 16;     // below, scores are dot products and K stays as it lies
constexpr int64_t kMinSplit = 128;   // keys worth a task of their own
static_assert(kKeys % kTileCols == 0);

// Queries [first, first + count) of one row against keys [begin, end), for one KV head.
struct Task {
  int64_t row, kv_head, first, count, begin, end;
  int64_t split, num_splits;
  int64_t partial;  // where the partial result of split 0 lies, in rows
};

// The state of a running softmax over tiles of keys (Milakov and Gimelshein, 2018; the tiling is
// FlashAttention's, Dao et al., 2022): unnormalised output, maximum and sum for every query row.
struct State {
  int64_t rows, dim;  // dim is padded to a multiple of kTileCols
  float *query, *scores, *output, *top, *sum, *tile;

  static int64_t num_floats(int64_t rows, int64_t dim) {
    return rows * (2 * dim + kKeys + 2) + kKeys * dim + 64;
  }
  State(float* memory, int64_t rows_, int64_t dim_) : rows(rows_), dim(dim_) {
    tile = memory;
    query = tile + kKeys * dim;
    scores = query + rows * dim;
    output = scores + rows * kKeys;
    top = output + rows * dim;
    sum = top + rows;
    for (int64_t i = 0; i < rows * dim; ++i) output[i] = 0;
    for (int64_t i = 0; i < rows; ++i) {
      top[i] = -__builtin_inff();
      sum[i] = 0;
    }
  }
};

template <class T>
RADIX_INLINE Vec load_some(const T* p, int64_t count) {
  if (count >= kLanes) return load(p);
  T rest[kLanes] = {};
  for (int64_t i = 0; i < count; ++i) rest[i] = p[i];
  return load(rest);
}

template <class T>
class Kernel {
 public:
  explicit Kernel(const AttentionArgs& args)
      : args_(args),
        group_(args.query.heads / args.k_cache.heads),
        head_dim_(args.query.dim),
        dim_(round_up(args.query.dim, kTileCols)),
        multiplies_pairs_(kMultipliesPairs<T> && args.query.dim % 2 == 0) {}

  int64_t group() const { return group_; }
  int64_t dim() const { return dim_; }

  void run(const Task& task, float* partials) const {
    const int64_t rows = task.count * group_;
    const Scratch memory(State::num_floats(rows, dim_) * 4);
    State state(memory.as<float>(), rows, dim_);
    const bool few = rows < kFewRows, pairs = !few && multiplies_pairs_;
    pairs ? copy_query(task, state) : load_query(task, state);
    const T *lines[kKeys], *values[kKeys];
    find(args_.k_cache, task, task.begin, smaller(kKeys, task.end - task.begin), lines);
    for (int64_t key = task.begin; key < task.end; key += kKeys) {
      const int64_t count = smaller(kKeys, task.end - key);
      find(args_.v_cache, task, key, count, values);
      if (pairs) {
        pair_scores(lines, count, state);
      } else {
        few ? few_scores(lines, count, state) : many_scores(lines, count, state);
      }
      softmax(task, key, count, pairs, state);
      find(args_.k_cache, task, key + kKeys, smaller(kKeys, task.end - key - kKeys), lines);
      pairs ? add_value_pairs(values, count, state) : add_values(values, count, state);
    }
    if (task.num_splits == 1) return write(task, state);
    float* to = partials + (task.partial + task.split * rows) * (dim_ + 2);
    __builtin_memcpy(to, state.output, static_cast<size_t>(rows * dim_) * 4);
    __builtin_memcpy(to + rows * dim_, state.top, static_cast<size_t>(rows) * 8);
  }

  // Merges the splits of a task into the first and writes the result.
  void merge(const Task& task, float* partials) const {
    const int64_t rows = task.count * group_;
    const int64_t size = rows * (dim_ + 2);
    float* all = partials + task.partial * (dim_ + 2);
    for (int64_t row = 0; row < rows; ++row) {
      float top = -__builtin_inff();
      for (int64_t s = 0; s < task.num_splits; ++s)
        top = larger(top, all[s * size + rows * dim_ + row]);
      float total = 0;
      for (int64_t s = 0; s < task.num_splits; ++s) {
        float* part = all + s * size;
        const float factor = exp(splat(part[rows * dim_ + row] - top))[0];
        total += factor * part[rows * dim_ + rows + row];
        for (int64_t d = 0; d < dim_; d += kLanes) {
          const Vec scaled = load(part + row * dim_ + d) * factor;
          store(all + row * dim_ + d, s == 0 ? scaled : load(all + row * dim_ + d) + scaled);
        }
      }
      write_row(task, row, all + row * dim_, total);
    }
  }

 private:
  // Row r of a task is query head r % group_ of token r / group_.
  const T* query_row(const Task& task, int64_t r) const {
    const Heads& query = args_.query;
    const int64_t token = args_.query_start[task.row] + task.first + r / group_;
    return static_cast<const T*>(query.data) + token * query.token_stride +
           (task.kv_head * group_ + r % group_) * query.head_stride;
  }

  void load_query(const Task& task, State& state) const {
    for (int64_t r = 0; r < state.rows; ++r) {
      const T* from = query_row(task, r);
      for (int64_t d = 0; d < dim_; d += kLanes)
        store(state.query + r * dim_ + d,
              load_some(from + smaller(d, head_dim_), head_dim_ - d) * args_.scale);
    }
  }

  // For products of pairs the query stays as it is; softmax() scales.
  void copy_query(const Task& task, State& state) const {
    for (int64_t r = 0; r < state.rows; ++r) {
      __builtin_memcpy(state.query + r * dim_, query_row(task, r),
                       static_cast<size_t>(head_dim_) * sizeof(T));
    }
  }

  // Where the keys (or values) of a tile lie. They are used a tile later: pages are short and
  // heads apart, so the processor would not prefetch them itself.
  void find(const Pages& cache, const Task& task, int64_t key, int64_t count,
            const T* (&lines)[kKeys]) const {
    const int32_t* pages = args_.page_table + task.row * args_.table_stride;
    const T* base = static_cast<const T*>(cache.data) + task.kv_head * cache.head_stride;
    int64_t page = key / cache.page_size, slot = key % cache.page_size;
    for (int64_t i = 0; i < count; ++page, slot = 0) {
      const T* at = base + pages[page] * cache.page_stride + slot * cache.slot_stride;
      for (; slot < cache.page_size && i < count; ++slot, ++i, at += cache.slot_stride) {
        lines[i] = at;
        for (int64_t d = 0; d < head_dim_; d += 64 / static_cast<int64_t>(sizeof(T)))
          __builtin_prefetch(at + d);
      }
    }
  }

  void copy_tile(const T* const (&lines)[kKeys], int64_t count, float* tile) const {
    for (int64_t i = 0; i < count; ++i) {
      const T* line = lines[i];
      float* to = tile + i * dim_;
      int64_t d = 0;
      for (; d + kLanes <= head_dim_; d += kLanes) store(to + d, load(line + d));
      for (; d < dim_; d += kLanes)
        store(to + d, load_some(line + smaller(d, head_dim_), larger<int64_t>(0, head_dim_ - d)));
    }
  }

  void few_scores(const T* const (&lines)[kKeys], int64_t count, State& state) const {
    constexpr int kStep = kRegisters == 32 ? 6 : 3;
    copy_tile(lines, count, state.tile);
    const int64_t keys = round_up(count, 4);
    for (int64_t i = count * dim_; i < keys * dim_; ++i) state.tile[i] = 0;
    for (int64_t key = 0; key < keys; key += 4) {
      const float* k = state.tile + key * dim_;
      const float* query = state.query;
      float* scores = state.scores + key;
      int64_t left = state.rows;
      for (; left >= kStep + 2 || left == kStep; left -= kStep) {
        dot_tile<DotF32, 4, kStep>(k, dim_, query, dim_, dim_, 0, scores, kKeys);
        query += kStep * dim_;
        scores += kStep * kKeys;
      }
      for (; left >= 2; left -= 2) {
        dot_tile<DotF32, 4, 2>(k, dim_, query, dim_, dim_, 0, scores, kKeys);
        query += 2 * dim_;
        scores += 2 * kKeys;
      }
      if (left == 1) dot_tile<DotF32, 4, 1>(k, dim_, query, dim_, dim_, 0, scores, kKeys);
    }
  }

  void many_scores(const T* const (&lines)[kKeys], int64_t count, State& state) const {
    // K is transposed to [dim][kKeys]; keys past `count` repeat the last, their scores are masked.
    for (int64_t key = 0; key < round_up(count, kTileCols); key += kLanes) {
      const T* rows[kLanes];
      for (int i = 0; i < kLanes; ++i) rows[i] = lines[smaller(key + i, count - 1)];
      store_columns(rows, head_dim_, state.tile + key, kKeys);
    }
    for (int64_t key = 0; key < count; key += kTileCols) {
      outer_panel<OuterF32, false>(state.rows, {state.query, dim_, 1}, state.tile + key, kKeys,
                                   head_dim_, state.scores + key, kKeys);
    }
  }

  // K as words of two neighbours in dim, transposed to [dim / 2][kKeys].
  void pair_scores(const T* const (&lines)[kKeys], int64_t count, State& state) const {
    if constexpr (kMultipliesPairs<T>) {
      for (int64_t key = 0; key < round_up(count, kTileCols); key += kLanes) {
        const float* rows[kLanes];
        for (int i = 0; i < kLanes; ++i)
          rows[i] = reinterpret_cast<const float*>(lines[smaller(key + i, count - 1)]);
        store_columns(rows, head_dim_ / 2, state.tile + key, kKeys);
      }
      const auto* query = reinterpret_cast<const uint32_t*>(state.query);
      const auto* tile = reinterpret_cast<const uint32_t*>(state.tile);
      for (int64_t key = 0; key < count; key += kTileCols) {
        outer_panel<OuterPairs, false>(state.rows, {query, dim_, 1}, tile + key, kKeys,
                                       head_dim_ / 2, state.scores + key, kKeys);
      }
    }
  }

  // Scores -> probabilities relative to the running maximum; columns past `count` become 0. With
  // `pairs` the probabilities of a row are bf16 in the first half of its memory.
  void softmax(const Task& task, int64_t key, int64_t count, bool pairs, State& state) const {
    const float scale = pairs ? args_.scale : 1.0f;
    const int64_t last = args_.kv_lens[task.row] -
                         (args_.query_start[task.row + 1] - args_.query_start[task.row]) +
                         task.first;
    Ints lane;
    for (int i = 0; i < kLanes; ++i) lane[i] = i;
    const Vec minus_infinity = splat(-__builtin_inff());
    for (int64_t r = 0; r < state.rows; ++r) {
      float* scores = state.scores + r * kKeys;
      const int64_t position = last + r / group_;
      const int64_t seen_from = args_.window > 0 ? position - args_.window + 1 - key : 0;
      const int64_t from = larger<int64_t>(0, seen_from);
      const int64_t to = smaller(count, position + 1 - key);
      if (to <= from) {
        for (int64_t c = 0; c < kKeys; c += kLanes) store(scores + c, Vec{});
        continue;
      }
      Vec best = minus_infinity;
      for (int64_t c = 0; c < kKeys; c += kLanes) {
        Vec s = load(scores + c) * scale;
        if (args_.softcap > 0) s = args_.softcap * tanh(s / args_.softcap);
        if (c < from || c + kLanes > to) {
          const Ints column = lane + static_cast<int32_t>(c);
          s = select((column >= static_cast<int32_t>(from)) & (column < static_cast<int32_t>(to)),
                     s, minus_infinity);
        }
        store(scores + c, s);
        best = maximum(best, s);
      }
      const float top = larger(state.top[r], maximum(best));
      if (top > state.top[r]) {
        const Vec factor = exp(splat(state.top[r] - top));
        state.sum[r] *= factor[0];
        state.top[r] = top;
        for (int64_t d = 0; d < dim_; d += kLanes)
          store(state.output + r * dim_ + d, load(state.output + r * dim_ + d) * factor);
      }
      Vec total{};
      for (int64_t c = 0; c < kKeys; c += kLanes) {
        const Vec p = exp(load(scores + c) - top);
        pairs ? store(reinterpret_cast<bf16*>(scores) + c, p) : store(scores + c, p);
        total += p;
      }
      state.sum[r] += lane_sum(total);
    }
  }

  void add_values(const T* const (&lines)[kKeys], int64_t count, State& state) const {
    copy_tile(lines, count, state.tile);
    for (int64_t d = 0; d < dim_; d += kTileCols) {
      outer_panel<OuterF32, true>(state.rows, {state.scores, kKeys, 1}, state.tile + d, dim_, count,
                                  state.output + d, dim_);
    }
  }

  // V as words of two neighbouring keys: [count / 2][dim].
  void add_value_pairs(const T* const (&lines)[kKeys], int64_t count, State& state) const {
    if constexpr (kMultipliesPairs<T>) {
      const T zeros[kLanes] = {};
      auto* tile = reinterpret_cast<uint32_t*>(state.tile);
      for (int64_t i = 0; i < count; i += 2) {
        for (int64_t d = 0; d < head_dim_; d += kLanes) {
          const int64_t some = head_dim_ - d;
          const Bits low = (Bits)load_some(lines[i] + d, some);
          const Bits high =
              i + 1 < count ? (Bits)load_some(lines[i + 1] + d, some) : (Bits)load(zeros);
          const Bits words = low >> 16 | high;
          __builtin_memcpy(tile + i / 2 * dim_ + d, &words, sizeof words);
        }
        for (int64_t d = round_up(head_dim_, kLanes); d < dim_; ++d) tile[i / 2 * dim_ + d] = 0;
      }
      const auto* weights = reinterpret_cast<const uint32_t*>(state.scores);
      for (int64_t d = 0; d < dim_; d += kTileCols) {
        outer_panel<OuterPairs, true>(state.rows, {weights, kKeys, 1}, tile + d, dim_,
                                      (count + 1) / 2, state.output + d, dim_);
      }
    }
  }

  void write(const Task& task, const State& state) const {
    for (int64_t r = 0; r < state.rows; ++r)
      write_row(task, r, state.output + r * dim_, state.sum[r]);
  }

  void write_row(const Task& task, int64_t r, const float* output, float sum) const {
    const int64_t token = args_.query_start[task.row] + task.first + r / group_;
    T* to = static_cast<T*>(args_.out) +
            (token * args_.query.heads + task.kv_head * group_ + r % group_) * head_dim_;
    const float factor = sum > 0 ? 1.0f / sum : 0.0f;
    int64_t d = 0;
    for (; d + kLanes <= head_dim_; d += kLanes) store(to + d, load(output + d) * factor);
    for (; d < head_dim_; ++d) store_one(to + d, output[d] * factor);
  }

  const AttentionArgs& args_;
  const int64_t group_, head_dim_, dim_;
  const bool multiplies_pairs_;  // in scores and values of blocks of queries
};

// Blocks of queries times KV heads; the blocks that see most keys come first.
int64_t plan(const AttentionArgs& args, int64_t block, int threads, Task* tasks) {
  int64_t count = 0, blocks = 0;
  for (int64_t row = 0; row < args.rows; ++row)
    blocks += (args.query_start[row + 1] - args.query_start[row] + block - 1) / block;
  blocks *= args.k_cache.heads;
  const int64_t wanted = blocks > 0 && blocks < threads ? (threads + blocks - 1) / blocks : 1;
  int64_t partial = 0;
  for (int64_t row = 0; row < args.rows; ++row) {
    const int64_t queries = args.query_start[row + 1] - args.query_start[row];
    const int64_t past = args.kv_lens[row] - queries;
    for (int64_t first = (queries - 1) / block * block; queries > 0 && first >= 0; first -= block) {
      const int64_t here = smaller(block, queries - first);
      const int64_t end = past + first + here;
      const int64_t begin =
          args.window > 0 ? larger<int64_t>(0, past + first - args.window + 1) : 0;
      const int64_t splits = larger<int64_t>(1, smaller(wanted, (end - begin) / kMinSplit));
      const int64_t part = round_up((end - begin + splits - 1) / splits, 4);
      const int64_t rows = here * (args.query.heads / args.k_cache.heads);
      for (int64_t head = 0; head < args.k_cache.heads; ++head) {
        for (int64_t s = 0; s < splits; ++s) {
          const int64_t from = smaller(end, begin + s * part), to = smaller(end, from + part);
          tasks[count++] = {row, head, first, here, from, to, s, splits, partial};
        }
        if (splits > 1) partial += splits * rows;
      }
    }
  }
  return count;
}

template <class T>
void attend(const AttentionArgs& args, ThreadPool& pool) {
  const Kernel<T> kernel(args);
  const int64_t block = larger<int64_t>(1, kBlockRows / kernel.group());
  const int64_t most =
      (args.query.tokens / block + args.rows + 1) * args.k_cache.heads * (1 + pool.num_threads());
  const Scratch memory(most * static_cast<int64_t>(sizeof(Task)));
  Task* tasks = memory.as<Task>();
  const int64_t count = plan(args, block, pool.num_threads(), tasks);
  if (count == 0) return;
  int64_t partial_rows = 0;
  for (int64_t i = 0; i < count; ++i) {
    const Task& t = tasks[i];
    if (t.num_splits > 1 && t.split == 0)
      partial_rows = t.partial + t.num_splits * t.count * kernel.group();
  }
  const Scratch partials(partial_rows * (kernel.dim() + 2) * 4);
  parallel_for(pool, count, [&](int64_t i) { kernel.run(tasks[i], partials.as<float>()); });
  if (partial_rows == 0) return;
  parallel_for(pool, count, [&](int64_t i) {
    if (tasks[i].num_splits > 1 && tasks[i].split == 0)
      kernel.merge(tasks[i], partials.as<float>());
  });
}

}  // namespace

void attention(const AttentionArgs& args, ThreadPool& pool) {
  args.query.dtype == DType::f32 ? attend<float>(args, pool) : attend<bf16>(args, pool);
}

}  // namespace radix::RADIX_ISA
