// The AVX2 table (AVX2, FMA, F16C, BMI2): every x86 machine of the last ten years, and Zen 3 above
// all.
#define GREBE_ISA avx2
#define GREBE_ISA_AVX2
#include "backend/cpu/avx2_float.h"
#include "backend/cpu/avx2_matvec.h"
#include "backend/cpu/avx2_matvec_k.h"
#include "backend/cpu/avx2_panel.h"
#include "backend/cpu/avx2_panel_k.h"
#include "backend/cpu/avx2_quantize.h"
#include "backend/cpu/avx2_tile.h"
#include "backend/cpu/common_impl.h"

namespace grebe::cpu::scalar {
const KernelTable& table();
}

namespace grebe::cpu::avx2 {
namespace {

template <class Panel>
void set_panel(QuantKernels& k) {
  k.pack_panel = pack_panel<Panel>;
  k.layout = Panel::kLayout;
}

KernelTable make_table() {
  KernelTable t = scalar::table();
  t.isa = Isa::kAvx2;
  t.panel_rows = kRows;
  t.max_tile = kMaxTile;
  fill_common(t);
  t.quantize = quantize_avx2;
  t.multiply_f32 = multiply_halves<LoadF32>;
  t.multiply_f16 = multiply_halves<LoadF16>;
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
  t.quant[kIQ2_XXS].matvec = matvec_super<DotIQ2_XXS>;
  t.quant[kIQ2_S].matvec = matvec_super<DotIQ2_S>;
  t.quant[kIQ3_XXS].matvec = matvec_super<DotIQ3_XXS>;
  set_panel<PanelQ8_0>(t.quant[kQ8_0]);
  set_panel<PanelMXFP4>(t.quant[kMXFP4]);
  set_panel<PanelQ2_K>(t.quant[kQ2_K]);
  set_panel<PanelQ3_K>(t.quant[kQ3_K]);
  set_panel<PanelQ4_K>(t.quant[kQ4_K]);
  set_panel<PanelQ5_K>(t.quant[kQ5_K]);
  set_panel<PanelQ6_K>(t.quant[kQ6_K]);
  set_panel<PanelIQ2_XXS>(t.quant[kIQ2_XXS]);
  set_panel<PanelIQ2_S>(t.quant[kIQ2_S]);
  set_panel<PanelIQ3_XXS>(t.quant[kIQ3_XXS]);
  return t;
}

}  // namespace

const KernelTable& table() {
  static const KernelTable t = make_table();
  return t;
}

}  // namespace grebe::cpu::avx2
