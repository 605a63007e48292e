// The plan of the grouped attention kernel for GPUs: see radixrt/runtime/attention/tiles.py, whose
// numpy code this repeats number for number.
#pragma once

#include <cstdint>
#include <vector>

namespace radix {

// A batch, as in ForwardBatch.
struct TileBatch {
  int64_t rows;
  const int32_t* query_start;  // [rows + 1]
  const int32_t* kv_lens;      // [rows]
  const int32_t* page_table;   // [rows, table_width]
  int64_t table_width;
  int64_t page_size;
};

struct TileOptions {
  int64_t small_slots, large_slots;    // tokens of a small and of a large tile
  int64_t small_shares, large_shares;  // programs of one key head
  int64_t window;                      // 0: none
  bool group;
  bool queue;  // small tiles are a queue
  int64_t min_run_tokens;
  int64_t min_prompt_keys;
  int64_t even_percent;
  int64_t queued_quarters;
  int64_t tile_cost;
};

using Ints = std::vector<int32_t>;

// Tiles of one kind: tokens and partial are [num_tiles, slots].
struct TileArrays {
  Ints tokens, page, kv_start, kv_end, partial, share_start;
};

struct TilePlan {
  TileArrays small, large;
  Ints merge_token, merge_start;
  int64_t num_partials = 0;
  Ints pages;
};

TilePlan plan_tiles(const TileBatch& batch, const TileOptions& options);

}  // namespace radix
