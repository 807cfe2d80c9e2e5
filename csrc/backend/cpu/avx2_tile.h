// AVX2 tiles: 16 weight rows (one per lane of two registers) times a few rows of x.
//
// A panel holds codes as [k/4][16 rows][4], so two registers are 4 weights of each of 16 rows; a
// tile holds x as [k/4][n][4], so one 32-bit broadcast is the matching 4 values of a row of x. The
// multiplier is what runs out first: vpmaddubsw adds pairs of products into 16 bits, several of
// these are added while they fit, and one vpmaddwd by the scale of the group widens them.
//
//   layout      codes       products in a 16-bit sum                 types
//   k32         |q| <= 128   2: 2 * 128 * -128, signs moved to x     Q8_0, MXFP4
//   kScale16    q + 64       8: 8 * 32 * 127, the 64 taken off       Q3_K, Q6_K
//   kScale32    q + 64       4: 4 * 62 * 127, the 64 taken off       IQ2_XXS, IQ2_S, IQ3_XXS
//   kMins       q <= 31      8: 8 * 31 * 127                         Q2_K, Q5_K
//   kScaleMins  q <= 15     16: 16 * 15 * 127                        Q4_K
//
// Signed codes are stored plus 64 and the 16-bit sum starts from -64 * sum(x): it may wrap on the
// way, its end is exact.
//
// Moving the sign s = 0 or -1 to x as (x ^ s) - s would cost two operations; x ^ s alone leaves out
// |q| for every negative q, which does not depend on x and is in the panel (vpsignb does it in one,
// but on the multiplier's ports).
//
// Panel, per block: codes, f32 d[16], for k32 i32 sum of negative |q| [16]; with minima
// f32 dmin[16]; i16 scale[.][16][2] (twice the same), i16 min[.][16][2].
//
// Tile, per block: i32 q[.][n], f32 d[n], then i16 [.][n][2]: the start of each sum, or sums of x
// that go with the minima.
#pragma once

#include "backend/cpu/avx2_rows.h"
#include "backend/cpu/kernels.h"

namespace grebe::cpu::avx2 {

inline constexpr int kRows = 16, kMaxTile = 12;
inline constexpr int kCodeBias = 64;
// Weights of a panel that pass at a time: 16 rows of 512 are 10 KiB, which stay in L1 while all
// rows of x go by.
inline constexpr int64_t kPartWeights = 512;

// Groups of 4 weights in a block.
constexpr int layout_quads(TileLayout l) { return l == TileLayout::k32 ? 8 : 64; }
constexpr bool has_minima(TileLayout l) {
  return l == TileLayout::kMins || l == TileLayout::kScaleMins;
}
constexpr int n_scales(TileLayout l) {
  return l == TileLayout::k32 ? 0 : l == TileLayout::kScaleMins ? 8 : 16;
}
constexpr int sum_quads(TileLayout l) {
  return l == TileLayout::kScaleMins ? 8 : l == TileLayout::kScale32 ? 2 : 4;
}

// 32-bit values per row of x that follow the codes and d in a tile.
constexpr int tile_extras(TileLayout l) {
  return l == TileLayout::k32 ? 0
         : has_minima(l)      ? n_scales(l) / 2
                              : layout_quads(l) / sum_quads(l);
}
// 64-byte units that follow the codes in a panel.
constexpr int panel_extras(TileLayout l) {
  return l == TileLayout::k32 ? 2 : 1 + n_scales(l) + (has_minima(l) ? 1 + n_scales(l) / 2 : 0);
}

constexpr int64_t tile_block_bytes(TileLayout l) {
  return 4 * (layout_quads(l) + 1 + tile_extras(l));
}
constexpr int64_t panel_block_bytes(TileLayout l) {
  return 64 * (layout_quads(l) + panel_extras(l));
}

/// Where things lie in a panel block, in 64-byte units.
constexpr int panel_d(TileLayout l) { return layout_quads(l); }
constexpr int panel_scales(TileLayout l) { return layout_quads(l) + (has_minima(l) ? 2 : 1); }
constexpr int panel_mins(TileLayout l) { return panel_scales(l) + n_scales(l); }

/// -64 times the sums of the 16-bit pairs of 64 quads, over 2 or 4 of them: start[quads /
/// sum_quads].
template <int kSumQuads>
void bias_sums(const int8_t* q, int32_t* start) {
  for (int i = 0; i < 64 / kSumQuads; i += 8 / kSumQuads) {
    __m256i p = _mm256_maddubs_epi16(_mm256_set1_epi8(1), load256(q + 4 * kSumQuads * i));
    p = _mm256_add_epi16(p, _mm256_shuffle_epi32(p, 0xb1));
    if constexpr (kSumQuads == 4) p = _mm256_add_epi16(p, _mm256_shuffle_epi32(p, 0x4e));
    alignas(32) int32_t t[8];
    _mm256_store_si256(
        reinterpret_cast<__m256i*>(t), _mm256_mullo_epi16(p, _mm256_set1_epi16(-kCodeBias)));
    for (int j = 0; j < 8 / kSumQuads; j++) start[i + j] = t[kSumQuads * j];
  }
}

template <TileLayout L>
void pack_tile(const ActRow* x, int n, int64_t n_in, uint8_t* tile) {
  constexpr int kBlock = layout_quads(L) * 4, kExtras = tile_extras(L);
  for (int64_t b = 0; b < n_in / kBlock; b++) {
    int32_t* const codes = reinterpret_cast<int32_t*>(tile + b * n * tile_block_bytes(L));
    int32_t* const d = codes + layout_quads(L) * n;
    int32_t* const extra = d + n;
    for (int t = 0; t < n; t++) {
      const int8_t* q = x[t].q + b * kBlock;
      for (int i = 0; i < layout_quads(L); i++) std::memcpy(&codes[i * n + t], q + 4 * i, 4);
      std::memcpy(&d[t], &x[t].d[b], 4);
      [[maybe_unused]] const int16_t* sums = x[t].sums + b * (kBlock / 16);
      [[maybe_unused]] int32_t v[32];
      if constexpr (L == TileLayout::kMins) {
        std::memcpy(v, sums, 32);
      } else if constexpr (L == TileLayout::kScaleMins) {
        int16_t pairs[8];
        for (int i = 0; i < 8; i++) pairs[i] = static_cast<int16_t>(sums[2 * i] + sums[2 * i + 1]);
        std::memcpy(v, pairs, 16);
      } else if constexpr (kExtras > 0) {
        bias_sums<sum_quads(L)>(q, v);
      }
      for (int i = 0; i < kExtras; i++) extra[i * n + t] = v[i];
    }
  }
}

inline __m256i panel_load(const uint8_t* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}

// Sixteen lanes of T rows of y.
template <int T>
struct Accumulators {
  __m256 v[2][T];

  void load(const float* y, int64_t y_stride, int64_t n_rows, bool resume) {
    for (int t = 0; t < T; t++) {
      for (int h = 0; h < 2; h++) {
        v[h][t] = resume ? load_lanes(y + t * y_stride + 8 * h, static_cast<int>(n_rows) - 8 * h)
                         : _mm256_setzero_ps();
      }
    }
  }
  void store(float* y, int64_t y_stride, int64_t n_rows) const {
    for (int t = 0; t < T; t++)
      for (int h = 0; h < 2; h++)
        store_lanes(y + t * y_stride + 8 * h, v[h][t], static_cast<int>(n_rows) - 8 * h);
  }
};

template <int T>
void block32(const uint8_t* panel, const int32_t* q, int n, Accumulators<T>& acc) {
  const __m256i one = _mm256_set1_epi16(1), zero = _mm256_setzero_si256();
  const float* const d_x = reinterpret_cast<const float*>(q + 8 * n);
  __m256i isum[2][T];
  for (int h = 0; h < 2; h++)
    for (int t = 0; t < T; t++) isum[h][t] = panel_load(panel + 64 * 9 + 32 * h);
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++, q += n) {
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) {
      const __m256i w = panel_load(panel + 64 * i + 32 * h);
      const __m256i magnitude = _mm256_abs_epi8(w), sign = _mm256_cmpgt_epi8(zero, w);
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        const __m256i p =
            _mm256_maddubs_epi16(magnitude, _mm256_xor_si256(_mm256_set1_epi32(q[t]), sign));
        isum[h][t] = in_order(_mm256_add_epi32(isum[h][t], _mm256_madd_epi16(p, one)));
      }
    }
  }
#pragma GCC unroll 2
  for (int h = 0; h < 2; h++) {
    const __m256 d = _mm256_load_ps(reinterpret_cast<const float*>(panel + 64 * 8 + 32 * h));
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      acc.v[h][t] = _mm256_fmadd_ps(
          _mm256_mul_ps(d, _mm256_set1_ps(d_x[t])), _mm256_cvtepi32_ps(isum[h][t]), acc.v[h][t]);
    }
  }
}

template <TileLayout L, int T>
void block256(const uint8_t* panel, const int32_t* q, int n, Accumulators<T>& acc) {
  constexpr int kSum = sum_quads(L), kSumsPerScale = 64 / n_scales(L) / kSum;
  constexpr bool kMinima = has_minima(L);
  [[maybe_unused]] constexpr int kPairs = tile_extras(L);
  const float* const d_x = reinterpret_cast<const float*>(q + 64 * n);
  const int32_t* extra = q + 65 * n;
  const uint8_t* scales = panel + 64 * panel_scales(L);
  const uint8_t* w = panel;
  __m256i isum[2][T];
  for (int t = 0; t < T; t++) isum[0][t] = isum[1][t] = _mm256_setzero_si256();
  for (int g = 0; g < n_scales(L); g++, scales += 64) {
#pragma GCC unroll 2
    for (int s = 0; s < kSumsPerScale; s++) {
      __m256i sum[2][T];
#pragma GCC unroll 8
      for (int i = 0; i < kSum; i++, w += 64, q += n) {
#pragma GCC unroll 4
        for (int t = 0; t < T; t++) {
          const __m256i x = _mm256_set1_epi32(q[t]);
#pragma GCC unroll 2
          for (int h = 0; h < 2; h++) {
            const __m256i p = _mm256_maddubs_epi16(panel_load(w + 32 * h), x);
            if (i > 0)
              sum[h][t] = in_order(_mm256_add_epi16(sum[h][t], p));
            else
              sum[h][t] = kMinima ? p : _mm256_add_epi16(p, _mm256_set1_epi32(extra[t]));
          }
        }
      }
      if constexpr (!kMinima) extra += n;
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
#pragma GCC unroll 2
        for (int h = 0; h < 2; h++) {
          isum[h][t] = _mm256_add_epi32(
              isum[h][t], _mm256_madd_epi16(sum[h][t], panel_load(scales + 32 * h)));
        }
      }
    }
  }
#pragma GCC unroll 2
  for (int h = 0; h < 2; h++) {
    const uint8_t* const half = panel + 32 * h;
    const __m256 d = _mm256_load_ps(reinterpret_cast<const float*>(half + 64 * panel_d(L)));
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      acc.v[h][t] = _mm256_fmadd_ps(
          _mm256_mul_ps(d, _mm256_set1_ps(d_x[t])), _mm256_cvtepi32_ps(isum[h][t]), acc.v[h][t]);
    }
    if constexpr (kMinima) {
      const __m256 dmin =
          _mm256_load_ps(reinterpret_cast<const float*>(half + 64 * panel_d(L) + 64));
#pragma GCC unroll 4
      for (int t = 0; t < T; t++) {
        __m256i msum;
#pragma GCC unroll 8
        for (int i = 0; i < kPairs; i++) {
          const __m256i p = _mm256_madd_epi16(
              panel_load(half + 64 * (panel_mins(L) + i)), _mm256_set1_epi32(extra[i * n + t]));
          msum = i == 0 ? p : _mm256_add_epi32(msum, p);
        }
        acc.v[h][t] = _mm256_fnmadd_ps(
            _mm256_mul_ps(dmin, _mm256_set1_ps(d_x[t])), _mm256_cvtepi32_ps(msum), acc.v[h][t]);
      }
    }
  }
}

template <TileLayout L, int T>
void multiply_rows(
    const uint8_t* panel,
    int64_t n_rows,
    int64_t n_blocks,
    const uint8_t* tile,
    int n,
    float* y,
    int64_t y_stride,
    bool resume) {
  Accumulators<T> acc;
  acc.load(y, y_stride, n_rows, resume);
  for (int64_t b = 0; b < n_blocks;
       b++, panel += panel_block_bytes(L), tile += tile_block_bytes(L) * n) {
    const int32_t* const q = reinterpret_cast<const int32_t*>(tile);
    if constexpr (L == TileLayout::k32)
      block32<T>(panel, q, n, acc);
    else
      block256<L, T>(panel, q, n, acc);
  }
  acc.store(y, y_stride, n_rows);
}

template <TileLayout L>
void multiply(
    const uint8_t* panel,
    int64_t n_rows,
    int64_t n_in,
    const uint8_t* tile,
    int n,
    float* y,
    int64_t y_stride,
    bool resume) {
  constexpr int64_t kBlock = layout_quads(L) * 4, kPart = kPartWeights / kBlock;
  constexpr int kStep =
      L == TileLayout::k32 ? 4 : 3;  // rows of x whose sums fit into the registers
  const int64_t n_blocks = n_in / kBlock;
  for (int64_t b = 0; b < n_blocks; b += kPart) {
    const int64_t count = std::min(kPart, n_blocks - b);
    const uint8_t* const p = panel + b * panel_block_bytes(L);
    const uint8_t* const x = tile + b * n * tile_block_bytes(L);
    const bool more = resume || b > 0;
    for (int t = 0; t < n;) {  // steps of nearly equal size
      const int left = n - t, n_steps = (left + kStep - 1) / kStep,
                step = (left + n_steps - 1) / n_steps;
      const auto run = step == 4   ? multiply_rows<L, kStep>
                       : step == 3 ? multiply_rows<L, 3>
                       : step == 2 ? multiply_rows<L, 2>
                                   : multiply_rows<L, 1>;
      run(p, n_rows, count, x + 4 * t, n, y + t * y_stride, y_stride, more);
      t += step;
    }
  }
}

template <TileLayout L>
constexpr LayoutKernels layout_kernels() {
  return {panel_block_bytes(L), tile_block_bytes(L), multiply<L>, pack_tile<L>};
}

}  // namespace grebe::cpu::avx2
