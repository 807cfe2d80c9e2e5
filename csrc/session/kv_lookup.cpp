// The reading half of KvCache: from tokens to the longest state that is known.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <new>

#include "core/error.h"
#include "session/kv_cache.h"

namespace grebe {
namespace {

constexpr int kMaxAttempts = 16;  // each one that fails asks for less

// Reads again before it believes that the disk cannot.
template <class F>
Decoded twice(F&& read) {
  const Decoded first = read();
  return first == Decoded::kGood ? first : read();
}

}  // namespace

bool KvCache::exists(RecordKind kind, const Digest& id) {
  {
    std::lock_guard lock(mutex_);
    if (kind == RecordKind::kBlock ? blocks_.contains(id) : anchors_.contains(id)) return true;
  }
  return store_->find({kind, id}).has_value();
}

// The deepest anchor within (min_pos, limit] after the first `depth` blocks.
std::optional<KvCache::Candidate> KvCache::choose(
    std::span<const int32_t> tokens,
    int64_t limit,
    int64_t min_pos,
    std::span<const Digest> chain) {
  for (int64_t depth = static_cast<int64_t>(chain.size()); depth >= 0; depth--) {
    const int64_t begin = depth * kBlockTokens;
    if (begin + kBlockTokens <= min_pos) break;
    const Digest& parent = depth == 0 ? root_ : chain[depth - 1];
    for (int64_t tail = kBlockTokens - kCheckpointTokens; tail >= 0; tail -= kCheckpointTokens) {
      const int64_t pos = begin + tail;
      if (pos > limit || pos <= min_pos || pos == 0) continue;
      const Digest id = record_id(RecordKind::kAnchor, parent, tokens.subspan(begin, tail));
      if (exists(RecordKind::kAnchor, id)) return Candidate{{RecordKind::kAnchor, id}, pos};
    }
  }
  return std::nullopt;
}

std::optional<KvCache::Found> KvCache::find(
    std::span<const int32_t> tokens,
    int64_t limit,
    int64_t min_pos,
    std::span<const Digest> known,
    bool may_hit) {
  {
    std::lock_guard lock(mutex_);
    if (closed_ || limit / kCheckpointTokens * kCheckpointTokens <= min_pos) return std::nullopt;
    // A session that only goes on has all that there can be; it is asked for and not counted.
    if (may_hit) stats_.n_lookups++;
    if (may_hit) stats_.tokens_wanted += limit - min_pos;
  }
  std::vector<Digest> chain(known.begin(), known.end());
  const size_t n_full = limit / kBlockTokens;
  chain.resize(std::min(chain.size(), n_full));
  for (size_t i = chain.size(); i < n_full; i++) {
    const Digest id = record_id(
        RecordKind::kBlock,
        i == 0 ? root_ : chain[i - 1],
        tokens.subspan(i * kBlockTokens, kBlockTokens));
    if (!exists(RecordKind::kBlock, id)) break;
    chain.push_back(id);
  }
  for (int attempt = 0; attempt < kMaxAttempts; attempt++) {
    const std::optional<Candidate> candidate = choose(tokens, limit, min_pos, chain);
    if (!candidate) {
      std::lock_guard lock(mutex_);
      if (!may_hit) return std::nullopt;
      (static_cast<int64_t>(chain.size()) * kBlockTokens > min_pos ? stats_.misses_no_anchor
                                                                   : stats_.misses_unknown)++;
      return std::nullopt;
    }
    Found found;
    found.chain.assign(chain.begin(), chain.begin() + candidate->pos / kBlockTokens);
    size_t n_good = found.chain.size();
    try {
      if (load(*candidate, tokens, n_good, found)) {
        std::lock_guard lock(mutex_);
        stats_.n_hits++;
        if (!may_hit) stats_.n_lookups++;
        stats_.tokens_found += candidate->pos - min_pos;
        return found;
      }
    } catch (const std::exception&) {  // OutOfMemory, bad_alloc
      std::lock_guard lock(mutex_);
      stats_.misses_memory++;
      return std::nullopt;
    }
    if (n_good < found.chain.size()) chain.resize(n_good);
    limit = candidate->pos - 1;
    std::lock_guard lock(mutex_);
    stats_.misses_damaged++;
  }
  return std::nullopt;
}

std::shared_ptr<KvBlock> KvCache::new_block(bool with_rows) const {
  auto block = std::make_shared<KvBlock>();
  if (layout_.keys_bytes > 0)
    block->keys = DeviceMemory(backend_, layout_.keys_bytes, "a KV block");
  if (with_rows && layout_.rows_bytes > 0) {
    block->rows = DeviceMemory(backend_, layout_.rows_bytes, "a KV block");
  }
  return block;
}

// Brings blocks and anchor into RAM. False: some are damaged (and dropped) or cannot be read now;
// n_good blocks before the first of them are fine.
bool KvCache::load(
    const Candidate& candidate, std::span<const int32_t> tokens, size_t& n_good, Found& found) {
  const size_t n = found.chain.size();
  found.blocks.resize(n);
  std::vector<size_t> missing;
  {
    std::lock_guard lock(mutex_);
    tick_++;
    for (size_t i = 0; i < n; i++) {
      const auto at = blocks_.find(found.chain[i]);
      if (at == blocks_.end()) {
        missing.push_back(i);
      } else {
        at->second.last_use = tick_;
        found.blocks[i] = at->second.block;
      }
    }
  }
  for (size_t i : missing) found.blocks[i] = new_block(!pageable_);
  std::vector<Decoded> decoded(missing.size(), Decoded::kUnreadable);
  std::atomic<bool> no_memory{false};
  io_.parallel_for(static_cast<int64_t>(missing.size()), [&](int64_t m) {
    try {
      decoded[m] = load_block(found.chain[missing[m]], *found.blocks[missing[m]]);
    } catch (const std::exception&) {
      no_memory = true;
    }
  });
  if (no_memory) throw std::bad_alloc();
  {
    std::lock_guard lock(mutex_);
    changed_ = true;
    stats_.blocks_from_ram += n - missing.size();
    for (size_t m = 0; m < missing.size() && decoded[m] == Decoded::kGood; m++) {
      const size_t i = missing[m];
      const auto [at, fresh] = blocks_.try_emplace(found.chain[i]);
      BlockNode& node = at->second;
      node.last_use = tick_;
      if (fresh) {
        node.block = found.blocks[i];
        node.parent = i == 0 ? root_ : found.chain[i - 1];
        node.end_pos = static_cast<int64_t>(i + 1) * kBlockTokens;
        const auto own = tokens.subspan(i * kBlockTokens, kBlockTokens);
        node.tokens.assign(own.begin(), own.end());
        node.saved = Saved::kYes;
        node.made = tick_;
        stats_.blocks_from_disk++;
      } else {
        found.blocks[i] = node.block;
      }
    }
  }
  for (size_t m = 0; m < missing.size(); m++) {
    if (decoded[m] == Decoded::kGood) continue;
    if (decoded[m] == Decoded::kDamaged) {
      store_->report_damage({RecordKind::kBlock, found.chain[missing[m]]});
    }
    n_good = missing[m];
    return false;
  }
  return load_anchor(candidate, found);
}

Decoded KvCache::load_block(const Digest& id, KvBlock& block) {
  const RecordKey key{RecordKind::kBlock, id};
  return twice([&] {
    const std::optional<RecordView> view = store_->view(key);
    if (!view) return Decoded::kUnreadable;
    const Decoded keys = pager_->codec().decode_keys(*view, id, block);
    if (keys != Decoded::kGood) return keys;
    if (pageable_) {
      block.paged = std::make_shared<PagedRows>(pager_, key);
      return Decoded::kGood;
    }
    if (layout_.rows_bytes == 0) return Decoded::kGood;
    return pager_->codec().decode_rows(*view, id, kBlockTokens / 4, block.rows.data());
  });
}

bool KvCache::load_anchor(const Candidate& candidate, Found& found) {
  const bool has_tail = candidate.pos % kBlockTokens != 0 && layout_.block_bytes() > 0;
  {
    std::lock_guard lock(mutex_);
    const auto at = anchors_.find(candidate.anchor.id);
    if (at != anchors_.end()) {
      at->second.last_use = ++tick_;
      found.anchor = at->second.checkpoint;
      found.on_disk = at->second.saved != Saved::kNo;
      if (has_tail) found.blocks.push_back(at->second.tail);
    }
  }
  if (!found.anchor) {
    auto anchor = std::make_shared<Checkpoint>();
    anchor->pos = candidate.pos;
    anchor->ring = DeviceMemory(backend_, layout_.ring_bytes, "a checkpoint");
    anchor->pools = DeviceMemory(backend_, layout_.pool_bytes(), "a checkpoint");
    std::shared_ptr<KvBlock> tail;
    if (has_tail) tail = new_block(true);
    const Digest& id = candidate.anchor.id;
    const Decoded decoded = twice([&] {
      const std::optional<RecordView> view = store_->view(candidate.anchor);
      return view ? pager_->codec().decode_anchor(*view, id, *anchor, tail.get())
                  : Decoded::kUnreadable;
    });
    if (decoded != Decoded::kGood) {
      if (decoded == Decoded::kDamaged) store_->report_damage(candidate.anchor);
      return false;
    }
    found.anchor = std::move(anchor);
    found.on_disk = true;
    if (tail) found.blocks.push_back(std::move(tail));
  }
  store_->touch({&candidate.anchor, 1});
  return true;
}

}  // namespace grebe
