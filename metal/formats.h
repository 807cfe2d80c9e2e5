// Number formats below 16 bits, and bfloat16, as integer arithmetic: every device rounds alike.
#pragma once

#include <metal_stdlib>

/// bfloat16 bits -> float
static inline float bf16_to_float(ushort bits) { return as_type<float>(uint(bits) << 16); }

/// float -> bfloat16 bits, to nearest even. NaN stays NaN.
static inline ushort float_to_bf16(float x) {
  const uint u = as_type<uint>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return ushort(u >> 16 | 0x40u);
  return ushort((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/// E8M0 scale byte -> 2^(e - 127); 0 is 2^-127, 255 NaN [OCP-MX].
static inline float e8m0_to_float(uchar e) {
  return as_type<float>(e == 0 ? 0x00400000u : e == 255 ? 0x7fc00000u : uint(e) << 23);
}

/// E4M3 code (no infinities, 0x7f is NaN) -> float [OCP-FP8].
static inline float e4m3_to_float(uchar code) {
  const uint magnitude = code & 0x7fu, sign = uint(code & 0x80u) << 24;
  if (magnitude == 0x7fu) return as_type<float>(sign | 0x7fc00000u);
  // Subnormals are multiples of 2^-9; normals move by 120 exponent steps.
  if (magnitude < 8) return as_type<float>(sign | as_type<uint>(float(magnitude) * 0x1p-9f));
  return as_type<float>(sign | ((magnitude << 20) + (120u << 23)));
}

/// float of magnitude <= 448 -> E4M3 code, to nearest even. NaN gives 0x7f.
static inline uchar float_to_e4m3(float x) {
  const uint u = as_type<uint>(x), sign = u >> 24 & 0x80u, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uchar(sign | 0x7fu);
  if (magnitude < 0x3c800000u) {  // below 2^-6: the step is 2^-9
    return uchar(sign | uint(metal::rint(as_type<float>(magnitude) * 0x1p9f)));
  }
  const uint rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
  return uchar(sign | metal::min((rounded >> 20) - (120u << 3), 0x7eu));
}

/// E2M1 code: 0, .5, 1, 1.5, 2, 3, 4, 6, bit 3 the sign [OCP-MX].
static inline float e2m1_to_float(uchar code) {
  const uint m = code & 7u;
  const float v =
      m < 2 ? 0.5f * float(m) : as_type<float>(((m >> 1) + 126u) << 23 | (m & 1u) << 22);
  return code & 8u ? -v : v;
}

/// float of magnitude <= 6 -> E2M1 code, to nearest even.
static inline uchar float_to_e2m1(float x) {
  const float a = metal::fabs(x);
  const uint code = a <= 0.25f   ? 0u
                    : a < 0.75f  ? 1u
                    : a <= 1.25f ? 2u
                    : a < 1.75f  ? 3u
                    : a <= 2.5f  ? 4u
                    : a < 3.5f   ? 5u
                    : a <= 5.f   ? 6u
                                 : 7u;
  return uchar(code | (as_type<uint>(x) >> 28 & 8u));
}

/// e of the smallest power of two 2^e >= x, for finite normal x > 0. Block scales are
/// 2^e with x = amax * (1 / 448) or amax * (1 / 6) [V4 5].
static inline int ceil_log2(float x) {
  const uint u = as_type<uint>(x);
  return int(u >> 23) - 127 + ((u & 0x7fffffu) != 0 ? 1 : 0);
}
