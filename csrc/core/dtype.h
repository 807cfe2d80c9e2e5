// Number formats: the tensor types that a GGUF can name, their block sizes, and scalar conversions.
//
// Scalar and exact; the vector forms in backend/cpu must agree with these bit for bit.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>

namespace grebe {

/// Tensor types by their GGUF numbers [GGUF]. kF8E4M3 never appears in a tensor directory: it is an
/// I8 tensor of raw E4M3 codes with a companion `.scale` tensor of E8M0 bytes, one per 128x128
/// tile.
enum class DType : uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ8_0 = 8,
  kQ2_K = 10,
  kQ3_K = 11,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kIQ2_XXS = 16,
  kIQ3_XXS = 18,
  kIQ2_S = 22,
  kI8 = 24,
  kI32 = 26,
  kBF16 = 30,
  kMXFP4 = 39,
  kF8E4M3 = 0x10000,
};

/// Elements and bytes of one block. `name` is null for a number that this build does not know.
struct DTypeInfo {
  const char* name;
  uint32_t block_size;
  uint32_t block_bytes;
};

constexpr DTypeInfo dtype_info(DType t) {
  switch (t) {
    case DType::kF32:
      return {"F32", 1, 4};
    case DType::kF16:
      return {"F16", 1, 2};
    case DType::kBF16:
      return {"BF16", 1, 2};
    case DType::kQ8_0:
      return {"Q8_0", 32, 34};
    case DType::kQ2_K:
      return {"Q2_K", 256, 84};
    case DType::kQ3_K:
      return {"Q3_K", 256, 110};
    case DType::kQ4_K:
      return {"Q4_K", 256, 144};
    case DType::kQ5_K:
      return {"Q5_K", 256, 176};
    case DType::kQ6_K:
      return {"Q6_K", 256, 210};
    case DType::kIQ2_XXS:
      return {"IQ2_XXS", 256, 66};
    case DType::kIQ3_XXS:
      return {"IQ3_XXS", 256, 98};
    case DType::kIQ2_S:
      return {"IQ2_S", 256, 82};
    case DType::kI8:
      return {"I8", 1, 1};
    case DType::kI32:
      return {"I32", 1, 4};
    case DType::kMXFP4:
      return {"MXFP4", 32, 17};
    case DType::kF8E4M3:
      return {"F8_E4M3", 1, 1};
  }
  return {nullptr, 0, 0};
}

/// "Q8_0", or "type 123" for a number without a name.
inline std::string dtype_name(DType t) {
  const DTypeInfo info = dtype_info(t);
  return info.name ? info.name : "type " + std::to_string(static_cast<uint32_t>(t));
}

inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t exponent = (h >> 10) & 31, mantissa = h & 0x3ff;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -magnitude : magnitude;
  }
  const uint32_t bits =
      exponent == 31 ? 0x7f800000u | mantissa << 13 : (exponent + 112) << 23 | mantissa << 13;
  return std::bit_cast<float>(sign | bits);
}

/// Round to nearest even; overflow gives infinity.
inline uint16_t f32_to_f16(float f) {
  const uint32_t x = std::bit_cast<uint32_t>(f);
  const uint16_t sign = static_cast<uint16_t>(x >> 16 & 0x8000);
  const uint32_t a = x & 0x7fffffff;
  if (a > 0x7f800000) return sign | 0x7e00;   // NaN
  if (a >= 0x477ff000) return sign | 0x7c00;  // rounds to 65536 or more
  if (a < 0x38800000) {                       // below 2^-14: subnormal half
    const float scaled = std::bit_cast<float>(a) * 0x1p24f;
    return sign | static_cast<uint16_t>(std::nearbyintf(scaled));
  }
  const uint32_t rounded = a + 0xfff + (a >> 13 & 1);
  return sign | static_cast<uint16_t>((rounded - 0x38000000) >> 13);
}

inline float bf16_to_f32(uint16_t h) {
  return std::bit_cast<float>(static_cast<uint32_t>(h) << 16);
}

/// Round to nearest even; NaN stays NaN.
inline uint16_t f32_to_bf16(float f) {
  const uint32_t x = std::bit_cast<uint32_t>(f);
  if ((x & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(x >> 16 | 0x40);
  return static_cast<uint16_t>((x + 0x7fff + (x >> 16 & 1)) >> 16);
}

/// E8M0 scale: 2^(byte-127); byte 0 is 2^-127 (a subnormal float), 255 is NaN [OCP-MX].
inline float e8m0_to_f32(uint8_t e) {
  if (e == 255) return std::bit_cast<float>(0x7fc00000u);
  return std::bit_cast<float>(e == 0 ? 0x00400000u : static_cast<uint32_t>(e) << 23);
}

/// E4M3 (finite, "fn"): bias 7, largest 448, codes 0x7f and 0xff are NaN [OCP-FP8].
inline float e4m3_to_f32(uint8_t code) {
  const uint32_t exponent = code >> 3 & 15, mantissa = code & 7;
  float magnitude;
  if ((code & 127) == 127) {
    magnitude = std::bit_cast<float>(0x7fc00000u);
  } else if (exponent == 0) {
    magnitude = static_cast<float>(mantissa) * 0x1p-9f;
  } else {
    magnitude = std::bit_cast<float>((exponent + 120) << 23 | mantissa << 20);
  }
  return code & 128 ? -magnitude : magnitude;
}

/// Round to nearest even, saturating at 448.
inline uint8_t f32_to_e4m3(float f) {
  const uint32_t x = std::bit_cast<uint32_t>(f);
  const uint8_t sign = static_cast<uint8_t>(x >> 24 & 128);
  const uint32_t a = x & 0x7fffffff;
  if (a > 0x7f800000) return sign | 127;
  if (a >= 0x43e00000) return sign | 126;  // 448 and above
  if (a < 0x3c800000) {                    // below 2^-6: steps of 2^-9
    const float scaled = std::bit_cast<float>(a) * 0x1p9f;
    return sign | static_cast<uint8_t>(std::nearbyintf(scaled));
  }
  const uint32_t rounded = a + 0x7ffff + (a >> 20 & 1);
  const uint32_t code = (rounded >> 20) - (120u << 3);
  return sign | static_cast<uint8_t>(code > 126 ? 126 : code);
}

/// E2M1: 0, .5, 1, 1.5, 2, 3, 4, 6 and the sign in bit 3 [OCP-MX].
inline constexpr float kE2M1[16] = {
    0.f, .5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f, -0.f, -.5f, -1.f, -1.5f, -2.f, -3.f, -4.f, -6.f};

/// Nearest E2M1 code, ties to the even code, saturating at 6.
inline uint8_t f32_to_e2m1(float f) {
  const float a = std::fabs(f);
  uint8_t code;
  if (a <= 0.25f)
    code = 0;
  else if (a < 0.75f)
    code = 1;
  else if (a <= 1.25f)
    code = 2;
  else if (a < 1.75f)
    code = 3;
  else if (a <= 2.5f)
    code = 4;
  else if (a < 3.5f)
    code = 5;
  else if (a <= 5.f)
    code = 6;
  else
    code = 7;
  return std::signbit(f) ? code | 8 : code;
}

/// Smallest power of two 2^e with 2^e >= x, as the exponent e (x a positive normal float).
inline int ceil_log2(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  return static_cast<int>(bits >> 23) - 127 + ((bits & 0x7fffff) != 0);
}

}  // namespace grebe
