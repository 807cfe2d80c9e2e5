// One text serves two modes:
//   MSL_EXEC  C++17 for the CPU; the rewriter has erased the address spaces
//   MSL_LINT  C++ for OpenCL, generic address space off: clang enforces the address spaces
#pragma once

#if defined(MSL_LINT)
#pragma OPENCL EXTENSION cl_khr_fp16 : enable
#pragma OPENCL EXTENSION __cl_clang_function_pointers : enable
#define MSL_THREAD __private
#define MSL_STATIC_CONST static constexpr __constant
#define MSL_NAMESPACE_CONST constexpr __constant
#else
#define MSL_THREAD
#define MSL_STATIC_CONST static constexpr
#define MSL_NAMESPACE_CONST constexpr
#endif

// nodebug: an access inlined from here is reported at the kernel's line that called it.
#define MSL_INLINE static inline __attribute__((always_inline, unused, nodebug))
// For members and for what only a collective's leader runs, on the stacks of other lanes.
#define MSL_NODEBUG __attribute__((nodebug))
#define MSL_UNCHECKED __attribute__((disable_sanitizer_instrumentation))
