#include "session/kv_cache.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "backend/backend.h"

namespace grebe {
namespace {

constexpr uint64_t kMaxQueuedBytes = 128 << 20;  // some 70 blocks
constexpr int kIoThreads = 8;

}  // namespace

KvCache::KvCache(
    std::shared_ptr<void> owner,
    Backend& backend,
    const KvLayout& layout,
    const RootInfo& model,
    const Options& options)
    : owner_(std::move(owner)),
      backend_(backend),
      layout_(layout),
      ram_bytes_(options.ram_bytes),
      pageable_(backend.runs_ops_at_once()),
      pid_(getpid()),
      root_(model.id),
      store_(BlockStore::open(options.store)),
      pager_(std::make_shared<RowPager>(layout, store_)),
      io_(kIoThreads) {
  store_->add_root(model);
  pager_->set_budget(ram_bytes_);
  if (store_->stats().read_only) return;
  writer_ = std::make_shared<StoreWriter>(store_, kMaxQueuedBytes);
  threads_->housekeeper = std::thread([this] { keep_house(); });
}

KvCache::~KvCache() {
  if (pid_ != getpid()) {  // a forked child has none of the threads, nor the right to write
    new std::shared_ptr<StoreWriter>(std::move(writer_));
    (void)threads_.release();
    return;
  }
  close(std::chrono::seconds(10));
}

uint64_t KvCache::block_bytes() const { return pager_->codec().block_payload_bytes(); }
uint64_t KvCache::anchor_bytes(int64_t pos) const {
  return pager_->codec().anchor_payload_bytes(pos % kBlockTokens);
}

CacheStats KvCache::stats() const {
  CacheStats s;
  {
    std::lock_guard lock(mutex_);
    s = stats_;
    for (const auto& [id, node] : blocks_) {
      if (node.saved != Saved::kYes) s.unsaved_bytes += layout_.block_bytes();
    }
    if (writer_) s.writer = writer_->stats();
  }
  s.store = store_->stats();
  s.pager = pager_->stats();
  return s;
}

bool KvCache::close(std::chrono::milliseconds timeout) {
  if (pid_ != getpid()) return false;
  const bool complete = flush(timeout);
  std::shared_ptr<StoreWriter> writer;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return complete;
    closed_ = true;
    writer.swap(writer_);
  }
  threads_->wake.notify_all();
  if (threads_->housekeeper.joinable()) threads_->housekeeper.join();
  writer.reset();  // ends its thread, unless a flush() still waits for it
  store_->stop_writing();
  return complete;
}

std::shared_ptr<KvBlock> KvCache::put_block(
    const Digest& id,
    const Digest& parent,
    int64_t end_pos,
    std::span<const int32_t> tokens,
    std::shared_ptr<KvBlock> block) {
  std::lock_guard lock(mutex_);
  if (closed_) return block;
  stats_.blocks_sealed++;
  changed_ = true;
  const auto [at, fresh] = blocks_.try_emplace(id);
  BlockNode& node = at->second;
  node.last_use = ++tick_;
  if (!fresh) {
    stats_.blocks_shared++;
    if (block->pinned && !node.block->rows.data()) node.block = std::move(block);
    if (node.saved == Saved::kNo ||
        (node.saved == Saved::kYes && !store_->find({RecordKind::kBlock, id}))) {
      node.saved = Saved::kNo;
      save_block(id, node);
      submit_waiting();
    }
    return node.block;
  }
  node.block = block;
  node.parent = parent;
  node.end_pos = end_pos;
  node.made = tick_;
  node.tokens.assign(tokens.begin(), tokens.end());
  const RecordKey key{RecordKind::kBlock, id};
  if (store_->find(key)) {
    node.saved = Saved::kYes;
    stats_.blocks_shared++;
    if (pageable_ && !block->paged) block->paged = std::make_shared<PagedRows>(pager_, key);
  } else {
    save_block(id, node);
    submit_waiting();
  }
  return block;
}

void KvCache::put_anchor(
    const Digest& id,
    const Digest& parent,
    std::span<const int32_t> tail_tokens,
    std::shared_ptr<const Checkpoint> checkpoint,
    std::shared_ptr<KvBlock> tail) {
  std::lock_guard lock(mutex_);
  if (closed_) return;
  changed_ = true;
  const auto [at, fresh] = anchors_.try_emplace(id);
  AnchorNode& node = at->second;
  node.last_use = ++tick_;
  if (!fresh) return;  // write_anchor() looks whether the disk has it
  stats_.anchors_made++;
  node.checkpoint = std::move(checkpoint);
  node.tail = std::move(tail);
  node.tokens.assign(tail_tokens.begin(), tail_tokens.end());
  node.parent = parent;
  if (store_->find({RecordKind::kAnchor, id})) node.saved = Saved::kYes;
}

bool KvCache::hold_rows(KvBlock& block) {
  std::lock_guard lock(mutex_);
  block.n_readers++;
  return block.rows.data() != nullptr;
}

void KvCache::let_rows_go(KvBlock& block) {
  std::lock_guard lock(mutex_);
  block.n_readers--;
}

std::shared_ptr<KvBlock> KvCache::replace_lost(
    const Digest& id, const std::shared_ptr<KvBlock>& lost) {
  const bool damaged = lost->paged && lost->paged->damaged();
  {
    std::lock_guard lock(mutex_);
    stats_.rows_lost++;
    const auto at = blocks_.find(id);
    if (at != blocks_.end()) {
      const std::shared_ptr<KvBlock>& known = at->second.block;
      if (known != lost && (known->rows.data() || (known->paged && known->paged != lost->paged))) {
        return known;  // somebody has computed it again
      }
      blocks_.erase(at);
    }
  }
  if (damaged) store_->report_damage({RecordKind::kBlock, id});
  return nullptr;
}

void KvCache::trim() {
  {
    std::lock_guard lock(mutex_);
    if (!changed_) return;
    changed_ = false;
  }
  trim(ram_bytes_);
}

void KvCache::trim(uint64_t ram_bytes) {
  struct Idle {
    uint64_t last_use;
    int64_t pos;
    bool is_block;
    const Digest* id;
    uint64_t bytes;
  };
  std::vector<std::shared_ptr<void>> gone;  // let go after the lock
  std::unique_lock lock(mutex_);
  const uint64_t anchor_ram = layout_.ring_bytes + layout_.pool_bytes();
  const uint64_t rows_bytes = layout_.rows_bytes;
  std::vector<Idle> idle;
  std::vector<BlockNode*> with_rows;  // that may leave
  uint64_t used = 0;
  constexpr size_t kMaxAwaited = 16;  // anchors that stay for a disk that refuses them
  for (auto& [id, node] : anchors_) {
    if (node.saved == Saved::kQueued) continue;
    if (later_.size() <= kMaxAwaited && later_.contains(id)) continue;
    // What a session's own list of checkpoints holds costs nothing here.
    const uint64_t bytes = node.checkpoint.use_count() == 1 ? anchor_ram : 0;
    const uint64_t tail = node.tail && node.tail.use_count() == 1 ? layout_.block_bytes() : 0;
    used += bytes + tail;
    idle.push_back({node.last_use, node.checkpoint->pos, false, &id, bytes + tail});
  }
  for (auto& [id, node] : blocks_) {
    if (node.saved == Saved::kQueued) continue;
    if (node.saved == Saved::kYes && !store_->find({RecordKind::kBlock, id})) {
      node.saved = Saved::kNo;  // evicted: its rows here are the only ones
      if (node.block.use_count() > 1) save_block(id, node);
    }
    const bool rows = node.block->rows.data() != nullptr;
    if (node.block.use_count() == 1) {
      const uint64_t bytes = layout_.keys_bytes + (rows ? rows_bytes : 0);
      used += bytes;
      idle.push_back({node.last_use, node.end_pos, true, &id, bytes});
    } else if (rows && pageable_ && node.saved == Saved::kYes && !node.block->pinned) {
      used += rows_bytes;
      with_rows.push_back(&node);
    }
  }
  std::sort(idle.begin(), idle.end(), [](const Idle& a, const Idle& b) {
    return a.last_use != b.last_use ? a.last_use < b.last_use : a.pos > b.pos;
  });
  const uint64_t target = ram_bytes - ram_bytes / 4;  // a quarter at least is for pages
  for (const Idle& item : idle) {
    if (used <= target) break;
    if (item.bytes == 0) continue;
    used -= item.bytes;
    if (item.is_block) {
      const auto at = blocks_.find(*item.id);
      gone.push_back(std::move(at->second.block));
      blocks_.erase(at);
    } else {
      const auto at = anchors_.find(*item.id);
      gone.push_back(std::const_pointer_cast<Checkpoint>(at->second.checkpoint));
      gone.push_back(std::move(at->second.tail));
      anchors_.erase(at);
    }
  }
  std::sort(with_rows.begin(), with_rows.end(), [](const BlockNode* a, const BlockNode* b) {
    return a->made < b->made;
  });
  for (BlockNode* node : with_rows) {
    if (used <= target) break;
    if (node->block->n_readers > 0) continue;
    gone.push_back(std::make_shared<DeviceMemory>(std::move(node->block->rows)));
    used -= rows_bytes;
  }
  stats_.ram_bytes = used;
  lock.unlock();
  pager_->set_budget(ram_bytes - std::min(used, target));
  if (ram_bytes != ram_bytes_) pager_->set_budget(ram_bytes_ - std::min(used, ram_bytes_));
}

}  // namespace grebe
