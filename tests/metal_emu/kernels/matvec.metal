// A matrix of 8-bit blocks times a vector: 32 weights share a half scale. kRows rows a SIMD-group.
#include <metal_stdlib>
using namespace metal;

struct Block {
  half scale;
  char values[32];
};

struct MatvecArgs {
  uint rows, columns;
};

template <short kRows>
kernel void matvec(
    constant MatvecArgs& a [[buffer(0)]],
    device const Block* w [[buffer(1)]],
    device const float* x [[buffer(2)]],
    device float* y [[buffer(3)]],
    threadgroup float4* shared_x [[threadgroup(0)]],
    uint group [[threadgroup_position_in_grid]],
    ushort n_threads [[threads_per_threadgroup]],
    ushort n_simds [[simdgroups_per_threadgroup]],
    ushort thread_index [[thread_index_in_threadgroup]],
    ushort lane [[thread_index_in_simdgroup]],
    ushort simd [[simdgroup_index_in_threadgroup]]) {
  const uint n_blocks = a.columns / 32, first_row = (group * n_simds + simd) * kRows;
  device const float4* x4 = (device const float4*)x;
  for (uint i = thread_index; i < a.columns / 4; i += n_threads) shared_x[i] = x4[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float sums[kRows] = {0.f};
  for (uint b = lane / 4; b < n_blocks; b += 8) {  // four lanes share a block
    threadgroup const float4* x_block = shared_x + b * 8 + (lane % 4) * 2;
    const float4 x0 = x_block[0], x1 = x_block[1];
    for (short r = 0; r < kRows; r++) {
      if (first_row + r >= a.rows) break;
      device const Block& block = w[(ulong)(first_row + r) * n_blocks + b];
      device const char* q = block.values + (lane % 4) * 8;
      const float4 q0 = float4(q[0], q[1], q[2], q[3]), q1 = float4(q[4], q[5], q[6], q[7]);
      sums[r] += float(block.scale) * (dot(q0, x0) + dot(q1, x1));
    }
  }
  for (short r = 0; r < kRows; r++) {
    const float sum = simd_sum(sums[r]);
    if (lane == 0 && first_row + r < a.rows) y[first_row + r] = sum;
  }
}

template [[host_name("matvec_2")]] kernel decltype(matvec<2>) matvec<2>;
template [[host_name("matvec_4")]] kernel decltype(matvec<4>) matvec<4>;
