// Rounding and packing of cache rows: the byte layouts of csrc/backend/rows.h [V4 5].
//
// Given the same floats the bytes are those of the CPU backend. (A GPU may flush numbers below
// 2^-126; only an FP4 block whose largest is smaller than 2^-123 could show it.)
#pragma once

#include <metal_stdlib>

#include "formats.h"

/// Exponent of a block that is not finite: its scale byte is 255, NaN in E8M0.
constant constexpr int kNotFinite = 128;

/// The largest |x| of a SIMD-group as float bits: as integers NaN > infinity > any finite value.
static inline uint simd_max_abs_bits(float x) {
  return metal::simd_max(as_type<uint>(x) & 0x7fffffffu);
}

/// Exponent of 64 channels of a KV row from the bits of the largest.
static inline int kv_block_exponent(uint amax_bits) {
  if (amax_bits >= 0x7f800000u) return kNotFinite;
  return ceil_log2(metal::max(as_type<float>(amax_bits), 1e-4f) * (1.f / 448.f));
}

/// Exponent of 32 channels of an index row.
static inline int fp4_block_exponent(uint amax_bits) {
  if (amax_bits >= 0x7f800000u) return kNotFinite;
  const float amax = as_type<float>(amax_bits);
  if (amax < 0x1.8p-124f) return -126;  // 6 * 2^-126
  return metal::max(ceil_log2(amax * (1.f / 6.f)), -126);
}

/// x * 2^-e for an exponent of one of these blocks.
static inline float scale_down(float x, int e) {
  if (e == kNotFinite) return x * 0x1p-64f * 0x1p-64f;  // 2^-128 is not a normal float
  return x * as_type<float>(uint(127 - e) << 23);
}

/// Rotates pairs (x[2i], x[2i+1]), i < pairs, by threads [0, n_threads).
static inline void rotate_pairs(
    threadgroup float* x,
    device const float* cos,
    device const float* sin,
    uint pairs,
    uint thread_index,
    uint n_threads) {
  for (uint i = thread_index; i < pairs; i += n_threads) {
    const float u = x[2 * i], v = x[2 * i + 1], c = cos[i], s = sin[i];
    x[2 * i] = u * c - v * s;
    x[2 * i + 1] = u * s + v * c;
  }
}

/// Hadamard transform (natural order) times dim^-1/2, in place, by one SIMD-group. dim is a power
/// of two from 32 up. The sums are those of the CPU, in its order.
static inline void simd_hadamard(threadgroup float* x, uint dim, float scale, uint lane) {
  for (uint h = 1; h < dim; h *= 2) {
    for (uint i = lane; i < dim / 2; i += 32) {
      const uint j = (i & ~(h - 1)) * 2 + (i & (h - 1));
      const float a = x[j], b = x[j + h];
      const float m = 2 * h == dim ? scale : 1.f;
      x[j] = (a + b) * m;
      x[j + h] = (a - b) * m;
    }
    metal::simdgroup_barrier(metal::mem_flags::mem_threadgroup);
  }
}

/// Packs channels [0, nope) of x, a multiple of 64, as codes at `out` and scale bytes at `scales`:
/// SIMD-group `simd` of n_simds takes every n_simds-th block.
static inline void pack_e4m3_blocks(
    threadgroup const float* x,
    uint nope,
    device uchar* out,
    device uchar* scales,
    uint simd,
    uint n_simds,
    uint lane) {
  for (uint b = simd; b < nope / 64; b += n_simds) {
    const uint k = 64 * b + 2 * lane;
    const float u = x[k], v = x[k + 1];
    const int e = kv_block_exponent(metal::max(simd_max_abs_bits(u), simd_max_abs_bits(v)));
    *(device uchar2*)(out + k) =
        uchar2(float_to_e4m3(scale_down(u, e)), float_to_e4m3(scale_down(v, e)));
    if (lane == 0) scales[b] = uchar(e + 127);
  }
}

/// Packs x, dim channels after the Hadamard transform, as an index row, by one SIMD-group.
static inline void simd_pack_fp4(
    threadgroup const float* x, uint dim, device uchar* out, uint lane) {
  for (uint b = 0; b < dim / 32; b++) {
    const float v = x[32 * b + lane];
    const int e = fp4_block_exponent(simd_max_abs_bits(v));
    const uint code = float_to_e2m1(scale_down(v, e));
    const uint next = metal::simd_shuffle_xor(code, ushort(1));
    if (lane % 2 == 0) out[16 * b + lane / 2] = uchar(code | next << 4);
    if (lane == 0) out[dim / 2 + b] = uchar(e + 127);
  }
}
