// Arguments of metal/indexer.metal.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#define GREBE_DEVICE(T) device T*
#else
#include <cstdint>
#define GREBE_DEVICE(T) uint64_t
#endif

namespace grebe {

// Rows that index_score takes at a time, and queries that share their unpacking.
enum : int32_t { kIndexRowsPacked = 64, kIndexRowsF32 = 32, kIndexQueries = 8 };
// Heads are padded to a multiple of this, channels to a multiple of 32.
enum : int32_t { kIndexHeads = 32 };
// index_top keeps this many scores a thread in registers.
enum : int32_t { kTopKeys = 16 };

struct IndexQueriesArgs {
  int32_t n_heads, heads;  // heads: padded
  int32_t dim, channels;   // channels: padded
  int32_t pairs;           // of rotated channels, at the end
  float weight_scale;      // dim^-1/2 n_heads^-1/2
  float hadamard_scale;    // dim^-1/2
};
static_assert(sizeof(IndexQueriesArgs) == 28, "as on the other side");

struct IndexQuery {
  GREBE_DEVICE(int32_t) out;  // i32[top_k]
  uint32_t scores;            // where its scores begin
  int32_t visible;            // rows [0, visible)
  int32_t prepared;           // among the prepared queries
  int32_t unused;
};
static_assert(sizeof(IndexQuery) == 24, "as on the other side");

/// A block of a session's history.
struct IndexBlock {
  GREBE_DEVICE(const uint8_t) data;
};
static_assert(sizeof(IndexBlock) == 8, "as on the other side");

/// Up to kIndexQueries consecutive queries of one session against its rows.
struct IndexGroup {
  GREBE_DEVICE(const IndexBlock) blocks;
  uint32_t first_tile;  // tiles of the groups before this one
  int32_t first_query, n_queries;
  int32_t n_rows;                  // visible to the last of them
  int32_t rows_per_block, offset;  // of the rows in a block, in bytes
  int32_t row_bytes, unused;
};
static_assert(sizeof(IndexGroup) == 40, "as on the other side");

struct IndexScoreArgs {
  int32_t n_groups;
  int32_t heads, dim, channels;  // as in IndexQueriesArgs
};
static_assert(sizeof(IndexScoreArgs) == 16, "as on the other side");

struct IndexTopArgs {
  int32_t top_k;
  int32_t slice;   // rows of a threadgroup
  int32_t level;   // 0: of scores, else of what the level below chose
  int32_t stride;  // of a query's candidates, those read; the next level's follow from it
  int32_t next_stride;
};
static_assert(sizeof(IndexTopArgs) == 20, "as on the other side");

}  // namespace grebe
