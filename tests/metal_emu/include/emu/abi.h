// What a compiled kernel library and the runtime agree on. Plain data, no headers: included by
// both.
#pragma once

constexpr unsigned kMslAbiVersion = 3;

/// Kinds of kernel parameters.
enum msl_param_kind : unsigned char { kMslBuffer, kMslThreadgroup, kMslInput };

struct msl_param {
  msl_param_kind kind;
  unsigned char writable;  ///< the kernel may write through it: neither const nor constant
  unsigned short index;    ///< of the buffer, of the threadgroup memory, or an msl_input
};

/// Built-in kernel inputs; compiler/inputs.py lists the attributes in the same order.
enum msl_input {
  kMslThreadPositionInGrid,
  kMslThreadgroupPositionInGrid,
  kMslThreadPositionInThreadgroup,
  kMslThreadsPerThreadgroup,
  kMslThreadgroupsPerGrid,
  kMslThreadsPerGrid,
  kMslThreadIndexInThreadgroup,
  kMslThreadIndexInSimdgroup,
  kMslSimdgroupIndexInThreadgroup,
  kMslSimdgroupsPerThreadgroup,
  kMslThreadsPerSimdgroup,
  kMslDispatchThreadsPerThreadgroup,
  kMslDispatchSimdgroupsPerThreadgroup,
  kMslGridOrigin,
  kMslGridSize,
  kMslThreadExecutionWidth,
  kMslQuadgroupIndexInThreadgroup,
  kMslThreadIndexInQuadgroup,
  kMslNumInputs,
};

/// Everything that one thread's kernel parameters are taken from.
struct msl_context {
  void* buffers[32];
  void* threadgroup[32];
  unsigned inputs[kMslNumInputs][3];
};

struct msl_kernel {
  const char* name;
  void (*run)(msl_context*);
  const msl_param* params;
  unsigned n_params;
  unsigned max_threads;  ///< [[max_total_threads_per_threadgroup(n)]], else 0
};

struct msl_function_constant {
  unsigned index;
  void* storage;
  unsigned size;
  const char* name;
};

/// Does a collective's work for the lanes of `mask`; in[l] and out[l] point into lane l's stack.
typedef void (*msl_leader)(unsigned mask, void* const* in, void* const* out);

/// Bits of msl_runtime::access.
enum { kMslWrite = 1, kMslAtomic = 2 };
/// Bits of a barrier's flags.
enum { kMslDeviceMemory = 1, kMslThreadgroupMemory = 2 };
/// Names of collectives in reports; simdgroup matrix operations want all lanes.
enum msl_op : unsigned {
  kMslReduceOp,
  kMslPrefixOp,
  kMslShuffleOp,
  kMslVoteOp,
  kMslMatrixOp,
  kMslBarrierOp
};

/// What kernels call. `site` is the return address of the call in the kernel.
struct msl_runtime {
  void (*collective)(msl_leader leader, const void* in, void* out, msl_op op, const void* site);
  void (*threadgroup_barrier)(unsigned flags, const void* site);
  void (*simdgroup_barrier)(unsigned flags, const void* site);
  unsigned (*lane)();
  void* (*threadgroup_alloc)(unsigned slot, unsigned long n_bytes, unsigned long alignment);
  bool (*constant_defined)(unsigned index);
  void (*access)(const volatile void* data, unsigned long n_bytes, unsigned bits, const void* site);
};

/// Exported by every library as __msl_library.
struct msl_library {
  unsigned version;
  bool checked;
  const msl_kernel* kernels;
  unsigned n_kernels;
  const msl_function_constant* constants;
  unsigned n_constants;
  void (*const* initialisers)();  ///< recompute the constants derived from function constants
  unsigned n_initialisers;
  const msl_runtime* runtime;  ///< set by the runtime that opens the library
};
