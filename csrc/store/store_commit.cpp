// Writing: data, barrier, manifest, barrier; and what is done when one of them fails.
#include <algorithm>
#include <cerrno>
#include <unordered_map>

#include "store/store_impl.h"

namespace grebe {
namespace {

constexpr int64_t kSecondsPerDay = 86400;
// A clock that is further behind than this was ahead before: its day is given up.
constexpr int64_t kDaysBack = 7;
// A batch takes at most this part of the budget, so that it does not flush the rest out.
constexpr uint64_t kBudgetPart = 4;

}  // namespace

bool is_disk_full(const std::exception& error) {
  const IoError* io = dynamic_cast<const IoError*>(&error);
  return io && (io->errno_value == ENOSPC || io->errno_value == EDQUOT);
}

std::vector<CommitResult> BlockStore::Impl::commit(std::span<const NewRecord> records) {
  for (const NewRecord& r : records) check_record(r);
  std::vector<CommitResult> results(records.size(), CommitResult::kReadOnly);
  const std::lock_guard io(io_mutex);
  if (!writable()) return results;

  // What is to be written: not what is there, nor what its parent or a budget does not allow.
  std::vector<size_t> chosen;
  std::unordered_map<RecordKey, size_t, RecordKeyHash> earlier;  // in the batch
  std::vector<std::pair<size_t, size_t>> repeated;
  uint64_t bytes = 0;
  const auto stored_bytes = [](const NewRecord& r) {
    return record_header_bytes(r.groups.size(), r.tokens.size()) + align_record(r.info.bytes);
  };
  for (size_t i = 0; i < records.size(); i++) {
    const RecordInfo& info = records[i].info;
    const uint64_t more = stored_bytes(records[i]) + kRecordEntryBytes;
    const bool day_allows = today_allows(bytes + more);
    const std::lock_guard guard(mutex);
    results[i] = CommitResult::kFailed;
    if (index.find(info.key)) {
      results[i] = CommitResult::kCommitted;
    } else if (const auto same = earlier.find(info.key); same != earlier.end()) {
      repeated.push_back({i, same->second});
    } else if (
        !index.has_parent(info) && !(index.roots().contains(info.root) &&
                                     earlier.contains({RecordKind::kBlock, info.parent}))) {
      results[i] = CommitResult::kNoParent;
    } else if (bytes + more > options.budget_bytes / kBudgetPart) {
      results[i] = CommitResult::kRefused;
      counts.refused_by_budget++;
    } else if (!day_allows) {
      results[i] = CommitResult::kRefused;
      counts.refused_by_daily_budget++;
    } else {
      earlier.emplace(info.key, i);
      chosen.push_back(i);
      bytes += more;
    }
  }
  if (chosen.empty() || !recover()) return results;

  try {
    PinnedBlocks pinned;
    {
      const std::lock_guard guard(mutex);
      for (const size_t i : chosen)
        pin(pinned, index.find({RecordKind::kBlock, records[i].info.parent}));
    }
    if (!make_room(bytes + kDayEntryBytes, pinned)) {
      const std::lock_guard guard(mutex);
      counts.refused_by_budget += chosen.size();
      for (const size_t i : chosen) results[i] = CommitResult::kRefused;
      return results;
    }
    std::vector<Location> locations;
    for (const size_t i : chosen) {
      const NewRecord& r = records[i];
      locations.push_back(
          writer.append(encode_record_header(r), r.payload.data(), r.payload.size()));
      account(stored_bytes(r));
    }
    writer.sync();

    EntryList entries;
    uint64_t first_tick;
    {
      const std::lock_guard guard(mutex);
      first_tick = index.clock() + 1;
      for (size_t n = 0; n < chosen.size(); n++) index.tick();
    }
    for (const auto& touched : writer.touched())
      if (touched.committed == 0) entries.add(SegmentEntry{touched.file->number(), false});
    for (size_t n = 0; n < chosen.size(); n++)
      entries.add(RecordEntry{records[chosen[n]].info, locations[n], first_tick + n, 0});
    append(entries);

    const std::lock_guard guard(mutex);
    for (const auto& touched : writer.touched()) {
      SegmentState& segment = index.segments[touched.file->number()];
      segment.file = touched.file;
      segment.end = touched.end;
    }
    for (size_t n = 0; n < chosen.size(); n++) {
      const RecordInfo& info = records[chosen[n]].info;
      // Meanwhile the parent may have turned out to be damaged; its drop follows in the manifest.
      const bool has_parent = index.has_parent(info);
      results[chosen[n]] = has_parent ? CommitResult::kCommitted : CommitResult::kNoParent;
      if (!has_parent) continue;
      index.put(info, locations[n], first_tick + n, 0);
      counts.payload_written += info.bytes;
    }
    for (const auto& [i, same] : repeated) results[i] = results[same];
    writer.commit();
    gave_back = false;
  } catch (const std::exception& e) {
    note_failure(e, writer.sync_failed());
    writer.rollback();
    needs_sweep = true;
    if (is_disk_full(e)) give_back(bytes);
  }
  return results;
}

void BlockStore::Impl::append(EntryList& entries) {
  std::vector<ManifestEntry> waiting;
  decltype(pending_uses) uses;
  {
    const std::lock_guard guard(mutex);
    waiting.swap(pending);
    uses.swap(pending_uses);
  }
  EntryList all;
  for (const ManifestEntry& e : waiting) all.add(e);
  for (const auto& [key, use] : uses) all.add(use);
  all.add(entries);
  account(all.n_bytes() + kDayEntryBytes);
  {
    const std::lock_guard guard(mutex);
    all.add(DayEntry{day, counts.written_today});
  }
  try {
    manifest->append(all);
  } catch (const IoError& e) {
    const std::lock_guard guard(mutex);
    counts.sync_failures += manifest->sync_failed();
    waiting.insert(waiting.end(), pending.begin(), pending.end());
    pending.swap(waiting);
    uses.merge(pending_uses);
    for (const auto& [key, use] : pending_uses) uses[key] = use;  // the later of two
    pending_uses.swap(uses);
    throw;
  }
  const std::lock_guard guard(mutex);
  manifest_bytes = manifest->end();
}

void BlockStore::Impl::flush_pending() {
  {
    const std::lock_guard guard(mutex);
    if (pending.empty() && pending_uses.empty()) return;
  }
  EntryList none;
  try {
    append(none);
  } catch (const IoError& e) {
    note_failure(e, false);
    throw;
  }
}

void BlockStore::Impl::try_to_flush() noexcept {
  if (!recover()) return;
  try {
    flush_pending();
  } catch (const std::exception&) {  // it is noted, and waits for the next commit
  }
}

bool BlockStore::Impl::recover() noexcept {
  if (manifest && !manifest->broken() && !needs_rewrite) return true;
  try {
    rewrite_manifest();
    return !manifest->broken();
  } catch (const std::exception& e) {
    note_failure(e, false);
    return false;
  }
}

void BlockStore::Impl::rewrite_manifest() {
  EntryList entries;
  ManifestHeader header = manifest->header();
  header.generation++;
  header.next_segment = writer.next_number();
  needs_rewrite = true;  // until a new one is in its place
  {
    const std::lock_guard guard(mutex);
    header.clock = index.clock();
    for (const RootInfo& root : index.root_infos()) entries.add(root);
    for (const auto& [number, segment] : index.segments) entries.add(SegmentEntry{number, false});
    for (const Record* r : index.parents_first())
      entries.add(RecordEntry{r->info, r->location, r->last_use, r->hits});
    entries.add(DayEntry{day, counts.written_today});
    pending.clear();  // all of it is in what the index says
    pending_uses.clear();
  }
  account(kSegmentHeaderBytes + entries.n_bytes());
  manifest = Manifest::create(*storage, options.path, header, entries);
  needs_rewrite = false;
  const std::lock_guard guard(mutex);
  manifest_bytes = manifest->end();
}

void BlockStore::Impl::account(uint64_t bytes) {
  const std::lock_guard guard(mutex);
  counts.bytes_written += bytes;
  counts.written_today += bytes;
}

bool BlockStore::Impl::today_allows(uint64_t bytes) {
  int64_t today = day;
  try {
    const int64_t now = storage->now();
    today = now / kSecondsPerDay - (now % kSecondsPerDay < 0);
  } catch (const std::exception&) {  // no clock, no new day
  }
  const std::lock_guard guard(mutex);
  if (today > day) counts.written_today = 0;
  if (today > day || today < day - kDaysBack) day = today;
  return options.daily_write_bytes == 0 ||
         counts.written_today + bytes <= options.daily_write_bytes;
}

void BlockStore::Impl::note_failure(const std::exception& error, bool of_sync) noexcept {
  const std::lock_guard guard(mutex);
  counts.write_failures++;
  counts.sync_failures += of_sync;
  try {
    counts.last_error = error.what();
  } catch (const std::exception&) {  // no memory for it
  }
}

}  // namespace grebe
