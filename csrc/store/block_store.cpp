// Opening and lookups.
#include "store/block_store.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <random>

#include "store/store_impl.h"

namespace grebe {
namespace {

constexpr char kLockName[] = "lock";

// Some sixty segments, of a size that a compaction moves in a second.
uint64_t segment_limit(uint64_t budget) {
  const uint64_t limit = std::clamp<uint64_t>(budget / 16, 16 << 10, 256 << 20);
  return std::max(limit, budget / 128);  // files are kept open, and there is a limit to them, too
}

bool is_ours(const std::string& name) {
  return name == kLockName || name == kManifestName || name == kNewManifestName ||
         segment_number(name) != 0 || name.starts_with(".");
}

StoreId new_store_id() {
  StoreId id;
  std::random_device random;
  for (uint8_t& b : id) b = static_cast<uint8_t>(random());
  return id;
}

void replay(Index& target, const ManifestEntry& entry, DayEntry& day) {
  if (const RootInfo* root = std::get_if<RootInfo>(&entry)) {
    target.add_root(*root);
  } else if (const SegmentEntry* s = std::get_if<SegmentEntry>(&entry)) {
    if (s->removed)
      target.drop_segment(s->number);
    else
      target.segments[s->number];
  } else if (const RecordEntry* r = std::get_if<RecordEntry>(&entry)) {
    const Record* known = target.find(r->info.key);
    const bool is_right =
        known ? known->info.parent == r->info.parent && known->info.bytes == r->info.bytes
              : target.has_parent(r->info);
    if (is_right && target.segments.contains(r->location.segment))
      target.put(r->info, r->location, r->last_use, r->hits);
  } else if (const DropEntry* d = std::get_if<DropEntry>(&entry)) {
    if (d->is_root)
      target.drop_root(d->key.id);
    else if (Record* dropped = target.find(d->key))
      target.drop(*dropped);
  } else if (const UseEntry* u = std::get_if<UseEntry>(&entry)) {
    target.advance_clock(u->last_use);
    if (Record* used = target.find(u->key)) {
      used->last_use = u->last_use;
      used->hits = u->hits;
    }
  } else if (const DayEntry* d = std::get_if<DayEntry>(&entry)) {
    day = *d;
  }
}

}  // namespace

BlockStore::Impl::Impl(const StoreOptions& o)
    : options(o),
      storage(o.storage ? o.storage : posix_storage()),
      writer(*storage, o.path, segment_limit(o.budget_bytes), counters) {}

BlockStore::Impl::~Impl() {
  if (writable() && manifest) try_to_flush();
}

bool BlockStore::Impl::writable() const { return is_writer && ::getpid() == owner; }

void BlockStore::Impl::open() {
  if (!options.read_only) storage->make_directory(options.path);
  const std::vector<std::string> names = storage->list(options.path);
  const bool has_manifest = std::find(names.begin(), names.end(), kManifestName) != names.end();
  if (!has_manifest) {
    const auto foreign = std::find_if_not(names.begin(), names.end(), is_ours);
    if (options.read_only)
      throw FormatError(options.path, 0, "no KV store: there is no file manifest.kv");
    if (foreign != names.end())
      throw FormatError(
          options.path,
          0,
          "no KV store: it holds '" + *foreign +
              "' and no manifest.kv; an empty directory, or none, is expected");
  }
  if (!options.read_only) {
    try {
      lock = storage->try_lock(path(kLockName));
      is_writer = lock != nullptr;
      owner = ::getpid();
    } catch (const IoError& e) {  // a disk that is not for writing can still be read
      note_failure(e, false);
    }
  }
  counts.read_only = !lock;
  open_manifest(names);
}

void BlockStore::Impl::open_manifest(const std::vector<std::string>& names) {
  ManifestProblem problem = ManifestProblem::kNone;
  manifest = Manifest::open(*storage, options.path, lock != nullptr, problem);
  const std::string file = path(kManifestName);
  std::string dropped;
  if (problem == ManifestProblem::kForeign) throw FormatError(file, 0, "no manifest of a KV store");
  if (problem == ManifestProblem::kVersion)
    throw FormatError(
        file,
        8,
        "a KV store of another version; this build reads " + std::to_string(kStoreVersion));
  if (manifest) {
    index.advance_clock(manifest->header().clock);
    DayEntry last_day;
    const std::string end =
        manifest->scan([&](const ManifestEntry& e) { replay(index, e, last_day); });
    day = last_day.day;
    counts.written_today = last_day.bytes;
    counts.dropped_at_open_bytes = manifest->file_bytes() - manifest->end();
    if (!end.empty() && lock)
      dropped = std::to_string(counts.dropped_at_open_bytes) + " bytes of the manifest from byte " +
                std::to_string(manifest->end()) + " on: " + end;
    followed_bytes = manifest->file_bytes();
  } else if (problem != ManifestProblem::kMissing) {
    dropped = "everything: the manifest is damaged at its beginning";
  } else if (std::any_of(names.begin(), names.end(), [](auto& n) { return segment_number(n); })) {
    dropped = "everything: there are segments and no manifest";
  }
  follows_all = !attach_segments(index, dropped);
  if (lock) {
    needs_rewrite = !follows_all;
    start_writing(names);
  }
  counts.dropped_at_open = dropped;
  manifest_bytes = manifest ? manifest->end() : 0;
}

// Takes the files into use: cuts off what was never committed, removes what nobody knows.
void BlockStore::Impl::start_writing(const std::vector<std::string>& names) {
  uint32_t next = manifest ? manifest->header().next_segment : 1;
  for (const std::string& name : names) next = std::max(next, segment_number(name) + 1);
  if (!index.segments.empty()) next = std::max(next, index.segments.rbegin()->first + 1);
  writer.set_next_number(next);
  if (!manifest) {
    EntryList none;
    ManifestHeader header;
    header.store = new_store_id();
    header.next_segment = next;
    manifest = Manifest::create(*storage, options.path, header, none);
  }
  writer.set_store(manifest->header().store);
  try {
    if (manifest->file_bytes() > manifest->end()) manifest->cut();
  } catch (const IoError& e) {
    note_failure(e, false);
  }
  for (auto& [number, segment] : index.segments) {
    try {
      const uint64_t size = segment.file->file().size();
      const bool is_last = number == index.segments.rbegin()->first;
      const bool goes_on = is_last && segment.end < writer.limit();
      if (size <= segment.end && !goes_on) continue;
      auto file = std::make_shared<SegmentFile>(
          number, storage->open(path(segment_name(number)), Storage::Mode::kReadWrite), counters);
      if (size > segment.end) file->file().truncate(segment.end);
      if (!goes_on) continue;
      segment.file = file;
      writer.resume(file, segment.end);
    } catch (const IoError& e) {
      note_failure(e, false);
    }
  }
  sweep(names);
  recover();
}

// Opens a segment if need be and finds its size. Returns why its records are lost, or nothing.
// Throws IoError when the disk or the system refuses: that says nothing of what is in the file.
std::string BlockStore::Impl::open_segment(uint32_t number, SegmentState& segment, uint64_t& size) {
  try {
    if (segment.file) {
      size = segment.file->file().size();
      return {};
    }
    segment.file = std::make_shared<SegmentFile>(
        number, storage->open(path(segment_name(number)), Storage::Mode::kRead), counters);
    size = segment.file->file().size();
  } catch (const IoError& e) {
    if (e.errno_value == ENOENT) return "it is missing";
    if (is_writer) throw;
    return e.what();  // left out, and looked for again
  }
  uint8_t header[kSegmentHeaderBytes];
  if (size < sizeof header) return "it is empty";
  // Pages are checked whenever they are read: a header that the disk does not give is no reason to
  // give up all of them.
  if (!segment.file->read(0, header, sizeof header)) return {};
  return check_segment_header(header, manifest->header().store, number);
}

// Opens the segments that are not open and drops the records that are not in them. Whether any were
// dropped; `dropped` says which.
bool BlockStore::Impl::attach_segments(Index& target, std::string& dropped) {
  std::vector<std::pair<uint32_t, SegmentState>> segments;
  {
    const std::lock_guard guard(mutex);
    segments.assign(target.segments.begin(), target.segments.end());
  }
  bool any = false;
  for (auto& [number, segment] : segments) {
    uint64_t size = 0;
    std::string wrong = open_segment(number, segment, size);
    const std::lock_guard guard(mutex);
    uint64_t n = 0;
    if (!wrong.empty()) {
      n = target.drop_segment(number);
      any = true;
    } else {
      std::vector<RecordKey> cut_off;
      SegmentState& state = target.segments[number];
      state.file = segment.file;
      if (size < segment.end) {
        for (const Record* r : target.in_segment(number))
          if (r->file_end() > size) cut_off.push_back(r->info.key);
        for (const RecordKey& key : cut_off)
          if (Record* r = target.find(key)) n += target.drop(*r);
      }
      if (cut_off.empty()) continue;
      wrong = "it has been cut to " + std::to_string(size) + " bytes";
      any = true;
      state.end = kSegmentHeaderBytes;
      for (const Record* r : target.in_segment(number))
        state.end = std::max(state.end, r->location.offset + r->stored_bytes());
    }
    if (n == 0) continue;
    counts.records_damaged += n;
    dropped += (dropped.empty() ? "" : "; ") + std::to_string(n) + " records of " +
               segment_name(number) + ": " + wrong;
  }
  return any;
}

bool BlockStore::Impl::refresh() {
  if (is_writer) return false;
  const std::lock_guard io(io_mutex);
  try {
    ManifestProblem problem;
    auto fresh = Manifest::open(*storage, options.path, false, problem);
    if (!fresh) return false;
    const uint64_t size = fresh->file_bytes();
    const bool is_same = manifest && fresh->header().generation == manifest->header().generation &&
                         fresh->header().store == manifest->header().store;
    if (is_same && size == followed_bytes) return false;
    std::string dropped;
    if (is_same && follows_all) {
      std::vector<ManifestEntry> entries;
      const bool is_whole =
          manifest->scan([&](const ManifestEntry& e) { entries.push_back(e); }).empty();
      {
        const std::lock_guard guard(mutex);
        DayEntry last_day;
        for (const ManifestEntry& e : entries) replay(index, e, last_day);
      }
      follows_all = !attach_segments(index, dropped);
      if (is_whole && follows_all) {
        followed_bytes = manifest->end();
        const std::lock_guard guard(mutex);
        manifest_bytes = followed_bytes;
        epoch++;
        return true;
      }
    }
    // Another file, or one that the writer has cut back: from the beginning.
    Index all;
    all.advance_clock(fresh->header().clock);
    DayEntry last_day;
    fresh->scan([&](const ManifestEntry& e) { replay(all, e, last_day); });
    {
      const std::lock_guard guard(mutex);
      const bool is_same_store = manifest && fresh->header().store == manifest->header().store;
      for (auto& [number, segment] : all.segments) {
        const auto open = index.segments.find(number);
        if (is_same_store && open != index.segments.end()) segment.file = open->second.file;
      }
    }
    manifest = std::move(fresh);
    follows_all = !attach_segments(all, dropped);
    followed_bytes = size;
    const std::lock_guard guard(mutex);
    std::swap(index, all);
    manifest_bytes = manifest->end();
    epoch++;
    return true;
  } catch (const std::exception& e) {
    counters->read_failures++;
    const std::lock_guard guard(mutex);
    counts.last_error = e.what();
    return false;
  }
}

// ------------------------------------------------------------ the interface

BlockStore::BlockStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
BlockStore::~BlockStore() = default;

std::shared_ptr<BlockStore> BlockStore::open(const StoreOptions& options) {
  auto impl = std::make_unique<Impl>(options);
  impl->open();
  return std::shared_ptr<BlockStore>(new BlockStore(std::move(impl)));
}

void BlockStore::add_root(const RootInfo& root) {
  if (!impl_->writable()) return;
  const std::lock_guard guard(impl_->mutex);
  if (impl_->index.add_root(root)) impl_->pending.push_back(root);
}

std::vector<RootInfo> BlockStore::roots() const {
  const std::lock_guard guard(impl_->mutex);
  return impl_->index.root_infos();
}

std::optional<RecordInfo> BlockStore::find(const RecordKey& key) {
  const auto found = impl_->locate(key);
  return found ? std::optional(found->info) : std::nullopt;
}

std::vector<bool> BlockStore::contains(std::span<const RecordKey> keys) {
  std::vector<bool> out(keys.size());
  const auto look = [&] {
    const std::lock_guard guard(impl_->mutex);
    for (size_t i = 0; i < keys.size(); i++) out[i] = impl_->index.find(keys[i]) != nullptr;
    return std::find(out.begin(), out.end(), false) == out.end();
  };
  if (!look() && impl_->refresh()) look();
  return out;
}

std::optional<RecordView> BlockStore::view(const RecordKey& key) {
  const auto found = impl_->locate(key);
  if (!found) return std::nullopt;
  return RecordView(found->file, found->location.offset + found->location.header_bytes);
}

uint64_t BlockStore::epoch() const { return impl_->epoch; }

std::vector<RecordInfo> BlockStore::records() const {
  const std::lock_guard guard(impl_->mutex);
  std::vector<RecordInfo> out;
  for (const Record* r : impl_->index.parents_first()) out.push_back(r->info);
  return out;
}

RecordUse BlockStore::use(const RecordKey& key) const {
  const std::lock_guard guard(impl_->mutex);
  const Record* r = impl_->index.find(key);
  return r ? RecordUse{r->hits, impl_->index.clock() - r->last_use} : RecordUse{};
}

std::vector<CommitResult> BlockStore::commit(std::span<const NewRecord> records) {
  return impl_->commit(records);
}

void BlockStore::touch(std::span<const RecordKey> keys) {
  const bool writable = impl_->writable();
  const std::lock_guard guard(impl_->mutex);
  const uint64_t now = impl_->index.tick();
  for (const RecordKey& key : keys) {
    Record* r = impl_->index.find(key);
    if (!r) continue;
    r->last_use = now;
    r->hits += r->hits < UINT32_MAX;
    // A block is worth what its anchors are: their uses are the ones to be remembered.
    if (r->is_anchor() && writable) impl_->pending_uses[key] = {key, now, r->hits};
  }
}

void BlockStore::report_damage(const RecordKey& key) {
  const std::lock_guard guard(impl_->mutex);
  Record* r = impl_->index.find(key);
  if (!r) return;
  impl_->counts.records_damaged++;
  std::vector<RecordKey> dropped;
  impl_->counts.descendants_dropped += impl_->index.drop(*r, &dropped) - 1;
  if (impl_->writable()) impl_->pending.push_back(DropEntry{false, key});
}

uint64_t BlockStore::remove(const RecordKey& key) {
  const std::lock_guard io(impl_->io_mutex);
  if (!impl_->writable()) return 0;
  uint64_t n = 0;
  {
    const std::lock_guard guard(impl_->mutex);
    Record* r = impl_->index.find(key);
    if (!r) return 0;
    n = impl_->index.drop(*r);
    impl_->pending.push_back(DropEntry{false, key});
  }
  impl_->try_to_flush();
  return n;
}

uint64_t BlockStore::remove_root(const Digest& root) {
  const std::lock_guard io(impl_->io_mutex);
  if (!impl_->writable()) return 0;
  uint64_t n = 0;
  {
    const std::lock_guard guard(impl_->mutex);
    n = impl_->index.drop_root(root);
    impl_->pending.push_back(DropEntry{true, {RecordKind::kBlock, root}});
  }
  impl_->try_to_flush();
  return n;
}

bool BlockStore::maintain() { return impl_->maintain(); }

void BlockStore::stop_writing() {
  const std::lock_guard io(impl_->io_mutex);
  if (!impl_->writable()) return;
  impl_->try_to_flush();
  const std::lock_guard guard(impl_->mutex);
  impl_->is_writer = false;
  impl_->lock.reset();
  impl_->counts.read_only = true;
}

StoreStats BlockStore::stats() const {
  const std::lock_guard guard(impl_->mutex);
  const Index& index = impl_->index;
  StoreStats s = impl_->counts;
  s.n_blocks = index.n_blocks();
  s.n_anchors = index.n_anchors();
  s.n_segments = index.segments.size();
  s.n_roots = index.roots().size();
  s.live_bytes = index.live_bytes();
  s.file_bytes = index.segment_bytes() + impl_->manifest_bytes;
  s.bytes_read = impl_->counters->bytes_read;
  s.read_failures = impl_->counters->read_failures;
  return s;
}

const StoreOptions& BlockStore::options() const { return impl_->options; }

}  // namespace grebe
