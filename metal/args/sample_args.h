// Arguments of metal/sample.metal.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

namespace grebe {

struct TopKArgs {
  uint32_t n;  ///< candidates of all threadgroups
  uint32_t k;
};
static_assert(sizeof(TopKArgs) == 8, "as on the other side");

}  // namespace grebe
