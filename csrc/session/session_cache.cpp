#include "session/session_cache.h"

#include <algorithm>

namespace grebe {
namespace {

constexpr int64_t kAnchorSpacing = 2048;  // tokens between anchors that are written at once
constexpr int kFreeAnchors = 4;
constexpr double kAnchorShare = 0.42;  // of the bytes of blocks

}  // namespace

SessionCache::~SessionCache() {
  try {
    if (last_ && cache_->write_anchor(*last_) == KvCache::AnchorState::kWaiting) {
      cache_->write_anchor_later(*last_);
    }
  } catch (const std::exception&) {  // no memory for the queue: the anchor stays in RAM
  }
}

std::unique_ptr<SessionCache> SessionCache::fork() const {
  auto copy = std::make_unique<SessionCache>(cache_);
  copy->chain_ = chain_;
  copy->anchored_ = anchored_;
  return copy;
}

const Digest& SessionCache::parent_of(size_t i_block) const {
  return i_block == 0 ? cache_->root() : chain_[i_block - 1];
}

std::optional<int64_t> SessionCache::resume(
    KvState& kv,
    std::span<const int32_t> tokens,
    int64_t n_common,
    int64_t limit,
    int64_t min_pos) {
  const size_t n_known = std::min<size_t>(chain_.size(), n_common / kBlockTokens);
  std::optional<KvCache::Found> found = cache_->find(
      tokens, limit, min_pos, std::span(chain_).first(n_known), min_pos == 0 || min_pos < n_common);
  if (!found) return std::nullopt;
  kv.adopt(std::move(found->blocks), found->anchor);
  chain_ = std::move(found->chain);
  last_.reset();
  if (found->on_disk) anchored_ = kv.pos();
  anchored_ = std::min(anchored_, kv.pos());
  return kv.pos();
}

std::shared_ptr<KvBlock> SessionCache::replace_lost(const KvState& kv, size_t i) {
  return i < chain_.size() ? cache_->replace_lost(chain_[i], kv.blocks()[i]) : nullptr;
}

void SessionCache::truncate(int64_t pos) {
  chain_.resize(std::min<size_t>(chain_.size(), pos / kBlockTokens));
  anchored_ = std::min(anchored_, pos);
}

void SessionCache::appended(
    KvState& kv,
    std::span<const int32_t> tokens,
    std::span<const std::shared_ptr<Checkpoint>> made,
    std::span<const int64_t> marks) {
  for (size_t i = chain_.size(); i < tokens.size() / kBlockTokens; i++) {
    const std::span<const int32_t> own = tokens.subspan(i * kBlockTokens, kBlockTokens);
    const Digest id = record_id(RecordKind::kBlock, parent_of(i), own);
    if (!kv.blocks().empty()) {
      kv.blocks()[i]->pinned |= recovering_;
      std::shared_ptr<KvBlock> block = cache_->put_block(
          id, parent_of(i), static_cast<int64_t>(i + 1) * kBlockTokens, own, kv.blocks()[i]);
      if (block != kv.blocks()[i]) kv.share_block(i, std::move(block));
    }
    chain_.push_back(id);
    block_bytes_ += cache_->block_bytes();
  }
  for (const std::shared_ptr<Checkpoint>& checkpoint : made) {
    const int64_t pos = checkpoint->pos;
    if (pos % kAnchorGrid == 0 || std::find(marks.begin(), marks.end(), pos) != marks.end()) {
      mark(kv, tokens, checkpoint, false);
    }
  }
}

void SessionCache::turn_ended(const KvState& kv, std::span<const int32_t> tokens) {
  const std::shared_ptr<const Checkpoint> checkpoint = kv.find_checkpoint(kv.pos());
  if (checkpoint && kv.pos() - checkpoint->pos < kCheckpointTokens) {
    mark(kv, tokens, checkpoint, true);
  }
}

void SessionCache::forget_last() {
  if (!last_) return;
  if (last_bytes_ > 0 && cache_->cancel_later(*last_)) anchor_bytes_ -= last_bytes_;
  last_.reset();
}

void SessionCache::mark(
    const KvState& kv,
    std::span<const int32_t> tokens,
    const std::shared_ptr<const Checkpoint>& checkpoint,
    bool end) {
  const int64_t pos = checkpoint->pos;
  const size_t i_block = pos / kBlockTokens;
  const std::span<const int32_t> tail = tokens.subspan(i_block * kBlockTokens, pos % kBlockTokens);
  const Digest id = record_id(RecordKind::kAnchor, parent_of(i_block), tail);
  // A point may be marked first and turn out to be the end of a turn afterwards.
  if (last_ == id && (!end || last_bytes_ > 0)) return;
  if (last_ != id) {
    forget_last();
    cache_->put_anchor(
        id,
        parent_of(i_block),
        tail,
        checkpoint,
        tail.empty() || kv.blocks().empty() ? nullptr : kv.blocks()[i_block]);
  }

  const uint64_t bytes = cache_->anchor_bytes(pos);
  const double allowed =
      kAnchorShare * static_cast<double>(block_bytes_) + kFreeAnchors * static_cast<double>(bytes);
  const bool affordable = static_cast<double>(anchor_bytes_ + bytes) <= allowed;
  if (affordable && pos - anchored_ >= kAnchorSpacing &&
      cache_->write_anchor(id) == KvCache::AnchorState::kTaken) {
    anchored_ = pos;
    anchor_bytes_ += bytes;
    return;
  }
  last_ = id;
  last_bytes_ = 0;
  if (end && affordable && pos > anchored_) {
    cache_->write_anchor_later(id);
    last_bytes_ = bytes;
    anchor_bytes_ += bytes;
  }
}

}  // namespace grebe
