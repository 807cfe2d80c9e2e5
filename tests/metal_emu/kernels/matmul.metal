// c[m, n] = a[m, k] b[n, k]^T in tiles of 8 x 8; a in half or float, b in half, sums in float.
#include <metal_stdlib>
using namespace metal;

struct MatmulArgs {
  uint m, n, k;
};

// One SIMD-group a tile. Rows past the end are zero in the threadgroup copies.
template <typename T>
kernel void matmul(
    constant MatmulArgs& s [[buffer(0)]],
    device const T* a [[buffer(1)]],
    device const half* b [[buffer(2)]],
    device float* c [[buffer(3)]],
    uint2 tile [[threadgroup_position_in_grid]],
    ushort lane [[thread_index_in_simdgroup]]) {
  threadgroup T a_tile[8][8];
  threadgroup half b_tile[64];
  threadgroup float c_tile[64];
  simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8>(0.f);
  for (uint k = 0; k < s.k; k += 8) {
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = lane; i < 64; i += 32) {
      const uint row = i / 8, column = k + i % 8;
      const uint a_row = tile.y * 8 + row, b_row = tile.x * 8 + row;
      a_tile[row][i % 8] = a_row < s.m && column < s.k ? a[a_row * s.k + column] : T(0);
      b_tile[i] = b_row < s.n && column < s.k ? b[b_row * s.k + column] : 0.0h;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_matrix<T, 8, 8> x;
    simdgroup_half8x8 y;
    simdgroup_load(x, &a_tile[0][0], 8);
    simdgroup_load(y, b_tile, 8, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(sum, x, y, sum);
  }
  simdgroup_store(sum, c_tile, 8);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = lane; i < 64; i += 32) {
    const uint row = tile.y * 8 + i / 8, column = tile.x * 8 + i % 8;
    if (row < s.m && column < s.n) c[row * s.n + column] = c_tile[i];
  }
}

template [[host_name("matmul_f32")]] kernel decltype(matmul<float>) matmul<float>;
template [[host_name("matmul_f16")]] kernel decltype(matmul<half>) matmul<half>;

// Whole tiles, straight from and to device memory with a stride.
kernel void matmul_whole(
    constant MatmulArgs& s [[buffer(0)]],
    device const float* a [[buffer(1)]],
    device const float* b [[buffer(2)]],
    device float* c [[buffer(3)]],
    uint2 tile [[threadgroup_position_in_grid]]) {
  simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8>(0.f);
  for (uint k = 0; k < s.k; k += 8) {
    simdgroup_float8x8 x, y;
    simdgroup_load(x, a, s.k, ulong2(k, tile.y * 8));
    simdgroup_load(y, b + tile.x * 8 * s.k + k, s.k, ulong2(0, 0), true);
    simdgroup_multiply_accumulate(sum, x, y, sum);
  }
  sum.thread_elements() *= 2.0f;
  simdgroup_store(sum, c + tile.y * 8 * s.n + tile.x * 8, s.n);
}
