// Segment files: records one after another, each a header and its pages [kv-store.md].
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "io/storage.h"
#include "store/block_store.h"

namespace grebe {

constexpr uint32_t kStoreVersion = 1;         // of manifest, segments and records
constexpr uint64_t kSegmentHeaderBytes = 64;  // so long is the header of a manifest, too
constexpr uint64_t kRecordAlignment = 64;
constexpr uint32_t kMaxRecordTokens = 512;
constexpr uint64_t kMaxPayloadBytes = uint64_t{1} << 32;

/// Random, made with the directory's first manifest: tells a segment of another store.
using StoreId = std::array<uint8_t, 16>;

/// Where a record lies. Its payload begins at offset + header_bytes.
struct Location {
  uint32_t segment = 0;
  uint32_t header_bytes = 0;
  uint64_t offset = 0;
};

constexpr uint64_t align_record(uint64_t n) {
  return (n + kRecordAlignment - 1) / kRecordAlignment * kRecordAlignment;
}
/// Bytes of a record's header with its tokens, to where its payload begins.
uint32_t record_header_bytes(size_t n_groups, size_t n_tokens);
constexpr uint32_t kMinRecordHeaderBytes = 192, kMaxRecordHeaderBytes = 2304;

std::string segment_name(uint32_t number);
/// 0 when it is not the name of a segment.
uint32_t segment_number(const std::string& name);

/// Numbers that reading counts, from any thread.
struct ReadCounters {
  std::atomic<uint64_t> bytes_read{0}, read_failures{0};
};

/// A segment, open; as long as somebody holds it, also when its name is gone. Reading takes no
/// lock.
class SegmentFile {
 public:
  SegmentFile(
      uint32_t number, std::unique_ptr<StorageFile> file, std::shared_ptr<ReadCounters> counters)
      : number_(number), file_(std::move(file)), counters_(std::move(counters)) {}

  uint32_t number() const { return number_; }
  /// False when the disk fails or the file ends before.
  bool read(uint64_t offset, void* to, size_t n) const noexcept;
  StorageFile& file() { return *file_; }

 private:
  uint32_t number_;
  std::unique_ptr<StorageFile> file_;
  std::shared_ptr<ReadCounters> counters_;
};

std::vector<uint8_t> encode_segment_header(const StoreId& store, uint32_t number);
/// Empty when the header is that of this segment of this store, else what is wrong with it.
std::string check_segment_header(
    const uint8_t (&header)[kSegmentHeaderBytes], const StoreId& store, uint32_t number);

/// What a record says of itself.
struct RecordHeader {
  RecordInfo info;
  std::vector<int32_t> tokens;
  std::vector<PageGroup> groups;
};

/// Padded to record_header_bytes().
std::vector<uint8_t> encode_record_header(const NewRecord& record);
/// Nothing when the checksum or a length is wrong.
std::optional<RecordHeader> decode_record_header(const std::vector<uint8_t>& bytes);
/// Throws InvalidArgument when lengths contradict each other or are out of range.
void check_record(const NewRecord& record);

/// Whether every page of the payload has its checksum.
bool pages_are_sound(
    const Digest& id, const std::vector<PageGroup>& groups, const std::vector<uint8_t>& payload);

/// Writes what a batch adds to the store's segments: to the one that is open, and to new ones when
/// it is full. Nothing of it counts before commit().
class SegmentWriter {
 public:
  /// A segment that the batch has written to.
  struct Touched {
    std::shared_ptr<SegmentFile> file;
    uint64_t committed = 0;  ///< its end before the batch; 0: begun in it
    uint64_t end = 0;
  };

  SegmentWriter(
      Storage& storage,
      std::string directory,
      uint64_t limit,
      std::shared_ptr<ReadCounters> counters)
      : storage_(&storage),
        directory_(std::move(directory)),
        limit_(limit),
        counters_(std::move(counters)) {}

  void set_store(const StoreId& store) { store_ = store; }
  void set_next_number(uint32_t number) { next_number_ = number; }
  uint32_t next_number() const { return next_number_; }
  uint64_t limit() const { return limit_; }
  /// Goes on in this segment, open for writing.
  void resume(std::shared_ptr<SegmentFile> file, uint64_t end);
  /// Begins a new segment with the next record.
  void seal() { open_ = {}; }
  /// Number of the segment that the next batch may write to; 0: none.
  uint32_t open_number() const { return open_.file ? open_.file->number() : 0; }

  /// Throws IoError; then, as when anything later fails, rollback() is due.
  Location append(const std::vector<uint8_t>& header, const uint8_t* payload, size_t n);
  /// Data and names of the batch reach the disk. A failed one is told from a failed write by
  /// sync_failed().
  void sync();
  bool sync_failed() const { return sync_failed_; }
  const std::vector<Touched>& touched() const { return touched_; }
  void commit();
  /// Cuts the open segment to its committed end and removes new ones, as far as the disk does it. A
  /// segment whose sync failed is not written to again. Returns bytes that could not be cut off, by
  /// segment.
  void rollback() noexcept;

 private:
  void begin_segment();

  Storage* storage_;
  std::string directory_;
  uint64_t limit_;
  std::shared_ptr<ReadCounters> counters_;
  StoreId store_{};
  uint32_t next_number_ = 1;
  Touched open_;
  std::vector<Touched> touched_;
  bool sync_failed_ = false;
};

}  // namespace grebe
