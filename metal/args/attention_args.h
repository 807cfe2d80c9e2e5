// Arguments of attention_decode.metal and attention_prefill.metal.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#else
#include <cstdint>
#endif

namespace grebe {

struct AttentionArgs {
  uint32_t n_heads;
  uint32_t window_size;
  uint32_t row_bytes;
  uint32_t rows_per_block;
  uint32_t top_k;
  uint32_t n_slots;  ///< partial results; 0 when every query is done by one threadgroup
  float scale;       ///< log2(e) / sqrt(head_dim): weights are powers of two inside the kernels
  float eps;         ///< of the queries' norm
};
static_assert(sizeof(AttentionArgs) == 32, "as on the other side");

/// Where the rows of one segment lie. Fields that end in _at are device addresses.
struct AttentionSource {
  uint64_t ring_at;
  uint64_t new_rows_at;
  uint64_t selected_at;   ///< 0: all visible rows
  uint64_t blocks_at;     ///< table of the addresses of the history's blocks
  uint64_t block_offset;  ///< of the compressed rows in every block
  uint32_t ring_rows;
  uint32_t pos;  ///< of the segment's first query
};
static_assert(sizeof(AttentionSource) == 48, "as on the other side");

/// What one row of threadgroups does: the rows [begin, end) of one query's list, in which the raw
/// rows of the window come before the compressed ones.
struct AttentionWork {
  uint32_t source;
  uint32_t i_query;  ///< in the segment
  uint32_t i_row;    ///< in q, cos and sin
  uint32_t begin;
  uint32_t end;
  uint32_t n_visible;  ///< compressed rows that the query may see
  uint32_t slot;       ///< of the partial result; kAttentionWhole: the result
  uint32_t padding;
};
static_assert(sizeof(AttentionWork) == 32, "as on the other side");

/// A query whose rows were split: partial results [first_slot, first_slot + n_slots).
struct AttentionMerge {
  uint32_t i_row;
  uint32_t first_slot;
  uint32_t n_slots;
  uint32_t padding;
};
static_assert(sizeof(AttentionMerge) == 16, "as on the other side");

#ifdef __METAL_VERSION__
constant constexpr uint32_t kAttentionWhole = 0xffffffffu;
#else
constexpr uint32_t kAttentionWhole = 0xffffffffu;
#endif

}  // namespace grebe
