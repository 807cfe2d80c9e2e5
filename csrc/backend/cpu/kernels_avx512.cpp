// The AVX-512 table (F, BW, DQ, VL, VNNI, VBMI, BITALG): Ice Lake, Zen 4 and later.
#define GREBE_ISA avx512
#define GREBE_ISA_AVX512
// gcc 12 and older warn about the deliberately undefined operands inside its own intrinsics.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "backend/cpu/avx512_matvec.h"
#include "backend/cpu/avx512_matvec_k.h"
#include "backend/cpu/avx512_panel.h"
#include "backend/cpu/avx512_panel_k.h"
#include "backend/cpu/avx512_tile.h"
#include "backend/cpu/common_impl.h"

namespace grebe::cpu::scalar {
const KernelTable& table();
}

namespace grebe::cpu::avx512 {
namespace {

// common_impl.h's quantize(), 16 values at a time; q needs no clamping since |x| * 127 / amax
// rounds to at most 127.
void quantize_avx512(const float* x, int64_t n, int group, int8_t* q, float* d, int16_t* sums) {
  for (int64_t begin = 0; begin < n; begin += group) {
    __m512i top = _mm512_setzero_si512();
    for (int i = 0; i < group; i += 16) {
      top =
          _mm512_max_epu32(top, _mm512_castps_si512(_mm512_abs_ps(_mm512_loadu_ps(x + begin + i))));
    }
    const float amax = std::bit_cast<float>(_mm512_reduce_max_epu32(top));
    const bool finite = std::isfinite(amax);
    const float inverse = finite && amax >= 0x1p-100f ? 127.f / amax : 0.f;
    d[begin / group] = !finite         ? std::bit_cast<float>(0x7fc00000u)
                       : inverse > 0.f ? amax / 127.f
                                       : 0.f;
    const __m512 factor = _mm512_set1_ps(inverse);
    const __mmask16 keep = finite ? 0xffff : 0;
    for (int i = 0; i < group; i += 16) {
      const __m512i codes =
          _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(_mm512_loadu_ps(x + begin + i), factor));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q + begin + i), _mm512_cvtepi32_epi8(codes));
      sums[(begin + i) / 16] = static_cast<int16_t>(_mm512_reduce_add_epi32(codes));
    }
  }
}

template <class Panel>
void set_panel(QuantKernels& k) {
  k.pack_panel = pack_panel<Panel>;
  k.layout = Panel::kLayout;
}

KernelTable make_table() {
  KernelTable t = scalar::table();
  t.isa = Isa::kAvx512;
  t.panel_rows = kRows;
  t.max_tile = kMaxTile;
  t.min_tile_rows = 3;
  fill_common(t);
  t.quantize = quantize_avx512;
  t.layouts[static_cast<int>(TileLayout::k32)] = layout_kernels<TileLayout::k32>();
  t.layouts[static_cast<int>(TileLayout::kScale16)] = layout_kernels<TileLayout::kScale16>();
  t.layouts[static_cast<int>(TileLayout::kScale32)] = layout_kernels<TileLayout::kScale32>();
  t.layouts[static_cast<int>(TileLayout::kMins)] = layout_kernels<TileLayout::kMins>();
  t.layouts[static_cast<int>(TileLayout::kScaleMins)] = layout_kernels<TileLayout::kScaleMins>();
  t.quant[kQ8_0].matvec = matvec_q8_0;
  t.quant[kMXFP4].matvec = matvec_mxfp4;
  t.quant[kQ2_K].matvec = matvec_super<DotQ2_K>;
  t.quant[kQ3_K].matvec = matvec_super<DotQ3_K>;
  t.quant[kQ4_K].matvec = matvec_super<DotK4<false>>;
  t.quant[kQ5_K].matvec = matvec_super<DotK4<true>>;
  t.quant[kQ6_K].matvec = matvec_super<DotQ6_K>;
  t.quant[kIQ2_S].matvec = matvec_super<DotIQ2_S>;
  t.quant[kIQ3_XXS].matvec = matvec_super<DotIQ3_XXS>;
  t.quant[kIQ2_XXS].matvec = matvec_super<DotIQ2_XXS>;
  set_panel<PanelQ8_0>(t.quant[kQ8_0]);
  set_panel<PanelQ2_K>(t.quant[kQ2_K]);
  set_panel<PanelIQ2_XXS>(t.quant[kIQ2_XXS]);
  set_panel<PanelMXFP4>(t.quant[kMXFP4]);
  set_panel<PanelQ3_K>(t.quant[kQ3_K]);
  set_panel<PanelQ4_K>(t.quant[kQ4_K]);
  set_panel<PanelQ5_K>(t.quant[kQ5_K]);
  set_panel<PanelQ6_K>(t.quant[kQ6_K]);
  set_panel<PanelIQ2_S>(t.quant[kIQ2_S]);
  set_panel<PanelIQ3_XXS>(t.quant[kIQ3_XXS]);
  return t;
}

}  // namespace

const KernelTable& table() {
  static const KernelTable t = make_table();
  return t;
}

}  // namespace grebe::cpu::avx512
