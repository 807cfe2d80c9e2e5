// The NEON table for processors with FEAT_I8MM. The compiler may use the extension; the kernels are
// those of kernels_neon.cpp, with no smmla tile yet.
#define GREBE_ISA neon_i8mm
#define GREBE_ISA_NEON
#include "backend/cpu/neon_impl.h"

namespace grebe::cpu::scalar {
const KernelTable& table();
}

namespace grebe::cpu::neon_i8mm {

const KernelTable& table() {
  static const KernelTable t = make_table(scalar::table(), Isa::kNeonI8mm);
  return t;
}

}  // namespace grebe::cpu::neon_i8mm
