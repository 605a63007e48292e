#include "transfer.h"

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace radix {
namespace {

// From here on what is written would push itself and everything else out of the caches.
constexpr int64_t kStreamBytes = 1 << 20;

#if defined(__SSE2__)
constexpr bool kHasStream = true;

// Chunks lie apart, where no hardware prefetcher looks: the next one is fetched a line at a time
// while this one is copied, and the first line of each of its pages is touched for the TLB.
void stream(char* target, const char* source, int64_t bytes, char* next_target,
            const char* next_source) {
  for (int64_t at = 0; at < bytes; at += 64) {
    _mm_prefetch(next_source + at, _MM_HINT_NTA);
    if (at % 4096 == 0) _mm_prefetch(next_target + at, _MM_HINT_NTA);
    const auto* from = reinterpret_cast<const __m128i*>(source + at);
    auto* to = reinterpret_cast<__m128i*>(target + at);
    const __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
    const __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
    _mm_stream_si128(to, a);
    _mm_stream_si128(to + 1, b);
    _mm_stream_si128(to + 2, c);
    _mm_stream_si128(to + 3, d);
  }
}

void stream_fence() { _mm_sfence(); }
#else
constexpr bool kHasStream = false;
void stream(char* target, const char* source, int64_t bytes, char*, const char*) {
  std::memcpy(target, source, static_cast<size_t>(bytes));
}
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
  // The chunks in the order in which they are moved: of each page each layer's keys, then values.
  struct Chunk {
    char *target, *source;
  };
  const auto chunk_of = [&](int64_t i) -> Chunk {
    const int64_t page = i / (2 * layers), half = i % 2;
    const int64_t layer = args.first_layer + i / 2 % layers;
    char* host = args.host + args.host_pages[page] * args.host_page_bytes +
                 (2 * layer + half) * chunk;
    char* here = (half ? args.values : args.keys) + layer * args.layer_bytes +
                 args.pages[page] * args.page_bytes;
    return args.to_host ? Chunk{host, here} : Chunk{here, host};
  };
  const int64_t total = 2 * layers * args.num_pages;
  if (total == 0) return;
  Chunk now = chunk_of(0);
  for (int64_t i = 0; i < total; ++i) {
    const Chunk next = i + 1 < total ? chunk_of(i + 1) : now;
    if (streams) {
      stream(now.target, now.source, chunk, next.target, next.source);
    } else {
      std::memcpy(now.target, now.source, static_cast<size_t>(chunk));
    }
    now = next;
  }
  if (streams) stream_fence();
}

}  // namespace radix
