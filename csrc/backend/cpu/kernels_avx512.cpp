#define GREBE_ISA avx512
#define GREBE_ISA_AVX512
#include "backend/cpu/common_impl.h"

namespace grebe::cpu::scalar {
const KernelTable& table();
}

namespace grebe::cpu::avx512 {

const KernelTable& table() {
  static const KernelTable t = [] {
    KernelTable t = scalar::table();
    t.isa = Isa::kAvx512;
    fill_common(t);
    return t;
  }();
  return t;
}

}  // namespace grebe::cpu::avx512
