// Which operations on a FaultyStorage meet what.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace grebe {

/// One entry of the plan: which operations, and what happens to them.
struct Fault {
  enum class Op {
    kAny,  ///< all of the following but kNow
    kOpen,
    kRead,
    kWrite,
    kSync,
    kTruncate,
    kRename,
    kRemove,
    kSyncDirectory,
    kList,
    kLock,
    kExists,
    kMakeDirectory,
    kNow,
  };
  static constexpr int kNumOps = 14;

  enum class Action {
    kFail,          ///< with errno_value; nothing is done
    kShortWrite,    ///< of a write: the first half, then errno_value
    kTornWrite,     ///< of a write: the first `bytes`, then the end
    kGarbageWrite,  ///< of a write: all, its part in the last page of 4 KB at random, then the end
    kEndBefore,     ///< the end, and nothing is done
    kEndAfter,      ///< done, then the end
    kFlipBit,       ///< of what a read returns: number `bit`
    kDelay,         ///< `seconds`, then done
    kShiftClock,    ///< now() says `seconds` more
  };

  static constexpr int kNumActions = 9;

  /// How it ends. Without power all calls fail with EIO, the one that it happened in included, and
  /// what was not synced may be gone (io/unsynced.h), if that is kept
  /// (FaultyStorage::keep_unsynced).
  enum class End {
    kKill,           ///< SIGKILL for this process: what was written is there
    kPowerLoss,      ///< of the disk; the process goes on
    kPowerLossKill,  ///< both
  };

  static constexpr uint64_t kForEver = UINT64_MAX;
  static constexpr uint64_t kRandomBit = UINT64_MAX;

  Op op = Op::kAny;
  Action action = Action::kFail;
  uint64_t first = 0;  ///< the first one concerned; 0 is the next operation that matches
  uint64_t count = 1;  ///< of matching operations
  std::string path;    ///< must be part of the operation's path
  int errno_value = EIO;
  uint64_t bytes = 0;
  uint64_t bit = kRandomBit;
  double seconds = 0;
  End end = End::kKill;
};

const char* fault_op_name(Fault::Op op);              ///< "sync_directory"
const char* fault_action_name(Fault::Action action);  ///< "torn_write"

/// What one operation has met.
class MetFaults {
 public:
  void add(const Fault& fault) { faults_.push_back(fault); }
  size_t size() const { return faults_.size(); }
  std::string names() const;                      ///< of the actions, by commas
  const Fault* find(Fault::Action action) const;  ///< the first of them, or null
  template <class F>
  void each(Fault::Action action, F&& call) const {
    for (const Fault& f : faults_)
      if (f.action == action) call(f);
  }

 private:
  std::vector<Fault> faults_;
};

class FaultPlan {
 public:
  void add(const Fault& fault) { entries_.push_back({fault}); }
  void clear() { entries_.clear(); }
  /// Counts the operation for every entry that it matches.
  MetFaults meet(Fault::Op op, const std::string& path);

 private:
  struct Entry {
    Fault fault;
    uint64_t n_matched = 0;
  };
  std::vector<Entry> entries_;
};

}  // namespace grebe
