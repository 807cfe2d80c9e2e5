// The experts' nonlinearity [V4 4.10.4].
#pragma once

#include <metal_stdlib>

/// silu(min(g, clamp)) * clip(u, +-clamp) * weight; clamp 0 is none. NaN goes through.
static inline float swiglu(float g, float u, float clamp, float weight) {
  if (clamp > 0) {
    g = g > clamp ? clamp : g;
    u = u > clamp ? clamp : u < -clamp ? -clamp : u;
  }
  return g / (1.f + metal::precise::exp(-g)) * u * weight;
}
