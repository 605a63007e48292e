#include "tiles.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace radix {
namespace {

constexpr int64_t kUnit = 64;  // key positions that a kernel takes at once, at most

int64_t up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Rows of the sorted table that share the pages [start, end).
struct Run {
  int64_t first, last;  // rows [first, last) in the sorted order
  int64_t start, end;
};

// Tokens that see the same keys [start, end) through pages from `page` on.
struct Work {
  int64_t page, start, end;
};

struct Works {
  Ints tokens;  // [n, slots]
  std::vector<Work> spans;

  void add(const int32_t* members, int64_t num, int64_t slots, Work span) {
    tokens.insert(tokens.end(), members, members + num);
    tokens.insert(tokens.end(), slots - num, -1);
    spans.push_back(span);
  }
};

// Where works are cut: piece i is of work `which[i]` and begins `offset[i]` keys into it.
struct Pieces {
  std::vector<int64_t> which, offset;
  Ints share_start;
};

// Every maximal run of sorted rows whose neighbours have pages in common: the intervals of a
// longest-common-prefix array (Abouelhoda et al., 2004), from the outside in.
std::vector<Run> runs_of(const std::vector<int64_t>& common, int64_t min_pages) {
  std::vector<Run> runs;
  struct Open {
    int64_t first, last, start;
  };
  std::vector<Open> pending{{0, static_cast<int64_t>(common.size()) + 1, 0}};
  while (!pending.empty()) {
    const Open open = pending.back();
    pending.pop_back();
    if (open.last - open.first < 2) continue;
    const auto inner = common.begin() + open.first;
    const int64_t num = open.last - open.first - 1;
    const int64_t depth = *std::min_element(inner, inner + num);
    const int64_t end = depth - open.start >= min_pages ? depth : open.start;
    if (end > open.start) runs.push_back({open.first, open.last, open.start, end});
    int64_t begin = open.first;
    for (int64_t i = 0; i < num; ++i) {
      if (inner[i] != depth) continue;
      pending.push_back({begin, open.first + i + 1, end});
      begin = open.first + i + 1;
    }
    pending.push_back({begin, open.last, end});
  }
  return runs;
}

// Works laid end to end, cut into equal shares; a cut that would leave next to nothing of a work on
// one side falls to its edge.
Pieces cut(const std::vector<int64_t>& lens, int64_t shares, int64_t unit, int64_t tile_cost) {
  const auto num_works = static_cast<int64_t>(lens.size());
  std::vector<int64_t> through(lens.size());
  int64_t total = 0;
  for (int64_t i = 0; i < num_works; ++i) {
    total += lens[i] + tile_cost;
    through[i] = total;
  }
  const int64_t step = std::max(unit, up(total, shares));
  const int64_t least = std::max(unit / 4, step / 8);
  struct Cut {
    int64_t work, offset;
    bool operator==(const Cut& other) const {
      return work == other.work && offset == other.offset;
    }
  };
  std::vector<Cut> cuts;
  int64_t at = 0;
  for (int64_t bound = step; bound < total; bound += step) {
    while (through[at] <= bound) ++at;
    // How far the bound is into the work's keys; before them where it is within what it costs to
    // begin.
    const int64_t keys = std::max<int64_t>(0, bound - (through[at] - lens[at]));
    int64_t inside = (keys + unit / 2) / unit * unit;
    if (inside < least) inside = 0;
    Cut found{at, inside};
    if (inside > lens[at] - least) found = {at + 1, 0};
    const bool is_edge = (found.work == 0 && found.offset == 0) || found.work >= num_works;
    if (!is_edge && (cuts.empty() || !(cuts.back() == found))) cuts.push_back(found);
  }
  Pieces pieces;
  pieces.share_start.push_back(0);
  size_t next = 0;
  for (int64_t work = 0; work < num_works; ++work) {
    const auto add = [&](int64_t offset) {
      if (next < cuts.size() && cuts[next] == Cut{work, offset}) {
        pieces.share_start.push_back(static_cast<int32_t>(pieces.which.size()));
        ++next;
      }
      pieces.which.push_back(work);
      pieces.offset.push_back(offset);
    };
    add(0);
    while (next < cuts.size() && cuts[next].work == work) add(cuts[next].offset);
  }
  pieces.share_start.resize(shares + 1, static_cast<int32_t>(pieces.which.size()));
  return pieces;
}

// Each work in equal pieces of about `most` keys at most, in order.
Pieces equal_pieces(const std::vector<int64_t>& lens, int64_t unit, int64_t most) {
  Pieces pieces;
  for (size_t work = 0; work < lens.size(); ++work) {
    const int64_t each = up(lens[work], up(lens[work], most) * unit) * unit;
    for (int64_t offset = 0; offset < lens[work]; offset += each) {
      pieces.which.push_back(static_cast<int64_t>(work));
      pieces.offset.push_back(offset);
    }
  }
  return pieces;
}

// The least number of keys, in whole units, of which works have no more pieces than `shares`; 0 if
// that is clearly more than an equal `share` is.
int64_t even(const std::vector<int64_t>& lens, int64_t shares, int64_t unit, int64_t share,
             int64_t percent) {
  for (int64_t most = up(share, unit) * unit; 100 * most <= (100 + percent) * share; most += unit) {
    int64_t num = 0;
    for (int64_t length : lens) num += up(length, most);
    if (num <= shares) return most;
  }
  return 0;
}

// Where shares begin if pieces of such cost are dealt out in order.
Ints dealt(const std::vector<int64_t>& cost, int64_t shares) {
  const auto num = static_cast<int64_t>(cost.size());
  const int64_t total = std::max<int64_t>(1, std::accumulate(cost.begin(), cost.end(), int64_t{0}));
  Ints share_start;
  int64_t before = 0, share = 0;
  for (int64_t i = 0; i < num; ++i) {
    before += cost[i];
    const int64_t mine = (before - cost[i] / 2) * std::min(shares, num) / total;
    for (; share <= mine; ++share) share_start.push_back(static_cast<int32_t>(i));
  }
  share_start.resize(shares + 1, static_cast<int32_t>(num));
  return share_start;
}

// How tiles of one kind are cut and dealt out.
struct Sharing {
  int64_t slots, shares;
  bool queue;
  int64_t least;  // key positions of a piece, where shares would be of fewer
};

TileArrays shared_out(const Works& works, const Sharing& sharing, const TileBatch& batch,
                      const TileOptions& options) {
  const int64_t page_size = batch.page_size, shares = sharing.shares;
  // In whole pages, so that a tile begins with a page, and in whole blocks of keys.
  int64_t unit = kUnit;  // not std::lcm: GCC 12.2 makes -64 of 64 and 16
  while (unit % page_size) unit += kUnit;
  std::vector<int64_t> lens;
  int64_t total = 0;
  for (const Work& work : works.spans) {
    lens.push_back(work.end - work.start / page_size * page_size);
    total += lens.back() + options.tile_cost;
  }
  const bool is_dealt = total < shares * sharing.least;
  int64_t most = sharing.least;
  if (sharing.queue)
    most = std::max(unit, up(options.queued_quarters * total, 4 * shares));
  else if (!is_dealt)
    most = even(lens, shares, unit, std::max(unit, up(total, shares)), options.even_percent);
  Pieces pieces =
      most ? equal_pieces(lens, unit, most) : cut(lens, shares, unit, options.tile_cost);

  struct Piece {
    int64_t which, offset, begin, end;
  };
  std::vector<Piece> order;
  std::vector<int64_t> cost;
  const auto num = static_cast<int64_t>(pieces.which.size());
  for (int64_t i = 0; i < num; ++i) {
    const int64_t which = pieces.which[i], offset = pieces.offset[i];
    const Work& work = works.spans[which];
    const int64_t base = work.start / page_size * page_size;
    const bool is_last = i + 1 == num || pieces.which[i + 1] != which;
    const int64_t end = is_last ? work.end : base + pieces.offset[i + 1];
    order.push_back({which, offset, std::max(work.start, base + offset), end});
    cost.push_back(end - base - offset + options.tile_cost);
  }
  TileArrays tiles;
  if (sharing.queue) {
    std::stable_sort(order.begin(), order.end(), [](const Piece& a, const Piece& b) {
      return a.end - a.begin > b.end - b.begin;
    });
    tiles.share_start = {0, static_cast<int32_t>(num)};
  } else if (is_dealt) {
    tiles.share_start = dealt(cost, shares);
  } else if (most) {
    for (int64_t share = 0; share <= shares; ++share)
      tiles.share_start.push_back(static_cast<int32_t>(std::min(share, num)));
  } else {
    tiles.share_start = std::move(pieces.share_start);
  }
  tiles.tokens.reserve(num * sharing.slots);
  for (const Piece& piece : order) {
    const auto members = works.tokens.begin() + piece.which * sharing.slots;
    tiles.tokens.insert(tiles.tokens.end(), members, members + sharing.slots);
    tiles.page.push_back(
        static_cast<int32_t>(works.spans[piece.which].page + piece.offset / page_size));
    tiles.kv_start.push_back(static_cast<int32_t>(piece.begin));
    tiles.kv_end.push_back(static_cast<int32_t>(piece.end));
  }
  tiles.partial.assign(tiles.tokens.size(), -1);
  return tiles;
}

// Gives every (tile, token) of a token with several tiles its place among the partial results.
void number_partials(int64_t num_tokens, TilePlan& plan) {
  Ints counts(num_tokens, 0), next(num_tokens, -1);
  for (const TileArrays* tiles : {&plan.small, &plan.large})
    for (int32_t token : tiles->tokens)
      if (token >= 0) ++counts[token];
  plan.merge_start.push_back(0);
  for (int64_t token = 0; token < num_tokens; ++token) {
    if (counts[token] < 2) continue;
    next[token] = plan.merge_start.back();
    plan.merge_token.push_back(static_cast<int32_t>(token));
    plan.merge_start.push_back(next[token] + counts[token]);
  }
  for (TileArrays* tiles : {&plan.small, &plan.large})
    for (size_t i = 0; i < tiles->tokens.size(); ++i) {
      const int32_t token = tiles->tokens[i];
      if (token >= 0 && next[token] >= 0) tiles->partial[i] = next[token]++;
    }
  plan.num_partials = plan.merge_start.back();
}

}  // namespace

TilePlan plan_tiles(const TileBatch& batch, const TileOptions& options) {
  const int64_t page_size = batch.page_size, window = options.window;
  const auto pages_of = [&](int64_t row) { return batch.page_table + row * batch.table_width; };
  const auto query_len = [&](int64_t row) {
    return batch.query_start[row + 1] - batch.query_start[row];
  };
  std::vector<int64_t> decoding;
  for (int64_t row = 0; row < batch.rows; ++row)
    if (query_len(row) == 1) decoding.push_back(row);

  TilePlan plan;
  const auto add_pages = [&](int64_t row, int64_t first, int64_t end) {
    const auto begin = static_cast<int64_t>(plan.pages.size());
    if (end > first) plan.pages.insert(plan.pages.end(), pages_of(row) + first, pages_of(row) + end);
    return begin;
  };

  // Groups: decoding rows in the order of their tables, and what neighbours have in common.
  const auto num_decoding = static_cast<int64_t>(decoding.size());
  std::vector<int64_t> order(decoding);
  std::vector<Run> runs;
  if (options.group && window == 0 && num_decoding > 1) {
    const size_t row_bytes = batch.table_width * sizeof(int32_t);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return std::memcmp(pages_of(a), pages_of(b), row_bytes) < 0;
    });
    std::vector<int64_t> common(num_decoding - 1);
    int64_t most = 0;
    for (int64_t i = 0; i + 1 < num_decoding; ++i) {
      const int32_t *a = pages_of(order[i]), *b = pages_of(order[i + 1]);
      const int64_t full =
          std::min(batch.kv_lens[order[i]], batch.kv_lens[order[i + 1]]) / page_size;
      common[i] = std::mismatch(a, a + full, b).first - a;
      most = std::max(most, common[i]);
    }
    const int64_t min_pages = std::max<int64_t>(1, options.min_run_tokens / page_size);
    if (most >= min_pages) runs = runs_of(common, min_pages);
  }
  std::vector<int64_t> own_start(batch.rows, 0);
  Works small, large;
  std::vector<int64_t> run_pages;
  for (const Run& run : runs) run_pages.push_back(add_pages(order[run.first], run.start, run.end));
  for (size_t i = 0; i < runs.size(); ++i) {
    const Run& run = runs[i];
    const bool is_small = run.last - run.first <= options.small_slots;
    const int64_t slots = is_small ? options.small_slots : options.large_slots;
    const Work span{run_pages[i], run.start * page_size, run.end * page_size};
    Ints tokens;
    for (int64_t at = run.first; at < run.last; ++at) {
      own_start[order[at]] = std::max(own_start[order[at]], span.end);
      tokens.push_back(batch.query_start[order[at]]);
      if (static_cast<int64_t>(tokens.size()) < slots && at + 1 < run.last) continue;
      const auto num = static_cast<int64_t>(tokens.size());
      (is_small ? small : large).add(tokens.data(), num, slots, span);
      tokens.clear();
    }
  }

  for (int64_t row : decoding) {
    const int64_t end = batch.kv_lens[row];
    if (own_start[row] >= end) continue;  // of no keys, or all of them shared
    const int64_t first = window ? std::max(own_start[row], end - window) : own_start[row];
    const int64_t page = add_pages(row, first / page_size, up(end, page_size));
    small.add(batch.query_start + row, 1, options.small_slots, {page, first, end});
  }

  bool has_prompts = false;
  for (int64_t row = 0; row < batch.rows; ++row) {
    const int64_t num = query_len(row), past = batch.kv_lens[row] - num;
    if (num < 2) continue;
    has_prompts = true;
    const int64_t skipped = window ? std::max<int64_t>(0, past - window + 1) / page_size : 0;
    const int64_t page = add_pages(row, skipped, up(batch.kv_lens[row], page_size));
    Ints tokens(num);
    std::iota(tokens.begin(), tokens.end(), batch.query_start[row]);
    for (int64_t begin = 0; begin < num; begin += options.large_slots) {
      const int64_t stop = std::min(begin + options.large_slots, num);
      const int64_t first = window ? std::max<int64_t>(0, past + begin - window + 1) : 0;
      large.add(tokens.data() + begin, stop - begin, options.large_slots,
                {page + first / page_size - skipped, first, past + stop});
    }
  }

  plan.small = shared_out(
      small, {options.small_slots, options.small_shares, options.queue, 0}, batch, options);
  plan.large = shared_out(large,
                          {options.large_slots, options.large_shares, false,
                           has_prompts ? options.min_prompt_keys : 0},
                          batch, options);
  number_partials(batch.rows ? batch.query_start[batch.rows] : 0, plan);
  return plan;
}

}  // namespace radix
