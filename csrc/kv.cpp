#include "kv.h"

#include <algorithm>
#include <cstring>

namespace radix {
namespace {

int64_t size_of(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

void write_token(const Heads& from, const Pages& to, int64_t token, int64_t slot) {
  const int64_t size = size_of(from.dtype);
  const int64_t page = slot / to.page_size, offset = slot % to.page_size;
  const char* source = static_cast<const char*>(from.data) + token * from.token_stride * size;
  char* target =
      static_cast<char*>(to.data) + (page * to.page_stride + offset * to.slot_stride) * size;
  if (from.head_stride == from.dim && to.head_stride == to.dim) {
    std::memcpy(target, source, static_cast<size_t>(from.heads * from.dim * size));
    return;
  }
  for (int64_t head = 0; head < from.heads; ++head) {
    std::memcpy(target + head * to.head_stride * size, source + head * from.head_stride * size,
                static_cast<size_t>(from.dim * size));
  }
}

}  // namespace

void kv_write(const KvWriteArgs& args, ThreadPool& pool) {
  const int64_t tokens = args.key.tokens;
  constexpr int64_t kChunk = 64;
  parallel_for(pool, (tokens + kChunk - 1) / kChunk, [&](int64_t task) {
    const int64_t end = std::min(tokens, (task + 1) * kChunk);
    for (int64_t token = task * kChunk; token < end; ++token) {
      write_token(args.key, args.k_cache, token, args.slots[token]);
      write_token(args.value, args.v_cache, token, args.slots[token]);
    }
  });
}

void copy_page(const PageCopyArgs& args) {
  char* pool = static_cast<char*>(args.pool);
  for (int64_t layer = 0; layer < args.num_layers; ++layer, pool += args.layer_bytes) {
    std::memcpy(pool + args.target * args.page_bytes, pool + args.source * args.page_bytes,
                static_cast<size_t>(args.copy_bytes));
  }
}

}  // namespace radix
