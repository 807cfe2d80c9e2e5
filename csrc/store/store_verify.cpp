// Reading records whole, and checking all that can be checked of them.
#include <algorithm>

#include "store/store_impl.h"

namespace grebe {

std::optional<BlockStore::Impl::Found> BlockStore::Impl::locate(const RecordKey& key) {
  const auto look = [&]() -> std::optional<Found> {
    const std::lock_guard guard(mutex);
    const Record* r = index.find(key);
    if (!r) return std::nullopt;
    const auto segment = index.segments.find(r->location.segment);
    if (segment == index.segments.end() || !segment->second.file) return std::nullopt;
    return Found{segment->second.file, r->info, r->location};
  };
  auto found = look();
  if (!found && refresh()) found = look();
  return found;
}

ReadResult read_record(
    const SegmentFile& file,
    const RecordInfo& info,
    const Location& location,
    StoredRecord& record) {
  const auto read = [&](uint64_t offset, std::vector<uint8_t>& to) {
    return file.read(offset, to.data(), to.size()) || file.read(offset, to.data(), to.size());
  };
  record.header_bytes.resize(location.header_bytes);
  if (!read(location.offset, record.header_bytes)) return ReadResult::kUnreadable;
  auto header = decode_record_header(record.header_bytes);
  if (!header || header->info.key != info.key || header->info.parent != info.parent ||
      header->info.root != info.root || header->info.pos != info.pos ||
      header->info.bytes != info.bytes)
    return ReadResult::kDamaged;
  record.header = std::move(*header);
  record.payload.resize(info.bytes);  // no more than the file had when it was opened
  if (!read(location.offset + location.header_bytes, record.payload))
    return ReadResult::kUnreadable;
  return pages_are_sound(info.key.id, record.header.groups, record.payload) ? ReadResult::kSound
                                                                            : ReadResult::kDamaged;
}

std::vector<RecordInfo> BlockStore::Impl::verify(
    const std::function<bool(uint64_t, uint64_t)>& progress) {
  refresh();
  std::vector<std::pair<Location, RecordKey>> order;  // as they lie on the disk
  uint64_t total = 0, done = 0;
  {
    const std::lock_guard guard(mutex);
    for (const Record* r : index.parents_first()) {
      order.push_back({r->location, r->info.key});
      total += r->stored_bytes();
    }
  }
  std::sort(order.begin(), order.end(), [](const auto& a, const auto& b) {
    return std::pair(a.first.segment, a.first.offset) < std::pair(b.first.segment, b.first.offset);
  });
  std::vector<RecordInfo> damaged;
  StoredRecord record;
  for (const auto& [location, key] : order) {
    if (progress && !progress(done, total)) break;
    const auto found = locate(key);
    if (!found) continue;  // evicted meanwhile
    const bool is_sound =
        read_record(*found->file, found->info, found->location, record) == ReadResult::kSound &&
        record_id(key.kind, found->info.parent, record.header.tokens) == key.id;
    if (!is_sound) damaged.push_back(found->info);
    done += align_record(found->location.header_bytes + found->info.bytes);
  }
  if (progress) progress(done, total);
  return damaged;
}

std::optional<std::vector<int32_t>> BlockStore::tokens(const RecordKey& key) {
  const auto found = impl_->locate(key);
  if (!found) return std::nullopt;
  std::vector<uint8_t> bytes(found->location.header_bytes);
  if (!found->file->read(found->location.offset, bytes.data(), bytes.size())) return std::nullopt;
  auto header = decode_record_header(bytes);
  if (!header || header->info.key != key) {
    report_damage(key);
    return std::nullopt;
  }
  return std::move(header->tokens);
}

std::vector<RecordInfo> BlockStore::verify(
    const std::function<bool(uint64_t, uint64_t)>& progress) {
  std::vector<RecordInfo> damaged = impl_->verify(progress);
  if (damaged.empty()) return damaged;
  for (const RecordInfo& info : damaged) report_damage(info.key);
  const std::lock_guard io(impl_->io_mutex);
  if (impl_->writable()) impl_->try_to_flush();
  return damaged;
}

}  // namespace grebe
