// Blocks of the quantized tensor types as they lie in a file [GGUF]. All little endian; d and dmin
// are f16 bits.
//
// Alignment is at most 2, so a struct may be laid over any even address; 32-bit fields are kept as
// u16 pairs or bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace grebe {

inline constexpr int kSuperBlock = 256;  ///< weights in a block of the K and IQ types
inline constexpr int kSmallBlock = 32;   ///< weights in a block of Q8_0 and MXFP4

/// w = d * q
struct BlockQ8_0 {
  uint16_t d;
  int8_t q[32];
};
static_assert(sizeof(BlockQ8_0) == 34);

/// w = d * (scales & 15) * q - dmin * (scales >> 4), one scale byte per 16 weights. In each half of
/// 128 weights, byte j of q carries weights j, j+32, j+64, j+96 in bit pairs 0, 2, 4, 6.
struct BlockQ2_K {
  uint8_t scales[16];
  uint8_t q[64];
  uint16_t d, dmin;
};
static_assert(sizeof(BlockQ2_K) == 84);

/// w = d * (scale - 32) * (q - 4 + 4 * h): q as in Q2_K, bit i of hmask byte j is the high bit of
/// weight 32 i + j.
struct BlockQ3_K {
  uint8_t hmask[32];
  uint8_t q[64];
  uint8_t scales[12];  ///< sixteen 6-bit scales: low nibbles in 0..7, high bit pairs in 8..11
  uint16_t d;
};
static_assert(sizeof(BlockQ3_K) == 110);

/// w = d * scale * q - dmin * min, one 6-bit pair per 32 weights. Of each 64 weights the first 32
/// are low nibbles.
struct BlockQ4_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t q[128];
};
static_assert(sizeof(BlockQ4_K) == 144);

/// As Q4_K; bit i of qh byte j is the fifth bit of weight 32 i + j.
struct BlockQ5_K {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];
  uint8_t q[128];
};
static_assert(sizeof(BlockQ5_K) == 176);

/// w = d * scale * (q - 32), one i8 scale per 16 weights. In each half of 128 weights, ql byte j
/// (of 64) has the low nibbles of weights j and j+64, qh byte j (of 32) the high bit pairs of
/// weights j, j+32, j+64, j+96.
struct BlockQ6_K {
  uint8_t ql[128];
  uint8_t qh[64];
  int8_t scales[16];
  uint16_t d;
};
static_assert(sizeof(BlockQ6_K) == 210);

/// Eight groups of 32 weights: four grid indices (8 weights each), then a u32 of four 7-bit sign
/// codes and a 4-bit scale s. w = d * (s + 1/2) / 4 * grid * sign.
struct BlockIQ2_XXS {
  uint16_t d;
  uint8_t groups[64];
};
static_assert(sizeof(BlockIQ2_XXS) == 66);

/// Grid index of 8 weights: q plus two high bits from qh; one sign byte per 8 weights; 4-bit scale
/// per 16 weights. w = d * (s + 1/2) / 4 * grid * sign.
struct BlockIQ2_S {
  uint16_t d;
  uint8_t q[32];
  uint8_t signs[32];
  uint8_t qh[8];
  uint8_t scales[8];
};
static_assert(sizeof(BlockIQ2_S) == 82);

/// Grid index of 4 weights each, then per 32 weights a u32 as in IQ2_XXS. w = d * (s + 1/2) / 2 *
/// grid * sign.
struct BlockIQ3_XXS {
  uint16_t d;
  uint8_t q[64];
  uint8_t signs_scales[32];
};
static_assert(sizeof(BlockIQ3_XXS) == 98);

/// w = 2^(e - 128) * value[code], values doubled to integers; byte j has weight j low and weight
/// j+16 high [OCP-MX].
struct BlockMXFP4 {
  uint8_t e;
  uint8_t q[16];
};
static_assert(sizeof(BlockMXFP4) == 17);

}  // namespace grebe
