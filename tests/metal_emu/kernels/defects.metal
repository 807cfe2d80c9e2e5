// One defect a kernel, found where HERE stands; kernels that begin with ok are like them, but sound.
#include <metal_stdlib>
using namespace metal;

// y[0] = sum of x, by 256 threads
kernel void ok_reduce(
    device const float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    ushort t [[thread_index_in_threadgroup]],
    ushort lane [[thread_index_in_simdgroup]],
    ushort simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup float parts[8];
  const float sum = simd_sum(x[t]);
  if (lane == 0) parts[simd] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t == 0) {
    float all = 0;
    for (int i = 0; i < 8; i++) all += parts[i];
    y[0] = all;
  }
}

kernel void no_barrier(
    device const float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    ushort t [[thread_index_in_threadgroup]],
    ushort lane [[thread_index_in_simdgroup]],
    ushort simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup float parts[8];
  const float sum = simd_sum(x[t]);
  if (lane == 0) parts[simd] = sum;                // HERE
  if (t == 0) {
    float all = 0;
    for (int i = 0; i < 8; i++) all += parts[i];   // HERE
    y[0] = all;
  }
}

kernel void wrong_flag(
    device const float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    ushort t [[thread_index_in_threadgroup]]) {
  threadgroup float all[256];
  all[t] = x[t];                                   // HERE
  threadgroup_barrier(mem_flags::mem_none);
  y[t] = all[255 - t];                             // HERE
}

kernel void wrong_flag_for_device(
    device float* y [[buffer(0)]],
    ushort t [[thread_index_in_threadgroup]]) {
  y[t] = t;                                        // HERE
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[256 + t] = y[255 - t];                         // HERE
}

kernel void ok_flag_for_device(
    device float* y [[buffer(0)]],
    ushort t [[thread_index_in_threadgroup]]) {
  y[t] = t;
  threadgroup_barrier(mem_flags::mem_device);
  y[256 + t] = y[255 - t];
}

// All threads have read before one writes.
kernel void ok_write_after_read(
    device float* y [[buffer(0)]],
    ushort t [[thread_index_in_threadgroup]]) {
  const float v = y[255 - t];
  threadgroup_barrier(mem_flags::mem_device);
  y[t] = v;
}

kernel void write_after_read(
    device float* y [[buffer(0)]],
    ushort t [[thread_index_in_threadgroup]]) {
  const float v = y[255 - t];                      // HERE
  y[t] = v;                                        // HERE
}

kernel void across_threadgroups(
    device float* y [[buffer(0)]],
    uint group [[threadgroup_position_in_grid]]) {
  y[0] = group;                                    // HERE
}

kernel void lock_step(
    device float* y [[buffer(0)]],
    ushort lane [[thread_index_in_simdgroup]]) {
  threadgroup float all[32];
  all[lane] = lane;                                // HERE
  y[lane] = all[31 - lane];                        // HERE
}

kernel void ok_simdgroup_barrier(
    device float* y [[buffer(0)]],
    ushort lane [[thread_index_in_simdgroup]]) {
  threadgroup float all[32];
  all[lane] = lane;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[lane] = all[31 - lane];
}

kernel void simdgroup_barrier_for_threadgroup(
    device float* y [[buffer(0)]],
    ushort t [[thread_index_in_threadgroup]]) {
  threadgroup float all[64];
  all[t] = t;                                      // HERE
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = all[63 - t];                              // HERE
}

// Lane 0 reuses what all lanes still read.
kernel void reuse(
    device float* y [[buffer(0)]],
    ushort lane [[thread_index_in_simdgroup]]) {
  threadgroup float all[32];
  all[lane] = lane;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[lane] = all[0] + all[lane];                    // HERE
  if (lane == 5) all[0] = 7;                       // HERE
}

kernel void read_past_end(
    device const float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    uint i [[thread_position_in_grid]]) {
  y[i] = x[i + 1];                                 // HERE
}

// A loop that a vectorising compiler would like to read with wide loads.
kernel void read_past_end_in_a_loop(
    device const float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    uint i [[thread_position_in_grid]]) {
  float sum = 0;
  for (uint k = 0; k <= 256; k++) sum += x[k];     // HERE
  y[i] = sum;
}

kernel void write_past_end(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  y[i + 1] = i;                                    // HERE
}

kernel void past_end_of_threadgroup_memory(
    device float* y [[buffer(0)]],
    threadgroup float* all [[threadgroup(0)]],
    ushort t [[thread_index_in_threadgroup]]) {
  all[t] = t;                                      // HERE
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = all[t];                                   // HERE
}

kernel void write_to_read_only(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  x[i] = 1;                                        // HERE
}

kernel void cast_away_const(
    device const float* x [[buffer(0)]],
    uint i [[thread_position_in_grid]]) {
  ((device float*)x)[i] = 1;                       // HERE
}

kernel void unwritten(device float* y [[buffer(0)]], ushort t [[thread_index_in_threadgroup]]) {
  threadgroup float all[64];
  if (t < 32) all[t] = 1;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  y[t] = all[t];                                   // HERE
}

kernel void unwritten_sum(
    device float* y [[buffer(0)]],
    ushort t [[thread_index_in_threadgroup]]) {
  threadgroup float all[64];
  all[t] += 1;                                     // HERE
  y[t] = all[t];                                   // HERE
}

// Adds to what its output holds.
kernel void unwritten_device(
    device float* y [[buffer(0)]],
    uint i [[thread_position_in_grid]]) {
  y[i] += 1;                                       // HERE
}

kernel void barrier_after_return(
    device float* y [[buffer(0)]],
    ushort t [[thread_index_in_threadgroup]]) {
  if (t >= 200) return;
  threadgroup_barrier(mem_flags::mem_threadgroup); // HERE
  y[t] = t;
}

kernel void two_barriers(
    device float* y [[buffer(0)]],
    ushort t [[thread_index_in_threadgroup]]) {
  if (t < 128) {
    threadgroup_barrier(mem_flags::mem_threadgroup);  // HERE
    y[t] = 1;
  } else {
    threadgroup_barrier(mem_flags::mem_device);       // HERE
    y[t] = 2;
  }
}

kernel void different_collectives(
    device float* y [[buffer(0)]],
    ushort t [[thread_index_in_threadgroup]]) {
  float v = t;
  if (t & 1) {
    v = simd_sum(v);                               // HERE
  } else {
    v = simd_max(v);                               // HERE
  }
  y[t] = v;
}

kernel void part_of_a_matrix(
    device const float* x [[buffer(0)]],
    device float* y [[buffer(1)]],
    ushort lane [[thread_index_in_simdgroup]]) {
  simdgroup_float8x8 a, b, c = make_filled_simdgroup_matrix<float, 8>(0.f);
  simdgroup_load(a, x, 8);
  simdgroup_load(b, x, 8);
  if (lane < 16) simdgroup_multiply_accumulate(c, a, b, c);  // HERE
  simdgroup_store(c, y, 8);
}

kernel void part_of_a_barrier(
    device float* y [[buffer(0)]],
    ushort lane [[thread_index_in_simdgroup]]) {
  if (lane < 16) simdgroup_barrier(mem_flags::mem_threadgroup);  // HERE
  y[lane] = lane;
}

constant uint kUnset [[function_constant(9)]];
kernel void unset_constant(device float* y [[buffer(0)]]) {
  y[0] = kUnset;                                   // HERE
}

kernel void crash(device float* y [[buffer(0)]], device const uint* zero [[buffer(1)]]) {
  y[0] = 7 / zero[0];                              // HERE
}

// ---- dispatches of one encoder ----

kernel void fill(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  y[i] = 1;                                        // HERE
}

kernel void use(
    device const float* y [[buffer(0)]],
    device float* z [[buffer(1)]],
    uint i [[thread_position_in_grid]]) {
  z[i] = y[i] + 1;                                 // HERE
}

kernel void increment(device float* y [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  y[i] += 1;                                       // HERE
}

kernel void tally(device atomic_uint* n [[buffer(0)]]) {
  atomic_fetch_add_explicit(n, 1u, memory_order_relaxed);
}
