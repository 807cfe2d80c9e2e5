#include "session/snapshot_format.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "core/crc32c.h"
#include "core/error.h"

namespace grebe {
namespace {

constexpr char kMagic[4] = {'G', 'R', 'B', 'S'};
constexpr uint32_t kVersion = 2;

// What does not fit is cut: between characters, if it is UTF-8.
template <size_t N>
void put_text(char (&field)[N], const std::string& text) {
  size_t n = std::min(N, text.size());
  while (n > 0 && n < text.size() && (static_cast<uint8_t>(text[n]) & 0xc0) == 0x80) n--;
  std::memcpy(field, text.data(), n);
}

template <size_t N>
std::string text_of(const char (&field)[N]) {
  return {field, static_cast<size_t>(std::find(field, field + N, '\0') - field)};
}

uint32_t header_crc(const SnapshotHeader& h) { return crc32c(&h, offsetof(SnapshotHeader, crc)); }

uint64_t snapshot_bytes(const KvLayout& layout, const SnapshotHeader& h, int64_t vocab_size) {
  uint64_t bytes = sizeof h + sizeof(uint32_t);
  if (h.n_tokens == 0) return bytes;
  const auto page = [&](const void*, uint64_t n) { bytes += n + kPageChecksumBytes; };
  const KvCodec codec(layout);
  page(nullptr, h.n_tokens * sizeof(int32_t));
  bytes += h.n_tokens / kBlockTokens * codec.block_payload_bytes();
  end_pages(layout, nullptr, nullptr, h.n_tokens % kBlockTokens, nullptr, nullptr, page);
  if (h.flags & SnapshotHeader::kHasLogits) page(nullptr, vocab_size * sizeof(float));
  return bytes + h.n_checkpoints() * codec.anchor_payload_bytes(0);
}

bool checkpoints_are_sound(const SnapshotHeader& h) {
  int64_t previous = 0;
  for (size_t i = 0; i < kSavedCheckpoints; i++) {
    const int64_t pos = h.checkpoints[i];
    if (i >= h.n_checkpoints() ? pos != 0
                               : pos <= previous || pos > h.n_tokens || pos % kCheckpointTokens) {
      return false;
    }
    previous = pos;
  }
  return true;
}

std::string shown(const std::string& name, const std::string& fingerprint) {
  return (name.empty() ? "" : "'" + name + "', ") + "fingerprint " + fingerprint;
}

}  // namespace

size_t SnapshotHeader::n_checkpoints() const {
  return std::find(checkpoints, checkpoints + kSavedCheckpoints, 0) - checkpoints;
}

std::string SnapshotHeader::numerics_text() const { return text_of(numerics); }

SnapshotHeader make_header(
    const SnapshotModel& model,
    const KvLayout& layout,
    int64_t n_ctx,
    int64_t n_tokens,
    std::span<const int64_t> checkpoints,
    bool has_logits) {
  SnapshotHeader h{};
  std::memcpy(h.magic, kMagic, sizeof kMagic);
  h.version = kVersion;
  put_text(h.fingerprint, model.fingerprint);
  put_text(h.name, model.name);
  put_text(h.numerics, model.numerics);
  h.kv_kind = static_cast<uint32_t>(layout.kv.kind);
  h.kv_row_bytes = static_cast<uint32_t>(layout.kv.row_bytes());
  h.index_row_bytes = static_cast<uint32_t>(layout.index.row_bytes());
  h.window_size = static_cast<uint32_t>(layout.window_size);
  h.flags =
      (has_logits ? SnapshotHeader::kHasLogits : 0) | (model.exact ? SnapshotHeader::kExact : 0);
  h.block_tokens = kBlockTokens;
  h.n_ctx = n_ctx;
  h.n_tokens = n_tokens;
  std::copy(checkpoints.begin(), checkpoints.end(), h.checkpoints);
  h.n_bytes = snapshot_bytes(layout, h, model.vocab_size);
  h.crc = header_crc(h);
  return h;
}

void check_header(
    const SnapshotHeader& h,
    uint64_t n_bytes,
    const SnapshotModel& model,
    const KvLayout& layout,
    const std::string& source) {
  const auto damaged = [&](uint64_t offset, const std::string& what) {
    throw FormatError(source, offset, what);
  };
  if (std::memcmp(h.magic, kMagic, sizeof kMagic) != 0) {
    damaged(0, "is not a session saved by grebe");
  }
  if (h.version != kVersion) {
    damaged(
        4,
        "has version " + std::to_string(h.version) + "; this build reads " +
            std::to_string(kVersion));
  }
  if (h.crc != header_crc(h)) {
    damaged(offsetof(SnapshotHeader, crc), "checksum of the header does not match: it is damaged");
  }
  if (h.n_bytes != n_bytes) {
    damaged(
        n_bytes,
        "has " + std::to_string(n_bytes) + " bytes, its header says " + std::to_string(h.n_bytes));
  }
  const std::string fingerprint = text_of(h.fingerprint);
  if (fingerprint != model.fingerprint) {
    throw InvalidArgument(
        source + " is of another model (" + shown(text_of(h.name), fingerprint) +
        "); this one is " + shown(model.name, model.fingerprint));
  }
  if (h.kv_kind != static_cast<uint32_t>(layout.kv.kind) ||
      h.kv_row_bytes != static_cast<uint32_t>(layout.kv.row_bytes()) ||
      h.index_row_bytes != static_cast<uint32_t>(layout.index.row_bytes()) ||
      ((h.flags & SnapshotHeader::kExact) != 0) != model.exact) {
    throw InvalidArgument(
        source + " was made with another kv_rounding or kernels setting (" + h.numerics_text() +
        ") than this model's (" + model.settings + ")");
  }
  if ((h.flags & ~(SnapshotHeader::kHasLogits | SnapshotHeader::kExact)) != 0 ||
      h.block_tokens != kBlockTokens ||
      h.window_size != static_cast<uint32_t>(layout.window_size) || h.zero != 0) {
    damaged(offsetof(SnapshotHeader, flags), "is of a form that this build does not know");
  }
  if (h.n_tokens < 0 || h.n_ctx < 1 || h.n_ctx > model.max_context || h.n_tokens > h.n_ctx ||
      !checkpoints_are_sound(h) || h.n_bytes != snapshot_bytes(layout, h, model.vocab_size)) {
    damaged(offsetof(SnapshotHeader, n_ctx), "counts contradict each other");
  }
}

SnapshotNames::SnapshotNames(const Digest& root, std::span<const int32_t> tokens) : root(root) {
  for (size_t i = 0; i < tokens.size() / kBlockTokens; i++) {
    blocks.push_back(record_id(
        RecordKind::kBlock,
        i == 0 ? root : blocks.back(),
        tokens.subspan(i * kBlockTokens, kBlockTokens)));
  }
}

Digest SnapshotNames::state(std::span<const int32_t> tokens, int64_t pos) const {
  const int64_t n_blocks = pos / kBlockTokens;
  return record_id(
      RecordKind::kAnchor,
      n_blocks == 0 ? root : blocks[n_blocks - 1],
      tokens.subspan(n_blocks * kBlockTokens, pos % kBlockTokens));
}

void SnapshotWriter::write(const void* data, size_t n) {
  crc_ = crc32c(data, n, crc_);
  put_(data, n);
}

void SnapshotWriter::page(const Digest& id, const void* data, size_t n) {
  if (id != id_) n_pages_ = 0;
  id_ = id;
  const uint32_t sum = page_checksum(id, n_pages_++, data, n);
  write(data, n);
  write(&sum, sizeof sum);
}

void SnapshotWriter::finish() {
  const uint32_t sum = crc_;
  put_(&sum, sizeof sum);
}

void SnapshotReader::read(void* to, size_t n) {
  if (n > size_ - offset_) throw FormatError(source_, size_, "ends before it should");
  get_(offset_, to, n);
  crc_ = crc32c(to, n, crc_);
  offset_ += n;
}

void SnapshotReader::page(const Digest& id, void* to, size_t n) {
  if (id != id_) n_pages_ = 0;
  id_ = id;
  read(to, n);
  const uint32_t expected = page_checksum(id, n_pages_++, to, n);
  uint32_t sum;
  read(&sum, sizeof sum);
  if (sum != expected) page_damaged(n + sizeof sum);
}

void SnapshotReader::finish() {
  const uint32_t expected = crc_;
  uint32_t sum;
  read(&sum, sizeof sum);
  if (sum != expected) damaged("checksum of the whole does not match: the data is damaged");
}

void SnapshotReader::damaged(const std::string& what) const {
  throw FormatError(source_, offset_, what);
}

void SnapshotReader::page_damaged(size_t n) const {
  throw FormatError(source_, offset_ - n, "checksum of a page does not match: the data is damaged");
}

}  // namespace grebe
