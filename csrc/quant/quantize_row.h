// The per-ISA entry point of the quantizers: one row to blocks.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace grebe::quant {

/// x and w: n floats, finite, w > 0. `scratch`: scratch_floats() of the caller's thread.
using RowFn = void (*)(const float* x, const float* w, int64_t n, uint8_t* out, float* scratch);

/// Largest scratch that any type needs: products of a block of IQ2_S with every grid entry.
inline constexpr int64_t kScratchFloats = 2 * 32 * 1024;

#define GREBE_DECLARE_(isa)  \
  namespace isa {            \
  RowFn row_fn(DType dtype); \
  }
GREBE_DECLARE_(generic)
GREBE_DECLARE_(avx2)
GREBE_DECLARE_(avx512)
#undef GREBE_DECLARE_

}  // namespace grebe::quant
