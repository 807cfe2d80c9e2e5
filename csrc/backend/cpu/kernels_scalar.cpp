// The reference table: the contract of matmul.h in plain C++, for every machine and as the oracle
// of the others.
#define GREBE_ISA scalar
#include "backend/cpu/common_impl.h"
#include "quant/dequant.h"

namespace grebe::cpu::scalar {
namespace {

template <DType kType>
float dot_super(const uint8_t* w, int64_t n_in, const ActRow& x) {
  IntBlock b;
  float acc = 0.f;
  for (int64_t i = 0; i < n_in / 256; i++) {
    unpack_block(kType, w + i * dtype_info(kType).block_bytes, b);
    int32_t isum = 0, msum = 0;
    for (int g = 0; g < 16; g++) {
      int32_t sum = 0;
      for (int k = 16 * g; k < 16 * g + 16; k++) sum += b.q[k] * x.q[256 * i + k];
      isum += b.scale[g] * sum;
      msum += b.min[g] * x.sums[16 * i + g];
    }
    acc = std::fma(b.d * x.d[i], static_cast<float>(isum), acc);
    if constexpr (kType == DType::kQ2_K || kType == DType::kQ4_K || kType == DType::kQ5_K) {
      acc = std::fma(-(b.dmin * x.d[i]), static_cast<float>(msum), acc);
    }
  }
  return acc;
}

float dot_q8_0(const uint8_t* w, int64_t n_in, const ActRow& x) {
  float acc = 0.f;
  for (int64_t i = 0; i < n_in / 32; i++) {
    const auto& b = reinterpret_cast<const BlockQ8_0*>(w)[i];
    int32_t isum = 0;
    for (int k = 0; k < 32; k++) isum += b.q[k] * x.q[32 * i + k];
    acc = std::fma(f16_to_f32(b.d) * x.d[i], static_cast<float>(isum), acc);
  }
  return acc;
}

float dot_mxfp4(const uint8_t* w, int64_t n_in, const ActRow& x) {
  float acc = 0.f;
  for (int64_t i = 0; i < n_in / 32; i++) {
    const auto& b = reinterpret_cast<const BlockMXFP4*>(w)[i];
    int32_t isum = 0;
    for (int k = 0; k < 32; k++)
      isum += kDoubledE2M1[b.q[k % 16] >> (k / 16 * 4) & 15] * x.q[32 * i + k];
    acc = std::fma(mxfp4_scale(b.e) * x.d[i], static_cast<float>(isum), acc);
  }
  return acc;
}

template <auto kDot>
void matvec(
    const uint8_t* w,
    int64_t row_bytes,
    int64_t n_rows,
    int64_t n_in,
    const ActRow* x,
    int64_t n,
    float* y,
    int64_t y_stride) {
  for (int64_t r = 0; r < n_rows; r++)
    for (int64_t t = 0; t < n; t++) y[t * y_stride + r] = kDot(w + r * row_bytes, n_in, x[t]);
}

KernelTable make_table() {
  KernelTable t;
  t.isa = Isa::kScalar;
  fill_common(t);
  t.quant[kQ8_0].matvec = matvec<dot_q8_0>;
  t.quant[kMXFP4].matvec = matvec<dot_mxfp4>;
  t.quant[kQ2_K].matvec = matvec<dot_super<DType::kQ2_K>>;
  t.quant[kQ3_K].matvec = matvec<dot_super<DType::kQ3_K>>;
  t.quant[kQ4_K].matvec = matvec<dot_super<DType::kQ4_K>>;
  t.quant[kQ5_K].matvec = matvec<dot_super<DType::kQ5_K>>;
  t.quant[kQ6_K].matvec = matvec<dot_super<DType::kQ6_K>>;
  t.quant[kIQ2_XXS].matvec = matvec<dot_super<DType::kIQ2_XXS>>;
  t.quant[kIQ2_S].matvec = matvec<dot_super<DType::kIQ2_S>>;
  t.quant[kIQ3_XXS].matvec = matvec<dot_super<DType::kIQ3_XXS>>;
  return t;
}

}  // namespace

const KernelTable& table() {
  static const KernelTable t = make_table();
  return t;
}

}  // namespace grebe::cpu::scalar
