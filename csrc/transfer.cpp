#include "transfer.h"

#include <algorithm>
#include <array>
#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace radix {
namespace {

// From here on what is written would push itself and everything else out of the caches.
constexpr int64_t kStreamBytes = 1 << 20;

// How far ahead of the copy lines are fetched.
constexpr int64_t kAheadBytes = 512;

struct Chunk {
  char *target, *source;
};
// The keys and the values of a layer's page.
using Pair = std::array<Chunk, 2>;

#if defined(__SSE2__)
constexpr bool kHasStream = true;

void stream_line(char* target, const char* source) {
  const auto* from = reinterpret_cast<const __m128i*>(source);
  auto* to = reinterpret_cast<__m128i*>(target);
  const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
  const __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
  _mm_stream_si128(to, a);
  _mm_stream_si128(to + 1, b);
  _mm_stream_si128(to + 2, c);
  _mm_stream_si128(to + 3, d);
}

// Copies the two chunks of a pair side by side: the latencies of two places in memory overlap. Pairs
// lie apart, where no hardware prefetcher looks: while the ends of this one are copied, the
// beginnings of the next are fetched.
void stream(const Pair& now, const Pair& next, int64_t bytes) {
  const int64_t ahead = std::min(kAheadBytes, bytes), turn = bytes - ahead;
  for (int64_t at = 0; at < turn; at += 64) {
    for (const Chunk& chunk : now) {
      _mm_prefetch(chunk.source + at + ahead, _MM_HINT_NTA);
      stream_line(chunk.target + at, chunk.source + at);
    }
  }
  for (int64_t at = turn; at < bytes; at += 64) {
    for (int half = 0; half < 2; ++half) {
      _mm_prefetch(next[half].source + at - turn, _MM_HINT_NTA);
      stream_line(now[half].target + at, now[half].source + at);
    }
  }
}

void stream_fence() { _mm_sfence(); }
#else
constexpr bool kHasStream = false;
void stream(const Pair&, const Pair&, int64_t) {}
void stream_fence() {}
#endif

bool is_aligned(const void* pointer, int64_t to) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(to) == 0;
}

}  // namespace

void move_pages(const MovePagesArgs& args) {
  const int64_t chunk = args.chunk_bytes;
  const int64_t layers = args.last_layer - args.first_layer;
  const bool streams = kHasStream && 2 * chunk * layers * args.num_pages >= kStreamBytes &&
                       chunk % 64 == 0 && is_aligned(args.host, 16) && is_aligned(args.keys, 16) &&
                       is_aligned(args.values, 16) && args.page_bytes % 16 == 0 &&
                       args.layer_bytes % 16 == 0 && args.host_page_bytes % 16 == 0;
  // The order in which they are moved: of each page each layer.
  const auto pair_of = [&](int64_t i) -> Pair {
    const int64_t page = i / layers, layer = args.first_layer + i % layers;
    char* host = args.host + args.host_pages[page] * args.host_page_bytes + 2 * layer * chunk;
    const int64_t at = layer * args.layer_bytes + args.pages[page] * args.page_bytes;
    char *keys = args.keys + at, *values = args.values + at;
    if (args.to_host) return {Chunk{host, keys}, Chunk{host + chunk, values}};
    return {Chunk{keys, host}, Chunk{values, host + chunk}};
  };
  const int64_t total = layers * args.num_pages;
  if (total == 0) return;
  Pair now = pair_of(0);
  for (int64_t i = 0; i < total; ++i) {
    const Pair next = i + 1 < total ? pair_of(i + 1) : now;
    if (streams) {
      stream(now, next, chunk);
    } else {
      for (const Chunk& half : now) {
        std::memcpy(half.target, half.source, static_cast<size_t>(chunk));
      }
    }
    now = next;
  }
  if (streams) stream_fence();
}

}  // namespace radix
