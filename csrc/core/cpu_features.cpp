#include "core/cpu_features.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <set>
#include <thread>
#include <utility>

#include "core/error.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif

namespace grebe {
namespace {

#if defined(__x86_64__)

struct Regs {
  uint32_t a = 0, b = 0, c = 0, d = 0;
};

Regs cpuid(uint32_t leaf, uint32_t sub = 0) {
  Regs r;
  if (!__get_cpuid_count(leaf, sub, &r.a, &r.b, &r.c, &r.d)) return {};
  return r;
}

bool has_bits(uint32_t value, std::initializer_list<int> bits) {
  return std::all_of(bits.begin(), bits.end(), [=](int b) { return value >> b & 1; });
}

// CPUID says what the processor can do, XCR0 which registers the operating system saves; both are
// needed.
void detect(std::vector<Isa>& out) {
  const Regs one = cpuid(1), seven = cpuid(7);
  if (!has_bits(one.c, {12, 23, 27, 28, 29})) return;  // FMA, POPCNT, OSXSAVE, AVX, F16C
  uint32_t xcr0, high;
  asm volatile("xgetbv" : "=a"(xcr0), "=d"(high) : "c"(0));
  if ((xcr0 & 0x6) != 0x6) return;            // xmm, ymm
  if (!has_bits(seven.b, {3, 5, 8})) return;  // BMI1, AVX2, BMI2
  out.push_back(Isa::kAvx2);
  if ((xcr0 & 0xe6) != 0xe6) return;                 // opmask, zmm
  if (!has_bits(seven.b, {16, 17, 30, 31})) return;  // F, DQ, BW, VL
  if (!has_bits(seven.c, {1, 11, 12})) return;       // VBMI, VNNI, BITALG
  out.push_back(Isa::kAvx512);
}

bool detect_crc32c() { return has_bits(cpuid(1).c, {1, 20}); }

#elif defined(__aarch64__) && defined(__linux__)

void detect(std::vector<Isa>& out) {
  constexpr uint64_t kHwcapAsimdDotProd = 1ull << 20, kHwcapFpHp = 1ull << 9,
                     kHwcapAsimdHp = 1ull << 10;
  constexpr uint64_t kHwcap2I8mm = 1ull << 13;
  const uint64_t need = kHwcapAsimdDotProd | kHwcapFpHp | kHwcapAsimdHp;
  if ((getauxval(AT_HWCAP) & need) != need) return;
  out.push_back(Isa::kNeon);
  if (getauxval(AT_HWCAP2) & kHwcap2I8mm) out.push_back(Isa::kNeonI8mm);
}

bool detect_crc32c() {
  constexpr uint64_t kHwcapPmull = 1ull << 4, kHwcapCrc32 = 1ull << 7;
  constexpr uint64_t kNeed = kHwcapPmull | kHwcapCrc32;
  return (getauxval(AT_HWCAP) & kNeed) == kNeed;
}

#elif defined(__aarch64__) && defined(__APPLE__)

bool has(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

void detect(std::vector<Isa>& out) {
  if (!has("hw.optional.arm.FEAT_DotProd")) return;
  out.push_back(Isa::kNeon);
  if (has("hw.optional.arm.FEAT_I8MM")) out.push_back(Isa::kNeonI8mm);
}

bool detect_crc32c() {
  return has("hw.optional.arm.FEAT_CRC32") && has("hw.optional.arm.FEAT_PMULL");
}

#else

void detect(std::vector<Isa>&) {}

bool detect_crc32c() { return false; }

#endif

#if defined(__linux__)

// Hyperthread siblings share their vector units: count distinct (package, core) pairs. Machines
// that do not say (some containers) count every processor.
int physical_cores(const cpu_set_t& allowed) {
  std::set<std::pair<int, int>> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    int ids[2] = {-1, -1};
    const char* const names[2] = {"physical_package_id", "core_id"};
    for (int i = 0; i < 2; i++) {
      char path[128];
      std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu%d/topology/%s", cpu, names[i]);
      if (std::FILE* f = std::fopen(path, "r")) {
        if (std::fscanf(f, "%d", &ids[i]) != 1) ids[i] = -1;
        std::fclose(f);
      }
    }
    cores.insert(ids[1] < 0 ? std::pair(-1, cpu) : std::pair(ids[0], ids[1]));
  }
  return static_cast<int>(cores.size());
}

// Whole cores of the cgroup's quota, or `limit` without one. v2 first, then v1.
int quota_cores(int limit) {
  double quota = -1, period = 0;
  if (std::FILE* f = std::fopen("/sys/fs/cgroup/cpu.max", "r")) {
    if (std::fscanf(f, "%lf %lf", &quota, &period) != 2) quota = -1;  // "max 100000" reads nothing
    std::fclose(f);
  } else {
    const auto read = [](const char* path, double& value) {
      std::FILE* f1 = std::fopen(path, "r");
      if (!f1) return;
      if (std::fscanf(f1, "%lf", &value) != 1) value = -1;
      std::fclose(f1);
    };
    read("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", quota);
    read("/sys/fs/cgroup/cpu/cpu.cfs_period_us", period);
  }
  if (quota <= 0 || period <= 0) return limit;
  return std::min(limit, std::max(1, static_cast<int>(quota / period + 0.5)));
}

#endif

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kScalar:
      return "scalar";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kNeon:
      return "neon";
    case Isa::kNeonI8mm:
      return "neon_i8mm";
  }
  return "?";
}

std::vector<Isa> available_isas() {
  static const std::vector<Isa> isas = [] {
    std::vector<Isa> found{Isa::kScalar};
    detect(found);
    return found;
  }();
  return isas;
}

Isa choose_isa(const std::string& name) {
  const std::vector<Isa> isas = available_isas();
  if (name.empty()) return isas.back();
  std::string have;
  for (Isa isa : isas) {
    if (name == isa_name(isa)) return isa;
    have += std::string(have.empty() ? "" : ", ") + isa_name(isa);
  }
  throw BackendUnavailable(
      "cpu: no '" + name + "' kernels on this machine; it has " + have, "cpu-" + name);
}

bool has_crc32c() { return detect_crc32c(); }

int usable_cores() {
#if defined(__linux__)
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof allowed, &allowed) == 0) {
    return std::max(1, quota_cores(physical_cores(allowed)));
  }
#elif defined(__APPLE__)
  int n = 0;
  size_t size = sizeof n;
  // Performance cores only: the pool hands out equal chunks, and the slowest thread sets the pace.
  if (sysctlbyname("hw.perflevel0.physicalcpu", &n, &size, nullptr, 0) == 0 && n > 0) return n;
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

}  // namespace grebe
