// Quantized blocks taken apart: exact integers for the kernels, exact floats for everybody else.
//
// This is the definition of every format. The fast kernels in backend/cpu are tested against it,
// and it is tested against the `gguf` package bit for bit.
#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "quant/blocks.h"

namespace grebe {

inline constexpr uint8_t kGridValues2[4] = {8, 25, 43, 0};  ///< magnitudes of IQ2_XXS and IQ2_S
inline constexpr uint8_t kGridValues3[8] = {4, 12, 20, 28, 36, 44, 52, 62};
inline constexpr int8_t kDoubledE2M1[16] = {
    0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#include "quant/tables.inc"

/// Any 256-weight block: w[k] = d * scale[k/16] * q[k] - dmin * min[k/16]. Types with groups of 32
/// repeat their scales.
struct IntBlock {
  int8_t q[256];
  int16_t scale[16];
  int16_t min[16];
  float d, dmin;
};

/// `block` is one block of a 256-weight type.
void unpack_block(DType dtype, const uint8_t* block, IntBlock& out);

/// 2^(e - 128): the scale that goes with kDoubledE2M1.
inline float mxfp4_scale(uint8_t e) {
  const uint32_t bits = e < 2 ? 0x00200000u << e : static_cast<uint32_t>(e - 1) << 23;
  return std::bit_cast<float>(bits);
}

/// n weights of any type but F8E4M3, a multiple of the block size. `src` needs the alignment of its
/// block struct only; F32, F16 and BF16 may lie anywhere.
void dequantize(DType dtype, const uint8_t* src, int64_t n, float* out);

/// One row of E4M3 codes; `scales` are the E8M0 bytes of its row of tiles, one per 128 columns.
void dequantize_f8(const uint8_t* codes, const uint8_t* scales, int64_t n, float* out);

}  // namespace grebe
