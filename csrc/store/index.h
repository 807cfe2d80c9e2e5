// What the store holds, in memory: the tree of records, the segments they lie in, and the logical
// clock. No files are touched here, and no lock is taken: block_store.cpp does both.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <unordered_map>
#include <vector>

#include "store/block_store.h"
#include "store/segment.h"

namespace grebe {

struct RecordKeyHash {
  size_t operator()(const RecordKey& k) const {
    return DigestHash()(k.id) + static_cast<size_t>(k.kind);
  }
};

struct Record {
  RecordInfo info;
  Location location;
  uint64_t last_use = 0;  // ticks of the clock; at first, when it was written
  uint32_t hits = 0;
  Record* parent = nullptr;              // null: it follows the root
  std::vector<Record*> blocks, anchors;  // that follow it
  uint32_t n_needing = 0;  // scratch of eviction: anchors at or below that need this block

  bool is_anchor() const { return info.key.kind == RecordKind::kAnchor; }
  /// What it takes in its segment.
  uint64_t stored_bytes() const { return align_record(location.header_bytes + info.bytes); }
  /// Its last byte and one.
  uint64_t file_end() const { return location.offset + location.header_bytes + info.bytes; }
};

struct SegmentState {
  std::shared_ptr<SegmentFile> file;   // null: not opened yet
  uint64_t end = kSegmentHeaderBytes;  // of what is committed
  uint64_t live = 0;                   // bytes of records that exist
};

class Index {
 public:
  struct Root {
    RootInfo info;
    std::vector<Record*> blocks, anchors;  // that follow it
  };

  /// False when it is known already.
  bool add_root(const RootInfo& info);
  const std::map<Digest, Root>& roots() const { return roots_; }
  /// Roots in the order in which they came.
  std::vector<RootInfo> root_infos() const;

  Record* find(const RecordKey& key) const;
  /// Whether a record with this parent and root has what it follows.
  bool has_parent(const RecordInfo& info) const;
  /// After has_parent(); a record that exists moves to the new location.
  Record& put(const RecordInfo& info, const Location& location, uint64_t last_use, uint32_t hits);
  /// Drops the record and what follows it. Returns how many, and adds their keys to `keys`, those
  /// that follow first.
  uint64_t drop(Record& record, std::vector<RecordKey>* keys = nullptr);
  /// Drops a root and what follows it.
  uint64_t drop_root(const Digest& id);
  /// Drops the records of a segment, with what follows them, and forgets it.
  uint64_t drop_segment(uint32_t number);

  /// Parents first.
  std::vector<Record*> parents_first() const;
  std::vector<Record*> in_segment(uint32_t number) const;

  uint64_t tick() { return ++clock_; }
  uint64_t clock() const { return clock_; }
  void advance_clock(uint64_t clock) { clock_ = clock > clock_ ? clock : clock_; }

  std::map<uint32_t, SegmentState> segments;
  uint64_t n_blocks() const { return records_.size() - n_anchors_; }
  uint64_t n_anchors() const { return n_anchors_; }
  uint64_t live_bytes() const { return live_bytes_; }
  /// Of all segments.
  uint64_t segment_bytes() const;

 private:
  void place(Record& record, const Location& location);
  void unplace(const Record& record);

  std::unordered_map<RecordKey, std::unique_ptr<Record>, RecordKeyHash> records_;
  std::map<Digest, Root> roots_;
  std::vector<Digest> root_order_;
  uint64_t clock_ = 0, live_bytes_ = 0, n_anchors_ = 0;
};

}  // namespace grebe
