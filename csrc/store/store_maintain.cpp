// Making room: eviction, removal of dead segments, compaction, a new manifest.
//
// Evicted records leave dead bytes in their segments. A segment without live records is removed;
// one that is mostly dead has the rest moved into the open segment first. Files end up at the
// budget less one segment and a quarter: the room that a compaction needs for what it moves.
#include <algorithm>
#include <utility>

#include "store/store_impl.h"

namespace grebe {
namespace {

constexpr uint64_t kManifestSlack = 64 << 10;
constexpr size_t kUsesWorthWriting = 64;

}  // namespace

uint64_t BlockStore::Impl::file_bytes() const {
  const std::lock_guard guard(mutex);
  return index.segment_bytes() + manifest_bytes;
}

// The budget less the room that a compaction needs: a segment, and a quarter for what goes into the
// manifest meanwhile.
uint64_t BlockStore::Impl::resting_bytes() const {
  return options.budget_bytes - std::min(writer.limit() / 4 * 5, options.budget_bytes / 8);
}

bool BlockStore::Impl::manifest_is_mostly_dead() const {
  const std::lock_guard guard(mutex);
  // Exactly what a new one has: were it more than this says, it would be written again for ever.
  uint64_t live = kSegmentHeaderBytes + kDayEntryBytes + kSegmentEntryBytes * index.segments.size();
  live += kRecordEntryBytes * (index.n_blocks() + index.n_anchors());
  for (const auto& [id, root] : index.roots()) live += root_entry_bytes(root.info);
  return manifest_bytes > 2 * live + std::min(kManifestSlack, options.budget_bytes / 32);
}

bool BlockStore::Impl::maintain() {
  const std::lock_guard io(io_mutex);
  if (!writable()) return false;
  if (!recover()) return false;
  try {
    if (needs_sweep) {
      sweep(storage->list(options.path));
      needs_sweep = false;
    }
    bool is_worth_writing;
    {
      const std::lock_guard guard(mutex);
      is_worth_writing = !pending.empty() || pending_uses.size() >= kUsesWorthWriting;
    }
    if (is_worth_writing) flush_pending();
    if (file_bytes() > resting_bytes()) return reclaim(resting_bytes(), {});
    if (remove_dead_segments()) return true;
    if (manifest_is_mostly_dead() && today_allows(manifest_bytes)) {
      rewrite_manifest();
      return true;
    }
    // Sealed segments: the one that is mostly dead, else the smaller of two that are mostly
    // missing.
    uint32_t victim = 0;
    uint64_t live = 0, most_dead = 0, least = UINT64_MAX, next = UINT64_MAX;
    uint32_t smallest = 0;
    {
      const std::lock_guard guard(mutex);
      for (const auto& [number, segment] : index.segments) {
        const uint64_t dead = segment.end - kSegmentHeaderBytes - segment.live;
        if (number == writer.open_number() || unmovable.contains(number)) continue;
        if (dead > segment.live && dead > most_dead) {
          victim = number;
          live = segment.live;
          most_dead = dead;
        }
        if (segment.live < least) {
          next = least;
          least = segment.live;
          smallest = number;
        } else {
          next = std::min(next, segment.live);
        }
      }
    }
    if (victim == 0 && next != UINT64_MAX && least + next <= writer.limit() / 2) {
      victim = smallest;
      live = least;
    }
    if (victim == 0 || !today_allows(live) || file_bytes() + live > options.budget_bytes)
      return false;
    compact(victim);
    return true;
  } catch (const std::exception& e) {
    note_failure(e, writer.sync_failed());
    if (is_disk_full(e)) give_back(writer.limit());
    return false;
  }
}

bool BlockStore::Impl::make_room(uint64_t bytes, const PinnedBlocks& pinned) {
  const uint64_t target = resting_bytes();
  while (file_bytes() + bytes > target && bytes < target)
    if (!reclaim(target - bytes, pinned)) break;
  return file_bytes() + bytes <= options.budget_bytes;
}

bool BlockStore::Impl::reclaim(uint64_t target, const PinnedBlocks& pinned) {
  if (remove_dead_segments()) return true;
  if (manifest_is_mostly_dead() && today_allows(manifest_bytes)) {
    rewrite_manifest();
    return true;
  }
  uint32_t victim = 0;
  uint64_t live = 0, most_dead = 0;
  {
    const std::lock_guard guard(mutex);
    const uint64_t needed =
        index.live_bytes() + (index.n_blocks() + index.n_anchors()) * kRecordEntryBytes;
    if (needed > target / 8 * 7) {
      const std::vector<RecordKey> gone = evict(index, needed - target / 4 * 3, pinned);
      for (const RecordKey& key : gone) pending.push_back(DropEntry{false, key});
      counts.records_evicted += gone.size();
      if (!gone.empty()) return true;
    }
    for (const auto& [number, segment] : index.segments) {
      const uint64_t dead = segment.end - kSegmentHeaderBytes - segment.live;
      if (dead <= most_dead || unmovable.contains(number)) continue;
      victim = number;
      live = segment.live;
      most_dead = dead;
    }
  }
  const uint64_t worth_moving = writer.limit() / 32;
  if (victim != 0 && most_dead > worth_moving && today_allows(live) &&
      file_bytes() + live <= options.budget_bytes) {
    compact(victim);
    return true;
  }
  // Nothing may be moved: the records of one segment go.
  const std::lock_guard guard(mutex);
  victim = cheapest_segment(index, pinned);
  if (victim == 0) return false;
  drop_segment_records(victim);
  return true;
}

void BlockStore::Impl::drop_segment_records(uint32_t number) {
  std::vector<RecordKey> keys;
  for (const Record* r : index.in_segment(number)) keys.push_back(r->info.key);
  for (const RecordKey& key : keys) {
    Record* r = index.find(key);
    if (!r) continue;  // gone with its parent
    counts.records_evicted += index.drop(*r);
    pending.push_back(DropEntry{false, key});
  }
}

bool BlockStore::Impl::remove_dead_segments() {
  std::vector<uint32_t> dead;
  {
    const std::lock_guard guard(mutex);
    for (const auto& [number, segment] : index.segments)
      if (segment.live == 0) dead.push_back(number);
  }
  if (dead.empty()) return false;
  EntryList entries;
  for (const uint32_t number : dead) entries.add(SegmentEntry{number, true});
  append(entries);
  forget_segments(dead);
  return true;
}

// What the manifest knows no more: the files go now, or when the store is opened.
void BlockStore::Impl::forget_segments(const std::vector<uint32_t>& numbers) {
  for (const uint32_t number : numbers) {
    if (number == writer.open_number()) writer.seal();
    {
      const std::lock_guard guard(mutex);
      index.segments.erase(number);
      counts.segments_removed++;
    }
    epoch++;
    remove_file(number);
  }
}

void BlockStore::Impl::remove_file(uint32_t number) noexcept {
  try {
    storage->remove(path(segment_name(number)));
  } catch (const std::exception& e) {
    note_failure(e, false);
    needs_sweep = true;
  }
}

void BlockStore::Impl::compact(uint32_t number) {
  struct Moved {
    RecordInfo info;
    Location from, to;
    uint64_t last_use;
    uint32_t hits;
  };
  std::vector<Moved> moved;
  std::vector<RecordKey> damaged;
  std::shared_ptr<SegmentFile> file;
  {
    const std::lock_guard guard(mutex);
    for (const Record* r : index.in_segment(number))
      moved.push_back({r->info, r->location, {}, r->last_use, r->hits});
    file = index.segments.at(number).file;
  }
  if (number == writer.open_number()) writer.seal();
  try {
    StoredRecord record;
    for (Moved& m : moved) {
      const ReadResult result = read_record(*file, m.info, m.from, record);
      if (result == ReadResult::kUnreadable) {
        // Perhaps another time; dropping what a disk does not give now would be rash.
        unmovable.insert(number);
        writer.rollback();
        needs_sweep = true;
        return;
      }
      if (result == ReadResult::kDamaged) {
        damaged.push_back(m.info.key);
        continue;
      }
      m.to = writer.append(record.header_bytes, record.payload.data(), record.payload.size());
      account(align_record(record.header_bytes.size() + record.payload.size()));
    }
    if (!writer.touched().empty()) writer.sync();
    EntryList entries;
    for (const auto& touched : writer.touched())
      if (touched.committed == 0) entries.add(SegmentEntry{touched.file->number(), false});
    for (const RecordKey& key : damaged) entries.add(DropEntry{false, key});
    for (const Moved& m : moved)
      if (m.to.segment != 0) entries.add(RecordEntry{m.info, m.to, m.last_use, m.hits});
    entries.add(SegmentEntry{number, true});
    append(entries);
  } catch (const std::exception& e) {
    if (writer.sync_failed()) {
      const std::lock_guard guard(mutex);
      counts.sync_failures++;
    }
    writer.rollback();
    needs_sweep = true;
    throw;
  }
  {
    const std::lock_guard guard(mutex);
    for (const auto& touched : writer.touched()) {
      SegmentState& segment = index.segments[touched.file->number()];
      segment.file = touched.file;
      segment.end = touched.end;
    }
    for (const RecordKey& key : damaged) {
      Record* r = index.find(key);
      if (!r) continue;
      counts.records_damaged++;
      counts.descendants_dropped += index.drop(*r) - 1;
    }
    for (const Moved& m : moved) {
      Record* r = index.find(m.info.key);
      if (!r || m.to.segment == 0) continue;
      index.put(m.info, m.to, m.last_use, m.hits);
      counts.records_compacted++;
    }
  }
  writer.commit();
  forget_segments({number});
}

void BlockStore::Impl::give_back(uint64_t bytes) noexcept {
  // Once: what does not come to us when we free it is taken by somebody else.
  if (gave_back) return;
  gave_back = true;
  try {
    std::vector<uint32_t> dead;
    {
      const std::lock_guard guard(mutex);
      uint64_t freed = 0;
      bool has_evicted = false;
      while (freed < bytes && !index.segments.empty()) {
        const uint32_t number = cheapest_segment(index, {});
        const SegmentState& segment = index.segments.at(number);
        if (segment.live > 0 && !std::exchange(has_evicted, true)) {
          const std::vector<RecordKey> gone = evict(index, bytes - freed, {});
          for (const RecordKey& key : gone) pending.push_back(DropEntry{false, key});
          counts.records_evicted += gone.size();
          continue;
        }
        freed += segment.end;
        drop_segment_records(number);
        pending.push_back(SegmentEntry{number, true});
        dead.push_back(number);
        // From here on nothing may be written to it, whatever becomes of its file.
        if (number == writer.open_number()) writer.seal();
        index.segments.erase(number);
        counts.segments_removed++;
      }
    }
    epoch++;
    for (const uint32_t number : dead) remove_file(number);
    try_to_flush();
  } catch (const std::exception&) {
    needs_sweep = true;
  }
}

void BlockStore::Impl::sweep(const std::vector<std::string>& names) noexcept {
  for (const std::string& name : names) {
    const uint32_t number = segment_number(name);
    {
      const std::lock_guard guard(mutex);
      const bool is_known = index.segments.contains(number);
      if (name != kNewManifestName && (number == 0 || is_known)) continue;
    }
    try {
      storage->remove(path(name));
    } catch (const std::exception& e) {
      note_failure(e, false);
      needs_sweep = true;
    }
  }
}

}  // namespace grebe
