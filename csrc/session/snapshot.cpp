// A session as bytes.
//
//   0    u8[4]   magic "GRBS"
//   4    u32     format version
//   8    u8[64]  model fingerprint, hex
//   72   u32     KV row kind, u32 KV row bytes, u32 index row bytes, u32 flags (bit 0: logits
//   follow) 88   i64     n_ctx 96   i64     n_tokens, then
//        i32[n_tokens]                     tokens
//        u8[ring], f32[pools]              window rows of all layers, pooling triples
//        per layer with a compressor: u8[n_tokens / ratio][row bytes], and index rows for ratio 4
//        f32[vocab]                        logits, when flagged
//   end  u32     CRC-32C of all before
//
// Everything is exact, so a restored session goes on bit for bit. Lengths follow from n_tokens and
// the model, so a damaged header cannot ask for more than the bytes that are there. To add a field:
// bump the version, keep reading the old one.
#include <algorithm>
#include <cstring>

#include "core/crc32c.h"
#include "grebe.h"
#include "model/model_impl.h"

namespace grebe {
namespace {

constexpr char kMagic[4] = {'G', 'R', 'B', 'S'};
constexpr uint32_t kVersion = 1;

struct Header {
  char magic[4];
  uint32_t version;
  char fingerprint[64];
  uint32_t kv_kind, kv_row_bytes, index_row_bytes, flags;
  int64_t n_ctx, n_tokens;
};
static_assert(sizeof(Header) == 104);

// Calls f(stream, rows) for every row stream of a state of n_tokens.
template <class F>
void for_streams(const KvLayout& layout, const KvState& kv, int64_t n_tokens, F&& f) {
  for (size_t i = 0; i < layout.layers.size(); i++) {
    const int32_t ratio = layout.layers[i].ratio;
    if (ratio == 0) continue;
    f(kv.kv_rows(static_cast<int32_t>(i)), n_tokens / ratio);
    if (ratio == 4) f(kv.index_rows(static_cast<int32_t>(i)), n_tokens / ratio);
  }
}

[[noreturn]] void damaged(uint64_t offset, const std::string& what) {
  throw FormatError("snapshot", offset, what);
}

}  // namespace

std::vector<uint8_t> Session::snapshot() const {
  std::unique_lock lock(impl_->busy, std::try_to_lock);
  if (!lock.owns_lock()) throw InvalidArgument("session is busy: another thread is using it");
  const Model::Impl& m = *impl_->model->impl_;
  const KvState& kv = impl_->kv;
  Header h{};
  std::memcpy(h.magic, kMagic, 4);
  h.version = kVersion;
  std::memcpy(h.fingerprint, m.fingerprint.data(), std::min<size_t>(64, m.fingerprint.size()));
  h.kv_kind = static_cast<uint32_t>(m.layout->kv.kind);
  h.kv_row_bytes = static_cast<uint32_t>(m.layout->kv.row_bytes());
  h.index_row_bytes = static_cast<uint32_t>(m.layout->index.row_bytes());
  h.flags = impl_->logits.empty() ? 0 : 1;
  h.n_ctx = impl_->n_ctx;
  h.n_tokens = kv.pos();

  std::vector<uint8_t> out;
  const auto put = [&](const void* data, size_t n) {
    const uint8_t* p = static_cast<const uint8_t*>(data);
    out.insert(out.end(), p, p + n);
  };
  put(&h, sizeof h);
  put(impl_->tokens.view().data(), impl_->tokens.view().size_bytes());
  put(kv.ring_data(), m.layout->ring_bytes);
  put(kv.pools(), m.layout->pool_bytes());
  for_streams(*m.layout, kv, kv.pos(), [&](const RowStream& rows, int64_t n) {
    for (int64_t r = 0; r < n; r++) put(rows.row(r), rows.row_bytes);
  });
  put(impl_->logits.data(), impl_->logits.size() * sizeof(float));
  const uint32_t crc = crc32c(out.data(), out.size());
  put(&crc, sizeof crc);
  return out;
}

std::shared_ptr<Session> Model::restore(std::span<const uint8_t> bytes) {
  const Impl& m = *impl_;
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
  if (crc != crc32c(bytes.data(), body))
    damaged(body, "checksum does not match: the data is damaged or cut short");
  const std::string fingerprint(h.fingerprint, sizeof h.fingerprint);
  if (fingerprint != m.fingerprint) {
    throw InvalidArgument(
        "snapshot is of model " + fingerprint.substr(0, 16) + "..., this model is " +
        m.fingerprint.substr(0, 16) + "...");
  }
  if (h.kv_kind != static_cast<uint32_t>(m.layout->kv.kind) ||
      h.kv_row_bytes != m.layout->kv.row_bytes() ||
      h.index_row_bytes != m.layout->index.row_bytes()) {
    throw InvalidArgument(
        "snapshot was made with another kv_rounding or kernels setting than this model's (" +
        m.options.kv_rounding + ", " + m.options.kernels + ")");
  }
  if (h.n_tokens < 0 || h.n_ctx < 1 || h.n_ctx > m.config.max_context || h.n_tokens > h.n_ctx) {
    damaged(88, "token counts are out of range");
  }
  const int64_t vocab = m.config.vocab_size;
  KvState kv(*m.backend, *m.layout);
  uint64_t need = sizeof h + h.n_tokens * sizeof(int32_t) + m.layout->ring_bytes +
                  m.layout->pool_bytes() + (h.flags & 1 ? vocab * sizeof(float) : 0);
  for_streams(*m.layout, kv, h.n_tokens, [&](const RowStream& rows, int64_t n) {
    need += n * rows.row_bytes;
  });
  if (need != body)
    damaged(
        body, "has " + std::to_string(body) + " bytes, its header says " + std::to_string(need));

  const uint8_t* p = bytes.data() + sizeof h;
  const auto get = [&](void* to, size_t n) {
    if (n > 0) std::memcpy(to, p, n);
    p += n;
  };
  std::shared_ptr<Session> s = session(h.n_ctx);
  std::vector<int32_t> tokens(h.n_tokens);
  get(tokens.data(), tokens.size() * sizeof(int32_t));
  s->impl_->check_tokens(tokens);
  s->impl_->tokens.reserve(h.n_tokens);
  s->impl_->tokens.append(tokens);
  if (h.n_tokens > 0) kv.reserve(h.n_tokens);
  get(kv.ring_data(), m.layout->ring_bytes);
  get(kv.pools(), m.layout->pool_bytes());
  for_streams(*m.layout, kv, h.n_tokens, [&](const RowStream& rows, int64_t n) {
    for (int64_t r = 0; r < n; r++) get(rows.row(r), rows.row_bytes);
  });
  kv.set_pos(h.n_tokens);
  s->impl_->kv = std::move(kv);
  if (h.flags & 1) {
    s->impl_->logits.resize(vocab);
    get(s->impl_->logits.data(), vocab * sizeof(float));
  }
  return s;
}

}  // namespace grebe
