// <metal_math>, <metal_integer>, <metal_common>, <metal_geometric>, <metal_relational>.
//
// Overloads are exact, as in Apple's header, so calls with mixed types stay ambiguous. Accuracy is
// libm's: Metal's fast variants may differ by a few units in the last place.
#pragma once

#include "construct.h"

// clang-format off
#define MSL_FOR_INTEGERS(M)                                           \
  M(char) M(uchar) M(short) M(ushort) M(int) M(uint) M(long) M(ulong) \
  M(char2) M(char3) M(char4) M(uchar2) M(uchar3) M(uchar4)            \
  M(short2) M(short3) M(short4) M(ushort2) M(ushort3) M(ushort4)      \
  M(int2) M(int3) M(int4) M(uint2) M(uint3) M(uint4)
// clang-format on
#define MSL_FOR_FLOATS(M) M(float) M(half) M(float2) M(float3) M(float4) M(half2) M(half3) M(half4)

namespace metal {

// ---- integers and floats ----

#define MSL_MIN_MAX(T)                                                   \
  MSL_INLINE T max(T a, T b) { return __builtin_elementwise_max(a, b); } \
  MSL_INLINE T min(T a, T b) { return __builtin_elementwise_min(a, b); } \
  MSL_INLINE T clamp(T x, T low, T high) { return min(max(x, low), high); }
MSL_FOR_INTEGERS(MSL_MIN_MAX)
MSL_FOR_FLOATS(MSL_MIN_MAX)
#undef MSL_MIN_MAX
MSL_INLINE bfloat max(bfloat a, bfloat b) { return a > b ? a : b; }
MSL_INLINE bfloat min(bfloat a, bfloat b) { return a < b ? a : b; }

#define MSL_SELECT(T) \
  MSL_INLINE T select(T a, T b, bool c) { return c ? b : a; }
MSL_SELECT(float)
MSL_SELECT(half)
MSL_SELECT(char)
MSL_SELECT(uchar)
MSL_SELECT(short)
MSL_SELECT(ushort)
MSL_SELECT(int)
MSL_SELECT(uint)
MSL_SELECT(long)
MSL_SELECT(ulong)
#undef MSL_SELECT
// Comparisons of vectors give integers as wide as the elements, not bool vectors.
#define MSL_SELECT_VECTOR(T, MASK, N)                      \
  MSL_INLINE T##N select(T##N a, T##N b, MASK##N c) {      \
    T##N r;                                                \
    for (int i = 0; i < N; ++i) r[i] = c[i] ? b[i] : a[i]; \
    return r;                                              \
  }
#define MSL_SELECT_VECTORS(T, MASK) \
  MSL_SELECT_VECTOR(T, MASK, 2) MSL_SELECT_VECTOR(T, MASK, 3) MSL_SELECT_VECTOR(T, MASK, 4)
MSL_SELECT_VECTORS(float, int)
MSL_SELECT_VECTORS(int, int)
MSL_SELECT_VECTORS(uint, int)
MSL_SELECT_VECTORS(half, short)
MSL_SELECT_VECTORS(short, short)
MSL_SELECT_VECTORS(ushort, short)
MSL_SELECT_VECTORS(char, char)
MSL_SELECT_VECTORS(uchar, char)
#if !defined(MSL_LINT)
MSL_SELECT_VECTORS(float, bool)
MSL_SELECT_VECTORS(half, bool)
MSL_SELECT_VECTORS(int, bool)
MSL_SELECT_VECTORS(uint, bool)
#endif
#undef MSL_SELECT_VECTORS
#undef MSL_SELECT_VECTOR

#define MSL_ANY_ALL(T, N)                       \
  MSL_INLINE bool any(T##N c) {                 \
    bool r = false;                             \
    for (int i = 0; i < N; ++i) r |= c[i] != 0; \
    return r;                                   \
  }                                             \
  MSL_INLINE bool all(T##N c) {                 \
    bool r = true;                              \
    for (int i = 0; i < N; ++i) r &= c[i] != 0; \
    return r;                                   \
  }
MSL_ANY_ALL(char, 2)
MSL_ANY_ALL(char, 3)
MSL_ANY_ALL(char, 4)
MSL_ANY_ALL(short, 2)
MSL_ANY_ALL(short, 3)
MSL_ANY_ALL(short, 4)
MSL_ANY_ALL(int, 2)
MSL_ANY_ALL(int, 3)
MSL_ANY_ALL(int, 4)
#undef MSL_ANY_ALL

// ---- integers ----

#define MSL_ABS(T) \
  MSL_INLINE T abs(T a) { return a < 0 ? (T) - a : a; }
MSL_ABS(char)
MSL_ABS(short)
MSL_ABS(int)
MSL_ABS(long)
#undef MSL_ABS

// BITS is the width of T. clz and ctz of 0 are the width, as in Metal.
#define MSL_BITS(T, U, BITS)                                                             \
  MSL_INLINE T popcount(T a) { return (T)__builtin_popcountll((ulong)(U)a); }            \
  MSL_INLINE T clz(T a) {                                                                \
    return (T)((U)a == 0 ? BITS : __builtin_clzll((ulong)(U)a) - (64 - BITS));           \
  }                                                                                      \
  MSL_INLINE T ctz(T a) { return (T)((U)a == 0 ? BITS : __builtin_ctzll((ulong)(U)a)); } \
  MSL_INLINE T rotate(T a, T n) {                                                        \
    const uint k = (uint)n & (BITS - 1);                                                 \
    return (T)((U)a << k | (U)a >> ((BITS - k) & (BITS - 1)));                           \
  }                                                                                      \
  MSL_INLINE T extract_bits(T a, uint offset, uint bits) {                               \
    if (bits == 0) return 0;                                                             \
    const T up = (T)((U)a << (BITS - bits - offset));                                    \
    return (T)(up >> (BITS - bits));                                                     \
  }                                                                                      \
  MSL_INLINE T insert_bits(T base, T insert, uint offset, uint bits) {                   \
    const U mask = (U)((bits >= BITS ? ~0ul : (1ul << bits) - 1) << offset);             \
    return (T)(((U)base & (U)~mask) | ((U)((U)insert << offset) & mask));                \
  }
MSL_BITS(char, uchar, 8)
MSL_BITS(uchar, uchar, 8)
MSL_BITS(short, ushort, 16)
MSL_BITS(ushort, ushort, 16)
MSL_BITS(int, uint, 32)
MSL_BITS(uint, uint, 32)
MSL_BITS(long, ulong, 64)
MSL_BITS(ulong, ulong, 64)
#undef MSL_BITS
MSL_INLINE uint reverse_bits(uint a) { return __builtin_bitreverse32(a); }
MSL_INLINE uint mulhi(uint a, uint b) { return (uint)(((ulong)a * b) >> 32); }
MSL_INLINE int mulhi(int a, int b) { return (int)(((long)a * b) >> 32); }
MSL_INLINE uint mad24(uint a, uint b, uint c) { return (a & 0xffffffu) * (b & 0xffffffu) + c; }
MSL_INLINE uint absdiff(int a, int b) { return a > b ? (uint)a - (uint)b : (uint)b - (uint)a; }
MSL_INLINE uint absdiff(uint a, uint b) { return a > b ? a - b : b - a; }

// ---- floats ----

#define MSL_ELEMENTWISE(T, NAME) \
  MSL_INLINE T NAME(T a) { return __builtin_elementwise_##NAME(a); }
#define MSL_FLOAT_FUNCTIONS(T)                                                     \
  MSL_ELEMENTWISE(T, abs)                                                          \
  MSL_ELEMENTWISE(T, exp)                                                          \
  MSL_ELEMENTWISE(T, exp2)                                                         \
  MSL_ELEMENTWISE(T, log)                                                          \
  MSL_ELEMENTWISE(T, log2)                                                         \
  MSL_ELEMENTWISE(T, sin)                                                          \
  MSL_ELEMENTWISE(T, cos)                                                          \
  MSL_ELEMENTWISE(T, tan)                                                          \
  MSL_ELEMENTWISE(T, tanh)                                                         \
  MSL_ELEMENTWISE(T, sqrt)                                                         \
  MSL_ELEMENTWISE(T, floor)                                                        \
  MSL_ELEMENTWISE(T, ceil)                                                         \
  MSL_ELEMENTWISE(T, trunc)                                                        \
  MSL_ELEMENTWISE(T, rint)                                                         \
  MSL_ELEMENTWISE(T, round)                                                        \
  MSL_INLINE T fabs(T a) { return abs(a); }                                        \
  MSL_INLINE T rsqrt(T a) { return (T)1 / sqrt(a); }                               \
  MSL_INLINE T fract(T a) { return a - floor(a); }                                 \
  MSL_INLINE T fma(T a, T b, T c) { return __builtin_elementwise_fma(a, b, c); }   \
  MSL_INLINE T pow(T a, T b) { return __builtin_elementwise_pow(a, b); }           \
  MSL_INLINE T powr(T a, T b) { return pow(a, b); }                                \
  MSL_INLINE T copysign(T a, T b) { return __builtin_elementwise_copysign(a, b); } \
  MSL_INLINE T fmax(T a, T b) { return max(a, b); }                                \
  MSL_INLINE T fmin(T a, T b) { return min(a, b); }                                \
  MSL_INLINE T mix(T a, T b, T t) { return a + (b - a) * t; }                      \
  MSL_INLINE T divide(T a, T b) { return a / b; }                                  \
  MSL_INLINE T saturate(T a) { return clamp(a, (T)0, (T)1); }
MSL_FOR_FLOATS(MSL_FLOAT_FUNCTIONS)
#undef MSL_FLOAT_FUNCTIONS
#undef MSL_ELEMENTWISE

// Metal's sign() of NaN is 0.
MSL_INLINE float sign(float a) { return a > 0 ? 1.0f : a < 0 ? -1.0f : a == 0 ? a : 0.0f; }
MSL_INLINE half sign(half a) { return (half)sign((float)a); }
MSL_INLINE float step(float edge, float x) { return x < edge ? 0.0f : 1.0f; }
#define MSL_PER_ELEMENT(V, N)                      \
  MSL_INLINE V sign(V a) {                         \
    for (int i = 0; i < N; ++i) a[i] = sign(a[i]); \
    return a;                                      \
  }
MSL_PER_ELEMENT(float2, 2)
MSL_PER_ELEMENT(float3, 3)
MSL_PER_ELEMENT(float4, 4)
MSL_PER_ELEMENT(half2, 2)
MSL_PER_ELEMENT(half3, 3)
MSL_PER_ELEMENT(half4, 4)
#undef MSL_PER_ELEMENT

MSL_INLINE float acos(float a) { return __builtin_acosf(a); }
MSL_INLINE float asin(float a) { return __builtin_asinf(a); }
MSL_INLINE float atan(float a) { return __builtin_atanf(a); }
MSL_INLINE float atan2(float a, float b) { return __builtin_atan2f(a, b); }
MSL_INLINE float cosh(float a) { return __builtin_coshf(a); }
MSL_INLINE float sinh(float a) { return __builtin_sinhf(a); }
MSL_INLINE float exp10(float a) { return __builtin_powf(10.0f, a); }
MSL_INLINE float log10(float a) { return __builtin_log10f(a); }
MSL_INLINE float fmod(float a, float b) { return __builtin_fmodf(a, b); }
MSL_INLINE float ldexp(float a, int e) { return __builtin_ldexpf(a, e); }
MSL_INLINE int ilogb(float a) { return __builtin_ilogbf(a); }
MSL_INLINE float sincos(float a, MSL_THREAD float& c) {
  c = cos(a);
  return sin(a);
}

#define MSL_CLASSIFY(T)                                                  \
  MSL_INLINE bool isnan(T a) { return __builtin_isnan((float)a); }       \
  MSL_INLINE bool isinf(T a) { return __builtin_isinf((float)a); }       \
  MSL_INLINE bool isfinite(T a) { return __builtin_isfinite((float)a); } \
  MSL_INLINE bool signbit(T a) { return __builtin_signbit((float)a) != 0; }
MSL_CLASSIFY(float)
MSL_CLASSIFY(half)
#undef MSL_CLASSIFY

#define MSL_GEOMETRY(V, E, N)                            \
  MSL_INLINE E dot(V a, V b) {                           \
    E s = a[0] * b[0];                                   \
    for (int i = 1; i < N; ++i) s += a[i] * b[i];        \
    return s;                                            \
  }                                                      \
  MSL_INLINE E length_squared(V a) { return dot(a, a); } \
  MSL_INLINE E length(V a) { return sqrt(dot(a, a)); }   \
  MSL_INLINE V normalize(V a) { return a * rsqrt(dot(a, a)); }
MSL_GEOMETRY(float2, float, 2)
MSL_GEOMETRY(float3, float, 3)
MSL_GEOMETRY(float4, float, 4)
MSL_GEOMETRY(half2, half, 2)
MSL_GEOMETRY(half3, half, 3)
MSL_GEOMETRY(half4, half, 4)
#undef MSL_GEOMETRY

#define MSL_BOTH_ACCURACIES \
  using metal::abs;         \
  using metal::ceil;        \
  using metal::clamp;       \
  using metal::cos;         \
  using metal::divide;      \
  using metal::exp;         \
  using metal::exp10;       \
  using metal::exp2;        \
  using metal::fabs;        \
  using metal::floor;       \
  using metal::fma;         \
  using metal::fmax;        \
  using metal::fmin;        \
  using metal::fmod;        \
  using metal::log;         \
  using metal::log10;       \
  using metal::log2;        \
  using metal::max;         \
  using metal::min;         \
  using metal::pow;         \
  using metal::powr;        \
  using metal::rint;        \
  using metal::round;       \
  using metal::rsqrt;       \
  using metal::sin;         \
  using metal::sincos;      \
  using metal::sqrt;        \
  using metal::tan;         \
  using metal::tanh;        \
  using metal::trunc;
namespace precise {
MSL_BOTH_ACCURACIES
}
namespace fast {
MSL_BOTH_ACCURACIES
}
#undef MSL_BOTH_ACCURACIES

}  // namespace metal
