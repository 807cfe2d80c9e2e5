// Which instruction sets this processor and operating system really offer.
#pragma once

#include <string>
#include <vector>

namespace grebe {

/// Kernel families, one compiled table each, in ascending order of preference on their
/// architecture.
enum class Isa { kScalar, kAvx2, kAvx512, kNeon, kNeonI8mm };

const char* isa_name(Isa isa);  ///< "scalar", "avx2", "avx512", "neon", "neon_i8mm"

/// Compiled into this build and supported by this machine (CPUID and XGETBV, HWCAP, sysctl);
/// kScalar is always among them.
///   avx2: AVX2, FMA, F16C, BMI2.  avx512: F, BW, DQ, VL, VNNI, VBMI, BITALG.  neon: dotprod.
///   neon_i8mm: also i8mm.
std::vector<Isa> available_isas();

/// The best of available_isas(), or the one that `name` ("" = best) asks for. Throws
/// BackendUnavailable naming both when the machine or the build lacks it.
Isa choose_isa(const std::string& name);

/// CRC-32C and carry-less multiplication as instructions: SSE4.2 and PCLMULQDQ, or CRC32 and PMULL.
bool has_crc32c();

/// Physical cores usable by this process (affinity mask and cgroup CPU quota respected), at
/// least 1.
int usable_cores();

}  // namespace grebe
