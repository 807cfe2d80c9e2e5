// A session as bytes.
//
//   0    u8[4]   magic "GRBS"
//   4    u32     format version
//   8    u8[64]  model fingerprint, hex
//   72   u32     KV row kind, u32 KV row bytes, u32 index row bytes, u32 flags
//   88   i64     n_ctx
//   96   i64     n_tokens
//   104  i64     n_checkpoints, the newest few; then
//        i32[n_tokens]                     tokens
//        u8[ring], f32[pools]              window rows of all layers, pooling triples
//        per layer with a compressor: u8[n_tokens / ratio][row bytes], and index rows for ratio 4
//        i64 pos, u8[ring], f32[pools]     n_checkpoints times
//        f32[vocab]                        logits, with flag 1
//   end  u32     CRC-32C of all before
//
// Everything is exact, so a restored session goes on bit for bit, and equal sessions give equal
// bytes. Lengths follow from the counts and the model, so a damaged header cannot ask for more than
// the bytes that are there. To add a field: bump the version, keep reading the old one.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/crc32c.h"
#include "grebe.h"
#include "model/model_impl.h"

namespace grebe {
namespace {

constexpr char kMagic[4] = {'G', 'R', 'B', 'S'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kHasLogits = 1, kExact = 2;  // flags
constexpr size_t kSavedCheckpoints = 2;         // enough to step back 128 tokens

struct Header {
  char magic[4];
  uint32_t version;
  char fingerprint[64];
  uint32_t kv_kind, kv_row_bytes, index_row_bytes, flags;
  int64_t n_ctx, n_tokens, n_checkpoints;
};
static_assert(sizeof(Header) == 112);

// Calls f(pointer, bytes) for the pieces of a state's rows, in the order of the file: f writes them
// out or fills them.
template <class F>
void for_rows(const KvLayout& layout, const KvState& kv, int64_t n_tokens, F&& f) {
  const auto stream = [&](const RowStream& rows, int64_t n) {
    for (int64_t r = 0; r < n; r += rows.rows_per_block) {
      f(rows.row(r), std::min<int64_t>(rows.rows_per_block, n - r) * rows.row_bytes);
    }
  };
  for (size_t i = 0; i < layout.layers.size(); i++) {
    const int32_t ratio = layout.layers[i].ratio;
    if (ratio != 0) stream(kv.kv_rows(static_cast<int32_t>(i)), n_tokens / ratio);
    if (ratio == 4) stream(kv.index_rows(static_cast<int32_t>(i)), n_tokens / ratio);
  }
}

uint64_t snapshot_bytes(const KvLayout& layout, const Header& h, int64_t vocab) {
  const uint64_t window = layout.ring_bytes + layout.pool_bytes();
  uint64_t bytes = sizeof h + h.n_tokens * sizeof(int32_t) + window +
                   h.n_checkpoints * (sizeof(int64_t) + window) +
                   (h.flags & kHasLogits ? vocab * sizeof(float) : 0);
  for (const KvLayout::Layer& layer : layout.layers) {
    if (layer.ratio != 0) bytes += h.n_tokens / layer.ratio * layout.kv.row_bytes();
    if (layer.ratio == 4) bytes += h.n_tokens / layer.ratio * layout.index.row_bytes();
  }
  return bytes;
}

[[noreturn]] void damaged(uint64_t offset, const std::string& what) {
  throw FormatError("snapshot", offset, what);
}

// The header of a snapshot that fits this model; its checksum and length have been verified.
Header read_header(
    std::span<const uint8_t> bytes,
    const std::string& fingerprint,
    const KvLayout& layout,
    const ModelConfig& config,
    const LoadOptions& options) {
  Header h;
  if (bytes.size() < sizeof h + sizeof(uint32_t)) damaged(bytes.size(), "ends within the header");
  std::memcpy(&h, bytes.data(), sizeof h);
  if (std::memcmp(h.magic, kMagic, 4) != 0) damaged(0, "is not a grebe session snapshot");
  if (h.version != kVersion) {
    damaged(
        4,
        "has version " + std::to_string(h.version) + "; this build reads " +
            std::to_string(kVersion));
  }
  const size_t body = bytes.size() - sizeof(uint32_t);
  uint32_t crc;
  std::memcpy(&crc, bytes.data() + body, sizeof crc);
  if (crc != crc32c(bytes.data(), body)) {
    damaged(body, "checksum does not match: the data is damaged or cut short");
  }
  const std::string found(h.fingerprint, sizeof h.fingerprint);
  if (found != fingerprint) {
    throw InvalidArgument(
        "snapshot is of model " + found.substr(0, 16) + "..., this model is " +
        fingerprint.substr(0, 16) + "...");
  }
  const bool exact = options.kernels == "exact";
  if (h.kv_kind != static_cast<uint32_t>(layout.kv.kind) ||
      h.kv_row_bytes != layout.kv.row_bytes() || h.index_row_bytes != layout.index.row_bytes() ||
      ((h.flags & kExact) != 0) != exact) {
    throw InvalidArgument(
        "snapshot was made with another kv_rounding or kernels setting than this model's (" +
        options.kv_rounding + ", " + options.kernels + ")");
  }
  if ((h.flags & ~(kHasLogits | kExact)) != 0)
    damaged(84, "has flags that this build does not know");
  if (h.n_tokens < 0 || h.n_ctx < 1 || h.n_ctx > config.max_context || h.n_tokens > h.n_ctx ||
      h.n_checkpoints < 0 || h.n_checkpoints > static_cast<int64_t>(kMaxCheckpoints)) {
    damaged(88, "counts are out of range");
  }
  const uint64_t need = snapshot_bytes(layout, h, config.vocab_size);
  if (need != body) {
    damaged(
        body, "has " + std::to_string(body) + " bytes, its header says " + std::to_string(need));
  }
  return h;
}

}  // namespace

std::vector<uint8_t> Session::snapshot() const {
  const Use use = impl_->use();
  const Model::Impl& m = *impl_->model->impl_;
  const KvState& kv = impl_->kv;
  const auto& checkpoints = kv.checkpoints();
  const size_t n_saved = std::min(kSavedCheckpoints, checkpoints.size());
  Header h{};
  std::memcpy(h.magic, kMagic, 4);
  h.version = kVersion;
  std::memcpy(h.fingerprint, m.fingerprint.data(), std::min<size_t>(64, m.fingerprint.size()));
  h.kv_kind = static_cast<uint32_t>(m.layout->kv.kind);
  h.kv_row_bytes = static_cast<uint32_t>(m.layout->kv.row_bytes());
  h.index_row_bytes = static_cast<uint32_t>(m.layout->index.row_bytes());
  h.flags = (impl_->logits.empty() ? 0 : kHasLogits) | (m.options.kernels == "exact" ? kExact : 0);
  h.n_ctx = impl_->n_ctx;
  h.n_tokens = kv.pos();
  h.n_checkpoints = static_cast<int64_t>(n_saved);

  const uint64_t body = snapshot_bytes(*m.layout, h, m.config.vocab_size);
  std::vector<uint8_t> out(body + sizeof(uint32_t));
  uint8_t* end = out.data();
  const auto put = [&](const void* data, size_t n) {
    if (n > 0) std::memcpy(end, data, n);
    end += n;
  };
  put(&h, sizeof h);
  put(impl_->tokens.view().data(), impl_->tokens.view().size_bytes());
  put(kv.ring_data(), m.layout->ring_bytes);
  put(kv.pools(), m.layout->pool_bytes());
  for_rows(*m.layout, kv, kv.pos(), put);
  for (size_t i = checkpoints.size() - n_saved; i < checkpoints.size(); i++) {
    put(&checkpoints[i]->pos, sizeof(int64_t));
    put(checkpoints[i]->ring.data(), m.layout->ring_bytes);
    put(checkpoints[i]->pools.data(), m.layout->pool_bytes());
  }
  put(impl_->logits.data(), impl_->logits.size() * sizeof(float));
  const uint32_t crc = crc32c(out.data(), body);
  put(&crc, sizeof crc);
  GREBE_ASSERT(end == out.data() + out.size());
  return out;
}

std::shared_ptr<Session> Model::restore(std::span<const uint8_t> bytes) {
  const Impl& m = *impl_;
  const Header h = read_header(bytes, m.fingerprint, *m.layout, m.config, m.options);
  const uint8_t* p = bytes.data() + sizeof h;
  const auto get = [&](void* to, size_t n) {
    if (n > 0) std::memcpy(to, p, n);
    p += n;
  };
  std::shared_ptr<Session> session = this->session(h.n_ctx);
  Session::Impl& s = *session->impl_;
  std::vector<int32_t> tokens(h.n_tokens);
  get(tokens.data(), tokens.size() * sizeof(int32_t));
  for (int32_t token : tokens) {
    if (token < 0 || token >= m.config.vocab_size) damaged(sizeof h, "holds a token out of range");
  }
  s.tokens.reserve(h.n_tokens);
  s.tokens.append(tokens);
  if (h.n_tokens > 0) s.kv.reserve(h.n_tokens);
  get(s.kv.ring_data(), m.layout->ring_bytes);
  get(s.kv.pools(), m.layout->pool_bytes());
  for_rows(*m.layout, s.kv, h.n_tokens, get);
  s.kv.set_pos(h.n_tokens);
  int64_t previous = 0;
  for (int64_t i = 0; i < h.n_checkpoints; i++) {
    int64_t pos;
    get(&pos, sizeof pos);
    if (pos <= previous || pos > h.n_tokens)
      damaged(p - bytes.data(), "checkpoints are out of order");
    previous = pos;
    std::shared_ptr<Checkpoint> checkpoint = s.kv.new_checkpoint(pos);
    get(checkpoint->ring.data(), m.layout->ring_bytes);
    get(checkpoint->pools.data(), m.layout->pool_bytes());
    s.kv.add_checkpoint(std::move(checkpoint));
  }
  if (h.flags & kHasLogits) {
    s.logits.resize(m.config.vocab_size);
    get(s.logits.data(), s.logits.size() * sizeof(float));
    for (float x : s.logits) {
      if (!std::isfinite(x)) damaged(p - bytes.data(), "logits are not finite");
    }
  }
  return session;
}

}  // namespace grebe
