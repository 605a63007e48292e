// Moving pages between the pools of keys and values and a pool that keeps a page in one piece. Byte
// moves: one build serves every instruction set.
#pragma once

#include <cstdint>

namespace radix {

struct MovePagesArgs {
  // [num_layers, pages, page]: a layer's page is `chunk_bytes` long in each of the two.
  char *keys, *values;
  int64_t layer_bytes, page_bytes;  // from a layer to the next, from a page to the next
  // [pages, num_layers, keys and values, page]
  char* host;
  int64_t host_page_bytes;
  int64_t chunk_bytes;
  int64_t first_layer, last_layer;  // [first, last) is moved
  const int32_t *pages, *host_pages;
  int64_t num_pages;
  bool to_host;
};
void move_pages(const MovePagesArgs& args);

}  // namespace radix
