#include "backend/cpu/kernels.h"

#include "core/error.h"

namespace grebe::cpu {

namespace scalar {
const KernelTable& table();
}
#if defined(__x86_64__)
namespace avx2 {
const KernelTable& table();
}
namespace avx512 {
const KernelTable& table();
}
#elif defined(__aarch64__)
namespace neon {
const KernelTable& table();
}
namespace neon_i8mm {
const KernelTable& table();
}
#endif

const KernelTable& kernel_table(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return scalar::table();
#if defined(__x86_64__)
    case Isa::kAvx2:
      return avx2::table();
    case Isa::kAvx512:
      return avx512::table();
#elif defined(__aarch64__)
    case Isa::kNeon:
      return neon::table();
    case Isa::kNeonI8mm:
      return neon_i8mm::table();
#endif
    default:
      break;
  }
  throw BackendUnavailable(
      std::string("cpu: no ") + isa_name(isa) + " kernels in this build", "cpu");
}

}  // namespace grebe::cpu
