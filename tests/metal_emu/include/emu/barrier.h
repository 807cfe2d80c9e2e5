// Memory flags, barriers and the gateway from kernels to the runtime.
#pragma once

#include "types.h"

enum msl_mem_flags : uint {
  kMslMemNone = 0,
  kMslMemDevice = 1,
  kMslMemThreadgroup = 2,
  kMslMemTexture = 4
};

namespace metal {
namespace mem_flags {
MSL_NAMESPACE_CONST msl_mem_flags mem_none = kMslMemNone;
MSL_NAMESPACE_CONST msl_mem_flags mem_device = kMslMemDevice;
MSL_NAMESPACE_CONST msl_mem_flags mem_threadgroup = kMslMemThreadgroup;
MSL_NAMESPACE_CONST msl_mem_flags mem_texture = kMslMemTexture;
}  // namespace mem_flags
MSL_INLINE constexpr msl_mem_flags operator|(msl_mem_flags a, msl_mem_flags b) {
  return (msl_mem_flags)((uint)a | (uint)b);
}
}  // namespace metal
using metal::operator|;

#if defined(MSL_EXEC)
#include "abi.h"

extern "C" __attribute__((visibility("default"))) msl_library __msl_library;

#define MSL_GATE static __attribute__((noinline, unused, nodebug)) MSL_UNCHECKED
MSL_GATE void msl_collective(msl_leader leader, const void* in, void* out, msl_op op) {
  __msl_library.runtime->collective(leader, in, out, op, __builtin_return_address(0));
}
MSL_GATE void msl_threadgroup_barrier(unsigned flags) {
  __msl_library.runtime->threadgroup_barrier(flags, __builtin_return_address(0));
}
MSL_GATE void msl_simdgroup_barrier(unsigned flags) {
  __msl_library.runtime->simdgroup_barrier(flags, __builtin_return_address(0));
}
__attribute__((const)) MSL_GATE unsigned msl_lane() { return __msl_library.runtime->lane(); }
MSL_GATE void* msl_threadgroup_alloc(unsigned slot, ulong n_bytes, ulong alignment) {
  return __msl_library.runtime->threadgroup_alloc(slot, n_bytes, alignment);
}
MSL_GATE bool msl_constant_defined(unsigned index) {
  return __msl_library.runtime->constant_defined(index);
}
#undef MSL_GATE
#else
__local void* msl_threadgroup_alloc(unsigned slot);
bool msl_constant_defined(unsigned index);
#endif

namespace metal {
#if defined(MSL_EXEC)
MSL_INLINE void threadgroup_barrier(msl_mem_flags flags) { msl_threadgroup_barrier(flags); }
MSL_INLINE void simdgroup_barrier(msl_mem_flags flags) { msl_simdgroup_barrier(flags); }
#else
void threadgroup_barrier(msl_mem_flags flags);
void simdgroup_barrier(msl_mem_flags flags);
#endif
}  // namespace metal
