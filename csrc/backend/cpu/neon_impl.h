// NEON kernels with dot products (FEAT_DotProd), compiled for both NEON tables.
//
// vdotq takes signed by signed bytes, so codes need no offset: blocks are decoded to i8 in natural
// order, and each vdotq of 16 weights is multiplied by the scale of its group. Panels hold eight
// rows as [k/4][8][4]; a row of x supplies 16 values at a time, of which vdotq_laneq picks four.
//
// Panel, per block of 256: i8 codes[64][8][4], f32 d[8], f32 dmin[8], i32 scale[16][8], i32
// min[16][8]; of 32: i8 codes[8][8][4], f32 d[8]. Tile, per block of 256: i8 q[16][n][16], f32
// d[n], i32 sums[16][n]; of 32: i8 q[2][n][16], f32 d[n].
#pragma once

#include "backend/cpu/common_impl.h"
#include "backend/cpu/grid_tables.h"

namespace grebe::cpu::GREBE_ISA {

inline constexpr int kRows = 8, kMaxTile = 4;
inline constexpr int64_t kPanel256 = 64 * 32 + 64 + 2 * 16 * 32, kPanel32 = 8 * 32 + 32;
inline constexpr int64_t kTile256 = 256 + 4 + 64, kTile32 = 32 + 4;

/// 256 weights; kMinima types fill min.
struct Codes {
  int8x16_t q[16];
  int16_t scale[16], min[16];
};

inline float load_f16(const uint8_t* p) {
  uint16_t h;
  std::memcpy(&h, p, 2);
  return f16_to_f32(h);
}
inline uint32_t load_u32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}
inline int8x16_t as_signed(uint8x16_t v) { return vreinterpretq_s8_u8(v); }

// Any type, through the reference decoder.
template <DType kType, class BlockT, bool kHasMinima>
struct DecodeAny {
  using Block = BlockT;
  static constexpr bool kMinima = kHasMinima;
  static void codes(const uint8_t* p, Codes& c) {
    IntBlock b;
    unpack_block(kType, p, b);
    for (int i = 0; i < 16; i++) c.q[i] = vld1q_s8(b.q + 16 * i);
    std::memcpy(c.scale, b.scale, sizeof c.scale);
    std::memcpy(c.min, b.min, sizeof c.min);
  }
};

struct DecodeQ2_K {
  using Block = BlockQ2_K;
  static constexpr bool kMinima = true;
  static void codes(const uint8_t* p, Codes& c) {
    const uint8x16_t s = vld1q_u8(p), low4 = vandq_u8(s, vdupq_n_u8(15)), high4 = vshrq_n_u8(s, 4);
    vst1q_s16(c.scale, vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(low4))));
    vst1q_s16(c.scale + 8, vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(low4))));
    vst1q_s16(c.min, vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(high4))));
    vst1q_s16(c.min + 8, vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(high4))));
    const uint8x16_t three = vdupq_n_u8(3);
    for (int i = 0; i < 4; i++) {  // 16 bytes: half i / 2, part i % 2 of each group of 32
      const uint8x16_t raw = vld1q_u8(p + offsetof(BlockQ2_K, q) + 16 * i);
      int8x16_t* const out = c.q + i / 2 * 8 + i % 2;
      out[0] = as_signed(vandq_u8(raw, three));
      out[2] = as_signed(vandq_u8(vshrq_n_u8(raw, 2), three));
      out[4] = as_signed(vandq_u8(vshrq_n_u8(raw, 4), three));
      out[6] = as_signed(vshrq_n_u8(raw, 6));
    }
  }
};

struct DecodeQ4_K {
  using Block = BlockQ4_K;
  static constexpr bool kMinima = true;
  static void codes(const uint8_t* p, Codes& c) {
    const uint8_t* s = p + offsetof(BlockQ4_K, scales);
    for (int g = 0; g < 8; g++) {
      const int i = g % 4;
      const int scale = g < 4 ? s[i] & 63 : (s[8 + i] & 15) | (s[i] >> 2 & 48);
      const int min = g < 4 ? s[4 + i] & 63 : s[8 + i] >> 4 | (s[4 + i] >> 2 & 48);
      c.scale[2 * g] = c.scale[2 * g + 1] = static_cast<int16_t>(scale);
      c.min[2 * g] = c.min[2 * g + 1] = static_cast<int16_t>(min);
    }
    for (int i = 0; i < 8; i++) {
      const uint8x16_t raw = vld1q_u8(p + offsetof(BlockQ4_K, q) + 16 * i);
      int8x16_t* const out = c.q + i / 2 * 4 + i % 2;
      out[0] = as_signed(vandq_u8(raw, vdupq_n_u8(15)));
      out[2] = as_signed(vshrq_n_u8(raw, 4));
    }
  }
};

struct DecodeIQ2_XXS {
  using Block = BlockIQ2_XXS;
  static constexpr bool kMinima = false;
  static constexpr float kScaleFactor = 0.125f;
  static void codes(const uint8_t* p, Codes& c) {
    for (int g = 0; g < 8; g++) {
      const uint8_t* q = p + 2 + 8 * g;
      const uint32_t bits = load_u32(q + 4);
      for (int j = 0; j < 2; j++) {
        const auto two = [](uint64_t a, uint64_t b) {
          return vcombine_s8(vcreate_s8(a), vcreate_s8(b));
        };
        const int8x16_t magnitude = two(kBytesIQ2_XXS[q[2 * j]], kBytesIQ2_XXS[q[2 * j + 1]]);
        const int8x16_t mask = two(
            kParitySignMasks[bits >> (14 * j) & 127], kParitySignMasks[bits >> (14 * j + 7) & 127]);
        c.q[2 * g + j] = vsubq_s8(veorq_s8(magnitude, mask), mask);
        c.scale[2 * g + j] = static_cast<int16_t>(bits >> 27 | 1);
      }
    }
  }
};

struct DecodeQ8_0 {
  using Block = BlockQ8_0;
  static void codes(const uint8_t* p, int8x16_t q[2]) {
    q[0] = vld1q_s8(reinterpret_cast<const int8_t*>(p) + 2);
    q[1] = vld1q_s8(reinterpret_cast<const int8_t*>(p) + 18);
  }
  static float scale(const uint8_t* p) { return load_f16(p); }
};

struct DecodeMXFP4 {
  using Block = BlockMXFP4;
  static void codes(const uint8_t* p, int8x16_t q[2]) {
    const uint8x16_t raw = vld1q_u8(p + 1);
    const int8x16_t values = vld1q_s8(kDoubledE2M1);
    q[0] = vqtbl1q_s8(values, vandq_u8(raw, vdupq_n_u8(15)));
    q[1] = vqtbl1q_s8(values, vshrq_n_u8(raw, 4));
  }
  static float scale(const uint8_t* p) { return mxfp4_scale(p[0]); }
};

template <class Decode>
float block_scale(const uint8_t* p) {
  const float d = load_f16(p + offsetof(typename Decode::Block, d));
  if constexpr (requires { Decode::kScaleFactor; })
    return d * Decode::kScaleFactor;
  else
    return d;
}

template <class Decode>
void matvec_256(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_rows,
    int64_t n_in,
    const ActRow* x,
    int64_t n,
    float* y,
    int64_t y_stride) {
  using Block = typename Decode::Block;
  Codes c;
  for (int64_t r = 0; r < n_rows; r++) {
    for (int64_t t = 0; t < n; t++) y[t * y_stride + r] = 0.f;
    for (int64_t b = 0; b < n_in / 256; b++) {
      const uint8_t* p = w + r * row_bytes + b * static_cast<int64_t>(sizeof(Block));
      Decode::codes(p, c);
      const float d = block_scale<Decode>(p);
      for (int64_t t = 0; t < n; t++) {
        const int8_t* q = x[t].q + 256 * b;
        int32x4_t sum = vdupq_n_s32(0);
        for (int g = 0; g < 16; g++) {
          sum =
              vmlaq_n_s32(sum, vdotq_s32(vdupq_n_s32(0), c.q[g], vld1q_s8(q + 16 * g)), c.scale[g]);
        }
        float acc = y[t * y_stride + r];
        acc = std::fma(d * x[t].d[b], static_cast<float>(vaddvq_s32(sum)), acc);
        if constexpr (Decode::kMinima) {
          const int16_t* sums = x[t].sums + 16 * b;
          int32x4_t minima = vdupq_n_s32(0);
          for (int g = 0; g < 16; g += 4)
            minima = vmlal_s16(minima, vld1_s16(c.min + g), vld1_s16(sums + g));
          const float dmin = load_f16(p + offsetof(Block, dmin));
          acc = std::fma(-(dmin * x[t].d[b]), static_cast<float>(vaddvq_s32(minima)), acc);
        }
        y[t * y_stride + r] = acc;
      }
    }
  }
}

template <class Decode>
void matvec_32(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_rows,
    int64_t n_in,
    const ActRow* x,
    int64_t n,
    float* y,
    int64_t y_stride) {
  using Block = typename Decode::Block;
  // Four rows at a time: independent chains, and one lane-wise fma for all.
  for (int64_t first = 0; first < n_rows; first += 4) {
    const int64_t count = std::min<int64_t>(4, n_rows - first);
    const uint8_t* row[4];
    for (int64_t r = 0; r < 4; r++) row[r] = w + (first + std::min(r, count - 1)) * row_bytes;
    for (int64_t t = 0; t < n; t++) {
      float32x4_t acc = vdupq_n_f32(0.f);
      for (int64_t b = 0; b < n_in / 32; b++) {
        const int8x16_t x0 = vld1q_s8(x[t].q + 32 * b), x1 = vld1q_s8(x[t].q + 32 * b + 16);
        int32x4_t s[4];
        float d[4];
        for (int r = 0; r < 4; r++) {
          const uint8_t* p = row[r] + b * static_cast<int64_t>(sizeof(Block));
          int8x16_t q[2];
          Decode::codes(p, q);
          s[r] = vdotq_s32(vdotq_s32(vdupq_n_s32(0), q[0], x0), q[1], x1);
          d[r] = Decode::scale(p);
        }
        const int32x4_t isum = vpaddq_s32(vpaddq_s32(s[0], s[1]), vpaddq_s32(s[2], s[3]));
        acc = vfmaq_f32(acc, vmulq_n_f32(vld1q_f32(d), x[t].d[b]), vcvtq_f32_s32(isum));
      }
      float out[4];
      vst1q_f32(out, acc);
      std::memcpy(y + t * y_stride + first, out, sizeof(float) * static_cast<size_t>(count));
    }
  }
}

// 16 weights of one row into its column of [k/4][8][4].
inline void store_column(int8_t* panel, int r, int8x16_t q) {
  int8_t t[16];
  vst1q_s8(t, q);
  for (int i = 0; i < 4; i++) std::memcpy(panel + 32 * i + 4 * r, t + 4 * i, 4);
}

template <class Decode>
void pack_panel_256(
    const uint8_t* w, int64_t row_bytes, int64_t n_rows, int64_t n_in, uint8_t* panel) {
  Codes c;
  for (int64_t b = 0; b < n_in / 256; b++, panel += kPanel256) {
    float* const d = reinterpret_cast<float*>(panel + 64 * 32);
    int32_t* const scale = reinterpret_cast<int32_t*>(d + 16);
    for (int r = 0; r < kRows; r++) {
      const uint8_t* p = w + std::min<int64_t>(r, n_rows - 1) * row_bytes +
                         b * static_cast<int64_t>(sizeof(typename Decode::Block));
      Decode::codes(p, c);
      for (int g = 0; g < 16; g++)
        store_column(reinterpret_cast<int8_t*>(panel) + 128 * g, r, c.q[g]);
      d[r] = block_scale<Decode>(p);
      for (int g = 0; g < 16; g++) scale[8 * g + r] = c.scale[g];
      if constexpr (Decode::kMinima) {
        d[8 + r] = load_f16(p + offsetof(typename Decode::Block, dmin));
        for (int g = 0; g < 16; g++) scale[128 + 8 * g + r] = c.min[g];
      }
    }
  }
}

template <class Decode>
void pack_panel_32(
    const uint8_t* w, int64_t row_bytes, int64_t n_rows, int64_t n_in, uint8_t* panel) {
  for (int64_t b = 0; b < n_in / 32; b++, panel += kPanel32) {
    float* const d = reinterpret_cast<float*>(panel + 8 * 32);
    for (int r = 0; r < kRows; r++) {
      const uint8_t* p = w + std::min<int64_t>(r, n_rows - 1) * row_bytes +
                         b * static_cast<int64_t>(sizeof(typename Decode::Block));
      int8x16_t q[2];
      Decode::codes(p, q);
      for (int i = 0; i < 2; i++) store_column(reinterpret_cast<int8_t*>(panel) + 128 * i, r, q[i]);
      d[r] = Decode::scale(p);
    }
  }
}

template <int kGroups, bool kSums>
void pack_tile(const ActRow* x, int n, int64_t n_in, uint8_t* tile) {
  constexpr int64_t kBytes = kSums ? kTile256 : kTile32;
  for (int64_t b = 0; b < n_in / (16 * kGroups); b++, tile += kBytes * n) {
    float* const d = reinterpret_cast<float*>(tile + 16 * kGroups * n);
    int32_t* const sums = reinterpret_cast<int32_t*>(d + n);
    for (int t = 0; t < n; t++) {
      for (int g = 0; g < kGroups; g++) {
        std::memcpy(tile + 16 * (g * n + t), x[t].q + 16 * (b * kGroups + g), 16);
        if (kSums) sums[g * n + t] = x[t].sums[b * kGroups + g];
      }
      d[t] = x[t].d[b];
    }
  }
}

// 16 weights of eight rows times T rows of x, onto sum[t][2].
template <int T>
inline void dot_group(const int8_t* panel, const int8_t* x, int32x4_t sum[T][2]) {
  int8x16_t xs[T];
  for (int t = 0; t < T; t++) xs[t] = vld1q_s8(x + 16 * t);
#define GREBE_DOT_(i)                                                                  \
  {                                                                                    \
    const int8x16_t w0 = vld1q_s8(panel + 32 * i), w1 = vld1q_s8(panel + 32 * i + 16); \
    for (int t = 0; t < T; t++) {                                                      \
      sum[t][0] = vdotq_laneq_s32(sum[t][0], w0, xs[t], i);                            \
      sum[t][1] = vdotq_laneq_s32(sum[t][1], w1, xs[t], i);                            \
    }                                                                                  \
  }
  GREBE_DOT_(0)
  GREBE_DOT_(1)
  GREBE_DOT_(2)
  GREBE_DOT_(3)
#undef GREBE_DOT_
}

enum class TileKind { k32, kSigned, kMinima };

template <TileKind kKind, int T>
void multiply_tile(
    const uint8_t* panel,
    int64_t n_rows,
    int64_t n_in,
    const uint8_t* tile,
    float* y,
    int64_t y_stride,
    bool resume) {
  constexpr bool k32 = kKind == TileKind::k32;
  constexpr int kGroups = k32 ? 2 : 16;
  float32x4_t acc[T][2];
  for (int t = 0; t < T; t++) {
    float start[8] = {};
    if (resume) std::memcpy(start, y + t * y_stride, sizeof(float) * static_cast<size_t>(n_rows));
    for (int h = 0; h < 2; h++) acc[t][h] = vld1q_f32(start + 4 * h);
  }
  for (int64_t b = 0; b < n_in / (16 * kGroups); b++) {
    const int8_t* codes = reinterpret_cast<const int8_t*>(panel);
    const float* d_w = reinterpret_cast<const float*>(panel + 128 * kGroups);
    const int32_t* scale = reinterpret_cast<const int32_t*>(d_w + 16);
    const int8_t* q = reinterpret_cast<const int8_t*>(tile);
    const float* d_x = reinterpret_cast<const float*>(tile + 16 * kGroups * T);
    const int32_t* sums = reinterpret_cast<const int32_t*>(d_x + T);
    int32x4_t isum[T][2], msum[T][2];
    for (int t = 0; t < T; t++)
      for (int h = 0; h < 2; h++) isum[t][h] = msum[t][h] = vdupq_n_s32(0);
    for (int g = 0; g < kGroups; g++) {
      if constexpr (k32) {
        dot_group<T>(codes + 128 * g, q + 16 * g * T, isum);
      } else {
        int32x4_t p[T][2];
        for (int t = 0; t < T; t++)
          for (int h = 0; h < 2; h++) p[t][h] = vdupq_n_s32(0);
        dot_group<T>(codes + 128 * g, q + 16 * g * T, p);
        for (int h = 0; h < 2; h++) {
          const int32x4_t s = vld1q_s32(scale + 8 * g + 4 * h);
          for (int t = 0; t < T; t++) isum[t][h] = vmlaq_s32(isum[t][h], p[t][h], s);
          if constexpr (kKind == TileKind::kMinima) {
            const int32x4_t m = vld1q_s32(scale + 128 + 8 * g + 4 * h);
            for (int t = 0; t < T; t++) msum[t][h] = vmlaq_n_s32(msum[t][h], m, sums[g * T + t]);
          }
        }
      }
    }
    for (int h = 0; h < 2; h++) {
      const float32x4_t d = vld1q_f32(d_w + 4 * h);
      for (int t = 0; t < T; t++)
        acc[t][h] = vfmaq_f32(acc[t][h], vmulq_n_f32(d, d_x[t]), vcvtq_f32_s32(isum[t][h]));
      if constexpr (kKind == TileKind::kMinima) {
        const float32x4_t dmin = vld1q_f32(d_w + 8 + 4 * h);
        for (int t = 0; t < T; t++)
          acc[t][h] = vfmsq_f32(acc[t][h], vmulq_n_f32(dmin, d_x[t]), vcvtq_f32_s32(msum[t][h]));
      }
    }
    panel += k32 ? kPanel32 : kPanel256;
    tile += (k32 ? kTile32 : kTile256) * T;
  }
  for (int t = 0; t < T; t++) {
    float out[8];
    for (int h = 0; h < 2; h++) vst1q_f32(out + 4 * h, acc[t][h]);
    std::memcpy(y + t * y_stride, out, sizeof(float) * static_cast<size_t>(n_rows));
  }
}

template <TileKind kKind>
void multiply(
    const uint8_t* panel,
    int64_t n_rows,
    int64_t n_in,
    const uint8_t* tile,
    int n,
    float* y,
    int64_t y_stride,
    bool resume) {
  static_assert(kMaxTile == 4);
  switch (n) {
    case 1:
      return multiply_tile<kKind, 1>(panel, n_rows, n_in, tile, y, y_stride, resume);
    case 2:
      return multiply_tile<kKind, 2>(panel, n_rows, n_in, tile, y, y_stride, resume);
    case 3:
      return multiply_tile<kKind, 3>(panel, n_rows, n_in, tile, y, y_stride, resume);
    case 4:
      return multiply_tile<kKind, 4>(panel, n_rows, n_in, tile, y, y_stride, resume);
  }
}

template <class Decode>
QuantKernels kernels_256() {
  return {
      matvec_256<Decode>,
      pack_panel_256<Decode>,
      Decode::kMinima ? TileLayout::kMins : TileLayout::kScale16};
}
template <class Decode>
QuantKernels kernels_32() {
  return {matvec_32<Decode>, pack_panel_32<Decode>, TileLayout::k32};
}

// IntBlock's d already holds the factor of the IQ types.
struct DecodeIQ2_S : DecodeAny<DType::kIQ2_S, BlockIQ2_S, false> {
  static constexpr float kScaleFactor = 0.125f;
};
struct DecodeIQ3_XXS : DecodeAny<DType::kIQ3_XXS, BlockIQ3_XXS, false> {
  static constexpr float kScaleFactor = 0.25f;
};

inline KernelTable make_table(KernelTable t, Isa isa) {
  t.isa = isa;
  t.panel_rows = kRows;
  t.max_tile = kMaxTile;
  fill_common(t);
  t.layouts[static_cast<int>(TileLayout::k32)] = {
      kPanel32, kTile32, multiply<TileKind::k32>, pack_tile<2, false>};
  t.layouts[static_cast<int>(TileLayout::kScale16)] = {
      kPanel256, kTile256, multiply<TileKind::kSigned>, pack_tile<16, true>};
  t.layouts[static_cast<int>(TileLayout::kMins)] = {
      kPanel256, kTile256, multiply<TileKind::kMinima>, pack_tile<16, true>};
  t.quant[kQ8_0] = kernels_32<DecodeQ8_0>();
  t.quant[kMXFP4] = kernels_32<DecodeMXFP4>();
  t.quant[kQ2_K] = kernels_256<DecodeQ2_K>();
  t.quant[kQ3_K] = kernels_256<DecodeAny<DType::kQ3_K, BlockQ3_K, false>>();
  t.quant[kQ4_K] = kernels_256<DecodeQ4_K>();
  t.quant[kQ5_K] = kernels_256<DecodeAny<DType::kQ5_K, BlockQ5_K, true>>();
  t.quant[kQ6_K] = kernels_256<DecodeAny<DType::kQ6_K, BlockQ6_K, false>>();
  t.quant[kIQ2_XXS] = kernels_256<DecodeIQ2_XXS>();
  t.quant[kIQ2_S] = kernels_256<DecodeIQ2_S>();
  t.quant[kIQ3_XXS] = kernels_256<DecodeIQ3_XXS>();
  return t;
}

}  // namespace grebe::cpu::GREBE_ISA
