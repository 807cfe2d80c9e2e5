// Arguments of metal/rows.metal.
#pragma once

#ifdef __METAL_VERSION__
#include <metal_stdlib>
#define GREBE_DEVICE(T) device T*
#else
#include <cstdint>
#define GREBE_DEVICE(T) uint64_t
#endif

namespace grebe {

/// What a job makes of its channels.
enum RowsJobKind : int32_t {
  kRowsKv = 0,     // normalised, rotated, packed as a KV row
  kRowsIndex = 1,  // the same as an index row
  kRowsPlain = 2,  // f32[dim], as pooled
  kRowsState = 3,  // f32[3, dim]: maximum, sum, weighted sum
};

/// One compressor of one session, or the raw rows of the step. `pairs`, `norm`, `cos` and `sin` are
/// those of finished rows; the others are only there for pooling.
struct RowsSource {
  GREBE_DEVICE(const float) kv;        // f32[n, stride], the segment's first row first
  GREBE_DEVICE(const float) gate;      // same shape
  GREBE_DEVICE(const float) ape;       // f32[ratio, width]
  GREBE_DEVICE(const float) state_in;  // f32[width / dim, 3, dim]
  GREBE_DEVICE(const float) norm;      // f32[dim]
  GREBE_DEVICE(const float) cos;       // f32[rows, pairs]
  GREBE_DEVICE(const float) sin;
  int32_t dim, pairs;  // pairs of rotated channels
  int32_t stride, width, ratio;
  int32_t slot;  // of the segment's first token: its position mod ratio
};
static_assert(sizeof(RowsSource) == 80, "as on the other side");

/// The work of one threadgroup: one row, or one part of a pooling state.
struct RowsJob {
  GREBE_DEVICE(const float) in;  // f32[dim], or null: pooled from the source
  GREBE_DEVICE(uint8_t) out;
  int32_t source;
  int32_t kind;
  int32_t entry;  // of the rotation table
  // Pooling goes on from part `start` of the state (-1: from nothing) with the A half of tokens
  // [a_begin, a_end) of the segment, then the B half of [b_begin, b_end).
  int32_t start;
  int32_t a_begin, a_end, b_begin, b_end;
};
static_assert(sizeof(RowsJob) == 48, "as on the other side");

struct RowsArgs {
  float eps;
  float hadamard_scale;  // index dim ^ -1/2
  int32_t rope_bytes;    // of the rotary channels of a KV row
  int32_t kv_row_bytes;
};
static_assert(sizeof(RowsArgs) == 16, "as on the other side");

}  // namespace grebe
