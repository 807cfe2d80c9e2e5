// The writing half of KvCache: what goes to the disk, when, and again if the disk did not take it.
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "session/kv_cache.h"

namespace grebe {
namespace {

constexpr auto kLater = std::chrono::seconds(1);
constexpr auto kHousekeeping = std::chrono::milliseconds(250);
constexpr auto kFirstHold = std::chrono::seconds(1), kLongestHold = std::chrono::seconds(60);

// An empty payload, which the writer gives back as failed, where there is no memory for it.
template <class F>
NewRecord encoded(F&& encode) {
  try {
    return encode();
  } catch (const std::exception&) {
    return {};
  }
}

}  // namespace

bool KvCache::flush(std::chrono::milliseconds timeout) {
  if (pid_ != getpid()) return false;
  const Clock::time_point end = Clock::now() + timeout;
  uint64_t n_failed = 0;
  std::shared_ptr<StoreWriter> writer;
  for (bool first = true;; first = false) {
    bool done;
    {
      std::lock_guard lock(mutex_);
      writer = writer_;
      if (!writer) return waiting_.empty();
      if (first) {
        n_failed = n_failed_;
        hold_ = {};
        check_saved();
      } else if (n_failed_ != n_failed) {
        return false;
      }
      for (auto& [id, due] : later_) due = {};
      threads_->wake.notify_all();
      submit_waiting();
      done = waiting_.empty() && later_.empty();
    }
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(end - Clock::now());
    if (left.count() <= 0) return false;
    if (!writer->flush(left)) return false;
    if (done) {
      std::lock_guard lock(mutex_);
      if (waiting_.empty() && later_.empty()) return true;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

// Records may have left the store since they were written: evicted, damaged, or with a file that
// somebody removed. The caller holds mutex_, as for the next few.
void KvCache::check_saved() {
  for (auto& [id, node] : blocks_) {
    if (node.saved == Saved::kYes && !store_->find({RecordKind::kBlock, id})) {
      save_block(id, node);
    }
  }
  for (auto& [id, node] : anchors_) {
    if (node.saved == Saved::kYes && !store_->find({RecordKind::kAnchor, id})) {
      node.saved = Saved::kNo;
      later_[id] = {};
    }
  }
}

// Writes a block, what it follows first. False when that can be had from nowhere.
bool KvCache::save_block(const Digest& id, BlockNode& node) {
  if (node.saved == Saved::kQueued || node.saved == Saved::kWaiting) return true;
  if (!writer_) return false;
  if (node.parent != root_ && !store_->find({RecordKind::kBlock, node.parent})) {
    const auto parent = blocks_.find(node.parent);
    if (parent == blocks_.end() || !save_block(parent->first, parent->second)) {
      node.saved = Saved::kNo;
      return false;
    }
  }
  node.saved = Saved::kWaiting;
  waiting_.push_back(id);
  return true;
}

void KvCache::submit_waiting() {
  if (waiting_.empty() || Clock::now() < hold_) return;
  size_t n = 0;
  for (; n < waiting_.size(); n++) {
    const auto at = blocks_.find(waiting_[n]);
    if (at == blocks_.end() || at->second.saved != Saved::kWaiting) continue;
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
  node.saved = Saved::kWaiting;
  return false;
}

KvCache::AnchorState KvCache::write_anchor(const Digest& id) {
  std::lock_guard lock(mutex_);
  const auto at = anchors_.find(id);
  if (at == anchors_.end() || closed_ || !writer_) return AnchorState::kGone;
  AnchorNode& node = at->second;
  if (node.saved == Saved::kQueued) return AnchorState::kTaken;
  if (store_->find({RecordKind::kAnchor, id})) {
    node.saved = Saved::kYes;
    return AnchorState::kTaken;
  }
  if (node.parent != root_ && !store_->find({RecordKind::kBlock, node.parent})) {
    const auto parent = blocks_.find(node.parent);
    if (parent == blocks_.end() || !save_block(parent->first, parent->second)) {
      return AnchorState::kGone;
    }
    submit_waiting();
    if (parent->second.saved != Saved::kQueued) return AnchorState::kWaiting;
  }
  WriteJob job;
  job.key = {RecordKind::kAnchor, id};
  job.bytes = anchor_bytes(node.checkpoint->pos);
  job.encode = [this, id] { return encoded([&] { return encode_anchor(id); }); };
  job.done = [this, id](CommitResult result) { anchor_written(id, result); };
  node.saved = Saved::kQueued;
  if (writer_->submit(std::move(job))) return AnchorState::kTaken;
  node.saved = Saved::kNo;
  return AnchorState::kWaiting;
}

void KvCache::write_anchor_later(const Digest& id) {
  std::lock_guard lock(mutex_);
  if (closed_ || !writer_) return;
  later_[id] = Clock::now() + kLater;
  stats_.anchors_put_off++;
  threads_->wake.notify_all();
}

bool KvCache::cancel_later(const Digest& id) {
  std::lock_guard lock(mutex_);
  return later_.erase(id) > 0;
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
    for (const auto& [id, at] : later_) {
      if (at <= now) due.push_back(id);
    }
    for (const Digest& id : due) {
      later_.erase(id);  // first: a write that fails puts it there again
      lock.unlock();
      const bool waits = write_anchor(id) == AnchorState::kWaiting;
      lock.lock();
      if (waits) later_[id] = now;
    }
    if (!closed_ && !(waiting_.empty() && later_.empty())) {
      threads_->wake.wait_for(lock, kHousekeeping);
    }
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
  const bool resident = hold_rows(*block);
  if (layout_.rows_bytes == 0 || resident) {
    pager_->codec().encode_block(*block, record);
  } else {  // evicted from the disk, and its rows can still be read from a file that is held
    std::vector<uint8_t> rows(layout_.rows_bytes);
    if (block->paged && block->paged->read(kBlockTokens / 4, rows.data())) {
      pager_->codec().encode_block(block->keys.data(), rows.data(), record);
    }
  }
  let_rows_go(*block);
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
  }
  if (tail) rows_gone = !hold_rows(*tail) && layout_.rows_bytes > 0;
  if (tail && rows_gone) {  // the tail lies in a full block whose rows have left RAM
    const KvBlock* full = tail.get();
    std::shared_ptr<KvBlock> copy = new_block(true);
    if (layout_.keys_bytes > 0) {
      std::memcpy(copy->keys.data(), full->keys.data(), layout_.keys_bytes);
    }
    const int64_t n_rows = checkpoint->pos % kBlockTokens / 4;
    if (full->paged && full->paged->read(n_rows, copy->rows.data())) {
      pager_->codec().encode_anchor(*checkpoint, copy.get(), record);
    }  // else an empty payload, as above
  } else {
    pager_->codec().encode_anchor(*checkpoint, tail.get(), record);
  }
  if (tail) let_rows_go(*tail);
  record.info.bytes = record.payload.size();
  return record;
}

void KvCache::block_written(const Digest& id, CommitResult result) {
  std::lock_guard lock(mutex_);
  const auto at = blocks_.find(id);
  if (at == blocks_.end()) return;
  BlockNode& node = at->second;
  changed_ = true;
  node.saved = Saved::kNo;
  switch (result) {
    case CommitResult::kCommitted:
      node.saved = Saved::kYes;
      node.block->pinned = false;
      hold_time_ = {};
      if (pageable_ && !node.block->paged) {
        node.block->paged = std::make_shared<PagedRows>(pager_, RecordKey{RecordKind::kBlock, id});
      }
      break;
    case CommitResult::kNoParent:  // evicted, while sessions went on from it
      n_failed_++;
      save_block(id, node);
      break;
    case CommitResult::kReadOnly:
      break;
    default:
      save_block(id, node);
      put_on_hold();
  }
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
  if (result == CommitResult::kCommitted) {
    at->second.saved = Saved::kYes;
    stats_.anchors_written++;
    return;
  }
  at->second.saved = Saved::kNo;
  if (result == CommitResult::kReadOnly) return;
  n_failed_++;
  later_[id] = std::max(hold_, Clock::now() + kLater);
  threads_->wake.notify_all();
}

}  // namespace grebe
