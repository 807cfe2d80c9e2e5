#include "session/kv_state.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/shared.h"
#include "session/row_pager.h"

namespace grebe {

KvState::KvState(Backend& backend, const KvLayout& layout)
    : backend_(&backend),
      layout_(&layout),
      table_(std::make_shared<BlockTable>()),
      ring_(backend, layout.ring_bytes, "the KV window"),
      pools_(backend, layout.pool_bytes(), "the compressor state"),
      last_rows_(layout.layers_4.size()) {
  layout.clear_pools(pools());
}

uint64_t KvState::next_stamp() {
  static std::atomic<uint64_t> last{0};
  return ++last;
}

KvState KvState::fork() const {
  KvState copy(*backend_, *layout_);
  std::memcpy(copy.ring_.data(), ring_.data(), ring_.bytes());
  std::memcpy(copy.pools_.data(), pools_.data(), pools_.bytes());
  copy.pos_ = pos_;
  copy.table_ = table_;
  copy.pager_ = pager_;
  copy.checkpoints_ = checkpoints_;
  return copy;
}

uint64_t KvState::n_bytes() const {
  uint64_t bytes = ring_.bytes() + pools_.bytes();
  for (const uint8_t* rows : table_->rows) {
    bytes += layout_->keys_bytes + (rows ? layout_->rows_bytes : 0);
  }
  return bytes;
}

uint64_t KvState::checkpoint_bytes() const {
  return checkpoints_.size() * (ring_.bytes() + pools_.bytes());
}

void KvState::own_table() {
  if (!sole_owner(table_)) table_ = std::make_shared<BlockTable>(*table_);
}

std::shared_ptr<KvBlock> KvState::copy_block(size_t i) const {
  auto block = std::make_shared<KvBlock>();
  if (layout_->keys_bytes > 0)
    block->keys = DeviceMemory(*backend_, layout_->keys_bytes, "a KV block");
  if (layout_->rows_bytes > 0)
    block->rows = DeviceMemory(*backend_, layout_->rows_bytes, "a KV block");
  if (i >= table_->blocks.size()) return block;
  const KvBlock& from = *table_->blocks[i];
  if (layout_->keys_bytes > 0)
    std::memcpy(block->keys.data(), from.keys.data(), layout_->keys_bytes);
  if (from.rows.data()) {
    std::memcpy(block->rows.data(), from.rows.data(), layout_->rows_bytes);
  } else if (layout_->rows_bytes > 0) {
    const int64_t n_tokens = pos_ - static_cast<int64_t>(i) * kBlockTokens;
    if (!from.paged || !from.paged->read(n_tokens / 4, block->rows.data())) {
      RowsLost lost(static_cast<int64_t>(i));
      lost.kv = this;
      throw lost;
    }
  }
  return block;
}

void KvState::set_block(size_t i, std::shared_ptr<KvBlock> block) {
  stamp_ = next_stamp();
  BlockTable& t = *table_;
  if (i == t.blocks.size()) {
    t.blocks.emplace_back();
    t.keys.push_back(nullptr);
    t.rows.push_back(nullptr);
  }
  t.keys[i] = block->keys.data();
  t.rows[i] = block->rows.data();
  t.blocks[i] = std::move(block);
}

void KvState::reserve(int64_t n) {
  if (layout_->block_bytes() == 0) return;
  const size_t first = pos_ / kBlockTokens, end = (pos_ + n + kBlockTokens - 1) / kBlockTokens;
  // Blocks beyond `first` can only be there after a failed step: they hold nothing, but may be
  // shared, so they go too.
  own_table();
  table_->blocks.reserve(end);
  table_->keys.reserve(end);
  table_->rows.reserve(end);
  for (size_t i = first; i < end; i++) {
    // In place only where nobody else, the disk included, has what would be overwritten.
    if (i < table_->blocks.size() && sole_owner(table_->blocks[i]) && !table_->blocks[i]->paged &&
        (layout_->rows_bytes == 0 || table_->blocks[i]->rows.data())) {
      continue;
    }
    set_block(i, copy_block(i));
  }
}

void KvState::refresh_rows() {
  paged_ = false;
  if (layout_->rows_bytes == 0) return;
  for (size_t i = 0; i < table_->blocks.size(); i++) {
    uint8_t* const rows = table_->blocks[i]->rows.data();
    if (table_->rows[i] != rows) {
      table_->rows[i] = rows;
      stamp_ = next_stamp();
    }
    paged_ |= !rows;
  }
}

void KvState::share_block(size_t i, std::shared_ptr<KvBlock> block) {
  own_table();
  set_block(i, std::move(block));
}

void KvState::adopt(
    std::vector<std::shared_ptr<KvBlock>> blocks,
    const std::shared_ptr<const Checkpoint>& checkpoint) {
  auto table = std::make_shared<BlockTable>();
  for (const auto& block : blocks) {
    table->keys.push_back(block->keys.data());
    table->rows.push_back(nullptr);  // until refresh_rows()
  }
  table->blocks = std::move(blocks);
  std::vector<std::shared_ptr<const Checkpoint>> checkpoints;
  checkpoints.reserve(kMaxCheckpoints + 1);
  checkpoints.push_back(checkpoint);
  table_ = std::move(table);
  checkpoints_ = std::move(checkpoints);
  for (std::vector<int32_t>& rows : last_rows_) rows.clear();
  stamp_ = next_stamp();
  pos_ = checkpoint->pos;
  std::memcpy(ring_.data(), checkpoint->ring.data(), ring_.bytes());
  std::memcpy(pools_.data(), checkpoint->pools.data(), pools_.bytes());
}

RowStream KvState::kv_rows(int32_t i_layer) const {
  const KvLayout::Layer& l = layout_->layers[i_layer];
  return {
      (l.ratio == 4 ? table_->rows : table_->keys).data(),
      l.kv_offset,
      l.ratio ? kBlockTokens / l.ratio : 1,
      layout_->kv.row_bytes()};
}

RowStream KvState::index_rows(int32_t i_layer) const {
  const KvLayout::Layer& l = layout_->layers[i_layer];
  return {table_->keys.data(), l.index_offset, kBlockTokens / 4, layout_->index.row_bytes()};
}

void KvState::copy_window(
    int32_t i_layer, const uint8_t* new_rows, int64_t first, int64_t end, uint8_t* out) const {
  const int64_t bytes = layout_->kv.row_bytes(), window = layout_->window_size;
  const uint8_t* old = ring(i_layer);
  out += layout_->layers[i_layer].ring_offset;
  for (int64_t p = std::max<int64_t>(first, 0); p < end; p++) {
    const uint8_t* from = p < pos_ ? old + p % window * bytes : new_rows + (p - pos_) * bytes;
    std::memcpy(out + p % window * bytes, from, bytes);
  }
}

void KvState::accept(int64_t n, const uint8_t* new_rows, int64_t layer_stride, const float* pools) {
  const int64_t end = pos_ + n;
  for (size_t i = 0; i < layout_->layers.size(); i++) {
    copy_window(
        static_cast<int32_t>(i),
        new_rows + i * layer_stride,
        std::max(pos_, end - layout_->window_size),
        end,
        ring_.data());
  }
  std::memcpy(pools_.data(), pools, pools_.bytes());
  pos_ = end;
}

std::shared_ptr<Checkpoint> KvState::new_checkpoint(int64_t pos) const {
  auto checkpoint = std::make_shared<Checkpoint>();
  checkpoint->pos = pos;
  checkpoint->ring = DeviceMemory(*backend_, layout_->ring_bytes, "a checkpoint");
  checkpoint->pools = DeviceMemory(*backend_, layout_->pool_bytes(), "a checkpoint");
  return checkpoint;
}

std::shared_ptr<const Checkpoint> KvState::find_checkpoint(int64_t pos) const {
  for (size_t i = checkpoints_.size(); i-- > 0;) {
    if (checkpoints_[i]->pos <= pos) return checkpoints_[i];
  }
  return nullptr;
}

void KvState::add_checkpoint(std::shared_ptr<const Checkpoint> checkpoint) {
  const auto at = std::lower_bound(
      checkpoints_.begin(), checkpoints_.end(), checkpoint->pos, [](const auto& c, int64_t pos) {
        return c->pos < pos;
      });
  if (at != checkpoints_.end() && (*at)->pos == checkpoint->pos) return;
  checkpoints_.insert(at, std::move(checkpoint));
  if (checkpoints_.size() <= kMaxCheckpoints) return;
  // Thin out so that gaps grow with the distance from the end: going back d tokens replays a fixed
  // share of d. The three newest stay as they are.
  const int64_t end = checkpoints_.back()->pos + 1;
  size_t victim = 0;
  double least = INFINITY;
  for (size_t i = 0; i + 3 < checkpoints_.size(); i++) {
    const int64_t before = i == 0 ? 0 : checkpoints_[i - 1]->pos;
    const double gap = static_cast<double>(checkpoints_[i + 1]->pos - before) /
                       static_cast<double>(end - checkpoints_[i]->pos);
    if (gap < least) {
      least = gap;
      victim = i;
    }
  }
  checkpoints_.erase(checkpoints_.begin() + static_cast<std::ptrdiff_t>(victim));
}

void KvState::truncate(int64_t pos) {
  stamp_ = next_stamp();
  const size_t blocks = (pos + kBlockTokens - 1) / kBlockTokens;
  if (blocks < table_->blocks.size()) {
    own_table();
    table_->blocks.resize(blocks);
    table_->keys.resize(blocks);
    table_->rows.resize(blocks);
  }
  while (!checkpoints_.empty() && checkpoints_.back()->pos > pos) checkpoints_.pop_back();
  for (std::vector<int32_t>& rows : last_rows_) rows.clear();
  pos_ = pos;
}

void KvState::restore(const std::shared_ptr<const Checkpoint>& checkpoint) {
  if (!checkpoint) {
    truncate(0);
    std::memset(ring_.data(), 0, ring_.bytes());  // snapshots of equal states are equal
    layout_->clear_pools(pools());
    return;
  }
  GREBE_ASSERT(checkpoint->pos <= pos_);
  truncate(checkpoint->pos);
  std::memcpy(ring_.data(), checkpoint->ring.data(), ring_.bytes());
  std::memcpy(pools_.data(), checkpoint->pools.data(), pools_.bytes());
}

}  // namespace grebe
