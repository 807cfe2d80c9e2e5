// The manifest: which records exist and where, as entries that are only appended [kv-store.md].
//
// Every entry carries a checksum over all entries up to its end, so that what a crash leaves of an
// older tail never fits. The first entry that does not fit ends the manifest.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "io/storage.h"
#include "store/block_store.h"
#include "store/segment.h"

namespace grebe {

struct ManifestHeader {
  uint32_t next_segment = 1;  ///< numbers below have been used
  uint64_t generation = 1;    ///< counts the files that have had this name
  StoreId store{};
  uint64_t clock = 0;
};

/// A root has become known: RootInfo. The others:
struct SegmentEntry {
  uint32_t number = 0;
  bool removed = false;
};
/// A record exists; one that is known has moved.
struct RecordEntry {
  RecordInfo info;
  Location location;
  uint64_t last_use = 0;
  uint32_t hits = 0;
};
/// A record is gone with what follows it, or a root with all its records.
struct DropEntry {
  bool is_root = false;
  RecordKey key;  // of a root only the id
};
struct UseEntry {
  RecordKey key;
  uint64_t last_use = 0;
  uint32_t hits = 0;
};
/// Bytes written on a day, counted from 1970.
struct DayEntry {
  int64_t day = 0;
  uint64_t bytes = 0;
};
using ManifestEntry =
    std::variant<RootInfo, SegmentEntry, RecordEntry, DropEntry, UseEntry, DayEntry>;

/// Entries to be appended together.
class EntryList {
 public:
  void add(const ManifestEntry& entry);
  void add(const EntryList& other) {
    bytes_.insert(bytes_.end(), other.bytes_.begin(), other.bytes_.end());
  }
  bool empty() const { return bytes_.empty(); }
  size_t n_bytes() const { return bytes_.size(); }

 private:
  friend class Manifest;
  /// Fills in the checksums; the next entries go on from the one returned.
  uint32_t seal(uint32_t chain);

  std::vector<uint8_t> bytes_;
};

/// What is the matter with a file that should be a manifest.
enum class ManifestProblem { kNone, kMissing, kEmpty, kDamaged, kForeign, kVersion };

class Manifest {
 public:
  /// Opens the file and reads its header. On a problem there is no manifest. Throws IoError.
  static std::unique_ptr<Manifest> open(
      Storage& storage, const std::string& directory, bool writable, ManifestProblem& problem);
  /// Writes a new file and puts it in the place of the one that is there. Throws IoError; then
  /// either may be there, and only another create() tells. May return a file that is broken().
  static std::unique_ptr<Manifest> create(
      Storage& storage,
      const std::string& directory,
      const ManifestHeader& header,
      EntryList& entries);

  const ManifestHeader& header() const { return header_; }
  /// Bytes up to the last good entry.
  uint64_t end() const { return end_; }
  uint64_t file_bytes() const { return file_->size(); }

  /// Reads on from end() to the first entry that does not fit, calls f for each. Returns why it
  /// ended there, empty at the end of the file. Throws IoError.
  std::string scan(const std::function<void(const ManifestEntry&)>& f);
  /// Appends and syncs. Throws IoError; then the file has been cut back to what it was, or is
  /// broken().
  void append(EntryList& entries);
  /// Cuts off what lies after end().
  void cut();
  /// Appending failed and could not be undone: nothing may be written before a new file is in the
  /// place of this one.
  bool broken() const { return broken_; }
  bool sync_failed() const { return sync_failed_; }

 private:
  Manifest(std::unique_ptr<StorageFile> file, const ManifestHeader& header, uint32_t chain);

  std::unique_ptr<StorageFile> file_;
  ManifestHeader header_;
  uint32_t chain_;  // checksum of all up to end_
  uint64_t end_ = kSegmentHeaderBytes;
  bool broken_ = false, sync_failed_ = false;
};

constexpr char kManifestName[] = "manifest.kv";
constexpr char kNewManifestName[] = "manifest.new";
/// Of entries in the manifest.
constexpr uint64_t kRecordEntryBytes = 150, kSegmentEntryBytes = 13, kDayEntryBytes = 25;
uint64_t root_entry_bytes(const RootInfo& root);

}  // namespace grebe
