#include "store/store_writer.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace grebe {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr uint64_t kMaxBatchBytes = 32 << 20;
constexpr auto kDrainTime = std::chrono::seconds(5);
constexpr milliseconds kMinPause(100), kMaxPause(60000);

}  // namespace

struct StoreWriter::Impl {
  Impl(std::shared_ptr<BlockStore> s, uint64_t max_bytes)
      : store(std::move(s)),
        max_queued_bytes(max_bytes),
        // The store takes a quarter of its budget at once.
        max_batch_bytes(std::min(kMaxBatchBytes, store->options().budget_bytes / 8)),
        thread([this] { run(); }) {}

  void run();
  void write(std::vector<WriteJob>& batch);
  void finish(std::vector<WriteJob>& jobs, const std::vector<CommitResult>& results);
  void give_back_queue(std::unique_lock<std::mutex>& lock);

  const std::shared_ptr<BlockStore> store;
  const uint64_t max_queued_bytes, max_batch_bytes;

  mutable std::mutex mutex;
  std::condition_variable wake, idle;
  std::deque<WriteJob> queue;
  WriterStats stats;  // n_queued and queued_bytes also count what is being written
  uint64_t n_submitted = 0, n_done = 0;
  bool ending = false;
  bool is_dirty = true;  // something may be left to maintain
  milliseconds pause{0};
  Clock::time_point paused_until, drain_until;

  std::thread thread;  // the last: it uses all the others
};

StoreWriter::StoreWriter(std::shared_ptr<BlockStore> store, uint64_t max_queued_bytes)
    : impl_(std::make_unique<Impl>(std::move(store), max_queued_bytes)) {}

StoreWriter::~StoreWriter() {
  {
    const std::lock_guard guard(impl_->mutex);
    impl_->ending = true;
    impl_->drain_until = Clock::now() + kDrainTime;
  }
  impl_->wake.notify_all();
  impl_->thread.join();
}

bool StoreWriter::submit(WriteJob job) {
  {
    const std::lock_guard guard(impl_->mutex);
    if (impl_->stats.paused && Clock::now() >= impl_->paused_until) impl_->stats.paused = false;
    if (impl_->ending || impl_->stats.paused ||
        impl_->stats.queued_bytes + job.bytes > impl_->max_queued_bytes) {
      impl_->stats.n_refused_by_queue++;
      return false;
    }
    impl_->stats.n_queued++;
    impl_->stats.queued_bytes += job.bytes;
    impl_->n_submitted++;
    impl_->queue.push_back(std::move(job));
  }
  impl_->wake.notify_all();
  return true;
}

bool StoreWriter::flush(milliseconds timeout) {
  std::unique_lock lock(impl_->mutex);
  impl_->stats.paused = false;  // somebody waits: the disk may be well again
  impl_->pause = milliseconds(0);
  const uint64_t last = impl_->n_submitted;
  return impl_->idle.wait_for(lock, timeout, [&] { return impl_->n_done >= last; });
}

WriterStats StoreWriter::stats() const {
  const std::lock_guard guard(impl_->mutex);
  WriterStats s = impl_->stats;
  s.paused = s.paused && Clock::now() < impl_->paused_until;
  return s;
}

void StoreWriter::Impl::run() {
  std::unique_lock lock(mutex);
  for (;;) {
    if (ending && (queue.empty() || Clock::now() >= drain_until)) break;
    if (!queue.empty()) {
      std::vector<WriteJob> batch;
      uint64_t bytes = 0;
      while (!queue.empty() && (batch.empty() || bytes + queue.front().bytes <= max_batch_bytes)) {
        bytes += queue.front().bytes;
        batch.push_back(std::move(queue.front()));
        queue.pop_front();
      }
      lock.unlock();
      write(batch);
      lock.lock();
      if (stats.paused) give_back_queue(lock);
      continue;
    }
    if (is_dirty && !ending) {
      lock.unlock();
      const bool is_more = store->maintain();
      lock.lock();
      is_dirty = is_more;
      continue;
    }
    wake.wait(lock);
  }
  give_back_queue(lock);
}

void StoreWriter::Impl::write(std::vector<WriteJob>& batch) {
  std::vector<CommitResult> results(batch.size(), CommitResult::kFailed);
  bool disk_failed = false;
  try {
    std::vector<NewRecord> records;
    std::vector<size_t> encoded;
    for (size_t i = 0; i < batch.size(); i++) {
      NewRecord record = batch[i].encode();
      if (record.payload.empty()) continue;  // there was no memory for it, or nothing to write
      records.push_back(std::move(record));
      encoded.push_back(i);
    }
    const std::vector<CommitResult> committed = store->commit(records);
    for (size_t i = 0; i < encoded.size(); i++) results[encoded[i]] = committed[i];
    disk_failed =
        std::find(committed.begin(), committed.end(), CommitResult::kFailed) != committed.end();
  } catch (const std::exception&) {  // no memory: not now
  }
  {
    const std::lock_guard guard(mutex);
    is_dirty = true;
    if (disk_failed) {
      pause = std::clamp(2 * pause, kMinPause, kMaxPause);
      paused_until = Clock::now() + pause;
      stats.paused = true;
    } else if (
        std::find(results.begin(), results.end(), CommitResult::kCommitted) != results.end()) {
      pause = milliseconds(0);
      stats.paused = false;
    }
  }
  finish(batch, results);
}

// Calls back without the lock, counts, and frees what the jobs hold.
void StoreWriter::Impl::finish(
    std::vector<WriteJob>& jobs, const std::vector<CommitResult>& results) {
  uint64_t n_committed = 0, bytes = 0;
  for (size_t i = 0; i < jobs.size(); i++) {
    n_committed += results[i] == CommitResult::kCommitted;
    bytes += jobs[i].bytes;
    if (jobs[i].done) jobs[i].done(results[i]);
  }
  const size_t n = jobs.size();
  jobs.clear();
  {
    const std::lock_guard guard(mutex);
    stats.n_committed += n_committed;
    stats.n_failed += n - n_committed;
    stats.n_queued -= n;
    stats.queued_bytes -= bytes;
    n_done += n;
  }
  idle.notify_all();
}

void StoreWriter::Impl::give_back_queue(std::unique_lock<std::mutex>& lock) {
  if (queue.empty()) return;
  std::vector<WriteJob> jobs(
      std::make_move_iterator(queue.begin()), std::make_move_iterator(queue.end()));
  queue.clear();
  lock.unlock();
  finish(jobs, std::vector<CommitResult>(jobs.size(), CommitResult::kFailed));
  lock.lock();
}

}  // namespace grebe
