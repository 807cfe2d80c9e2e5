// Bytes and files to sessions; the way back of session/snapshot.cpp.
//
// What is read is checked before it is used: the length against the header before memory is taken,
// every page as it comes. A cache gets each block as soon as it is known to be sound.
#include <cmath>
#include <cstring>

#include "grebe.h"
#include "io/storage.h"
#include "model/model_impl.h"
#include "session/snapshot_format.h"

namespace grebe {
namespace {

constexpr size_t kBlocksPerTrim = 64;

// The parts of a snapshot, one after another, into a new session.
class Restoring {
 public:
  Restoring(
      SnapshotReader& in,
      const SnapshotHeader& header,
      Session::Impl& session,
      const KvLayout& layout,
      int32_t vocab_size)
      : in_(in),
        h_(header),
        s_(session),
        layout_(layout),
        codec_(layout),
        vocab_size_(vocab_size) {}

  void read_tokens(const Digest& root) {
    tokens_.resize(h_.n_tokens);
    in_.page(root, tokens_.data(), tokens_.size() * sizeof(int32_t));
    for (int32_t token : tokens_) {
      if (token < 0 || token >= vocab_size_) in_.damaged("holds a token out of range");
    }
    names_ = SnapshotNames(root, tokens_);
    s_.tokens.reserve(h_.n_tokens);
    s_.tokens.append(tokens_);
  }

  /// trim(): now and then, when the cache may have more than it should.
  template <class F>
  void read_blocks(F&& trim) {
    std::vector<uint8_t> payload(codec_.block_payload_bytes());
    for (size_t i = 0; i < names_.blocks.size(); i++) {
      s_.kv.set_pos(static_cast<int64_t>(i) * kBlockTokens);
      s_.kv.reserve(kBlockTokens);
      if (layout_.block_bytes() > 0) {
        in_.read(payload.data(), payload.size());
        if (!codec_.decode_block(payload.data(), names_.blocks[i], *s_.kv.blocks()[i])) {
          in_.page_damaged(payload.size());
        }
      }
      if (!s_.cache) continue;
      s_.cache->appended(s_.kv, std::span(tokens_).first((i + 1) * kBlockTokens), {}, {});
      if (i % kBlocksPerTrim == kBlocksPerTrim - 1) trim();
    }
  }

  void read_end() {
    const int64_t n_tail = h_.n_tokens % kBlockTokens;
    const Digest id = names_.state(tokens_, h_.n_tokens);
    s_.kv.set_pos(h_.n_tokens - n_tail);
    s_.kv.reserve(n_tail);
    const KvBlock* tail = nullptr;
    if (n_tail > 0 && layout_.block_bytes() > 0) tail = s_.kv.blocks().back().get();
    end_pages(
        layout_,
        s_.kv.ring_data(),
        s_.kv.pools(),
        n_tail,
        tail ? tail->keys.data() : nullptr,
        tail ? tail->rows.data() : nullptr,
        [&](void* data, size_t n) { in_.page(id, data, n); });
    if ((h_.flags & SnapshotHeader::kHasLogits) == 0) return;
    logits_.resize(vocab_size_);
    in_.page(id, logits_.data(), logits_.size() * sizeof(float));
    for (float x : logits_) {
      if (!std::isfinite(x)) in_.damaged("logits are not finite");
    }
  }

  void read_checkpoints() {
    std::vector<uint8_t> payload(codec_.anchor_payload_bytes(0));
    for (size_t i = 0; i < h_.n_checkpoints(); i++) {
      checkpoints_.push_back(s_.kv.new_checkpoint(h_.checkpoints[i]));
      in_.read(payload.data(), payload.size());
      const Digest id = names_.state(tokens_, h_.checkpoints[i]);
      if (!codec_.decode_anchor(payload.data(), id, *checkpoints_.back(), nullptr)) {
        in_.page_damaged(payload.size());
      }
    }
  }

  /// After all of it has been found sound.
  void accept() {
    s_.kv.set_pos(h_.n_tokens);
    s_.logits = std::move(logits_);
    for (auto& checkpoint : checkpoints_) s_.kv.add_checkpoint(std::move(checkpoint));
  }

 private:
  SnapshotReader& in_;
  const SnapshotHeader& h_;
  Session::Impl& s_;
  const KvLayout& layout_;
  const KvCodec codec_;
  const int32_t vocab_size_;
  std::vector<int32_t> tokens_;
  SnapshotNames names_;
  std::vector<float> logits_;
  std::vector<std::shared_ptr<Checkpoint>> checkpoints_;
};

}  // namespace

std::shared_ptr<Session> Model::restore(
    std::span<const uint8_t> bytes, const RestoreOptions& options) {
  const auto get = [&](uint64_t offset, void* to, size_t n) {
    if (n > 0) std::memcpy(to, bytes.data() + offset, n);
  };
  SnapshotReader in(get, bytes.size(), "snapshot");
  return restore_from(in, options);
}

std::shared_ptr<Session> Model::restore_file(
    const std::string& path, const RestoreOptions& options) {
  const std::shared_ptr<Storage> storage = options.storage ? options.storage : posix_storage();
  const std::unique_ptr<StorageFile> file = storage->open(path, Storage::Mode::kRead);
  const auto get = [&](uint64_t offset, void* to, size_t n) { file->read(offset, to, n); };
  SnapshotReader in(get, file->size(), path);
  return restore_from(in, options);
}

std::shared_ptr<Session> Model::restore_from(SnapshotReader& in, const RestoreOptions& options) {
  const Impl& m = *impl_;
  SnapshotHeader h;
  in.read(&h, sizeof h);
  check_header(h, in.size(), m.snapshot_model(), *m.layout, in.source());
  const std::string numerics = h.numerics_text(), own = m.root().numerics;
  if (options.cache && numerics != own) {
    throw InvalidArgument(
        in.source() + " holds rows that were computed otherwise (" + numerics +
        ") than those of the cache (" + own + "); restore it without one");
  }
  if (options.n_ctx > 0 && options.n_ctx < h.n_tokens) {
    throw InvalidArgument(
        "n_ctx is " + std::to_string(options.n_ctx) + "; " + in.source() + " has " +
        std::to_string(h.n_tokens) + " tokens already");
  }
  const std::shared_ptr<Session> session =
      this->session(options.n_ctx > 0 ? options.n_ctx : h.n_ctx, options.cache);
  Session::Impl& s = *session->impl_;
  s.mixed = numerics != own;
  Restoring parts(in, h, s, *m.layout, m.config.vocab_size);
  if (h.n_tokens > 0) {
    parts.read_tokens(m.root_id(numerics));
    parts.read_blocks([&] {
      std::lock_guard lock(impl_->mutex);
      options.cache->trim();
    });
    parts.read_end();
    parts.read_checkpoints();
  }
  in.finish();
  parts.accept();
  return session;
}

}  // namespace grebe
