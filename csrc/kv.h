// Writing to and copying within the pools of keys and values. Byte moves: one build serves every
// instruction set.
#pragma once

#include "arrays.h"
#include "parallel.h"

namespace radix {

struct KvWriteArgs {
  Heads key, value;
  Pages k_cache, v_cache;
  const int64_t* slots;  // [tokens]: page * page_size + offset
};
void kv_write(const KvWriteArgs& args, ThreadPool& pool);

// A page of every layer of one pool: [num_layers, num_pages, page_size, heads, dim].
struct PageCopyArgs {
  void* pool;
  int64_t num_layers, layer_bytes;  // bytes from a layer to the next
  int64_t page_bytes;               // bytes from a page to the next
  int64_t copy_bytes;               // how much of the page is copied
  int64_t source, target;
};
void copy_page(const PageCopyArgs& args);

}  // namespace radix
