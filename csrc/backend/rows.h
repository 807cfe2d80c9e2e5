// The exact packed forms of cache rows.
//
// A KV row holds head_dim numbers, the last rope_dim of them rotated. With official rounding the
// others have been through E4M3 in blocks of 64 with power-of-two scales, so a code and a scale
// byte hold them exactly [V4 5]:
//
//   0                        u8[nope]        E4M3 codes, nope = head_dim - rope_dim
//   nope                     bf16 or f32     the rotary channels
//   nope + rope bytes        u8[nope / 64]   scale exponents, biased by 127
//   padded to a multiple of 8: 448 + 128 + 7 -> 584 bytes for Flash
//
// DeepSeek's code runs in bf16, so bf16 loses nothing of the trained graph. The oracle keeps the
// rotary channels unrounded, so strict tests (kernels="exact") store them as f32. An index row is
// FP4: u8[d / 2] E2M1 codes (even element in the low nibble), then u8[d / 32] scale exponents: 68
// bytes for d = 128. With rounding off both are plain f32.
#pragma once

#include <cstdint>

namespace grebe {

struct KvRowFormat {
  enum class Kind : uint32_t { kF32 = 0, kPackedBf16 = 1, kPackedF32 = 2 };
  Kind kind = Kind::kPackedBf16;
  int32_t head_dim = 0;
  int32_t rope_dim = 0;

  int32_t nope() const { return head_dim - rope_dim; }
  int32_t rope_offset() const { return nope(); }
  int32_t scale_offset() const { return nope() + rope_dim * (kind == Kind::kPackedBf16 ? 2 : 4); }
  int64_t row_bytes() const {
    if (kind == Kind::kF32) return int64_t{4} * head_dim;
    return (scale_offset() + nope() / 64 + 7) / 8 * 8;
  }
};

struct IndexRowFormat {
  bool packed = true;
  int32_t dim = 0;

  int64_t row_bytes() const { return packed ? dim / 2 + dim / 32 : int64_t{4} * dim; }
};

/// Rows of one layer stream across a session's history blocks: row r lies in block r /
/// rows_per_block.
struct RowStream {
  uint8_t* const* blocks = nullptr;
  int64_t offset = 0;  ///< of this stream in every block
  int32_t rows_per_block = 1;
  int64_t row_bytes = 0;

  uint8_t* row(int64_t r) const {
    return blocks[r / rows_per_block] + offset + (r % rows_per_block) * row_bytes;
  }
};

}  // namespace grebe
