// Arguments of metal/route.metal and of kernels that route on the way.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

namespace grebe {

struct RouteArgs {
  uint32_t n;  ///< tokens
  uint32_t n_experts;
  uint32_t n_used;
  float scale;
};
static_assert(sizeof(RouteArgs) == 16, "as on the other side");

}  // namespace grebe
