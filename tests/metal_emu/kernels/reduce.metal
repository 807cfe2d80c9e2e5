// Sums of rows, by a whole threadgroup each.
#include <metal_stdlib>
using namespace metal;

constant uint kSquare [[function_constant(0)]];
constant uint kSimds [[function_constant(1)]];
constant uint kThreads = kSimds * 32;

struct ReduceArgs {
  uint n;
  float scale;
};

// y[row] = scale * sum of x[row, 0..n), or of the squares.
template <typename T>
[[max_total_threads_per_threadgroup(256)]] kernel void reduce_rows(
    constant ReduceArgs& a [[buffer(0)]],
    device const T* x [[buffer(1)]],
    device float* y [[buffer(2)]],
    uint row [[threadgroup_position_in_grid]],
    ushort thread_index [[thread_index_in_threadgroup]],
    ushort lane [[thread_index_in_simdgroup]],
    ushort simd [[simdgroup_index_in_threadgroup]]) {
  threadgroup float parts[32];
  device const T* x_row = x + (ulong)row * a.n;
  float sum = 0.0f;
  for (uint i = thread_index; i < a.n; i += kThreads) {
    const float v = float(x_row[i]);
    sum += kSquare != 0 ? v * v : v;
  }
  sum = simd_sum(sum);
  if (lane == 0) parts[simd] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simd == 0) {
    sum = simd_sum(lane < kSimds ? parts[lane] : 0.0f);
    if (lane == 0) y[row] = sum * a.scale;
  }
}

template [[host_name("reduce_rows_f32")]] kernel decltype(reduce_rows<float>) reduce_rows<float>;
template [[host_name("reduce_rows_f16")]] kernel decltype(reduce_rows<half>) reduce_rows<half>;
template [[host_name("reduce_rows_bf16")]] kernel decltype(reduce_rows<bfloat>) reduce_rows<bfloat>;
