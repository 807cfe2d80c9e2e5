#include "session/kv_cache.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "backend/backend.h"

namespace grebe {
namespace {

constexpr uint64_t kMaxQueuedBytes = 128 << 20;  // some 70 blocks
constexpr auto kLater = std::chrono::seconds(1);
constexpr auto kHousekeeping = std::chrono::milliseconds(250);
constexpr auto kFirstHold = std::chrono::seconds(1), kLongestHold = std::chrono::seconds(60);
constexpr int kIoThreads = 8;

// An empty record where there is no memory for it: the store refuses that.
template <class F>
NewRecord encoded(F&& encode) {
  try {
    return encode();
  } catch (const std::exception&) {
    return {};
  }
}

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
  writer_ = std::make_unique<StoreWriter>(store_, kMaxQueuedBytes);
  threads_->housekeeper = std::thread([this] { keep_house(); });
}

KvCache::~KvCache() {
  if (pid_ != getpid()) {  // a forked child has none of the threads, nor the right to write
    (void)writer_.release();
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

bool KvCache::flush(std::chrono::milliseconds timeout) {
  if (pid_ != getpid()) return false;
  const Clock::time_point end = Clock::now() + timeout;
  uint64_t n_failed = 0;
  for (bool first = true;; first = false) {
    bool done;
    {
      std::lock_guard lock(mutex_);
      if (!writer_) return waiting_.empty();
      if (first) {
        n_failed = n_failed_;
        hold_ = {};
      } else if (n_failed_ != n_failed) {
        return false;
      }
      for (auto& [due, id] : later_) due = {};
      threads_->wake.notify_all();
      submit_waiting();
      done = waiting_.empty() && later_.empty();
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    if (left.count() <= 0) return false;
    if (!writer_->flush(left)) return false;
    if (done) {
      std::lock_guard lock(mutex_);
      if (waiting_.empty() && later_.empty()) return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

bool KvCache::close(std::chrono::milliseconds timeout) {
  if (pid_ != getpid()) return false;
  {
    std::lock_guard lock(mutex_);
    if (closed_) return true;
  }
  const bool complete = flush(timeout);
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  threads_->wake.notify_all();
  if (threads_->housekeeper.joinable()) threads_->housekeeper.join();
  writer_.reset();
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
    if (pageable_) block->paged = std::make_shared<PagedRows>(pager_, key);
  } else if (writer_) {
    waiting_.push_back(id);
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
  if (!fresh) return;
  stats_.anchors_made++;
  node.checkpoint = std::move(checkpoint);
  node.tail = std::move(tail);
  node.tokens.assign(tail_tokens.begin(), tail_tokens.end());
  node.parent = parent;
  if (store_->find({RecordKind::kAnchor, id})) node.saved = Saved::kYes;
}

// The caller holds mutex_, as for all that follow up to the writer's own functions.
void KvCache::submit_waiting() {
  if (waiting_.empty() || Clock::now() < hold_) return;
  size_t n = 0;
  for (; n < waiting_.size(); n++) {
    const auto at = blocks_.find(waiting_[n]);
    if (at == blocks_.end() || at->second.saved != Saved::kNo) continue;
    if (!submit_block(at->first, at->second)) break;
  }
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<std::ptrdiff_t>(n));
  if (!waiting_.empty()) threads_->wake.notify_all();
}

bool KvCache::submit_block(const Digest& id, BlockNode& node) {
  if (!writer_) return false;
  WriteJob job;
  job.key = {RecordKind::kBlock, id};
  job.bytes = block_bytes();
  job.encode = [this, id] { return encoded([&] { return encode_block(id); }); };
  job.done = [this, id](CommitResult result) { block_written(id, result); };
  node.saved = Saved::kQueued;
  if (writer_->submit(std::move(job))) return true;
  node.saved = Saved::kNo;
  return false;
}

KvCache::AnchorState KvCache::write_anchor(const Digest& id) {
  std::lock_guard lock(mutex_);
  const auto at = anchors_.find(id);
  if (at == anchors_.end() || closed_ || !writer_) return AnchorState::kGone;
  AnchorNode& node = at->second;
  if (node.saved != Saved::kNo) return AnchorState::kWritten;
  if (node.parent != root_) {
    submit_waiting();
    const auto parent = blocks_.find(node.parent);
    if (parent == blocks_.end() ? !store_->find({RecordKind::kBlock, node.parent})
                                : parent->second.saved == Saved::kNo) {
      return AnchorState::kWaiting;
    }
  }
  WriteJob job;
  job.key = {RecordKind::kAnchor, id};
  job.bytes = anchor_bytes(node.checkpoint->pos);
  job.encode = [this, id] { return encoded([&] { return encode_anchor(id); }); };
  job.done = [this, id](CommitResult result) { anchor_written(id, result); };
  node.saved = Saved::kQueued;
  if (writer_->submit(std::move(job))) return AnchorState::kWritten;
  node.saved = Saved::kNo;
  return AnchorState::kWaiting;
}

void KvCache::write_anchor_later(const Digest& id) {
  std::lock_guard lock(mutex_);
  if (closed_ || !writer_) return;
  later_.push_back({Clock::now() + kLater, id});
  stats_.anchors_put_off++;
  threads_->wake.notify_all();
}

bool KvCache::cancel_later(const Digest& id) {
  std::lock_guard lock(mutex_);
  const auto at = std::find_if(
      later_.begin(), later_.end(), [&](const auto& entry) { return entry.second == id; });
  if (at == later_.end()) return false;
  later_.erase(at);
  return true;
}

void KvCache::keep_house() {
  std::unique_lock lock(mutex_);
  while (!closed_) {
    if (waiting_.empty() && later_.empty()) {
      threads_->wake.wait(lock, [this] { return closed_ || !waiting_.empty() || !later_.empty(); });
      continue;
    }
    submit_waiting();
    std::vector<Digest> due;
    const Clock::time_point now = Clock::now();
    for (const auto& [at, id] : later_) {
      if (at <= now) due.push_back(id);
    }
    lock.unlock();
    std::vector<Digest> done;
    for (const Digest& id : due) {
      if (write_anchor(id) != AnchorState::kWaiting) done.push_back(id);
    }
    lock.lock();
    std::erase_if(later_, [&](const auto& entry) {
      return std::find(done.begin(), done.end(), entry.second) != done.end();
    });
    if (!closed_ && !(waiting_.empty() && later_.empty()))
      threads_->wake.wait_for(lock, kHousekeeping);
  }
}

// On the writer's thread, without mutex_.

NewRecord KvCache::encode_block(const Digest& id) {
  NewRecord record;
  record.info.key = {RecordKind::kBlock, id};
  record.info.root = root_;
  std::shared_ptr<KvBlock> block;
  {
    std::lock_guard lock(mutex_);
    const BlockNode& node = blocks_.at(id);
    record.info.parent = node.parent;
    record.info.pos = node.end_pos;
    record.tokens = node.tokens;
    block = node.block;
  }
  if (layout_.rows_bytes == 0 || block->rows.data()) {
    pager_->codec().encode_block(*block, record);
  } else {  // evicted from the disk, and its rows can still be read from a file that is held
    std::vector<uint8_t> rows(layout_.rows_bytes);
    if (block->paged && block->paged->read(kBlockTokens / 4, rows.data())) {
      pager_->codec().encode_block(block->keys.data(), rows.data(), record);
    }
  }
  record.info.bytes = record.payload.size();
  return record;
}

NewRecord KvCache::encode_anchor(const Digest& id) {
  NewRecord record;
  record.info.key = {RecordKind::kAnchor, id};
  record.info.root = root_;
  std::shared_ptr<const Checkpoint> checkpoint;
  std::shared_ptr<KvBlock> tail;
  bool rows_gone = false;
  {
    std::lock_guard lock(mutex_);
    const AnchorNode& node = anchors_.at(id);
    record.info.parent = node.parent;
    record.info.pos = node.checkpoint->pos;
    record.tokens = node.tokens;
    checkpoint = node.checkpoint;
    tail = node.tail;
    if (tail) {
      rows_gone = layout_.rows_bytes > 0 && !tail->rows.data();
      tail->n_readers++;
    }
  }
  if (tail && rows_gone) {  // the tail lies in a full block whose rows have left RAM
    const KvBlock* full = tail.get();
    std::shared_ptr<KvBlock> copy = new_block(true);
    if (layout_.keys_bytes > 0) {
      std::memcpy(copy->keys.data(), full->keys.data(), layout_.keys_bytes);
    }
    const int64_t n_rows = checkpoint->pos % kBlockTokens / 4;
    if (full->paged && full->paged->read(n_rows, copy->rows.data())) {
      pager_->codec().encode_anchor(*checkpoint, copy.get(), record);
    }  // else an empty payload, which the store refuses
  } else {
    pager_->codec().encode_anchor(*checkpoint, tail.get(), record);
  }
  if (tail) {
    std::lock_guard lock(mutex_);
    tail->n_readers--;
  }
  record.info.bytes = record.payload.size();
  return record;
}

void KvCache::block_written(const Digest& id, CommitResult result) {
  std::lock_guard lock(mutex_);
  const auto at = blocks_.find(id);
  if (at == blocks_.end()) return;
  BlockNode& node = at->second;
  changed_ = true;
  if (result == CommitResult::kCommitted) {
    node.saved = Saved::kYes;
    hold_time_ = {};
    if (pageable_) {
      node.block->paged = std::make_shared<PagedRows>(pager_, RecordKey{RecordKind::kBlock, id});
    }
  } else {
    node.saved = Saved::kNo;
    if (result == CommitResult::kNoParent) save_ancestors(node.parent);
    if (result != CommitResult::kReadOnly) waiting_.push_back(id);
    put_on_hold();
  }
}

// What a block follows has been evicted from the disk while sessions went on from it.
void KvCache::save_ancestors(const Digest& id) {
  const auto at = blocks_.find(id);
  if (at == blocks_.end() || at->second.saved == Saved::kQueued || at->second.tokens.empty() ||
      store_->find({RecordKind::kBlock, id})) {
    return;
  }
  save_ancestors(at->second.parent);
  at->second.saved = Saved::kNo;
  waiting_.push_back(id);
}

void KvCache::put_on_hold() {
  n_failed_++;
  const Clock::time_point now = Clock::now();
  if (now < hold_) return;  // of the same batch
  hold_time_ = std::min<Clock::duration>(
      kLongestHold, std::max<Clock::duration>(kFirstHold, 2 * hold_time_));
  hold_ = now + hold_time_;
}

void KvCache::anchor_written(const Digest& id, CommitResult result) {
  std::lock_guard lock(mutex_);
  const auto at = anchors_.find(id);
  if (at == anchors_.end()) return;
  changed_ = true;
  const bool committed = result == CommitResult::kCommitted;
  at->second.saved = committed ? Saved::kYes : Saved::kNo;
  stats_.anchors_written += committed;
  if (!committed) n_failed_++;
  if (result == CommitResult::kNoParent) save_ancestors(at->second.parent);
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

void KvCache::forget(const RecordKey& key) {
  if (key.id != Digest{}) store_->report_damage(key);
  std::lock_guard lock(mutex_);
  stats_.rows_lost++;
  if (key.kind == RecordKind::kBlock) {
    blocks_.erase(key.id);
  } else {
    anchors_.erase(key.id);
  }
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
  for (auto& [id, node] : anchors_) {
    if (node.saved == Saved::kQueued) continue;
    // What a session's own list of checkpoints holds costs nothing here.
    const uint64_t bytes = node.checkpoint.use_count() == 1 ? anchor_ram : 0;
    const uint64_t tail = node.tail && node.tail.use_count() == 1 ? layout_.block_bytes() : 0;
    used += bytes + tail;
    idle.push_back({node.last_use, node.checkpoint->pos, false, &id, bytes + tail});
  }
  for (auto& [id, node] : blocks_) {
    if (node.saved == Saved::kQueued) continue;
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
}

}  // namespace grebe
