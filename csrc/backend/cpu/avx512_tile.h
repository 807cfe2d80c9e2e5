// AVX-512 tiles: 16 weight rows (one per lane) times up to 12 rows of x.
//
// A panel holds codes as [k/4][16 rows][4], so one register is 4 weights of each of 16 rows; a tile
// holds x as [k/4][n][4], so one 32-bit broadcast is the matching 4 values of a row of x. vpdpbusd
// wants unsigned weights: signed codes are stored plus 128, and the sum starts from -128 * sum(x)
// instead of zero, which costs nothing.
//
// Panel, per block: codes, f32 d[16], then by layout   Tile, per block: i32 q[., n], f32 d[n], then
// by layout
//   k32         -                                        i32 bias[n]
//   kScale16    i32 scale[16][16]                        i32 bias[16][n]
//   kScale32    i32 scale[8][16]                         i32 bias[8][n]
//   kMins       f32 dmin[16], i16 min[8][16][2]          i16 sum[8][n][2], sums of 16
//   kScaleMins  f32 dmin[16], i32 scale[8][16],          i16 sum[4][n][2], sums of 32
//               i16 min[4][16][2]
#pragma once

#include "backend/cpu/common_impl.h"
#include "backend/cpu/tile_pack.h"

namespace grebe::cpu::avx512 {

inline constexpr int kRows = 16, kMaxTile = 12;

constexpr int layout_quads(TileLayout l) {
  return l == TileLayout::k32 ? 8 : 64;
}  // groups of 4 weights in a block

// 32-bit values per row of x that follow the codes and d in a tile.
constexpr int tile_extras(TileLayout l) {
  switch (l) {
    case TileLayout::k32:
      return 1;
    case TileLayout::kScale16:
      return 16;
    case TileLayout::kScale32:
      return 8;
    case TileLayout::kMins:
      return 8;
    case TileLayout::kScaleMins:
      return 4;
  }
  return 0;
}

// Registers of 16 32-bit values that follow the codes in a panel.
constexpr int panel_extras(TileLayout l) {
  switch (l) {
    case TileLayout::k32:
      return 1;
    case TileLayout::kScale16:
      return 17;
    case TileLayout::kScale32:
      return 9;
    case TileLayout::kMins:
      return 10;
    case TileLayout::kScaleMins:
      return 14;
  }
  return 0;
}

constexpr int64_t tile_block_bytes(TileLayout l) {
  return 4 * (layout_quads(l) + 1 + tile_extras(l));
}
constexpr int64_t panel_block_bytes(TileLayout l) {
  return 64 * (layout_quads(l) + panel_extras(l));
}

template <TileLayout L>
void pack_tile(const ActRow* x, int n, int64_t n_in, uint8_t* tile) {
  pack_tile_with<layout_quads(L), tile_extras(L)>(x, n, n_in, tile, [](const int16_t* s, int i) {
    switch (L) {
      case TileLayout::kScale16:
        return -128 * s[i];
      case TileLayout::kMins:
        return pair_i16(s[2 * i], s[2 * i + 1]);
      case TileLayout::kScaleMins:
        return pair_i16(s[4 * i] + s[4 * i + 1], s[4 * i + 2] + s[4 * i + 3]);
      default:
        return -128 * (s[2 * i] + s[2 * i + 1]);
    }
  });
}

template <TileLayout L, int T>
void multiply_tile(
    const uint8_t* panel,
    __mmask16 mask,
    int64_t n_in,
    const uint8_t* tile,
    float* y,
    int64_t y_stride,
    bool resume) {
  constexpr int kQuads = layout_quads(L);
  constexpr bool kScaled =
      L == TileLayout::kScale16 || L == TileLayout::kScale32 || L == TileLayout::kScaleMins;
  constexpr bool kMinima = L == TileLayout::kMins || L == TileLayout::kScaleMins;
  constexpr int kGroupQuads = L == TileLayout::kScale16 ? 4 : kScaled ? 8 : kQuads;
  const auto load = [](const void* p) { return _mm512_load_si512(p); };
  const auto load_ps = [](const void* p) { return _mm512_load_ps(p); };
  __m512 acc[T];
  for (int t = 0; t < T; t++)
    acc[t] = resume ? _mm512_maskz_loadu_ps(mask, y + t * y_stride) : _mm512_setzero_ps();
  const int64_t n_blocks = n_in / (4 * kQuads);
  for (int64_t b = 0; b < n_blocks;
       b++, panel += panel_block_bytes(L), tile += tile_block_bytes(L) * T) {
    const int32_t* const q = reinterpret_cast<const int32_t*>(tile);
    const float* const d_x = reinterpret_cast<const float*>(q + kQuads * T);
    const int32_t* const extra = reinterpret_cast<const int32_t*>(d_x + T);
    const uint8_t* const d_w = panel + 64 * kQuads;
    const uint8_t* const scales = d_w + (kMinima ? 128 : 64);
    __m512i isum[T];
    for (int g = 0; g < kQuads / kGroupQuads; g++) {
      __m512i sum[T];
#pragma GCC unroll 12
      for (int t = 0; t < T; t++) {
        sum[t] = kMinima ? _mm512_setzero_si512() : _mm512_set1_epi32(extra[g * T + t]);
      }
#pragma GCC unroll 8
      for (int i = g * kGroupQuads; i < (g + 1) * kGroupQuads; i++) {
        const __m512i w = load(panel + 64 * i);
#pragma GCC unroll 12
        for (int t = 0; t < T; t++)
          sum[t] = _mm512_dpbusd_epi32(sum[t], w, _mm512_set1_epi32(q[i * T + t]));
      }
      if constexpr (kScaled) {
        const __m512i scale = load(scales + 64 * g);
#pragma GCC unroll 12
        for (int t = 0; t < T; t++) {
          const __m512i scaled = _mm512_mullo_epi32(sum[t], scale);
          isum[t] = g == 0 ? scaled : _mm512_add_epi32(isum[t], scaled);
        }
      } else {
#pragma GCC unroll 12
        for (int t = 0; t < T; t++) isum[t] = sum[t];
      }
    }
    const __m512 d = load_ps(d_w);
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
      acc[t] = _mm512_fmadd_ps(
          _mm512_mul_ps(d, _mm512_set1_ps(d_x[t])), _mm512_cvtepi32_ps(isum[t]), acc[t]);
    }
    if constexpr (kMinima) {
      constexpr int kPairs = tile_extras(L);
      const uint8_t* const mins = L == TileLayout::kMins ? scales : scales + 64 * 8;
      const __m512 dmin = load_ps(d_w + 64);
#pragma GCC unroll 12
      for (int t = 0; t < T; t++) isum[t] = _mm512_setzero_si512();
#pragma GCC unroll 8
      for (int i = 0; i < kPairs; i++) {
        const __m512i m = load(mins + 64 * i);
#pragma GCC unroll 12
        for (int t = 0; t < T; t++)
          isum[t] = _mm512_dpwssd_epi32(isum[t], m, _mm512_set1_epi32(extra[i * T + t]));
      }
#pragma GCC unroll 12
      for (int t = 0; t < T; t++) {
        acc[t] = _mm512_fnmadd_ps(
            _mm512_mul_ps(dmin, _mm512_set1_ps(d_x[t])), _mm512_cvtepi32_ps(isum[t]), acc[t]);
      }
    }
  }
  for (int t = 0; t < T; t++) _mm512_mask_storeu_ps(y + t * y_stride, mask, acc[t]);
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
  const __mmask16 mask = static_cast<__mmask16>((1u << n_rows) - 1);
  static_assert(kMaxTile == 12);
  switch (n) {
#define GREBE_TILE_(T) \
  case T:              \
    return multiply_tile<L, T>(panel, mask, n_in, tile, y, y_stride, resume)
    GREBE_TILE_(1);
    GREBE_TILE_(2);
    GREBE_TILE_(3);
    GREBE_TILE_(4);
    GREBE_TILE_(5);
    GREBE_TILE_(6);
    GREBE_TILE_(7);
    GREBE_TILE_(8);
    GREBE_TILE_(9);
    GREBE_TILE_(10);
    GREBE_TILE_(11);
    GREBE_TILE_(12);
#undef GREBE_TILE_
  }
}

template <TileLayout L>
constexpr LayoutKernels layout_kernels() {
  return {panel_block_bytes(L), tile_block_bytes(L), multiply<L>, pack_tile<L>};
}

}  // namespace grebe::cpu::avx512
