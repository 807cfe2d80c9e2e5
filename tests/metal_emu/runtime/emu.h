// Runs compiled Metal kernels on the CPU: the C interface of the emulator's runtime.
//
// A library made by `python -m tests.metal_emu.compiler exec` is opened, its kernels are found by
// name and dispatched over host memory. Every call is thread-safe; dispatches run one at a time.
// Findings of the checker (and misuse, such as a barrier that only half of a threadgroup reaches)
// are collected as text, one line each, in the form of a compiler's messages:
//
//   metal/norm.metal:31: race on threadgroup memory: read after an unordered write [kernel
//   rms_norm]
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/// What kernels may do with memory.
enum {
  MSL_WRITABLE = 0,
  MSL_READ_ONLY = 1,  ///< a write is reported
  /// A write is reported; and no dispatch writes this memory through another binding either, so
  /// the checker need not remember who read it. For weights: it makes them much cheaper.
  MSL_IMMUTABLE = 2,
};

/// Memory bound at [[buffer(slot)]]. Accesses outside [data, data + n_bytes) are reported.
typedef struct msl_bind {
  void* data;
  uint64_t n_bytes;
  int32_t slot;    ///< 0..30
  int32_t access;  ///< MSL_WRITABLE, ...
} msl_bind;

/// Memory that kernels may reach through addresses found in tables. The host's address of a byte
/// is its device address.
typedef struct msl_range {
  const void* data;
  uint64_t n_bytes;
  int32_t access;
  int32_t reserved;
} msl_range;

/// Value of a function constant; the low `size` bytes of `value` are taken.
typedef struct msl_constant {
  uint32_t index;
  uint32_t size;  ///< 1, 2, 4 or 8; 0 takes the size of the declaration
  uint64_t value;
} msl_constant;

/// One dispatch.
typedef struct msl_run {
  int32_t kernel;      ///< from msl_find
  int32_t by_threads;  ///< 1: `grid` counts threads (dispatchThreads), 0: threadgroups
  uint32_t grid[3];
  uint32_t threads[3];  ///< per threadgroup
  const msl_bind* binds;
  uint64_t n_binds;
  const msl_range* indirect;
  uint64_t n_indirect;
  const msl_constant* constants;
  uint64_t n_constants;
  /// Bytes of [[threadgroup(i)]] for i < 31; null: none.
  const uint32_t* threadgroup_bytes;
  /// Orders lanes and threadgroups; 0: in sequence.
  uint64_t seed;
  /// Dispatches with the same non-zero id have no barrier between them: a conflict between two of
  /// them is reported. Give every stretch between barriers an id of its own. 0: ordered after
  /// everything before it.
  uint64_t hazard;
  int32_t n_workers;  ///< operating system threads; checked libraries use one
  int32_t reserved;
} msl_run;

/// Opens a compiled library, which stays loaded. Null on failure: see msl_error().
void* msl_open(const char* path);
/// Why the last msl_open or msl_dispatch of this thread failed.
const char* msl_error(void);
/// 1 when the library was compiled with --race: memory accesses are checked.
int msl_is_checked(void* library);

int msl_kernel_count(void* library);
const char* msl_kernel_name(void* library, int i);
/// Number of the kernel, or -1.
int msl_find(void* library, const char* name);
/// Largest threadgroup that the kernel was compiled for.
int msl_max_threads(void* library, int i);

int msl_constant_count(void* library);
int msl_constant_info(void* library, int i, uint32_t* index, uint32_t* size);

/// Runs a dispatch to its end. 0, or -1 when it could not be run (see msl_error(); reported too).
int msl_dispatch(void* library, const msl_run* run);

/// Number of distinct findings so far. With `text`, writes them (cut at `capacity` bytes, always
/// terminated), one a line, and forgets them.
int msl_reports(char* text, int capacity);

/// For memory that changed hands: forgets all accesses to it. Call it when a buffer is freed.
void msl_forget(const void* data, uint64_t n_bytes);
/// Marks memory as never written: a kernel that reads a byte that no kernel wrote since is reported
/// (checked libraries only). msl_forget ends it, and so does msl_mark_written for what the host
/// writes.
void msl_mark_unwritten(const void* data, uint64_t n_bytes);
void msl_mark_written(const void* data, uint64_t n_bytes);

/// Work done since the last call: kernel threads, fiber switches, SIMD-group collectives, barriers.
void msl_stats(uint64_t out[4]);

#ifdef __cplusplus
}
#endif
