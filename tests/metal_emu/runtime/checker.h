// Checks every memory access of libraries compiled with --race.
//
// Found: accesses outside what is bound, writes where only reads are allowed, reads of memory that
// was never written, and races: two accesses to one byte, at least one a write, not both atomic,
// by different threads with no barrier between them that orders this kind of memory. Any two
// threadgroups race; so do any two dispatches between memory barriers (msl_run::hazard).
//
// Threads of a SIMD-group are as unordered as others: lock step is no barrier.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "emu.h"
#include "job.h"
#include "worker.h"

namespace msl {

class Checker {
 public:
  Checker() : threadgroup_(kThreadgroupBytes) {}

  /// Before and after the dispatch of a checked library, which one worker runs.
  void begin(Job& job, const msl_run& run, Worker& worker);
  void end() { worker_ = nullptr; }

  void access(uintptr_t address, size_t n, unsigned bits, const void* site) {
    if (!worker_) return;  // an initialiser of constants
    Worker& worker = *worker_;
    if (address - worker.stacks_begin() < kStackBytes * kMaxThreads) return;
    if (address - worker.memory_begin() < kThreadgroupBytes) {
      threadgroup_access(worker, address, n, bits, site);
    } else {
      device_access(worker, address, n, bits, site);
    }
  }
  void forget(uintptr_t begin, uintptr_t end);
  void mark(uintptr_t begin, uintptr_t end, bool unwritten);

 private:
  // What several readers of a byte have in common.
  enum Spread : uint32_t { kOneLane, kOneSimdGroup, kOneThreadgroup, kAnywhere };

  /// An access to threadgroup memory. Epochs of earlier threadgroups mean "never".
  struct ThreadgroupAccess {
    uint32_t epoch = 0, simd_epoch = 0;
    uint16_t lane = 0;
    uint8_t spread = kOneLane;
    uint8_t atomic = 0;
  };
  struct ThreadgroupCell {
    ThreadgroupAccess write, read;
  };

  /// The accesses to a granule of device memory: an index into segments_ and flags in the high
  /// bits. Indices below first_segment_ are ordered before everything that runs now.
  struct Cell {
    uint32_t write = 0, read = 0;
  };
  static constexpr uint32_t kIndexMask = (1u << 27) - 1;
  static constexpr unsigned kSpreadShift = 27;
  static constexpr uint32_t kOtherDispatch = 1u << 29;  // among the readers
  static constexpr uint32_t kAtomic = 1u << 30;

  /// A stretch of one thread's run between barriers that order device memory.
  struct Segment {
    uint32_t dispatch;
    uint32_t epoch, simd_epoch;
    uint32_t lane;
    uint64_t threadgroup;
  };

  static constexpr size_t kPageBytes = 4096;
  /// Cells of 4 bytes, until an access that is not a multiple of 4 splits them into bytes.
  struct Page {
    uintptr_t number = 0;
    unsigned shift = 2;
    std::vector<Cell> cells;
    std::vector<bool> unwritten;  // by byte; empty: none
  };

  /// Part of what a dispatch may access, in which the same bindings overlap.
  struct Interval {
    uintptr_t begin, end;
    uintptr_t reach, write_reach;  // furthest ends of the bindings that cover it; 0: none
    int slot;                      // of a binding that covers it, for messages; -1: indirect
    bool shadowed;                 // accesses are remembered
  };

  void threadgroup_access(Worker&, uintptr_t, size_t, unsigned bits, const void* site);
  void device_access(Worker&, uintptr_t, size_t, unsigned bits, const void* site);
  const Interval* find(uintptr_t address);
  void out_of_bounds(Worker&, uintptr_t, size_t, bool write, const void* site);
  bool library_access(Worker&, uintptr_t, bool write, const void* site);
  void build_intervals(const msl_run& run);
  Page& page(uintptr_t number);
  void split(Page& page);
  uint32_t segment(Worker& worker);
  bool ordered(const Worker& worker, uint32_t earlier) const;
  void note_read(const Worker& worker, uint32_t& read, uint32_t self);
  static bool ordered(const Worker& worker, const ThreadgroupAccess& earlier);

  Job* job_ = nullptr;
  Worker* worker_ = nullptr;
  std::vector<Interval> intervals_;
  size_t last_interval_[64] = {};

  std::unordered_map<uintptr_t, std::unique_ptr<Page>> pages_;
  Page* recent_pages_[256] = {};
  bool any_unwritten_ = false;

  std::vector<Segment> segments_;
  uint32_t first_segment_ = 1, next_segment_ = 1;
  uint64_t hazard_ = 0;

  std::vector<ThreadgroupCell> threadgroup_;
};

}  // namespace msl
