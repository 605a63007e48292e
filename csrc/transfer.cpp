#include "transfer.h"

#include <cstring>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace radix {
namespace {

// From here on what is written would push itself and everything else out of the caches.
constexpr int64_t kStreamBytes = 4 << 20;

#if defined(__SSE2__)
constexpr bool kHasStream = true;

void stream(char* target, const char* source, int64_t bytes) {
  for (int64_t at = 0; at < bytes; at += 64) {
    _mm_prefetch(source + at + 512, _MM_HINT_NTA);
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
void stream(char* target, const char* source, int64_t bytes) {
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
  const auto copy = [&](char* target, const char* source) {
    if (streams) {
      stream(target, source, chunk);
    } else {
      std::memcpy(target, source, static_cast<size_t>(chunk));
    }
  };
  for (int64_t i = 0; i < args.num_pages; ++i) {
    char* host = args.host + args.host_pages[i] * args.host_page_bytes;
    for (int64_t layer = args.first_layer; layer < args.last_layer; ++layer) {
      const int64_t at = layer * args.layer_bytes + args.pages[i] * args.page_bytes;
      char* host_key = host + 2 * layer * chunk;
      char* host_value = host_key + chunk;
      if (args.to_host) {
        copy(host_key, args.keys + at);
        copy(host_value, args.values + at);
      } else {
        copy(args.keys + at, host_key);
        copy(args.values + at, host_value);
      }
    }
  }
  if (streams) stream_fence();
}

}  // namespace radix
