#include "io/faulty_storage.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <mutex>
#include <random>
#include <thread>
#include <utility>

#include "core/error.h"
#include "io/unsynced.h"

namespace grebe {
namespace {

using Op = Fault::Op;
using Action = Fault::Action;
using End = Fault::End;

constexpr uint64_t kPageBytes = 4096;

[[noreturn]] void fail(const std::string& path, Op op, int error, const char* why) {
  throw IoError(
      path + ": cannot " + fault_op_name(op) + ": " + std::strerror(error) + " (" + why + ")",
      path,
      error);
}

}  // namespace

struct FaultyStorage::State {
  State(std::shared_ptr<Storage> base, uint64_t seed) : base(std::move(base)), random(seed) {}

  const std::shared_ptr<Storage> base;
  mutable std::mutex mutex;  // for all that follows
  FaultPlan plan;
  std::vector<Operation> log;
  uint64_t counts[Fault::kNumOps] = {};
  uint64_t n_fired = 0;
  int64_t clock_offset = 0;
  bool has_power = true;
  std::mt19937_64 random;
  std::unique_ptr<Unsynced> unsynced;

  // Counts and logs an operation and looks it up in the plan.
  MetFaults look_up(Op op, const std::string& path, uint64_t offset, uint64_t bytes) {
    const std::lock_guard lock(mutex);
    if (op != Op::kNow) check_power(path, op);  // no caller expects a clock that throws
    counts[static_cast<int>(op)]++;
    MetFaults met = plan.meet(op, path);
    n_fired += met.size();
    if (op != Op::kNow) {
      counts[static_cast<int>(Op::kAny)]++;
      if (log.size() < kMaxLog) log.push_back({op, path, offset, bytes, met.names()});
    }
    return met;
  }

  // What comes before every operation. The caller does it and then calls after().
  MetFaults before(Op op, const std::string& path, uint64_t offset = 0, uint64_t bytes = 0) {
    MetFaults met = look_up(op, path, offset, bytes);
    met.each(Action::kDelay, [](const Fault& f) {
      std::this_thread::sleep_for(std::chrono::duration<double>(f.seconds));
    });
    if (const Fault* f = met.find(Action::kEndBefore)) end(*f, op, path);
    if (const Fault* f = met.find(Action::kFail)) fail(path, op, f->errno_value, "as planned");
    return met;
  }

  void after(const MetFaults& met, Op op, const std::string& path) {
    if (const Fault* f = met.find(Action::kEndAfter)) end(*f, op, path);
  }

  // Runs what changes the disk: call(unsynced), null when nothing is kept. Not while the power
  // goes.
  template <class F>
  auto change(Op op, const std::string& path, F&& call) {
    std::unique_lock lock(mutex);
    check_power(path, op);
    if (!unsynced) lock.unlock();
    return call(unsynced.get());
  }

  void check_power(const std::string& path, Op op) const {
    if (!has_power) fail(path, op, EIO, "no power");
  }

  void lose_power() {
    const std::lock_guard lock(mutex);
    if (!has_power) return;
    has_power = false;
    if (unsynced) unsynced->lose(random);
  }

  [[noreturn]] void end(const Fault& fault, Op op, const std::string& path) {
    if (fault.end != End::kKill) lose_power();
    if (fault.end != End::kPowerLoss) std::raise(SIGKILL);
    fail(path, op, EIO, "no power");
  }

  uint64_t draw() {
    const std::lock_guard lock(mutex);
    return random();
  }
};

class FaultyStorage::File final : public StorageFile {
 public:
  File(
      std::shared_ptr<State> state,
      std::string path,
      std::unique_ptr<StorageFile> base,
      std::shared_ptr<Unsynced::File> kept)
      : state_(std::move(state)),
        path_(std::move(path)),
        base_(std::move(base)),
        kept_(std::move(kept)) {}

  uint64_t size() const override {
    {
      const std::lock_guard lock(state_->mutex);
      state_->check_power(path_, Op::kRead);
    }
    return base_->size();
  }

  void read(uint64_t offset, void* to, size_t n) const override {
    const MetFaults met = state_->before(Op::kRead, path_, offset, n);
    base_->read(offset, to, n);
    met.each(Action::kFlipBit, [&](const Fault& f) {
      if (n == 0) return;
      const uint64_t bit = (f.bit == Fault::kRandomBit ? state_->draw() : f.bit) % (n * 8);
      static_cast<uint8_t*>(to)[bit / 8] ^= static_cast<uint8_t>(1 << bit % 8);
    });
    state_->after(met, Op::kRead, path_);
  }

  void write(uint64_t offset, const void* from, size_t n) override {
    const MetFaults met = state_->before(Op::kWrite, path_, offset, n);
    if (const Fault* f = met.find(Action::kShortWrite)) {
      pass_on(offset, from, n / 2);
      fail(path_, Op::kWrite, f->errno_value, "as planned, after the first half");
    }
    if (const Fault* f = met.find(Action::kTornWrite)) {
      pass_on(offset, from, static_cast<size_t>(std::min<uint64_t>(n, f->bytes)));
      state_->end(*f, Op::kWrite, path_);
    }
    if (const Fault* f = met.find(Action::kGarbageWrite)) {
      const uint8_t* data = static_cast<const uint8_t*>(from);
      std::vector<uint8_t> damaged(data, data + n);
      const uint64_t last_page = n == 0 ? 0 : (offset + n - 1) / kPageBytes * kPageBytes;
      for (size_t i = last_page > offset ? last_page - offset : 0; i < n; i++)
        damaged[i] = static_cast<uint8_t>(state_->draw());
      pass_on(offset, damaged.data(), n);
      state_->end(*f, Op::kWrite, path_);
    }
    pass_on(offset, from, n);
    state_->after(met, Op::kWrite, path_);
  }

  void sync() override {
    const MetFaults met = state_->before(Op::kSync, path_);
    state_->change(Op::kSync, path_, [&](Unsynced* u) {
      u&& kept_ ? u->sync(*kept_, *base_) : base_->sync();
    });
    state_->after(met, Op::kSync, path_);
  }

  void truncate(uint64_t size) override {
    const MetFaults met = state_->before(Op::kTruncate, path_, size);
    state_->change(Op::kTruncate, path_, [&](Unsynced* u) {
      u&& kept_ ? u->truncate(*kept_, *base_, size) : base_->truncate(size);
    });
    state_->after(met, Op::kTruncate, path_);
  }

 private:
  void pass_on(uint64_t offset, const void* from, size_t n) {
    if (n == 0) return;
    state_->change(Op::kWrite, path_, [&](Unsynced* u) {
      u&& kept_ ? u->write(*kept_, *base_, offset, from, n) : base_->write(offset, from, n);
    });
  }

  std::shared_ptr<State> state_;
  std::string path_;
  std::unique_ptr<StorageFile> base_;
  std::shared_ptr<Unsynced::File> kept_;  // null: nothing is kept
};

FaultyStorage::FaultyStorage(std::shared_ptr<Storage> base, uint64_t seed)
    : state_(std::make_shared<State>(std::move(base), seed)) {}
FaultyStorage::~FaultyStorage() = default;

void FaultyStorage::add(const Fault& fault) {
  const std::lock_guard lock(state_->mutex);
  state_->plan.add(fault);
}

void FaultyStorage::clear() {
  const std::lock_guard lock(state_->mutex);
  state_->plan.clear();
}

void FaultyStorage::keep_unsynced() {
  const std::lock_guard lock(state_->mutex);
  if (!state_->unsynced) state_->unsynced = std::make_unique<Unsynced>(*state_->base);
}

void FaultyStorage::power_loss() { state_->lose_power(); }

bool FaultyStorage::has_power() const {
  const std::lock_guard lock(state_->mutex);
  return state_->has_power;
}

void FaultyStorage::set_clock_offset(int64_t seconds) {
  const std::lock_guard lock(state_->mutex);
  state_->clock_offset = seconds;
}

uint64_t FaultyStorage::count(Op op) const {
  const std::lock_guard lock(state_->mutex);
  return state_->counts[static_cast<int>(op)];
}

uint64_t FaultyStorage::n_fired() const {
  const std::lock_guard lock(state_->mutex);
  return state_->n_fired;
}

std::vector<Operation> FaultyStorage::log() const {
  const std::lock_guard lock(state_->mutex);
  return state_->log;
}

std::unique_ptr<StorageFile> FaultyStorage::open(const std::string& path, Mode mode) {
  const MetFaults met = state_->before(Op::kOpen, path);
  auto file = state_->change(Op::kOpen, path, [&](Unsynced* u) {
    auto base = state_->base->open(path, mode);
    auto kept = u ? u->opened(path, mode == Mode::kCreate, *base) : nullptr;
    return std::make_unique<File>(state_, path, std::move(base), std::move(kept));
  });
  state_->after(met, Op::kOpen, path);
  return file;
}

bool FaultyStorage::exists(const std::string& path) {
  const MetFaults met = state_->before(Op::kExists, path);
  const bool found = state_->base->exists(path);
  state_->after(met, Op::kExists, path);
  return found;
}

std::vector<std::string> FaultyStorage::list(const std::string& directory) {
  const MetFaults met = state_->before(Op::kList, directory);
  auto names = state_->base->list(directory);
  state_->after(met, Op::kList, directory);
  return names;
}

void FaultyStorage::make_directory(const std::string& path) {
  const MetFaults met = state_->before(Op::kMakeDirectory, path);
  state_->change(Op::kMakeDirectory, path, [&](Unsynced*) { state_->base->make_directory(path); });
  state_->after(met, Op::kMakeDirectory, path);
}

void FaultyStorage::rename(const std::string& from, const std::string& to) {
  const MetFaults met = state_->before(Op::kRename, from);
  state_->change(Op::kRename, from, [&](Unsynced* u) {
    u ? u->rename(from, to) : state_->base->rename(from, to);
  });
  state_->after(met, Op::kRename, from);
}

void FaultyStorage::remove(const std::string& path) {
  const MetFaults met = state_->before(Op::kRemove, path);
  state_->change(
      Op::kRemove, path, [&](Unsynced* u) { u ? u->remove(path) : state_->base->remove(path); });
  state_->after(met, Op::kRemove, path);
}

void FaultyStorage::sync_directory(const std::string& path) {
  const MetFaults met = state_->before(Op::kSyncDirectory, path);
  state_->change(Op::kSyncDirectory, path, [&](Unsynced* u) {
    u ? u->sync_directory(path) : state_->base->sync_directory(path);
  });
  state_->after(met, Op::kSyncDirectory, path);
}

std::unique_ptr<StorageLock> FaultyStorage::try_lock(const std::string& path) {
  const MetFaults met = state_->before(Op::kLock, path);
  auto lock = state_->base->try_lock(path);
  state_->after(met, Op::kLock, path);
  return lock;
}

int64_t FaultyStorage::now() {
  int64_t offset = 0;
  const MetFaults met = state_->before(Op::kNow, "");
  met.each(Action::kShiftClock, [&](const Fault& f) { offset += static_cast<int64_t>(f.seconds); });
  const std::lock_guard lock(state_->mutex);
  return state_->base->now() + state_->clock_offset + offset;
}

}  // namespace grebe
