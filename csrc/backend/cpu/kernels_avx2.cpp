// The AVX2 table (AVX2, FMA, F16C, BMI2): the scheme of the AVX-512 one with eight weight rows to a register.
//
// Every 256-weight type goes through one decoder to unsigned bytes (avx2_decode.h). vpmaddubsw makes 16-bit pair sums and
// vpmaddwd multiplies them by the scale of their group and adds, so scales cost nothing; the offset of signed codes is taken off
// like a minimum of kCodeOffset * scale.
//
// Panel, per block of 256: u8 codes[64][8][4], f32 d[8], f32 dmin[8], i16 scale[16][8][2] (twice), i16 min[8][8][2] (two groups).
// Panel, per block of 32: i8 codes[8][8][4], f32 d[8]. Tiles: tile_pack.h, extra = pairs of sums of 16 for blocks of 256.
#define GREBE_ISA avx2
#define GREBE_ISA_AVX2
#include "backend/cpu/avx2_decode.h"
#include "backend/cpu/common_impl.h"
#include "backend/cpu/tile_pack.h"

namespace grebe::cpu::scalar {
const KernelTable& table();
}

namespace grebe::cpu::avx2 {
namespace {

constexpr int kRows = 8, kMaxTile = 8;
constexpr int64_t kPanel256 = 64 * 32 + 32 + 32 + 16 * 32 + 8 * 32, kPanel32 = 8 * 32 + 32;
constexpr int64_t kTile256 = 4 * (64 + 1 + 8), kTile32 = 4 * (8 + 1);

template <class Decode>
constexpr float scale_factor() {
  if constexpr (requires { Decode::kScaleFactor; }) return Decode::kScaleFactor;
  else return 1.f;
}

/// Eight rows; the last one stands in for the missing.
struct Rows8 {
  const uint8_t* row[8];
  Rows8(const uint8_t* w, int64_t row_bytes, int64_t n_rows) {
    for (int64_t r = 0; r < 8; r++) row[r] = w + std::min(r, n_rows - 1) * row_bytes;
  }
};

void store_lanes(float* y, __m256 v, int64_t n) {
  alignas(32) float t[8];
  _mm256_store_ps(t, v);
  std::memcpy(y, t, sizeof(float) * static_cast<size_t>(n));
}

__m256 f16_lanes(const Rows8& rows, int64_t offset) {
  alignas(16) uint16_t h[8];
  for (int r = 0; r < 8; r++) std::memcpy(&h[r], rows.row[r] + offset, 2);
  return _mm256_cvtph_ps(load128(h));
}

/// Lane r = sum of the lanes of v[r].
__m256i add_across(const __m256i v[8]) {
  const __m256i a = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
  const __m256i b = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
}

__m256 fma(__m256 a, __m256i b, __m256 c) { return _mm256_fmadd_ps(a, _mm256_cvtepi32_ps(b), c); }
__m256 fnma(__m256 a, __m256i b, __m256 c) { return _mm256_fnmadd_ps(a, _mm256_cvtepi32_ps(b), c); }

/// Scales of groups 2 j and 2 j + 1 over the pair sums of register j.
__m256i spread_scales(__m256i scales, int j) {
  const __m256i half = j < 4 ? _mm256_permute2x128_si256(scales, scales, 0x00) : _mm256_permute2x128_si256(scales, scales, 0x11);
  const __m256i pick = _mm256_setr_m128i(_mm_set1_epi16(static_cast<int16_t>(0x0100 + 0x0202 * (j % 4 * 2))),
                                         _mm_set1_epi16(static_cast<int16_t>(0x0100 + 0x0202 * (j % 4 * 2 + 1))));
  return _mm256_shuffle_epi8(half, pick);
}

template <class Decode>
void matvec_256(const uint8_t* w, int64_t row_bytes, int64_t n_rows, int64_t n_in, const ActRow* x, int64_t n, float* y,
                int64_t y_stride) {
  using Block = typename Decode::Block;
  const __m256 factor = _mm256_set1_ps(scale_factor<Decode>());
  for (int64_t first = 0; first < n_rows; first += 8) {
    const int64_t count = std::min<int64_t>(8, n_rows - first);
    const Rows8 rows(w + first * row_bytes, row_bytes, count);
    for (int64_t t = 0; t < n; t++) {
      __m256 acc = _mm256_setzero_ps();
      for (int64_t b = 0; b < n_in / 256; b++) {
        const int64_t offset = b * static_cast<int64_t>(sizeof(Block));
        const int8_t* q = x[t].q + 256 * b;
        const __m256i sums16 = load256(x[t].sums + 16 * b);
        __m256i sums[8], minima[8];
        for (int r = 0; r < 8; r++) {
          Codes c;
          Decode::codes(rows.row[r] + offset, c);
          __m256i sum = _mm256_setzero_si256();
          for (int j = 0; j < 8; j++) {
            const __m256i pairs = _mm256_maddubs_epi16(c.u[j], load256(q + 32 * j));
            sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, spread_scales(c.scales, j)));
          }
          minima[r] = _mm256_madd_epi16(c.mins, sums16);
          sums[r] = Decode::kMinima ? sum : _mm256_sub_epi32(sum, minima[r]);
        }
        const __m256 d_x = _mm256_set1_ps(x[t].d[b]);
        const __m256 d = _mm256_mul_ps(f16_lanes(rows, offset + static_cast<int64_t>(offsetof(Block, d))), factor);
        acc = fma(_mm256_mul_ps(d, d_x), add_across(sums), acc);
        if constexpr (Decode::kMinima) {
          const __m256 dmin = f16_lanes(rows, offset + static_cast<int64_t>(offsetof(Block, dmin)));
          acc = fnma(_mm256_mul_ps(dmin, d_x), add_across(minima), acc);
        }
      }
      store_lanes(y + t * y_stride + first, acc, count);
    }
  }
}

template <class Decode>
__m256 scale_lanes(const Rows8& rows, int64_t offset) {
  alignas(32) float d[8];
  for (int r = 0; r < 8; r++) d[r] = Decode::scale(rows.row[r] + offset);
  return _mm256_load_ps(d);
}

template <class Decode>
void matvec_32(const uint8_t* w, int64_t row_bytes, int64_t n_rows, int64_t n_in, const ActRow* x, int64_t n, float* y,
               int64_t y_stride) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t first = 0; first < n_rows; first += 8) {
    const int64_t count = std::min<int64_t>(8, n_rows - first);
    const Rows8 rows(w + first * row_bytes, row_bytes, count);
    constexpr int64_t kBytes = sizeof(typename Decode::Block);
    for (int64_t t = 0; t < n; t++) {
      __m256 acc = _mm256_setzero_ps();
      for (int64_t b = 0; b < n_in / 32; b++) {
        const int64_t offset = b * kBytes;
        if (t == 0) {  // the next rows in the order of memory
          const char* ahead = reinterpret_cast<const char*>(rows.row[0] + 8 * row_bytes + b * 8 * kBytes);
          for (int i = 0; i < 8 * kBytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T1);
        }
        const __m256i a = load256(x[t].q + 32 * b);
        __m256i sums[8];
        for (int r = 0; r < 8; r++) {
          const __m256i c = Decode::codes(rows.row[r] + offset);
          sums[r] = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_abs_epi8(c), _mm256_sign_epi8(a, c)), ones);
        }
        acc = fma(_mm256_mul_ps(scale_lanes<Decode>(rows, offset), _mm256_set1_ps(x[t].d[b])), add_across(sums), acc);
      }
      store_lanes(y + t * y_stride + first, acc, count);
    }
  }
}

// v[r] word c -> out[c] lane r.
void transpose8(const __m256i v[8], __m256i out[8]) {
  __m256i a[8], b[8];
  for (int i = 0; i < 4; i++) {
    a[2 * i] = _mm256_unpacklo_epi32(v[2 * i], v[2 * i + 1]);
    a[2 * i + 1] = _mm256_unpackhi_epi32(v[2 * i], v[2 * i + 1]);
  }
  for (int i = 0; i < 2; i++) {
    for (int j = 0; j < 2; j++) {
      b[4 * i + 2 * j] = _mm256_unpacklo_epi64(a[4 * i + j], a[4 * i + 2 + j]);
      b[4 * i + 2 * j + 1] = _mm256_unpackhi_epi64(a[4 * i + j], a[4 * i + 2 + j]);
    }
  }
  for (int c = 0; c < 4; c++) {
    out[c] = _mm256_permute2x128_si256(b[c], b[4 + c], 0x20);
    out[4 + c] = _mm256_permute2x128_si256(b[c], b[4 + c], 0x31);
  }
}

void store_columns(uint8_t* out, const __m256i v[8]) {
  __m256i columns[8];
  transpose8(v, columns);
  for (int c = 0; c < 8; c++) _mm256_store_si256(reinterpret_cast<__m256i*>(out + 32 * c), columns[c]);
}

template <class Decode>
void pack_panel_256(const uint8_t* w, int64_t row_bytes, int64_t n_rows, int64_t n_in, uint8_t* panel) {
  using Block = typename Decode::Block;
  const Rows8 rows(w, row_bytes, n_rows);
  for (int64_t b = 0; b < n_in / 256; b++, panel += kPanel256) {
    const int64_t offset = b * static_cast<int64_t>(sizeof(Block));
    Codes c[8];
    for (int r = 0; r < 8; r++) Decode::codes(rows.row[r] + offset, c[r]);
    __m256i v[8];
    for (int j = 0; j < 8; j++) {
      for (int r = 0; r < 8; r++) v[r] = c[r].u[j];
      store_columns(panel + 32 * 8 * j, v);
    }
    float* const d = reinterpret_cast<float*>(panel + 32 * 64);
    _mm256_store_ps(d, _mm256_mul_ps(f16_lanes(rows, offset + static_cast<int64_t>(offsetof(Block, d))),
                                     _mm256_set1_ps(scale_factor<Decode>())));
    if constexpr (Decode::kMinima) {
      _mm256_store_ps(d + 8, f16_lanes(rows, offset + static_cast<int64_t>(offsetof(Block, dmin))));
    }
    __m256i columns[8];
    for (int r = 0; r < 8; r++) v[r] = c[r].scales;
    transpose8(v, columns);
    uint8_t* const scales = panel + 32 * 66;
    for (int i = 0; i < 8; i++) {  // pairs of groups: each scale twice
      const __m256i even = _mm256_blend_epi16(columns[i], _mm256_slli_epi32(columns[i], 16), 0xaa);
      const __m256i odd = _mm256_blend_epi16(_mm256_srli_epi32(columns[i], 16), columns[i], 0xaa);
      _mm256_store_si256(reinterpret_cast<__m256i*>(scales + 64 * i), even);
      _mm256_store_si256(reinterpret_cast<__m256i*>(scales + 64 * i + 32), odd);
    }
    for (int r = 0; r < 8; r++) v[r] = c[r].mins;
    store_columns(scales + 32 * 16, v);
  }
}

template <class Decode>
void pack_panel_32(const uint8_t* w, int64_t row_bytes, int64_t n_rows, int64_t n_in, uint8_t* panel) {
  const Rows8 rows(w, row_bytes, n_rows);
  for (int64_t b = 0; b < n_in / 32; b++, panel += kPanel32) {
    const int64_t offset = b * static_cast<int64_t>(sizeof(typename Decode::Block));
    __m256i v[8];
    for (int r = 0; r < 8; r++) v[r] = Decode::codes(rows.row[r] + offset);
    store_columns(panel, v);
    _mm256_store_ps(reinterpret_cast<float*>(panel + 32 * 8), scale_lanes<Decode>(rows, offset));
  }
}

__m256i panel_word(const uint8_t* p) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(p)); }

template <bool kMinima, int T>
void tile_256(const uint8_t* panel, int64_t n_in, const uint8_t* tile, __m256* acc) {
  for (int64_t b = 0; b < n_in / 256; b++, panel += kPanel256, tile += kTile256 * T) {
    const int32_t* const q = reinterpret_cast<const int32_t*>(tile);
    const float* const d_x = reinterpret_cast<const float*>(q + 64 * T);
    const int32_t* const pairs = reinterpret_cast<const int32_t*>(d_x + T);
    const uint8_t *const d_w = panel + 32 * 64, *const scales = d_w + 64, *const mins = scales + 32 * 16;
    __m256i sum[T], minimum[T];
    for (int t = 0; t < T; t++) sum[t] = minimum[t] = _mm256_setzero_si256();
    for (int g = 0; g < 16; g++) {
      const __m256i scale = panel_word(scales + 32 * g);
#pragma GCC unroll 4
      for (int i = 4 * g; i < 4 * g + 4; i++) {
        const __m256i w = panel_word(panel + 32 * i);
#pragma GCC unroll 8
        for (int t = 0; t < T; t++) {
          const __m256i products = _mm256_maddubs_epi16(w, _mm256_set1_epi32(q[i * T + t]));
          sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(products, scale));
        }
      }
    }
    for (int i = 0; i < 8; i++) {
      const __m256i m = panel_word(mins + 32 * i);
      for (int t = 0; t < T; t++) {
        minimum[t] = _mm256_add_epi32(minimum[t], _mm256_madd_epi16(m, _mm256_set1_epi32(pairs[i * T + t])));
      }
    }
    const __m256 d = _mm256_load_ps(reinterpret_cast<const float*>(d_w));
    for (int t = 0; t < T; t++) {
      const __m256 dd = _mm256_mul_ps(d, _mm256_set1_ps(d_x[t]));
      if constexpr (kMinima) {
        const __m256 dmin = _mm256_load_ps(reinterpret_cast<const float*>(d_w) + 8);
        acc[t] = fma(dd, sum[t], acc[t]);
        acc[t] = fnma(_mm256_mul_ps(dmin, _mm256_set1_ps(d_x[t])), minimum[t], acc[t]);
      } else {
        acc[t] = fma(dd, _mm256_sub_epi32(sum[t], minimum[t]), acc[t]);
      }
    }
  }
}

template <int T>
void tile_32(const uint8_t* panel, int64_t n_in, const uint8_t* tile, __m256* acc) {
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t b = 0; b < n_in / 32; b++, panel += kPanel32, tile += kTile32 * T) {
    const int32_t* const q = reinterpret_cast<const int32_t*>(tile);
    const float* const d_x = reinterpret_cast<const float*>(q + 8 * T);
    __m256i sum[T];
    for (int t = 0; t < T; t++) sum[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
      const __m256i w = panel_word(panel + 32 * i), magnitude = _mm256_abs_epi8(w);
#pragma GCC unroll 8
      for (int t = 0; t < T; t++) {
        const __m256i signed_x = _mm256_sign_epi8(_mm256_set1_epi32(q[i * T + t]), w);
        sum[t] = _mm256_add_epi32(sum[t], _mm256_madd_epi16(_mm256_maddubs_epi16(magnitude, signed_x), ones));
      }
    }
    const __m256 d = _mm256_load_ps(reinterpret_cast<const float*>(panel + 32 * 8));
    for (int t = 0; t < T; t++) acc[t] = fma(_mm256_mul_ps(d, _mm256_set1_ps(d_x[t])), sum[t], acc[t]);
  }
}

enum class TileKind { k32, kSigned, kMinima };

template <TileKind kKind, int T>
void multiply_tile(const uint8_t* panel, int64_t n_rows, int64_t n_in, const uint8_t* tile, float* y, int64_t y_stride,
                   bool resume) {
  __m256 acc[T];
  for (int t = 0; t < T; t++) {
    alignas(32) float start[8] = {};
    if (resume) std::memcpy(start, y + t * y_stride, sizeof(float) * static_cast<size_t>(n_rows));
    acc[t] = _mm256_load_ps(start);
  }
  if constexpr (kKind == TileKind::k32) tile_32<T>(panel, n_in, tile, acc);
  else tile_256<kKind == TileKind::kMinima, T>(panel, n_in, tile, acc);
  for (int t = 0; t < T; t++) store_lanes(y + t * y_stride, acc[t], n_rows);
}

template <TileKind kKind>
void multiply(const uint8_t* panel, int64_t n_rows, int64_t n_in, const uint8_t* tile, int n, float* y, int64_t y_stride,
              bool resume) {
  static_assert(kMaxTile == 8);
  switch (n) {
#define GREBE_TILE_(T) \
  case T: return multiply_tile<kKind, T>(panel, n_rows, n_in, tile, y, y_stride, resume)
    GREBE_TILE_(1);
    GREBE_TILE_(2);
    GREBE_TILE_(3);
    GREBE_TILE_(4);
    GREBE_TILE_(5);
    GREBE_TILE_(6);
    GREBE_TILE_(7);
    GREBE_TILE_(8);
#undef GREBE_TILE_
  }
}

void pack_tile_256(const ActRow* x, int n, int64_t n_in, uint8_t* tile) {
  pack_tile_with<64, 8>(x, n, n_in, tile, [](const int16_t* sums, int i) { return pair_i16(sums[2 * i], sums[2 * i + 1]); });
}
void pack_tile_32(const ActRow* x, int n, int64_t n_in, uint8_t* tile) {
  pack_tile_with<8, 0>(x, n, n_in, tile, [](const int16_t*, int) { return 0; });
}

template <class Decode>
QuantKernels kernels_256() {
  return {matvec_256<Decode>, pack_panel_256<Decode>, Decode::kMinima ? TileLayout::kMins : TileLayout::kScale16};
}
template <class Decode>
QuantKernels kernels_32() {
  return {matvec_32<Decode>, pack_panel_32<Decode>, TileLayout::k32};
}

KernelTable make_table() {
  KernelTable t = scalar::table();
  t.isa = Isa::kAvx2;
  t.panel_rows = kRows;
  t.max_tile = kMaxTile;
  t.min_tile_rows = 4;
  fill_common(t);
  t.layouts[static_cast<int>(TileLayout::k32)] = {kPanel32, kTile32, multiply<TileKind::k32>, pack_tile_32};
  t.layouts[static_cast<int>(TileLayout::kScale16)] = {kPanel256, kTile256, multiply<TileKind::kSigned>, pack_tile_256};
  t.layouts[static_cast<int>(TileLayout::kMins)] = {kPanel256, kTile256, multiply<TileKind::kMinima>, pack_tile_256};
  t.quant[kQ8_0] = kernels_32<DecodeQ8_0>();
  t.quant[kMXFP4] = kernels_32<DecodeMXFP4>();
  t.quant[kQ2_K] = kernels_256<DecodeQ2_K>();
  t.quant[kQ3_K] = kernels_256<DecodeQ3_K>();
  t.quant[kQ4_K] = kernels_256<DecodeQ4_K>();
  t.quant[kQ5_K] = kernels_256<DecodeQ5_K>();
  t.quant[kQ6_K] = kernels_256<DecodeQ6_K>();
  t.quant[kIQ2_XXS] = kernels_256<DecodeIQ2_XXS>();
  t.quant[kIQ2_S] = kernels_256<DecodeIQ2_S>();
  t.quant[kIQ3_XXS] = kernels_256<DecodeIQ3_XXS>();
  return t;
}

}  // namespace

const KernelTable& table() {
  static const KernelTable t = make_table();
  return t;
}

}  // namespace grebe::cpu::avx2
