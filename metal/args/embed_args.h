#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

namespace grebe {

/// Rows of the embedding table, copied to each stream.
struct EmbedArgs {
  uint64_t row_bytes;
  uint32_t n_in, n_rows, n_streams, scale_stride;
};
static_assert(sizeof(EmbedArgs) == 24, "as on the other side");

}  // namespace grebe
