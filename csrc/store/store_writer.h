// The thread that writes: records are handed over and the caller goes on.
//
// Order is kept. The queue is bounded: a record that does not fit is refused at once, and whoever
// offers it tries again later. When the disk fails, the writer pauses, longer each time up to a
// minute, and what is queued then is given back as not committed. When there is nothing to write
// the store is maintained.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>

#include "store/block_store.h"

namespace grebe {

/// Work for the writer. Both functions run on its thread and must not throw.
struct WriteJob {
  RecordKey key;
  uint64_t bytes = 0;                      ///< of the payload, for the bound of the queue
  std::function<NewRecord()> encode;       ///< called when its turn comes
  std::function<void(CommitResult)> done;  ///< called once, also when the writer ends first
};

struct WriterStats {
  uint64_t n_queued = 0, queued_bytes = 0;
  uint64_t n_committed = 0, n_failed = 0, n_refused_by_queue = 0;
  bool paused = false;  ///< after a failure of the disk
};

class StoreWriter {
 public:
  StoreWriter(std::shared_ptr<BlockStore> store, uint64_t max_queued_bytes);
  /// Writes what is queued (for at most `kDrainTime`, and not while paused), then ends the thread.
  ~StoreWriter();
  StoreWriter(const StoreWriter&) = delete;
  StoreWriter& operator=(const StoreWriter&) = delete;

  /// False: the queue is full, or the writer is paused; nothing was taken.
  bool submit(WriteJob job);
  /// Waits until all that was submitted before is done. False after `timeout`.
  bool flush(std::chrono::milliseconds timeout);
  WriterStats stats() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace grebe
