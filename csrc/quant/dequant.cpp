#include "quant/dequant.h"

#include <algorithm>

#include "core/error.h"

namespace grebe {
namespace {

// Bit 7 of a 7-bit sign code makes the number of set bits even.
uint32_t with_parity(uint32_t code) {
  return code | static_cast<uint32_t>(std::popcount(code) & 1) << 7;
}

uint32_t load_u32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

void set_scales(IntBlock& b, int group, int scale, int min) {
  b.scale[group] = static_cast<int16_t>(scale);
  b.min[group] = static_cast<int16_t>(min);
}

void unpack(const BlockQ2_K& s, IntBlock& b) {
  b.d = f16_to_f32(s.d);
  b.dmin = f16_to_f32(s.dmin);
  for (int g = 0; g < 16; g++) set_scales(b, g, s.scales[g] & 15, s.scales[g] >> 4);
  for (int k = 0; k < 256; k++) b.q[k] = s.q[k / 128 * 32 + k % 32] >> (k / 32 % 4 * 2) & 3;
}

void unpack(const BlockQ3_K& s, IntBlock& b) {
  b.d = f16_to_f32(s.d);
  b.dmin = 0.f;
  for (int g = 0; g < 16; g++) {
    const int low = s.scales[g % 8] >> (g / 8 * 4) & 15;
    const int high = s.scales[8 + g % 4] >> (g / 4 * 2) & 3;
    set_scales(b, g, (low | high << 4) - 32, 0);
  }
  for (int k = 0; k < 256; k++) {
    const int low = s.q[k / 128 * 32 + k % 32] >> (k / 32 % 4 * 2) & 3;
    b.q[k] = static_cast<int8_t>(low - (s.hmask[k % 32] >> (k / 32) & 1 ? 0 : 4));
  }
}

// Eight 6-bit scales and mins in 12 bytes, for groups of 32.
void unpack_scales_k4(const uint8_t* s, IntBlock& b) {
  for (int g = 0; g < 8; g++) {
    const int i = g % 4;
    const int scale = g < 4 ? s[i] & 63 : (s[8 + i] & 15) | (s[i] >> 2 & 48);
    const int min = g < 4 ? s[4 + i] & 63 : s[8 + i] >> 4 | (s[4 + i] >> 2 & 48);
    set_scales(b, 2 * g, scale, min);
    set_scales(b, 2 * g + 1, scale, min);
  }
}

void unpack(const BlockQ4_K& s, IntBlock& b) {
  b.d = f16_to_f32(s.d);
  b.dmin = f16_to_f32(s.dmin);
  unpack_scales_k4(s.scales, b);
  for (int k = 0; k < 256; k++) b.q[k] = s.q[k / 64 * 32 + k % 32] >> (k / 32 % 2 * 4) & 15;
}

void unpack(const BlockQ5_K& s, IntBlock& b) {
  b.d = f16_to_f32(s.d);
  b.dmin = f16_to_f32(s.dmin);
  unpack_scales_k4(s.scales, b);
  for (int k = 0; k < 256; k++) {
    const int low = s.q[k / 64 * 32 + k % 32] >> (k / 32 % 2 * 4) & 15;
    b.q[k] = static_cast<int8_t>(low | (s.qh[k % 32] >> (k / 32) & 1) << 4);
  }
}

void unpack(const BlockQ6_K& s, IntBlock& b) {
  b.d = f16_to_f32(s.d);
  b.dmin = 0.f;
  for (int g = 0; g < 16; g++) set_scales(b, g, s.scales[g], 0);
  for (int k = 0; k < 256; k++) {
    const int low = s.ql[k / 128 * 64 + k % 64] >> (k / 64 % 2 * 4) & 15;
    const int high = s.qh[k / 128 * 32 + k % 32] >> (k / 32 % 4 * 2) & 3;
    b.q[k] = static_cast<int8_t>((low | high << 4) - 32);
  }
}

// Eight weights of a 2-bit grid entry.
void put_grid2(uint32_t entry, uint32_t signs, int8_t* q) {
  for (int i = 0; i < 8; i++) {
    const int8_t magnitude = static_cast<int8_t>(kGridValues2[entry >> (2 * i) & 3]);
    q[i] = signs >> i & 1 ? -magnitude : magnitude;
  }
}

void unpack(const BlockIQ2_XXS& s, IntBlock& b) {
  b.d = f16_to_f32(s.d) * 0.125f;
  b.dmin = 0.f;
  for (int g = 0; g < 8; g++) {
    const uint8_t* group = s.groups + 8 * g;
    const uint32_t bits = load_u32(group + 4);
    for (int j = 0; j < 2; j++) set_scales(b, 2 * g + j, static_cast<int>(bits >> 28) * 2 + 1, 0);
    for (int j = 0; j < 4; j++) {
      put_grid2(kGridIQ2_XXS[group[j]], with_parity(bits >> (7 * j) & 127), b.q + 32 * g + 8 * j);
    }
  }
}

void unpack(const BlockIQ2_S& s, IntBlock& b) {
  b.d = f16_to_f32(s.d) * 0.125f;
  b.dmin = 0.f;
  for (int g = 0; g < 16; g++) set_scales(b, g, (s.scales[g / 2] >> (g % 2 * 4) & 15) * 2 + 1, 0);
  for (int i = 0; i < 32; i++) {
    const int index = s.q[i] | (s.qh[i / 4] >> (i % 4 * 2) & 3) << 8;
    put_grid2(kGridIQ2_S[index], s.signs[i], b.q + 8 * i);
  }
}

void unpack(const BlockIQ3_XXS& s, IntBlock& b) {
  b.d = f16_to_f32(s.d) * 0.25f;
  b.dmin = 0.f;
  for (int g = 0; g < 8; g++) {
    const uint32_t bits = load_u32(s.signs_scales + 4 * g);
    for (int j = 0; j < 2; j++) set_scales(b, 2 * g + j, static_cast<int>(bits >> 28) * 2 + 1, 0);
    for (int k = 0; k < 32; k++) {
      const uint32_t signs = with_parity(bits >> (k / 8 * 7) & 127);
      const uint32_t entry = kGridIQ3_XXS[s.q[8 * g + k / 4]];
      const int8_t magnitude = static_cast<int8_t>(kGridValues3[entry >> (k % 4 * 3) & 7]);
      b.q[32 * g + k] = signs >> (k % 8) & 1 ? -magnitude : magnitude;
    }
  }
}

}  // namespace

void unpack_block(DType dtype, const uint8_t* p, IntBlock& out) {
  switch (dtype) {
    case DType::kQ2_K:
      return unpack(*reinterpret_cast<const BlockQ2_K*>(p), out);
    case DType::kQ3_K:
      return unpack(*reinterpret_cast<const BlockQ3_K*>(p), out);
    case DType::kQ4_K:
      return unpack(*reinterpret_cast<const BlockQ4_K*>(p), out);
    case DType::kQ5_K:
      return unpack(*reinterpret_cast<const BlockQ5_K*>(p), out);
    case DType::kQ6_K:
      return unpack(*reinterpret_cast<const BlockQ6_K*>(p), out);
    case DType::kIQ2_XXS:
      return unpack(*reinterpret_cast<const BlockIQ2_XXS*>(p), out);
    case DType::kIQ2_S:
      return unpack(*reinterpret_cast<const BlockIQ2_S*>(p), out);
    case DType::kIQ3_XXS:
      return unpack(*reinterpret_cast<const BlockIQ3_XXS*>(p), out);
    default:
      throw Error("unpack_block: " + dtype_name(dtype) + " has no 256-weight blocks");
  }
}

void dequantize(DType dtype, const uint8_t* src, int64_t n, float* out) {
  switch (dtype) {
    case DType::kF32:
      std::memcpy(out, src, sizeof(float) * static_cast<size_t>(n));
      return;
    case DType::kF16:
    case DType::kBF16:
      for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        std::memcpy(&h, src + 2 * i, 2);
        out[i] = dtype == DType::kF16 ? f16_to_f32(h) : bf16_to_f32(h);
      }
      return;
    case DType::kQ8_0:
      for (int64_t i = 0; i < n / 32; i++) {
        const auto& b = reinterpret_cast<const BlockQ8_0*>(src)[i];
        const float d = f16_to_f32(b.d);
        for (int k = 0; k < 32; k++) out[32 * i + k] = d * static_cast<float>(b.q[k]);
      }
      return;
    case DType::kMXFP4:
      for (int64_t i = 0; i < n / 32; i++) {
        const auto& b = reinterpret_cast<const BlockMXFP4*>(src)[i];
        const float d = mxfp4_scale(b.e);
        for (int k = 0; k < 32; k++) {
          out[32 * i + k] = d * static_cast<float>(kDoubledE2M1[b.q[k % 16] >> (k / 16 * 4) & 15]);
        }
      }
      return;
    default:
      break;
  }
  // The products below have at most 24 significant bits, so they are exact and any order gives the
  // same float.
  const uint32_t block_bytes = dtype_info(dtype).block_bytes;
  IntBlock b;
  for (int64_t i = 0; i < n / 256; i++) {
    unpack_block(dtype, src + i * block_bytes, b);
    for (int k = 0; k < 256; k++) {
      const float product = b.d * static_cast<float>(b.scale[k / 16]) * static_cast<float>(b.q[k]);
      out[256 * i + k] = product - b.dmin * static_cast<float>(b.min[k / 16]);
    }
  }
}

void dequantize_f8(const uint8_t* codes, const uint8_t* scales, int64_t n, float* out) {
  for (int64_t begin = 0; begin < n; begin += 128) {
    const float scale = e8m0_to_f32(scales[begin / 128]);
    for (int64_t k = begin; k < std::min<int64_t>(n, begin + 128); k++) {
      out[k] = e4m3_to_f32(codes[k]) * scale;
    }
  }
}

}  // namespace grebe
