// Causal attention of a ragged batch over paged keys and values.
#pragma once

#include "arrays.h"
#include "parallel.h"

namespace radix {

// Row i of the batch has query tokens [query_start[i], query_start[i + 1]), the last of the
// kv_lens[i] tokens whose keys and values lie in pages page_table[i, :] in order.
struct AttentionArgs {
  Heads query;
  Pages k_cache, v_cache;
  void* out;  // [tokens, heads, dim], dense, of the query's dtype
  int64_t rows;
  const int32_t* query_start;  // [rows + 1]
  const int32_t* kv_lens;      // [rows]
  const int32_t* page_table;   // [rows, table_stride]
  int64_t table_stride;
  float scale;
  int64_t window;  // 0: none; otherwise a token sees itself and window - 1 tokens before it
  float softcap;   // 0: none
};

}  // namespace radix
