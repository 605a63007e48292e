#pragma once

#include <nanobind/nanobind.h>

namespace radix {

void bind_tiles(nanobind::module_& module);

}  // namespace radix
