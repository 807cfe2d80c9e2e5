#include "store/manifest.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "core/crc32c.h"
#include "core/error.h"
#include "store/bytes.h"

namespace grebe {
namespace {

constexpr char kMagic[9] = "GREBE-KV";
constexpr size_t kEntryHeadBytes = 9;  // length u32, checksum u32, type u8
constexpr uint32_t kMaxEntryBytes = 1 << 20;
constexpr size_t kReadBytes = 1 << 20;
static_assert(kReadBytes >= kEntryHeadBytes && kMaxEntryBytes <= kReadBytes);

enum class Type : uint8_t {
  kRoot = 1,
  kSegmentMade = 2,
  kSegmentRemoved = 3,
  kRecord = 4,
  kDrop = 5,
  kUse = 6,
  kDay = 7,
};

Type type_of(const ManifestEntry& entry) {
  if (const SegmentEntry* s = std::get_if<SegmentEntry>(&entry))
    return s->removed ? Type::kSegmentRemoved : Type::kSegmentMade;
  constexpr Type kTypes[] = {
      Type::kRoot, Type::kSegmentMade, Type::kRecord, Type::kDrop, Type::kUse, Type::kDay};
  return kTypes[entry.index()];
}

void put_key(ByteWriter& out, const RecordKey& key) {
  out.put(static_cast<uint8_t>(key.kind));
  out.put(key.id);
}

struct Encoder {
  ByteWriter& out;
  void operator()(const RootInfo& r) {
    out.put(r.id);
    out.put_text(r.fingerprint);
    out.put_text(r.name);
    out.put_text(r.numerics);
  }
  void operator()(const SegmentEntry& s) { out.put(s.number); }
  void operator()(const RecordEntry& r) {
    put_key(out, r.info.key);
    out.put(r.info.parent);
    out.put(r.info.root);
    out.put(r.info.pos);
    out.put(r.info.bytes);
    out.put(r.location.segment);
    out.put(r.location.header_bytes);
    out.put(r.location.offset);
    out.put(r.last_use);
    out.put(r.hits);
  }
  void operator()(const DropEntry& d) {
    out.put(static_cast<uint8_t>(d.is_root ? 0 : static_cast<int>(d.key.kind)));
    out.put(d.key.id);
  }
  void operator()(const UseEntry& u) {
    put_key(out, u.key);
    out.put(u.last_use);
    out.put(u.hits);
  }
  void operator()(const DayEntry& d) {
    out.put(d.day);
    out.put(d.bytes);
  }
};

RecordKey get_key(ByteReader& in, bool& good) {
  RecordKey key;
  const uint8_t kind = in.get<uint8_t>();
  good &= kind == 1 || kind == 2;
  key.kind = static_cast<RecordKind>(kind);
  key.id = in.get_digest();
  return key;
}

std::optional<ManifestEntry> decode(Type type, const uint8_t* data, size_t n) {
  ByteReader in(data, n);
  ManifestEntry entry;
  bool good = true;
  switch (type) {
    case Type::kRoot: {
      RootInfo r;
      r.id = in.get_digest();
      r.fingerprint = in.get_text();
      r.name = in.get_text();
      r.numerics = in.get_text();
      entry = r;
      break;
    }
    case Type::kSegmentMade:
    case Type::kSegmentRemoved: {
      SegmentEntry s{in.get<uint32_t>(), type == Type::kSegmentRemoved};
      good = s.number != 0 && s.number != UINT32_MAX;
      entry = s;
      break;
    }
    case Type::kRecord: {
      RecordEntry r;
      r.info.key = get_key(in, good);
      r.info.parent = in.get_digest();
      r.info.root = in.get_digest();
      r.info.pos = in.get<int64_t>();
      r.info.bytes = in.get<uint64_t>();
      r.location.segment = in.get<uint32_t>();
      r.location.header_bytes = in.get<uint32_t>();
      r.location.offset = in.get<uint64_t>();
      r.last_use = in.get<uint64_t>();
      r.hits = in.get<uint32_t>();
      const Location& l = r.location;
      good = good && r.info.pos >= 0 && r.info.bytes <= kMaxPayloadBytes &&
             l.header_bytes >= kMinRecordHeaderBytes && l.header_bytes <= kMaxRecordHeaderBytes &&
             l.header_bytes % kRecordAlignment == 0 && l.offset >= kSegmentHeaderBytes &&
             l.offset % kRecordAlignment == 0 && l.offset < uint64_t{1} << 48;
      entry = r;
      break;
    }
    case Type::kDrop: {
      DropEntry d;
      const uint8_t kind = in.get<uint8_t>();
      good = kind <= 2;
      d.is_root = kind == 0;
      if (!d.is_root) d.key.kind = static_cast<RecordKind>(kind);
      d.key.id = in.get_digest();
      entry = d;
      break;
    }
    case Type::kUse: {
      UseEntry u;
      u.key = get_key(in, good);
      u.last_use = in.get<uint64_t>();
      u.hits = in.get<uint32_t>();
      entry = u;
      break;
    }
    case Type::kDay: {
      DayEntry d;
      d.day = in.get<int64_t>();
      d.bytes = in.get<uint64_t>();
      entry = d;
      break;
    }
    default:
      return std::nullopt;
  }
  if (!good || !in.ok() || in.left() != 0) return std::nullopt;
  return entry;
}

// Of an entry whose head and payload begin at `p`: the length, then type and payload.
uint32_t entry_checksum(uint32_t chain, const uint8_t* p, uint32_t length) {
  return crc32c(p + 8, size_t{1} + length, crc32c(p, 4, chain));
}

std::vector<uint8_t> encode_header(const ManifestHeader& h) {
  ByteWriter out;
  out.put_bytes(kMagic, 8);
  out.put(kStoreVersion);
  out.put(h.next_segment);
  out.put(h.generation);
  out.put_bytes(h.store.data(), h.store.size());
  out.put(h.clock);
  out.pad_to(kSegmentHeaderBytes - 4);
  // The magic is left out: a file is ours when either is right.
  out.put(crc32c(out.bytes().data() + 8, out.size() - 8));
  return std::move(out.bytes());
}

uint32_t checksum_of(const uint8_t* header) {
  uint32_t sum;
  std::memcpy(&sum, header + kSegmentHeaderBytes - 4, 4);
  return sum;
}

}  // namespace

void EntryList::add(const ManifestEntry& entry) {
  ByteWriter out;
  out.put(uint64_t{0});
  out.put(static_cast<uint8_t>(type_of(entry)));
  std::visit(Encoder{out}, entry);
  const uint32_t length = static_cast<uint32_t>(out.size() - kEntryHeadBytes);
  std::memcpy(out.bytes().data(), &length, 4);
  bytes_.insert(bytes_.end(), out.bytes().begin(), out.bytes().end());
}

uint64_t root_entry_bytes(const RootInfo& root) {
  EntryList one;
  one.add(root);
  return one.n_bytes();
}

uint32_t EntryList::seal(uint32_t chain) {
  for (size_t at = 0; at < bytes_.size();) {
    uint8_t* p = bytes_.data() + at;
    uint32_t length;
    std::memcpy(&length, p, 4);
    chain = entry_checksum(chain, p, length);
    std::memcpy(p + 4, &chain, 4);
    at += kEntryHeadBytes + length;
  }
  return chain;
}

Manifest::Manifest(std::unique_ptr<StorageFile> file, const ManifestHeader& header, uint32_t chain)
    : file_(std::move(file)), header_(header), chain_(chain) {}

std::unique_ptr<Manifest> Manifest::open(
    Storage& storage, const std::string& directory, bool writable, ManifestProblem& problem) {
  const std::string path = directory + "/" + kManifestName;
  const auto none = [&](ManifestProblem p) {
    problem = p;
    return nullptr;
  };
  if (!storage.exists(path)) return none(ManifestProblem::kMissing);
  auto file = storage.open(path, writable ? Storage::Mode::kReadWrite : Storage::Mode::kRead);
  uint8_t bytes[kSegmentHeaderBytes] = {};
  const uint64_t size = file->size();
  if (size == 0) return none(ManifestProblem::kEmpty);
  file->read(0, bytes, std::min<uint64_t>(size, sizeof bytes));
  if (std::all_of(bytes, bytes + sizeof bytes, [](uint8_t b) { return b == 0; }))
    return none(ManifestProblem::kEmpty);  // a file system may leave that after a loss of power
  const bool is_ours = std::memcmp(bytes, kMagic, std::min<uint64_t>(size, 8)) == 0;
  const bool is_sound =
      size >= sizeof bytes && crc32c(bytes + 8, sizeof bytes - 12) == checksum_of(bytes);
  if (!is_sound) return none(is_ours ? ManifestProblem::kDamaged : ManifestProblem::kForeign);
  ByteReader in(bytes + 8, sizeof bytes - 8);
  if (in.get<uint32_t>() != kStoreVersion) return none(ManifestProblem::kVersion);
  ManifestHeader h;
  h.next_segment = in.get<uint32_t>();
  h.generation = in.get<uint64_t>();
  in.get_bytes(h.store.data(), h.store.size());
  h.clock = in.get<uint64_t>();
  problem = ManifestProblem::kNone;
  return std::unique_ptr<Manifest>(new Manifest(std::move(file), h, checksum_of(bytes)));
}

std::unique_ptr<Manifest> Manifest::create(
    Storage& storage,
    const std::string& directory,
    const ManifestHeader& header,
    EntryList& entries) {
  const std::string made = directory + "/" + kNewManifestName;
  if (storage.exists(made)) storage.remove(made);
  std::vector<uint8_t> bytes = encode_header(header);
  const uint32_t chain = entries.seal(checksum_of(bytes.data()));
  bytes.insert(bytes.end(), entries.bytes_.begin(), entries.bytes_.end());
  auto file = storage.open(made, Storage::Mode::kCreate);
  file->write(0, bytes.data(), bytes.size());
  file->sync();
  storage.rename(made, directory + "/" + kManifestName);
  std::unique_ptr<Manifest> manifest(new Manifest(std::move(file), header, chain));
  manifest->end_ = bytes.size();
  try {
    storage.sync_directory(directory);
  } catch (const IoError&) {
    manifest->broken_ = true;  // the old one may come back
  }
  return manifest;
}

std::string Manifest::scan(const std::function<void(const ManifestEntry&)>& f) {
  const uint64_t size = file_->size();
  std::vector<uint8_t> buffer;
  uint64_t begin = end_;  // of the buffer in the file
  size_t at = 0;
  const auto fill = [&](size_t n) {  // whether n bytes from `at` on are there
    if (at + n <= buffer.size()) return true;
    if (n > size - end_) return false;
    const size_t wanted = static_cast<size_t>(std::min<uint64_t>(size - end_, n + kReadBytes));
    buffer.resize(wanted);
    file_->read(end_, buffer.data(), wanted);
    begin = end_;
    at = 0;
    return true;
  };
  if (end_ > size) return "the file has become shorter";
  while (end_ < size) {
    if (!fill(kEntryHeadBytes)) return "an entry is cut off";
    uint32_t length, sum;
    std::memcpy(&length, buffer.data() + at, 4);
    std::memcpy(&sum, buffer.data() + at + 4, 4);
    if (length > kMaxEntryBytes) return "the length of an entry is damaged";
    if (!fill(kEntryHeadBytes + length)) return "an entry is cut off";
    const uint8_t* p = buffer.data() + at;
    const uint32_t chain = entry_checksum(chain_, p, length);
    if (chain != sum) return "the checksum of an entry is wrong";
    const auto entry = decode(static_cast<Type>(p[8]), p + kEntryHeadBytes, length);
    if (!entry) return "an entry says what is not possible";
    f(*entry);
    chain_ = chain;
    at += kEntryHeadBytes + length;
    end_ = begin + at;
  }
  return {};
}

void Manifest::append(EntryList& entries) {
  const uint32_t chain = entries.seal(chain_);
  sync_failed_ = false;
  try {
    file_->write(end_, entries.bytes_.data(), entries.bytes_.size());
    sync_failed_ = true;
    file_->sync();
    sync_failed_ = false;
  } catch (const IoError&) {
    broken_ = sync_failed_;  // what is in a file after a failed sync, nobody knows
    try {
      file_->truncate(end_);
      if (!broken_) file_->sync();
    } catch (const IoError&) {
      broken_ = true;
    }
    throw;
  }
  chain_ = chain;
  end_ += entries.bytes_.size();
}

void Manifest::cut() {
  broken_ = true;
  file_->truncate(end_);
  file_->sync();
  broken_ = false;
}

}  // namespace grebe
