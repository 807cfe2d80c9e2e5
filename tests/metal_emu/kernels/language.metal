// One kernel per corner of the language and of its library; test_language.py has the expectations.
#include <metal_stdlib>
using namespace metal;

constant uint kOption [[function_constant(3)]];
constant uint kMaybe [[function_constant(4)]];
constant uint kOrDefault = is_function_constant_defined(kMaybe) ? kMaybe : 17u;
constant constexpr uint kTableSize = 4;
constant float kTable[kTableSize] = {0.5, 1e1, 0x1p-9f, 2.5f};

namespace ops {
template <typename T, typename F>
T apply(T x, F f) {
  return f(x);
}
struct Twice {
  float operator()(float x) const { return 2 * x; }
};
}  // namespace ops

kernel void literals(device float* y [[buffer(0)]]) {
  y[0] = 1 / 3.0;            // float, not double
  y[1] = float(0.1h);        // rounded to half
  y[2] = 0x1p9f;
  y[3] = float(half(2049));  // 2048: half rounds to even
  y[4] = float(0.1h + 0.2h);
  y[5] = kTable[1] + kTable[2];
  y[6] = float(bfloat(1.00390625f));  // 1: a tie, to even
  y[7] = float(bfloat(NAN)) == 0 ? 1.f : 2.f;
  y[8] = ops::apply(3.0f, ops::Twice());
}

kernel void vectors(device float4* y [[buffer(0)]], device const packed_float3* p [[buffer(1)]]) {
  const float4 a = float4(1, 2, 3, 4);
  y[0] = a.wzyx;
  y[1] = float4(a.xy, 7, 8);
  y[2] = select(a, float4(0), a > 2.0f);
  y[3] = float4(float3(p[1]), 1.0f);
  y[4] = (float4)int4(-1, 2, -3, 4) * 0.5f;
  y[5] = clamp(a, 1.5f, 3.5f);
  y[6] = as_type<float4>(as_type<uint4>(a) ^ 0x80000000u);
  y[7] = float4(any(a > 3.0f), all(a > 3.0f), dot(a, a), length(a.xy));
  y[8] = mix(a, float4(0), 0.5f);
  y[9] = float4(as_type<half2>(0x3c004000u).xyxy);
}

kernel void functions(device const float* x [[buffer(0)]], device float* y [[buffer(1)]]) {
  y[0] = exp(x[0]);
  y[1] = fast::exp(x[0]);
  y[2] = precise::log(x[0]);
  y[3] = rsqrt(x[0]);
  y[4] = pow(x[0], 1.5f);
  y[5] = fma(x[0], x[0], -1.0f);
  y[6] = rint(2.5f);
  y[7] = trunc(-1.5f);
  y[8] = tanh(x[0]);
  y[9] = copysign(x[0], -1.0f);
  y[10] = fract(-0.25f);
  y[11] = isnan(x[1]) ? 1.f : 0.f;
  y[12] = isinf(x[2]) ? 1.f : 0.f;
  y[13] = ldexp(1.0f, 5);
}

kernel void integers(device const uint* x [[buffer(0)]], device uint* y [[buffer(1)]]) {
  y[0] = popcount(x[0]);
  y[1] = ctz(x[0]);
  y[2] = clz(x[0]);
  y[3] = extract_bits(x[0], 4, 8);
  y[4] = uint(extract_bits(int(x[0]), 4, 8));
  y[5] = insert_bits(x[0], 0x5u, 4, 8);
  y[6] = rotate(x[0], 8u);
  y[7] = reverse_bits(x[0]);
  y[8] = mulhi(x[0], x[0]);
  y[9] = ctz(0u);
  y[10] = clz(ushort(1));
  y[11] = popcount(uchar(0xff));
  y[12] = uint(abs(-5)) + absdiff(3u, 5u);
  y[13] = kOption;
  y[14] = kOrDefault;
}

kernel void simd_functions(
    device const float* x [[buffer(0)]],
    device float* y [[buffer(1)]],  // [13][32]
    ushort lane [[thread_index_in_simdgroup]]) {
  const float v = x[lane];
  y[lane] = simd_sum(v);
  y[32 + lane] = simd_max(v);
  y[64 + lane] = simd_min(v);
  y[96 + lane] = simd_prefix_inclusive_sum(v);
  y[128 + lane] = simd_prefix_exclusive_sum(v);
  y[160 + lane] = simd_shuffle(v, 31 - lane);
  y[192 + lane] = simd_shuffle_xor(v, 5);
  y[224 + lane] = simd_shuffle_down(v, 1);
  y[256 + lane] = simd_shuffle_up(v, 1);
  y[288 + lane] = simd_broadcast(v, 3);
  const ulong ballot = ulong(simd_ballot(lane % 3 == 0));
  y[320 + lane] = float(ballot);
  y[352 + lane] = simd_any(lane == 7) && !simd_all(lane == 7) ? 1.f : 0.f;
  // Only some lanes: the others take no part.
  y[384 + lane] = 0.0f;
  if (lane < 10) y[384 + lane] = simd_sum(1.0f);
}

// Lanes that share memory through references to arrays.
void reverse_tile(threadgroup float (&tile)[2][16], uint lane) {
  const float v = tile[lane / 16][lane % 16];
  simdgroup_barrier(mem_flags::mem_threadgroup);
  tile[1 - lane / 16][15 - lane % 16] = v;
}

kernel void array_references(
    device float* y [[buffer(0)]],
    ushort lane [[thread_index_in_simdgroup]]) {
  threadgroup float tile[2][16];
  tile[lane / 16][lane % 16] = lane;
  reverse_tile(tile, lane);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  y[lane] = tile[lane / 16][lane % 16];
}

kernel void count(
    device atomic_uint* total [[buffer(0)]],
    device atomic_uint* largest [[buffer(1)]],
    uint i [[thread_position_in_grid]]) {
  threadgroup atomic_uint here;
  if (i % 64 == 0) atomic_store_explicit(&here, 0u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&here, 2u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i % 64 == 0) {
    const uint n = atomic_load_explicit(&here, memory_order_relaxed);
    atomic_fetch_add_explicit(total, n, memory_order_relaxed);
  }
  atomic_fetch_max_explicit(largest, i, memory_order_relaxed);
}

// What each thread of a ragged grid is told; uint4 per thread.
kernel void positions(
    device uint4* y [[buffer(0)]],
    uint3 at [[thread_position_in_grid]],
    uint3 group [[threadgroup_position_in_grid]],
    uint3 size [[threads_per_grid]],
    ushort3 inside [[thread_position_in_threadgroup]],
    ushort3 shape [[threads_per_threadgroup]]) {
  y[at.y * size.x + at.x] =
      uint4(group.y * 16 + group.x, inside.y * 16 + inside.x, shape.y * 16 + shape.x, size.y);
}

// Addresses in a table lead to other memory: y[i] = *blocks[i].
kernel void through_addresses(
    device const float* device const* blocks [[buffer(0)]],
    device const ulong* addresses [[buffer(1)]],
    device float* y [[buffer(2)]],
    uint i [[thread_position_in_grid]]) {
  device const float* same = reinterpret_cast<device const float*>(addresses[i]);
  y[i] = blocks[i][0] + same[1];
}

kernel void write_through(
    device const ulong* addresses [[buffer(0)]],
    uint i [[thread_position_in_grid]]) {
  *(device float*)addresses[i] = 1.0f;
}
