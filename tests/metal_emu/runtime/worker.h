// Runs one threadgroup at a time. Every thread of it is a fiber; 32 of them are a SIMD-group.
//
// Lock step is not assumed: between collectives the lanes run in any order, which the seed
// shuffles. The last lane to arrive at a collective does the work for all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "../include/emu/abi.h"

namespace msl {

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kSimdWidth = 32;
constexpr unsigned kThreadgroupLimit = 32768;
// What a kernel may take by mistake before the emulator gives up.
constexpr unsigned kThreadgroupBytes = 65536;
constexpr size_t kStackBytes = 128 * 1024;

struct Job;

enum class LaneState : uint8_t { kRunning, kCollective, kSimdBarrier, kBarrier, kDone };

struct Lane {
  void* sp;
  msl_leader leader;
  const void* in;
  void* out;
  const void* site;
  msl_op op;
  unsigned flags;
  uint16_t id;  ///< in the threadgroup
  LaneState state;
  uint32_t segment;  ///< of device memory: see Checker. 0: none yet
};

struct SimdGroup {
  unsigned first, n, alive, waiting;
  uint32_t threadgroup_epoch, device_epoch;  ///< count simdgroup barriers by their flags
};

/// Counters for msl_stats.
struct Work {
  uint64_t threads = 0, switches = 0, collectives = 0, barriers = 0;
};

class Worker {
 public:
  Worker();
  ~Worker();
  Worker(const Worker&) = delete;

  void run(Job& job, uint64_t threadgroup);

  // Called by kernels, on a fiber.
  void collective(msl_leader leader, const void* in, void* out, msl_op op, const void* site);
  void simdgroup_barrier(unsigned flags, const void* site);
  void threadgroup_barrier(unsigned flags, const void* site);
  void* threadgroup_alloc(unsigned slot, unsigned long n_bytes, unsigned long alignment);
  /// Gives up the whole dispatch.
  [[noreturn]] void abandon();

  Job* job = nullptr;
  Lane* lane = nullptr;  ///< that runs now; null: none does
  uint64_t threadgroup = 0;
  /// Counts threadgroup barriers by their flags, over all threadgroups that this worker ran.
  uint32_t threadgroup_epoch = 0, device_epoch = 0;
  uint32_t first_epoch = 0;      ///< of this threadgroup
  unsigned threadgroup_top = 0;  ///< bytes of threadgroup memory in use
  struct Argument {
    unsigned begin, end;
  } arguments[32];  ///< [[threadgroup(i)]] memory
  SimdGroup simd_groups[kMaxThreads / kSimdWidth];
  Work work;

  uintptr_t stacks_begin() const { return reinterpret_cast<uintptr_t>(stacks_); }
  /// Of threadgroup memory.
  uintptr_t memory_begin() const { return reinterpret_cast<uintptr_t>(memory_); }

 private:
  static void lane_main();
  void run_lane();
  void fill_context(msl_context& context, unsigned id) const;
  void push(unsigned id);
  int pop();
  void switch_to(void** save, Lane& to);
  void block();
  bool resolve(SimdGroup& group, Lane* self, bool stuck);
  void release_barrier(Lane* self);
  uint32_t random();

  char* stacks_ = nullptr;
  char* memory_ = nullptr;
  Lane lanes_[kMaxThreads];
  unsigned n_ = 0, n_groups_ = 0, alive_ = 0, at_barrier_ = 0;
  void* main_sp_ = nullptr;
  uint16_t ready_[2 * kMaxThreads];  // a ring
  unsigned head_ = 0, tail_ = 0;
  uint64_t random_state_ = 1;
  unsigned position_[3] = {};
  void* slots_[256];
};

/// The worker that this thread is running, or null.
Worker*& current_worker();

}  // namespace msl
