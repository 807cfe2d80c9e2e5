#include "session/kv_layout.h"

#include <algorithm>
#include <cmath>

namespace grebe {

KvLayout::KvLayout(const ModelConfig& c, bool rounding, bool exact) {
  kv.head_dim = c.head_dim;
  kv.rope_dim = c.rope_dim;
  kv.kind = !rounding ? KvRowFormat::Kind::kF32
            : exact   ? KvRowFormat::Kind::kPackedF32
                      : KvRowFormat::Kind::kPackedBf16;
  index.packed = rounding;
  index.dim = c.index_head_dim;
  window_size = c.window_size;
  for (int32_t i = 0; i < c.n_layers; i++) {
    Layer l;
    l.ratio = c.compress_ratios[i];
    l.ring_offset = ring_bytes;
    ring_bytes += window_size * kv.row_bytes();
    if (l.ratio != 0) {
      int64_t& bytes = l.ratio == 4 ? rows_bytes : keys_bytes;
      l.kv_offset = bytes;
      bytes += kBlockTokens / l.ratio * kv.row_bytes();
      std::vector<int32_t>& same = l.ratio == 4 ? layers_4 : layers_128;
      l.k = static_cast<int32_t>(same.size());
      same.push_back(i);
      l.pool = {l.ratio, c.head_dim};
      l.pool_offset = pool_floats;
      pool_floats += l.pool.n_floats();
    }
    if (l.ratio == 4) {
      l.index_offset = keys_bytes;
      keys_bytes += (kBlockTokens / l.ratio * index.row_bytes() + 7) / 8 * 8;
      l.index_pool = {l.ratio, c.index_head_dim};
      l.index_pool_offset = pool_floats;
      pool_floats += l.index_pool.n_floats();
    }
    layers.push_back(l);
  }
}

void KvLayout::clear_pools(float* pools) const {
  const auto clear = [&](int64_t offset, const PoolShape& shape) {
    for (float* part = pools + offset; part < pools + offset + shape.n_floats();
         part += 3 * shape.dim) {
      std::fill_n(part, shape.dim, -INFINITY);
      std::fill_n(part + shape.dim, 2 * shape.dim, 0.f);
    }
  };
  for (const Layer& l : layers) {
    if (l.ratio != 0) clear(l.pool_offset, l.pool);
    if (l.ratio == 4) clear(l.index_pool_offset, l.index_pool);
  }
}

}  // namespace grebe
