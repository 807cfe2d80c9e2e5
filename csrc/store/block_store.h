// The KV store on disk: records written once, found by name, checked on every read.
//
// A directory holds append-only segment files with the records' data and one append-only manifest
// that says which records exist and where; docs/kv-store.md draws both byte by byte. A record is
// committed when its manifest entry has reached the disk, which happens only after its data has.
// This file knows names, bytes and checksums; what is in a record is decided by session/kv_codec.h,
// what is worth keeping in RAM and when to write by session/kv_cache.h.
//
// Records form a tree. A block holds the rows of 512 tokens and follows its parent block (or the
// root, which stands for a model and its numerics); an anchor holds the state after a block and up
// to 511 tokens more. Dropping a record drops all that follows it.
//
// A record's payload is a row of pages, each with a checksum over the record's name, the page's
// number and its data, so that a stale, swapped or damaged page is never taken for another.
//
// Thread-safe. Nothing but open() throws for what a disk may do to it: a failed read is a miss, a
// failed write is reported and leaves what was committed as it was.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "core/blake3.h"
#include "io/storage.h"

namespace grebe {

enum class RecordKind : uint8_t { kBlock = 1, kAnchor = 2 };

struct RecordKey {
  RecordKind kind = RecordKind::kBlock;
  Digest id;

  auto operator<=>(const RecordKey&) const = default;
};

/// Equal pages one after another. `bytes` of each with its checksum at the end (4 bytes).
struct PageGroup {
  uint32_t n_pages = 0;
  uint32_t bytes = 0;
};
constexpr size_t kMaxPageGroups = 8;
constexpr uint32_t kPageChecksumBytes = 4;

/// CRC-32C over the first 8 bytes of the record's id, the page's number in the record (u32) and the
/// data.
uint32_t page_checksum(const Digest& id, uint32_t page, const void* data, size_t n);

class SegmentFile;  // store/segment.h

/// What is known of a record without reading it.
struct RecordInfo {
  RecordKey key;
  Digest parent;  ///< block that it follows; the root's id for the first
  Digest root;
  int64_t pos = 0;     ///< tokens that the state covers at its end
  uint64_t bytes = 0;  ///< of the payload
};

/// How often a record was of use, and when last: the clock counts records written and uses.
struct RecordUse {
  uint64_t hits = 0;
  uint64_t age = 0;  ///< ticks of the clock since
};

/// A record to be written.
struct NewRecord {
  RecordInfo info;
  std::vector<int32_t> tokens;    ///< its own ones, 0..512
  std::vector<PageGroup> groups;  ///< at most kMaxPageGroups
  std::vector<uint8_t> payload;   ///< pages with their checksums; info.bytes of them
};

/// Where a record's payload lies. Stays readable while it is held, also when the record is dropped
/// or moved meanwhile; hold it shortly (see BlockStore::epoch).
class RecordView {
 public:
  RecordView() = default;
  RecordView(std::shared_ptr<const SegmentFile> segment, uint64_t offset)
      : segment_(std::move(segment)), offset_(offset) {}
  /// Reads payload bytes; false when the disk fails or the file is gone or short.
  bool read(uint64_t offset, void* to, size_t n) const noexcept;
  bool valid() const { return segment_ != nullptr; }

 private:
  std::shared_ptr<const SegmentFile> segment_;
  uint64_t offset_ = 0;
};

/// A root: which model, computed how.
struct RootInfo {
  Digest id;
  std::string fingerprint;  ///< of the model, 64 hex digits
  std::string name;         ///< of the model, for people
  std::string numerics;     ///< "cpu fast official 1"
};

struct StoreOptions {
  std::string path;
  uint64_t budget_bytes = uint64_t{32} << 30;  ///< of all files in the directory
  uint64_t daily_write_bytes = 0;              ///< 0: no limit
  bool read_only = false;                      ///< never takes the lock
  std::shared_ptr<Storage> storage;            ///< null: posix_storage()
};

/// Numbers since open(), and what is there now.
struct StoreStats {
  uint64_t n_blocks = 0, n_anchors = 0, n_segments = 0, n_roots = 0;
  uint64_t live_bytes = 0;       ///< of records that exist
  uint64_t file_bytes = 0;       ///< of all files
  uint64_t payload_written = 0;  ///< bytes of committed records
  uint64_t bytes_written = 0;  ///< bytes given to the disk for them: headers, manifest, compaction
  uint64_t written_today = 0;
  uint64_t bytes_read = 0;
  uint64_t records_evicted = 0, records_compacted = 0, segments_removed = 0;
  uint64_t records_damaged = 0;  ///< dropped since a page, a header or a file was not as written
  uint64_t descendants_dropped = 0;  ///< of those
  uint64_t write_failures = 0, read_failures = 0, sync_failures = 0;
  uint64_t refused_by_daily_budget = 0, refused_by_budget = 0;
  uint64_t dropped_at_open_bytes = 0;  ///< of the manifest, after its last good entry
  std::string dropped_at_open;         ///< what was dropped and why; empty: nothing
  std::string last_error;              ///< of the disk
  bool read_only = false;              ///< asked for, or since another process writes
};

/// What became of a record.
enum class CommitResult {
  kCommitted,  ///< it is on the disk, now or since before
  kFailed,     ///< the disk, see StoreStats::last_error
  kRefused,    ///< a budget
  kNoParent,   ///< what it follows is not there
  kReadOnly,
};

class BlockStore {
 public:
  /// Opens or creates the directory. A damaged manifest is cut at its first bad entry, and the rest
  /// counted; missing or short segments drop their records. Another process that writes the same
  /// directory makes this one a reader, that sees what the other has committed. Throws IoError when
  /// the directory cannot be made or read, FormatError when it is something else than a store or of
  /// a version that this build does not know.
  static std::shared_ptr<BlockStore> open(const StoreOptions& options);
  ~BlockStore();
  BlockStore(const BlockStore&) = delete;
  BlockStore& operator=(const BlockStore&) = delete;

  /// Written with the next commit.
  void add_root(const RootInfo& root);
  std::vector<RootInfo> roots() const;

  std::optional<RecordInfo> find(const RecordKey& key);
  /// Which of the keys exist, in one look.
  std::vector<bool> contains(std::span<const RecordKey> keys);
  std::optional<RecordView> view(const RecordKey& key);
  /// Changes when records have moved: views taken before hold files that would else be gone.
  uint64_t epoch() const;
  /// All records, parents first.
  std::vector<RecordInfo> records() const;
  /// How often and when a record was of use.
  RecordUse use(const RecordKey& key) const;
  /// Tokens of a record, from its header in the segment, checked; nothing when it is damaged.
  std::optional<std::vector<int32_t>> tokens(const RecordKey& key);

  /// Writes records in order, together: data, barrier, manifest, barrier. Records that exist are
  /// left out; a parent must be committed or stand before. Returns what became of each. When the
  /// disk fails, none of them is committed. Throws InvalidArgument for a record that contradicts
  /// itself.
  std::vector<CommitResult> commit(std::span<const NewRecord> records);
  /// A record was of use: raises its value for eviction. Written with the next commit.
  void touch(std::span<const RecordKey> keys);
  /// The record was not as written: drops it and what follows it, and counts. Does no I/O: written
  /// with the next commit.
  void report_damage(const RecordKey& key);
  /// Drops a record and what follows it. Returns how many.
  uint64_t remove(const RecordKey& key);
  /// Drops a root and everything of it. Returns how many records.
  uint64_t remove_root(const Digest& root);

  /// Evicts down to the budget, compacts at most one segment, rewrites the manifest when most of it
  /// is dead. Returns whether there is more to do. Called when there is nothing to write.
  bool maintain();
  /// Reads every record and checks every page, its chain of ids (id = record_id(parent, tokens))
  /// too; damaged ones are dropped when this process may write. progress(bytes done, bytes to do)
  /// ends it by returning false. Returns the damaged ones.
  std::vector<RecordInfo> verify(const std::function<bool(uint64_t, uint64_t)>& progress);
  /// Gives up the right to write, for others to take; reading goes on.
  void stop_writing();
  StoreStats stats() const;
  const StoreOptions& options() const;

 private:
  struct Impl;
  explicit BlockStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// Names [kv-store.md]: of a block or anchor that follows `parent` with these tokens.
Digest record_id(RecordKind kind, const Digest& parent, std::span<const int32_t> tokens);

}  // namespace grebe
