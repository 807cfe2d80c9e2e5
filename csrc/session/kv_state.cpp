#include "session/kv_state.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "core/shared.h"

namespace grebe {

KvLayout::KvLayout(const ModelConfig& c, bool rounding, bool exact) {
  kv.head_dim = c.head_dim;
  kv.rope_dim = c.rope_dim;
  kv.kind = !rounding ? KvRowFormat::Kind::kF32
            : exact   ? KvRowFormat::Kind::kPackedF32
                      : KvRowFormat::Kind::kPackedBf16;
  index.packed = rounding;
  index.dim = c.index_head_dim;
  window_size = c.window_size;
  for (int32_t i = 0; i < c.n_layers; i++) {
    Layer l;
    l.ratio = c.compress_ratios[i];
    l.ring_offset = ring_bytes;
    ring_bytes += window_size * kv.row_bytes();
    if (l.ratio != 0) {
      const int64_t rows = kBlockTokens / l.ratio;
      l.kv_offset = block_bytes;
      block_bytes += rows * kv.row_bytes();
      l.pool = {l.ratio, c.head_dim};
      l.pool_offset = pool_floats;
      pool_floats += l.pool.n_floats();
    }
    if (l.ratio == 4) {
      l.index_offset = block_bytes;
      block_bytes += (kBlockTokens / l.ratio * index.row_bytes() + 7) / 8 * 8;
      l.index_pool = {l.ratio, c.index_head_dim};
      l.index_pool_offset = pool_floats;
      pool_floats += l.index_pool.n_floats();
    }
    layers.push_back(l);
  }
}

namespace {

void clear_pools(const KvLayout& layout, float* pools) {
  const auto clear = [&](int64_t offset, const PoolShape& shape) {
    for (float* part = pools + offset; part < pools + offset + shape.n_floats();
         part += 3 * shape.dim) {
      std::fill_n(part, shape.dim, -INFINITY);
      std::fill_n(part + shape.dim, 2 * shape.dim, 0.f);
    }
  };
  for (const KvLayout::Layer& l : layout.layers) {
    if (l.ratio != 0) clear(l.pool_offset, l.pool);
    if (l.ratio == 4) clear(l.index_pool_offset, l.index_pool);
  }
}

}  // namespace

KvState::KvState(Backend& backend, const KvLayout& layout)
    : backend_(&backend),
      layout_(&layout),
      table_(std::make_shared<BlockTable>()),
      ring_(backend, layout.ring_bytes, "the KV window"),
      pools_(backend, layout.pool_bytes(), "the compressor state") {
  clear_pools(layout, pools());
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
  copy.checkpoints_ = checkpoints_;
  return copy;
}

uint64_t KvState::n_bytes() const {
  return ring_.bytes() + pools_.bytes() + table_->blocks.size() * layout_->block_bytes;
}

uint64_t KvState::checkpoint_bytes() const {
  return checkpoints_.size() * (ring_.bytes() + pools_.bytes());
}

void KvState::own_table() {
  if (!sole_owner(table_)) table_ = std::make_shared<BlockTable>(*table_);
}

void KvState::reserve(int64_t n) {
  if (layout_->block_bytes == 0) return;
  const size_t first = pos_ / kBlockTokens, end = (pos_ + n + kBlockTokens - 1) / kBlockTokens;
  // Blocks beyond `first` can only be there after a failed step: they hold nothing, but may be
  // shared, so they go too.
  own_table();
  const auto fresh = [&] {
    return std::make_shared<DeviceMemory>(*backend_, layout_->block_bytes, "a KV block");
  };
  table_->blocks.reserve(end);
  table_->bases.reserve(end);
  for (size_t i = first; i < end; i++) {
    if (i < table_->blocks.size() && sole_owner(table_->blocks[i])) continue;
    stamp_ = next_stamp();
    std::shared_ptr<DeviceMemory> block = fresh();
    if (i < table_->blocks.size()) {
      std::memcpy(block->data(), table_->blocks[i]->data(), layout_->block_bytes);
      table_->bases[i] = block->data();
      table_->blocks[i] = std::move(block);
    } else {
      table_->bases.push_back(block->data());
      table_->blocks.push_back(std::move(block));
    }
  }
}

RowStream KvState::kv_rows(int32_t i_layer) const {
  const KvLayout::Layer& l = layout_->layers[i_layer];
  return {
      table_->bases.data(),
      l.kv_offset,
      l.ratio ? kBlockTokens / l.ratio : 1,
      layout_->kv.row_bytes()};
}

RowStream KvState::index_rows(int32_t i_layer) const {
  const KvLayout::Layer& l = layout_->layers[i_layer];
  return {table_->bases.data(), l.index_offset, kBlockTokens / 4, layout_->index.row_bytes()};
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
    table_->bases.resize(blocks);
  }
  while (!checkpoints_.empty() && checkpoints_.back()->pos > pos) checkpoints_.pop_back();
  pos_ = pos;
}

void KvState::restore(const std::shared_ptr<const Checkpoint>& checkpoint) {
  if (!checkpoint) {
    truncate(0);
    std::memset(ring_.data(), 0, ring_.bytes());  // snapshots of equal states are equal
    clear_pools(*layout_, pools());
    return;
  }
  GREBE_ASSERT(checkpoint->pos <= pos_);
  truncate(checkpoint->pos);
  std::memcpy(ring_.data(), checkpoint->ring.data(), ring_.bytes());
  std::memcpy(pools_.data(), checkpoint->pools.data(), pools_.bytes());
}

}  // namespace grebe
