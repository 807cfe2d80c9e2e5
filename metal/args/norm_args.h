// Arguments of metal/norm.metal.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

namespace grebe {

struct RmsNormArgs {
  uint32_t width;
  float eps;
};
static_assert(sizeof(RmsNormArgs) == 8, "as on the other side");

struct QNormRopeArgs {
  uint32_t n_heads;    ///< of a token
  uint32_t n_vectors;  ///< heads of all tokens
  uint32_t head_dim;
  uint32_t half_dim;  ///< pairs that are rotated
  float eps;
};
static_assert(sizeof(QNormRopeArgs) == 20, "as on the other side");

}  // namespace grebe
