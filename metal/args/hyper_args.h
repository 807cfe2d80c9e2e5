// Arguments of metal/hyper_connection.metal.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

namespace grebe {

struct HyperArgs {
  uint64_t fn_row_bytes;
  uint32_t n;        ///< tokens
  uint32_t hidden;   ///< channels of a stream
  uint32_t segment;  ///< channels of a segment: a stream, or all streams in one
  uint32_t n_mixes;  ///< rows of fn
  uint32_t n_chunks;
  uint32_t sinkhorn_iters;
  float hc_eps;
  float rms_eps;
};
static_assert(sizeof(HyperArgs) == 40, "as on the other side");

/// The same mixing at the end of the product that makes y; see hyper_update.h.
struct StreamUpdateArgs {
  uint32_t hidden, n_mixes, n_chunks, padding;
};
static_assert(sizeof(StreamUpdateArgs) == 16, "as on the other side");

}  // namespace grebe
