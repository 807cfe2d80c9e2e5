#define GREBE_ISA scalar
#define GREBE_ISA_SCALAR
#include <algorithm>
#include <bit>
#include <cmath>

#include "backend/cpu/ops_impl.h"
#include "core/error.h"

namespace grebe::cpu {

#if defined(__x86_64__) || defined(_M_X64)
namespace avx2 {
extern const OpsTable kOps;
}
namespace avx512 {
extern const OpsTable kOps;
}
#elif defined(__aarch64__)
namespace neon {
extern const OpsTable kOps;
}
namespace neon_i8mm {
extern const OpsTable kOps;
}
#endif

const OpsTable& ops_table(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return scalar::kOps;
#if defined(__x86_64__) || defined(_M_X64)
    case Isa::kAvx2:
      return avx2::kOps;
    case Isa::kAvx512:
      return avx512::kOps;
#elif defined(__aarch64__)
    case Isa::kNeon:
      return neon::kOps;
    case Isa::kNeonI8mm:
      return neon_i8mm::kOps;
#endif
    default:
      break;
  }
  throw Error(std::string("internal error: no ops table for ") + isa_name(isa));
}

bool all_finite(const float* x, int64_t n) {
  uint32_t top = 0;
  for (int64_t i = 0; i < n; i++) top = std::max(top, std::bit_cast<uint32_t>(x[i]) & 0x7fffffff);
  return top < 0x7f800000;
}

void rope_rotate(float* tail, const float* cos, const float* sin, int32_t half, float sign) {
  for (int32_t i = 0; i < half; i++) {
    const float u = tail[2 * i], v = tail[2 * i + 1], c = cos[i], s = sign * sin[i];
    tail[2 * i] = u * c - v * s;
    tail[2 * i + 1] = u * s + v * c;
  }
}

namespace {

// Exponent byte 255 is NaN in E8M0, so a block that is not finite stays so when it is read.
constexpr int kNotFinite = 128;

// Largest |x|; NaN or infinity where there is one (as integers they are above every finite value).
float max_abs(const float* x, int n) {
  uint32_t top = 0;
  for (int i = 0; i < n; i++) top = std::max(top, std::bit_cast<uint32_t>(x[i]) & 0x7fffffff);
  return std::bit_cast<float>(top);
}

}  // namespace

void pack_kv_row(const float* row, const KvRowFormat& f, uint8_t* out) {
  if (f.kind == KvRowFormat::Kind::kF32) {
    std::memcpy(out, row, sizeof(float) * f.head_dim);
    return;
  }
  const int32_t nope = f.nope();
  std::memset(out + f.scale_offset(), 0, f.row_bytes() - f.scale_offset());
  for (int32_t b = 0; b < nope / 64; b++) {
    const float amax = std::max(max_abs(row + 64 * b, 64), 1e-4f);
    const int e = std::isfinite(amax) ? ceil_log2(amax * (1.f / 448.f)) : kNotFinite;
    const float inverse = std::ldexp(1.f, -e);
    for (int32_t i = 64 * b; i < 64 * b + 64; i++) out[i] = f32_to_e4m3(row[i] * inverse);
    out[f.scale_offset() + b] = static_cast<uint8_t>(e + 127);
  }
  uint8_t* rope = out + f.rope_offset();
  if (f.kind == KvRowFormat::Kind::kPackedF32) {
    std::memcpy(rope, row + nope, sizeof(float) * f.rope_dim);
    return;
  }
  for (int32_t i = 0; i < f.rope_dim; i++) {
    const uint16_t h = f32_to_bf16(row[nope + i]);
    std::memcpy(rope + 2 * i, &h, 2);
  }
}

void hadamard(float* x, int32_t dim) {
  for (int32_t h = 1; h < dim; h *= 2) {
    for (int32_t i = 0; i < dim; i += 2 * h) {
      for (int32_t j = i; j < i + h; j++) {
        const float a = x[j], b = x[j + h];
        x[j] = a + b;
        x[j + h] = a - b;
      }
    }
  }
  const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim)));
  for (int32_t i = 0; i < dim; i++) x[i] *= scale;
}

namespace {

// Exponent of one FP4 block and its codes with signs, 0..15.
int fp4_block(const float* x, uint8_t* codes) {
  constexpr float kFloor = 0x1.8p-124f;  // 6 * 2^-126
  const float amax = max_abs(x, 32);
  const int e = !std::isfinite(amax) ? kNotFinite
                : amax < kFloor      ? -126
                                     : std::max(ceil_log2(amax * (1.f / 6.f)), -126);
  const float inverse = std::ldexp(1.f, -e);
  for (int i = 0; i < 32; i++) codes[i] = f32_to_e2m1(x[i] * inverse);
  return e;
}

}  // namespace

void fp4_codes(const float* x, int32_t dim, int8_t* codes, float* scales) {
  uint8_t raw[32];
  for (int32_t b = 0; b < dim / 32; b++) {
    const int e = fp4_block(x + 32 * b, raw);
    for (int i = 0; i < 32; i++) codes[32 * b + i] = static_cast<int8_t>(2.f * kE2M1[raw[i]]);
    scales[b] = e == kNotFinite ? std::bit_cast<float>(0x7fc00000u) : std::ldexp(0.5f, e);
  }
}

void pack_index_row(float* row, int32_t dim, uint8_t* out) {
  hadamard(row, dim);
  uint8_t raw[32];
  for (int32_t b = 0; b < dim / 32; b++) {
    const int e = fp4_block(row + 32 * b, raw);
    for (int i = 0; i < 16; i++) {
      out[16 * b + i] = static_cast<uint8_t>(raw[2 * i] | raw[2 * i + 1] << 4);
    }
    out[dim / 2 + b] = static_cast<uint8_t>(e + 127);
  }
}

}  // namespace grebe::cpu
