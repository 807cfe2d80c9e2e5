// The NEON table (dot products): every Apple M, Neoverse N1 and later.
#define GREBE_ISA neon
#define GREBE_ISA_NEON
#include "backend/cpu/neon_impl.h"

namespace grebe::cpu::scalar {
const KernelTable& table();
}

namespace grebe::cpu::neon {

const KernelTable& table() {
  static const KernelTable t = make_table(scalar::table(), Isa::kNeon);
  return t;
}

}  // namespace grebe::cpu::neon
