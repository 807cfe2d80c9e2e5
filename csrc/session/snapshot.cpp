// Sessions to bytes and files; session/snapshot_format.h draws them, session/restore.cpp reads
// them.
//
// Blocks go through memory one at a time, so a session of any length is saved with a few megabytes
// beside what it holds itself.
#include <optional>

#include "grebe.h"
#include "io/atomic_file.h"
#include "model/model_impl.h"
#include "session/row_pager.h"
#include "session/snapshot_format.h"

namespace grebe {
namespace {

constexpr const char* kMixed = "mixed";  // rows of several ways to compute

// Keys and rows of a session's block, for as long as it lives: rows stay in RAM meanwhile, or are
// read from the disk. Throws RowsLost.
class BlockView {
 public:
  BlockView(const Session::Impl& s, const KvLayout& layout, size_t i, int64_t n_rows)
      : block_(*s.kv.blocks()[i]), hold_(s.cache ? s.cache->cache().get() : nullptr, block_) {
    if (hold_.resident || layout.rows_bytes == 0) return;
    read_.resize(layout.rows_bytes);
    if (block_.paged && block_.paged->read(n_rows, read_.data())) return;
    throw RowsLost(static_cast<int64_t>(i));
  }
  uint8_t* keys() const { return block_.keys.data(); }
  uint8_t* rows() { return read_.empty() ? block_.rows.data() : read_.data(); }

 private:
  struct Hold {
    KvCache* cache;
    KvBlock& block;
    bool resident;
    Hold(KvCache* c, KvBlock& b) : cache(c), block(b), resident(!c || c->hold_rows(b)) {}
    ~Hold() {
      if (cache) cache->let_rows_go(block);
    }
  };
  KvBlock& block_;
  Hold hold_;
  std::vector<uint8_t> read_;
};

void write_blocks(
    SnapshotWriter& out,
    const Session::Impl& s,
    const KvLayout& layout,
    const SnapshotNames& names) {
  if (layout.block_bytes() == 0) return;
  const KvCodec codec(layout);
  NewRecord record;
  for (size_t i = 0; i < names.blocks.size(); i++) {
    record.info.key = {RecordKind::kBlock, names.blocks[i]};
    record.groups.clear();
    record.payload.clear();
    BlockView block(s, layout, i, kBlockTokens / 4);
    codec.encode_block(block.keys(), block.rows(), record);
    out.write(record.payload.data(), record.payload.size());
  }
}

void write_end(
    SnapshotWriter& out, const Session::Impl& s, const KvLayout& layout, const Digest& id) {
  const int64_t n_tail = s.kv.pos() % kBlockTokens;
  std::optional<BlockView> tail;
  if (n_tail > 0 && layout.block_bytes() > 0) {
    tail.emplace(s, layout, s.kv.pos() / kBlockTokens, n_tail / 4);
  }
  end_pages(
      layout,
      s.kv.ring_data(),
      s.kv.pools(),
      n_tail,
      tail ? tail->keys() : nullptr,
      tail ? tail->rows() : nullptr,
      [&](const void* data, size_t n) { out.page(id, data, n); });
  if (!s.logits.empty()) out.page(id, s.logits.data(), s.logits.size() * sizeof(float));
}

}  // namespace

SnapshotModel Model::Impl::snapshot_model() const {
  return {
      fingerprint,
      config.name,
      root().numerics,
      options.kv_rounding + ", " + options.kernels,
      options.kernels == "exact",
      config.vocab_size,
      config.max_context};
}

void Session::write(SnapshotWriter& out) const {
  const Impl& s = *impl_;
  const Model::Impl& m = *s.model->impl_;
  const KvLayout& layout = *m.layout;
  SnapshotModel model = m.snapshot_model();
  if (s.mixed) model.numerics = kMixed;
  std::vector<std::shared_ptr<const Checkpoint>> saved = s.kv.checkpoints();
  if (saved.size() > kSavedCheckpoints) saved.erase(saved.begin(), saved.end() - kSavedCheckpoints);
  std::vector<int64_t> positions;
  for (const auto& checkpoint : saved) positions.push_back(checkpoint->pos);
  const SnapshotHeader header =
      make_header(model, layout, s.n_ctx, s.kv.pos(), positions, !s.logits.empty());
  out.write(&header, sizeof header);
  const std::span<const int32_t> tokens = s.tokens.view();
  if (!tokens.empty()) {
    const SnapshotNames names(m.root_id(model.numerics), tokens);
    const KvCodec codec(layout);
    out.page(names.root, tokens.data(), tokens.size_bytes());
    write_blocks(out, s, layout, names);
    write_end(out, s, layout, names.state(tokens, s.kv.pos()));
    for (const auto& checkpoint : saved) {
      NewRecord record;
      record.info.key = {RecordKind::kAnchor, names.state(tokens, checkpoint->pos)};
      codec.encode_anchor(*checkpoint, nullptr, record);
      out.write(record.payload.data(), record.payload.size());
    }
  }
  out.finish();
}

std::vector<uint8_t> Session::snapshot() {
  const Use use = impl_->use();
  std::vector<uint8_t> bytes;
  for (;;) {
    bytes.clear();
    SnapshotWriter out([&](const void* data, size_t n) {
      if (bytes.empty()) bytes.reserve(static_cast<const SnapshotHeader*>(data)->n_bytes);
      const uint8_t* p = static_cast<const uint8_t*>(data);
      bytes.insert(bytes.end(), p, p + n);
    });
    try {
      write(out);
      return bytes;
    } catch (const RowsLost& lost) {
      recover(lost, {});
    }
  }
}

void Session::save(const std::string& path, const std::shared_ptr<Storage>& storage) {
  const Use use = impl_->use();
  AtomicFile file(storage, path);
  for (;;) {
    SnapshotWriter out([&](const void* data, size_t n) { file.append(data, n); });
    try {
      write(out);
      return file.commit();
    } catch (const RowsLost& lost) {
      recover(lost, {});
      file.restart();
    }
  }
}

}  // namespace grebe
