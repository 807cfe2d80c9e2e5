// Where everything of a session's KV state lies, computed once per model.
//
// A history block holds what 512 tokens leave behind for good, in two pieces of memory: `keys`,
// which every decoded token reads (index rows, and the rows of ratio 128), and `rows`, of which a
// token reads the few that the index chose (rows of ratio 4, nine tenths of the bytes). Keys are
// always resident; rows may be on disk only.
#pragma once

#include <cstdint>
#include <vector>

#include "backend/backend.h"
#include "model/config.h"

namespace grebe {

constexpr int32_t kBlockTokens =
    512;  // a multiple of both compression ratios: a full block never changes again
constexpr int32_t kCheckpointTokens =
    128;  // checkpoints lie at multiples of this: ratio-128 pooling is empty there

/// Offsets in bytes.
struct KvLayout {
  struct Layer {
    int32_t ratio = 0;
    int32_t k = 0;                                   // its place among the layers of that ratio
    int64_t kv_offset = 0;                           // ratio 4: in rows, ratio 128: in keys
    int64_t index_offset = 0;                        // in keys
    int64_t ring_offset = 0;                         // in the ring memory
    int64_t pool_offset = 0, index_pool_offset = 0;  // in the pool memory, in floats
    PoolShape pool, index_pool;
  };
  KvRowFormat kv;
  IndexRowFormat index;
  int32_t window_size = 0;
  std::vector<Layer> layers;
  std::vector<int32_t> layers_4, layers_128;  // numbers of the layers with that ratio
  int64_t keys_bytes = 0, rows_bytes = 0;     // of a block
  int64_t ring_bytes = 0;
  int64_t pool_floats = 0;

  KvLayout(const ModelConfig& config, bool rounding, bool exact);
  uint64_t pool_bytes() const { return sizeof(float) * pool_floats; }
  uint64_t block_bytes() const { return keys_bytes + rows_bytes; }
  /// Fills pooling triples with what they are where nothing has been pooled.
  void clear_pools(float* pools) const;
};

}  // namespace grebe
