// A Storage for tests: passes everything on to another one, counts it, and at chosen operations
// fails, tears, damages, waits, kills the process or takes the power away.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "io/fault_plan.h"
#include "io/storage.h"

namespace grebe {

/// An operation that was asked for, in order.
struct Operation {
  Fault::Op op;
  std::string path;
  uint64_t offset = 0, bytes = 0;
  std::string fired;  ///< names of the actions that it met, by commas
};

class FaultyStorage final : public Storage {
 public:
  /// `seed` decides what is lost, flipped and written at random.
  explicit FaultyStorage(std::shared_ptr<Storage> base, uint64_t seed = 0);
  ~FaultyStorage() override;

  void add(const Fault& fault);
  void clear();  ///< the plan; counts and log stay
  /// From now on; to be called before files are opened. Costs a reading of each page that is
  /// written.
  void keep_unsynced();
  /// The power goes now.
  void power_loss();
  bool has_power() const;
  /// Added to now(), by itself and beside kShiftClock.
  void set_clock_offset(int64_t seconds);

  uint64_t count(Fault::Op op) const;  ///< operations so far; kAny: all but kNow
  uint64_t n_fired() const;            ///< entries of the plan that were met, each time
  /// The first kMaxLog operations. now() is not among them.
  std::vector<Operation> log() const;
  static constexpr size_t kMaxLog = 100000;

  std::unique_ptr<StorageFile> open(const std::string& path, Mode mode) override;
  bool exists(const std::string& path) override;
  std::vector<std::string> list(const std::string& directory) override;
  void make_directory(const std::string& path) override;
  void rename(const std::string& from, const std::string& to) override;
  void remove(const std::string& path) override;
  void sync_directory(const std::string& path) override;
  std::unique_ptr<StorageLock> try_lock(const std::string& path) override;
  int64_t now() override;

 private:
  struct State;
  class File;
  std::shared_ptr<State> state_;  // files may outlive us
};

}  // namespace grebe
