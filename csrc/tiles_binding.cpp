// Python's side of the tile plan: checks, and arrays that own their memory.
#include "tiles_binding.h"

#include <nanobind/ndarray.h>

#include <string>

#include "tensors.h"
#include "tiles.h"

namespace nb = nanobind;

namespace radix {
namespace {

using Array1 = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Array2 = nb::ndarray<const int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

nb::object array(Ints&& values, int64_t columns = 0) {
  auto* owned = new Ints(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<Ints*>(p); });
  const size_t size = owned->size();
  const size_t shape[2] = {columns ? size / columns : size, static_cast<size_t>(columns)};
  return nb::cast(nb::ndarray<nb::numpy, int32_t>(owned->data(), columns ? 2 : 1, shape, owner));
}

nb::tuple arrays(TileArrays&& tiles, int64_t slots) {
  return nb::make_tuple(array(std::move(tiles.tokens), slots), array(std::move(tiles.page)),
                        array(std::move(tiles.kv_start)), array(std::move(tiles.kv_end)),
                        array(std::move(tiles.partial), slots),
                        array(std::move(tiles.share_start)));
}

void expect(bool holds, const char* argument, int64_t value, const char* way_out) {
  if (!holds) throw ArgumentError(argument, std::to_string(value), way_out);
}

nb::tuple plan(const Array1& query_start, const Array1& kv_lens, const Array2& page_table,
               int64_t page_size, int64_t small_slots, int64_t large_slots, int64_t small_shares,
               int64_t large_shares, int64_t window, bool group, bool queue,
               int64_t min_run_tokens, int64_t min_prompt_keys, int64_t even_percent,
               int64_t queued_quarters, int64_t tile_cost) {
  const auto rows = static_cast<int64_t>(kv_lens.shape(0));
  const auto width = static_cast<int64_t>(page_table.shape(1));
  expect(static_cast<int64_t>(query_start.shape(0)) == rows + 1, "query_start",
         static_cast<int64_t>(query_start.shape(0)), "must have one entry more than kv_lens");
  expect(static_cast<int64_t>(page_table.shape(0)) == rows, "page_table",
         static_cast<int64_t>(page_table.shape(0)), "must have kv_lens' rows");
  for (const auto& [name, value] : {std::pair{"page_size", page_size}, {"small_slots", small_slots},
                                    {"large_slots", large_slots}, {"small_shares", small_shares},
                                    {"large_shares", large_shares}})
    expect(value > 0, name, value, "must be positive");
  expect(rows == 0 || query_start.data()[0] == 0, "query_start", rows, "must begin with 0");
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t num = query_start.data()[row + 1] - query_start.data()[row];
    const int64_t length = kv_lens.data()[row];
    expect(num >= 0, "query_start", query_start.data()[row + 1], "must ascend");
    const bool is_nobodys = length == 0 && num == 1;
    expect(is_nobodys || (length >= num && length <= width * page_size), "kv_lens", length,
           "must hold the row's new tokens and fit its pages");
  }
  TilePlan made = plan_tiles(
      {rows, query_start.data(), kv_lens.data(), page_table.data(), width, page_size},
      {small_slots, large_slots, small_shares, large_shares, window, group, queue, min_run_tokens,
       min_prompt_keys, even_percent, queued_quarters, tile_cost});
  return nb::make_tuple(arrays(std::move(made.small), small_slots),
                        arrays(std::move(made.large), large_slots),
                        array(std::move(made.merge_token)), array(std::move(made.merge_start)),
                        made.num_partials, array(std::move(made.pages)));
}

}  // namespace

void bind_tiles(nb::module_& module) {
  module.def("plan_tiles", &plan, nb::arg("query_start"), nb::arg("kv_lens"),
             nb::arg("page_table"), nb::arg("page_size"), nb::arg("small_slots"),
             nb::arg("large_slots"), nb::arg("small_shares"), nb::arg("large_shares"),
             nb::arg("window"), nb::arg("group"), nb::arg("queue"), nb::arg("min_run_tokens"),
             nb::arg("min_prompt_keys"), nb::arg("even_percent"), nb::arg("queued_quarters"),
             nb::arg("tile_cost"));
}

}  // namespace radix
