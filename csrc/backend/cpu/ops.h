// Inner loops of the CPU backend other than matrix products: one thread, one row or one unit of
// work.
//
// ops_impl.h holds the only implementation; it is compiled once per instruction set and gives the
// same bits on all of them. Threading and memory are the caller's (cpu_backend.cpp).
#pragma once

#include <cstdint>

#include "backend/rows.h"
#include "core/cpu_features.h"

namespace grebe::cpu {

/// Heads of one query over a list of rows.
struct AttentionUnit {
  const float* q;  ///< f32[n_heads, head_dim]
  float* out;      ///< same shape, may be q
  int32_t n_heads;
  const uint8_t* const* rows;  ///< n_rows packed rows, in the order of summation
  int64_t n_rows;
  KvRowFormat format;
  const float* sinks;  ///< f32[n_heads]
  float scale;
  const float *cos, *sin;  ///< of the query's position, f32[rope_dim / 2]
  float* scratch;          ///< attention_scratch_floats()
};

constexpr int kAttentionTile = 64;  // rows unpacked at a time; 64 x 512 f32 = 128 KiB

inline int64_t attention_scratch_floats(int32_t n_heads, int32_t head_dim) {
  const int64_t padded = (n_heads + 15) / 16 * 16;
  return padded * head_dim + int64_t{kAttentionTile} * head_dim + kAttentionTile * 16 + 2 * padded +
         16;
}

/// An index query head in integers: doubled E2M1 codes and, per 32 channels, half the scale.
struct IndexQuery {
  const int8_t* codes;   ///< i8[n_heads, dim]
  const float* scales;   ///< f32[n_heads, dim / 32]
  const int32_t* sums;   ///< i32[n_heads, dim / 32]: sums of codes
  const float* weights;  ///< f32[n_heads]
};

constexpr int64_t kHeadGroup = 16;  // heads of one query that a task takes

constexpr int kIndexPanel = 16;  // index rows scored together, one lane each

struct OpsTable {
  /// out = x / sqrt(mean(x^2) + eps) * weight (weight may be null, out may be x).
  void (*rms_norm)(const float* x, const float* weight, int64_t n, float eps, float* out);
  /// 1 / sqrt(mean(x^2) + eps)
  float (*inverse_rms)(const float* x, int64_t n, float eps);
  /// out = sum_j pre[j] X[j], X f32[n_streams, d]
  void (*hc_collapse)(const float* X, const float* pre, int32_t n_streams, int64_t d, float* out);
  /// X[k] = post[k] y + sum_j comb[j, k] X[j] over channels [begin, end)
  void (*hc_expand)(
      float* X,
      const float* y,
      const float* post,
      const float* comb,
      int32_t n_streams,
      int64_t d,
      int64_t begin,
      int64_t end);
  /// Online softmax pooling of one token into channels [begin, end) of a triple f32[3, dim].
  void (*pool_add)(
      float* triple,
      int64_t dim,
      const float* kv,
      const float* gate,
      const float* ape,
      int64_t begin,
      int64_t end);
  void (*unpack_kv_row)(const uint8_t* row, const KvRowFormat& format, float* out);
  void (*attention)(const AttentionUnit& unit);
  /// Packed rows -> panel u8[dim / 4, 16, 4] of codes + 12 and f32[dim / 32, 16] scales; missing
  /// rows are zero.
  void (*index_panel)(
      const uint8_t* const* rows, int32_t n_rows, int32_t dim, uint8_t* codes, float* scales);
  /// scores[0..16) of one query against one panel.
  void (*index_score)(
      const IndexQuery& query,
      int32_t n_heads,
      int32_t dim,
      const uint8_t* codes,
      const float* scales,
      float* scores);
  /// The same for plain f32 rows, one row: sum_h w_h relu(q_h . row)
  float (*index_score_f32)(
      const float* q, const float* weights, int32_t n_heads, int32_t dim, const float* row);
};

const OpsTable& ops_table(Isa isa);

// Scalar and exact, the same for every table.

/// False when a number is NaN or infinite.
bool all_finite(const float* x, int64_t n);
/// Rotates pairs (x[2i], x[2i+1]) of rope_dim values at the end of a vector; sign = -1 for the
/// inverse.
void rope_rotate(float* tail, const float* cos, const float* sin, int32_t half, float sign);
/// Rounds and packs one finished row (after norm and rotation).
void pack_kv_row(const float* row, const KvRowFormat& format, uint8_t* out);
/// Hadamard transform (natural order) times dim^-1/2, in place. dim a power of two.
void hadamard(float* x, int32_t dim);
/// FP4 rounding in blocks of 32: doubled codes (-12..12) and half scales. x is after the Hadamard
/// transform.
void fp4_codes(const float* x, int32_t dim, int8_t* codes, float* scales);
/// Hadamard, FP4, pack: u8[dim / 2] codes and u8[dim / 32] exponents.
void pack_index_row(float* row, int32_t dim, uint8_t* out);

}  // namespace grebe::cpu
