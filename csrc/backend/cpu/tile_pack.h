// Tiles of x: [blocks] of { i32 q[kQuads][n], f32 d[n], i32 extra[kExtras][n] }, four values of q
// in each i32.
#pragma once

#include "backend/cpu/kernels.h"

namespace grebe::cpu::GREBE_ISA {

/// extra(sums, i) makes the i-th extra value of a row from its sums of 16.
template <int kQuads, int kExtras, class Extra>
void pack_tile_with(const ActRow* x, int n, int64_t n_in, uint8_t* tile, Extra extra) {
  constexpr int64_t kBlockBytes = 4 * (kQuads + 1 + kExtras);
  for (int64_t b = 0; b < n_in / (4 * kQuads); b++) {
    int32_t* const codes = reinterpret_cast<int32_t*>(tile + b * n * kBlockBytes);
    int32_t* const d = codes + kQuads * n;
    for (int t = 0; t < n; t++) {
      const int8_t* q = x[t].q + b * 4 * kQuads;
      for (int i = 0; i < kQuads; i++) std::memcpy(&codes[i * n + t], q + 4 * i, 4);
      std::memcpy(&d[t], &x[t].d[b], 4);
      const int16_t* sums = x[t].sums + b * (kQuads / 4);
      for (int i = 0; i < kExtras; i++) d[(1 + i) * n + t] = extra(sums, i);
    }
  }
}

inline int32_t pair_i16(int lo, int hi) {
  return static_cast<int32_t>(static_cast<uint32_t>(lo & 0xffff) | static_cast<uint32_t>(hi) << 16);
}

}  // namespace grebe::cpu::GREBE_ISA
