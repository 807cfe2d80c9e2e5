// The state of an open store. block_store.cpp opens it and looks things up, store_commit.cpp
// writes, store_maintain.cpp makes room, store_verify.cpp checks.
//
// Two locks. io_mutex is held while files are written, and while a reader follows the manifest;
// mutex guards what is in memory and is never held while a file is used, so that a lookup waits for
// no disk. io_mutex is taken first.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "core/error.h"
#include "store/block_store.h"
#include "store/eviction.h"
#include "store/index.h"
#include "store/manifest.h"
#include "store/segment.h"

namespace grebe {

struct BlockStore::Impl {
  explicit Impl(const StoreOptions& options);
  ~Impl();

  // ------------------------------------------------------------ block_store.cpp
  void open();
  /// Holds the lock, and is the process that took it: a child of fork() only reads.
  bool writable() const;
  std::string path(const std::string& name) const { return options.path + "/" + name; }
  /// After a miss of a reader: reads what the writer has added. Whether there was anything.
  bool refresh();

  // ------------------------------------------------------------ store_commit.cpp
  std::vector<CommitResult> commit(std::span<const NewRecord> records);
  /// Writes roots, drops and uses that wait. Throws IoError.
  void flush_pending();
  void try_to_flush() noexcept;
  /// Whether the manifest may be appended to; writes a new one when not.
  bool recover() noexcept;
  /// Throws IoError.
  void rewrite_manifest();
  /// What waits goes first, the day's bytes last. Throws IoError; then nothing has been appended,
  /// and what waited waits again.
  void append(EntryList& entries);
  void note_failure(const std::exception& error, bool of_sync) noexcept;
  /// Bytes were given to the disk.
  void account(uint64_t bytes);
  bool today_allows(uint64_t bytes);

  // ------------------------------------------------------------ store_maintain.cpp
  bool maintain();
  /// Whether so many bytes may be written without going over the budget; evicts and compacts for
  /// them. Throws IoError.
  bool make_room(uint64_t bytes, const PinnedBlocks& pinned);
  /// One step towards so many bytes of files; false when there is none. Throws IoError.
  bool reclaim(uint64_t target, const PinnedBlocks& pinned);
  /// The disk is full: gives files of about so many bytes back to it, without writing first.
  void give_back(uint64_t bytes) noexcept;
  bool remove_dead_segments();
  void compact(uint32_t number);
  void drop_segment_records(uint32_t number);  // under mutex
  void forget_segments(const std::vector<uint32_t>& numbers);
  void remove_file(uint32_t number) noexcept;
  void sweep(const std::vector<std::string>& names) noexcept;
  uint64_t file_bytes() const;
  uint64_t resting_bytes() const;
  bool manifest_is_mostly_dead() const;

  // ------------------------------------------------------------ store_verify.cpp
  struct Found {
    std::shared_ptr<SegmentFile> file;
    RecordInfo info;
    Location location;
  };
  std::optional<Found> locate(const RecordKey& key);
  std::vector<RecordInfo> verify(const std::function<bool(uint64_t, uint64_t)>& progress);

  const StoreOptions options;
  const std::shared_ptr<Storage> storage;
  const std::shared_ptr<ReadCounters> counters = std::make_shared<ReadCounters>();
  std::unique_ptr<StorageLock> lock;
  std::atomic<bool> is_writer{false};  // holds it
  pid_t owner = 0;
  std::atomic<uint64_t> epoch{1};

  std::mutex io_mutex;
  std::unique_ptr<Manifest> manifest;
  SegmentWriter writer;
  bool needs_rewrite = false;    // the manifest in memory is not the one on the disk
  bool needs_sweep = false;      // files may lie there that nobody knows
  bool gave_back = false;        // since the last commit
  std::set<uint32_t> unmovable;  // segments that the disk did not give when they were compacted
  uint64_t followed_bytes = 0;   // a reader has taken from a manifest of this size what there was
  bool follows_all = true;       // nothing was left out of it since a segment had gone meanwhile

  mutable std::mutex mutex;
  Index index;
  StoreStats counts;  // what is counted; the rest is filled in by stats()
  uint64_t manifest_bytes = 0;
  int64_t day = 0;
  std::vector<ManifestEntry> pending;  // roots, drops, segments removed
  std::unordered_map<RecordKey, UseEntry, RecordKeyHash> pending_uses;

 private:
  bool attach_segments(Index& target, std::string& dropped);
  std::string open_segment(uint32_t number, SegmentState& segment, uint64_t& size);
  void open_manifest(const std::vector<std::string>& names);
  void start_writing(const std::vector<std::string>& names);
};

/// Whether it says that there is no room.
bool is_disk_full(const std::exception& error);

/// A record read whole.
struct StoredRecord {
  RecordHeader header;
  std::vector<uint8_t> header_bytes, payload;
};
enum class ReadResult { kSound, kDamaged, kUnreadable };
/// Header and payload, all sums checked. Reads twice before it believes that the disk cannot.
ReadResult read_record(
    const SegmentFile& file,
    const RecordInfo& info,
    const Location& location,
    StoredRecord& record);

}  // namespace grebe
