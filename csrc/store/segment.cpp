#include "store/segment.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "core/crc32c.h"
#include "core/error.h"
#include "store/bytes.h"

namespace grebe {
namespace {

constexpr char kSegmentMagic[9] = "GREBE-SG";
constexpr char kRecordMagic[5] = "GKVR";
constexpr size_t kFixedHeaderBytes = 128;
static_assert(kMinRecordHeaderBytes == align_record(kFixedHeaderBytes + 4));
static_assert(
    kMaxRecordHeaderBytes ==
    align_record(kFixedHeaderBytes + 8 * kMaxPageGroups + 4 * kMaxRecordTokens + 4));

// The payload's size as its groups say, or more than is allowed.
uint64_t groups_bytes(const std::vector<PageGroup>& groups) {
  uint64_t n = 0;
  for (const PageGroup& g : groups) {
    if (g.n_pages == 0 || g.bytes <= kPageChecksumBytes) return kMaxPayloadBytes + 1;
    n += uint64_t{g.n_pages} * g.bytes;  // both below 2^32, and n is small
    if (n > kMaxPayloadBytes) return n;
  }
  return n;
}

}  // namespace

uint32_t page_checksum(const Digest& id, uint32_t page, const void* data, size_t n) {
  uint8_t name[12];
  std::memcpy(name, id.bytes.data(), 8);
  std::memcpy(name + 8, &page, 4);
  return crc32c(data, n, crc32c(name, sizeof name));
}

Digest record_id(RecordKind kind, const Digest& parent, std::span<const int32_t> tokens) {
  ByteWriter head;
  head.put_bytes("grebe kv", 8);
  head.put(kStoreVersion);
  head.put(static_cast<uint32_t>(kind));
  head.put(parent);
  return Blake3()
      .update(head.bytes().data(), head.size())
      .update(tokens.data(), tokens.size_bytes())
      .finish();
}

uint32_t record_header_bytes(size_t n_groups, size_t n_tokens) {
  return static_cast<uint32_t>(
      align_record(kFixedHeaderBytes + 8 * n_groups + 4 * n_tokens + sizeof(uint32_t)));
}

std::string segment_name(uint32_t number) {
  char name[32];
  std::snprintf(name, sizeof name, "segment-%08u.kv", number);
  return name;
}

uint32_t segment_number(const std::string& name) {
  unsigned number = 0;
  if (name.size() > 21 || std::sscanf(name.c_str(), "segment-%u.kv", &number) != 1) return 0;
  return segment_name(number) == name ? number : 0;
}

bool SegmentFile::read(uint64_t offset, void* to, size_t n) const noexcept {
  try {
    file_->read(offset, to, n);
    counters_->bytes_read += n;
    return true;
  } catch (const std::exception&) {
    counters_->read_failures++;
    return false;
  }
}

bool RecordView::read(uint64_t offset, void* to, size_t n) const noexcept {
  return segment_ && segment_->read(offset_ + offset, to, n);
}

std::vector<uint8_t> encode_segment_header(const StoreId& store, uint32_t number) {
  ByteWriter out;
  out.put_bytes(kSegmentMagic, 8);
  out.put(kStoreVersion);
  out.put(number);
  out.put_bytes(store.data(), store.size());
  out.pad_to(kSegmentHeaderBytes - 4);
  out.put(crc32c(out.bytes().data(), out.size()));
  return std::move(out.bytes());
}

std::string check_segment_header(
    const uint8_t (&header)[kSegmentHeaderBytes], const StoreId& store, uint32_t number) {
  uint32_t sum;
  std::memcpy(&sum, header + kSegmentHeaderBytes - 4, 4);
  if (crc32c(header, kSegmentHeaderBytes - 4) != sum) return "its header is damaged";
  const std::vector<uint8_t> right = encode_segment_header(store, number);
  if (std::memcmp(right.data(), header, kSegmentHeaderBytes) == 0) return {};
  return "it is another segment, or one of another store";
}

std::vector<uint8_t> encode_record_header(const NewRecord& record) {
  ByteWriter out;
  out.put_bytes(kRecordMagic, 4);
  out.put(static_cast<uint16_t>(kStoreVersion));
  out.put(static_cast<uint8_t>(record.info.key.kind));
  out.put(static_cast<uint8_t>(record.groups.size()));
  out.put(static_cast<uint32_t>(record.tokens.size()));
  out.put(uint32_t{0});
  out.put(record.info.pos);
  out.put(record.info.bytes);
  out.put(record.info.key.id);
  out.put(record.info.parent);
  out.put(record.info.root);
  for (const PageGroup& g : record.groups) {
    out.put(g.n_pages);
    out.put(g.bytes);
  }
  out.put_bytes(record.tokens.data(), 4 * record.tokens.size());
  out.put(crc32c(out.bytes().data(), out.size()));
  out.pad_to(record_header_bytes(record.groups.size(), record.tokens.size()));
  return std::move(out.bytes());
}

std::optional<RecordHeader> decode_record_header(const std::vector<uint8_t>& bytes) {
  ByteReader in(bytes.data(), bytes.size());
  char magic[4] = {};
  in.get_bytes(magic, 4);
  const uint16_t version = in.get<uint16_t>();
  const uint8_t kind = in.get<uint8_t>();
  const uint8_t n_groups = in.get<uint8_t>();
  const uint32_t n_tokens = in.get<uint32_t>();
  in.get<uint32_t>();
  if (!in.ok() || std::memcmp(magic, kRecordMagic, 4) != 0 || version != kStoreVersion ||
      (kind != 1 && kind != 2) || n_groups > kMaxPageGroups || n_tokens > kMaxRecordTokens ||
      bytes.size() != record_header_bytes(n_groups, n_tokens))
    return std::nullopt;
  RecordHeader h;
  h.info.key.kind = static_cast<RecordKind>(kind);
  h.info.pos = in.get<int64_t>();
  h.info.bytes = in.get<uint64_t>();
  h.info.key.id = in.get_digest();
  h.info.parent = in.get_digest();
  h.info.root = in.get_digest();
  h.groups.resize(n_groups);
  for (PageGroup& g : h.groups) {
    g.n_pages = in.get<uint32_t>();
    g.bytes = in.get<uint32_t>();
  }
  h.tokens.resize(n_tokens);
  in.get_bytes(h.tokens.data(), 4 * h.tokens.size());
  const size_t summed = bytes.size() - in.left();
  if (in.get<uint32_t>() != crc32c(bytes.data(), summed) || !in.ok() ||
      groups_bytes(h.groups) != h.info.bytes)
    return std::nullopt;
  return h;
}

void check_record(const NewRecord& r) {
  const auto refuse = [](const std::string& what) { throw InvalidArgument("kv record: " + what); };
  if (r.info.key.kind != RecordKind::kBlock && r.info.key.kind != RecordKind::kAnchor)
    refuse("its kind is " + std::to_string(static_cast<int>(r.info.key.kind)));
  if (r.tokens.size() > kMaxRecordTokens)
    refuse(
        "it has " + std::to_string(r.tokens.size()) + " tokens; at most " +
        std::to_string(kMaxRecordTokens) + " are expected");
  if (r.groups.size() > kMaxPageGroups)
    refuse("it has " + std::to_string(r.groups.size()) + " page groups");
  if (r.info.pos < 0) refuse("its position is " + std::to_string(r.info.pos));
  if (r.payload.size() != r.info.bytes || groups_bytes(r.groups) != r.info.bytes)
    refuse(
        "its payload has " + std::to_string(r.payload.size()) + " bytes, its pages have " +
        std::to_string(groups_bytes(r.groups)) + ", and " + std::to_string(r.info.bytes) +
        " are announced");
}

bool pages_are_sound(
    const Digest& id, const std::vector<PageGroup>& groups, const std::vector<uint8_t>& payload) {
  if (groups_bytes(groups) != payload.size()) return false;
  const uint8_t* page = payload.data();
  uint32_t number = 0;
  for (const PageGroup& g : groups) {
    for (uint32_t i = 0; i < g.n_pages; i++, page += g.bytes) {
      uint32_t sum;
      std::memcpy(&sum, page + g.bytes - kPageChecksumBytes, 4);
      if (page_checksum(id, number++, page, g.bytes - kPageChecksumBytes) != sum) return false;
    }
  }
  return true;
}

void SegmentWriter::resume(std::shared_ptr<SegmentFile> file, uint64_t end) {
  open_ = {std::move(file), end, end};
}

void SegmentWriter::begin_segment() {
  const uint32_t number = next_number_++;  // not again, whatever becomes of this file
  auto file = storage_->open(directory_ + "/" + segment_name(number), Storage::Mode::kCreate);
  Touched made{std::make_shared<SegmentFile>(number, std::move(file), counters_), 0, 0};
  touched_.push_back(made);
  const std::vector<uint8_t> header = encode_segment_header(store_, number);
  made.file->file().write(0, header.data(), header.size());
  made.end = header.size();
  open_ = touched_.back() = made;
}

Location SegmentWriter::append(
    const std::vector<uint8_t>& header, const uint8_t* payload, size_t n) {
  const uint64_t bytes = align_record(header.size() + n);
  const bool has_records = open_.end > kSegmentHeaderBytes;
  if (!open_.file || (has_records && open_.end + bytes > limit_)) begin_segment();
  if (touched_.empty() || touched_.back().file != open_.file) touched_.push_back(open_);
  const uint64_t offset = open_.end;
  open_.end = touched_.back().end = offset + bytes;
  // What lies between the end of a payload and the next multiple of 64 is left as a hole.
  open_.file->file().write(offset, header.data(), header.size());
  if (n > 0) open_.file->file().write(offset + header.size(), payload, n);
  return {open_.file->number(), static_cast<uint32_t>(header.size()), offset};
}

void SegmentWriter::sync() {
  bool made = false;
  sync_failed_ = true;
  for (const Touched& t : touched_) {
    t.file->file().sync();
    made |= t.committed == 0;
  }
  if (made) storage_->sync_directory(directory_);
  sync_failed_ = false;
}

void SegmentWriter::commit() {
  open_.committed = open_.end;
  touched_.clear();
}

void SegmentWriter::rollback() noexcept {
  open_ = {};
  for (const Touched& t : touched_) {
    try {
      if (t.committed == 0) {
        storage_->remove(directory_ + "/" + segment_name(t.file->number()));
      } else {
        t.file->file().truncate(t.committed);
        if (!sync_failed_) open_ = {t.file, t.committed, t.committed};
      }
    } catch (const std::exception&) {  // the rest is cut off or removed when the store is opened
    }
  }
  touched_.clear();
  sync_failed_ = false;
}

}  // namespace grebe
