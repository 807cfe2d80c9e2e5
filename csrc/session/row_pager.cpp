#include "session/row_pager.h"

#include <algorithm>
#include <cstring>

namespace grebe {
namespace {

constexpr int kIoThreads = 16;
constexpr int32_t kFramesPerSlab = 64;
constexpr int64_t kPagesPerTask = 2;
constexpr int32_t kRowsPerBlock = kBlockTokens / 4;

}  // namespace

PagedRows::PagedRows(std::shared_ptr<RowPager> pager, const RecordKey& key)
    : pager_(std::move(pager)), key_(key), frames_(pager_->codec().n_row_pages(), -1) {}

PagedRows::~PagedRows() {
  std::unique_lock lock(pager_->mutex_);
  for (const int32_t& frame : frames_) {
    if (frame < 0) continue;
    pager_->loaded_.wait(lock, [&] { return !pager_->frames_[frame].loading; });
    pager_->drop_frame(frame);
  }
}

// A view holds its file: it is taken again when records have moved.
RecordView PagedRows::view() const {
  std::lock_guard lock(mutex_);
  const uint64_t epoch = pager_->store_->epoch();
  if (!view_.valid() || epoch_ != epoch) {
    if (std::optional<RecordView> found = pager_->store_->view(key_)) view_ = std::move(*found);
    epoch_ = epoch;
  }
  return view_;
}

bool PagedRows::read(int64_t n_rows, uint8_t* rows) const {
  const Decoded decoded = pager_->codec().decode_rows(view(), key_.id, n_rows, rows);
  if (decoded == Decoded::kDamaged) damaged_ = true;
  return decoded == Decoded::kGood;
}

RowPager::RowPager(const KvLayout& layout, std::shared_ptr<BlockStore> store)
    : layout_(layout), codec_(layout), store_(std::move(store)), io_(kIoThreads) {}

RowPager::~RowPager() = default;

void RowPager::set_budget(uint64_t bytes) {
  std::lock_guard lock(mutex_);
  max_frames_ = bytes / (codec_.row_page_bytes() + kPageChecksumBytes);
  for (int32_t f = static_cast<int32_t>(frames_.size()) - 1;
       f >= 0 && frames_.size() - free_.size() > max_frames_;
       f--) {
    if (frames_[f].owner && !frames_[f].loading) drop_frame(f);
  }
  if (free_.size() == frames_.size()) {  // else their memory serves the next ones
    frames_.clear();
    free_.clear();
    slabs_.clear();
    hand_ = 0;
  }
}

PagerStats RowPager::stats() const {
  std::lock_guard lock(mutex_);
  PagerStats s = stats_;
  s.frame_bytes = (frames_.size() - free_.size()) * codec_.row_page_bytes();
  return s;
}

uint8_t* RowPager::frame_data(int32_t frame) const {
  return slabs_[frame / kFramesPerSlab].get() +
         frame % kFramesPerSlab * (codec_.row_page_bytes() + kPageChecksumBytes);
}

void RowPager::drop_frame(int32_t frame) {
  Frame& f = frames_[frame];
  f.owner->frames_[f.page] = kAbsent;
  f = {};
  free_.push_back(frame);
}

// A frame that the gather `pin` does not need; kAbsent when there is none.
int32_t RowPager::take_frame(uint64_t pin) {
  const bool may_grow = frames_.size() - free_.size() < max_frames_;
  if (free_.empty() && may_grow) {
    const int32_t first = static_cast<int32_t>(frames_.size());
    try {
      frames_.reserve(first + kFramesPerSlab);
      free_.reserve(first + kFramesPerSlab);
      slabs_.push_back(
          std::make_unique_for_overwrite<uint8_t[]>(
              kFramesPerSlab * (codec_.row_page_bytes() + kPageChecksumBytes)));
      frames_.resize(first + kFramesPerSlab);
      for (int32_t f = first + kFramesPerSlab - 1; f >= first; f--) free_.push_back(f);
    } catch (const std::bad_alloc&) {
      max_frames_ = frames_.size();
    }
  }
  for (size_t turn = 0; (free_.empty() || !may_grow) && turn < 2 * frames_.size(); turn++) {
    hand_ = (hand_ + 1) % frames_.size();
    Frame& f = frames_[hand_];
    if (!f.owner || f.loading || f.pin == pin) continue;
    if (f.referenced) {
      f.referenced = false;
    } else {
      drop_frame(static_cast<int32_t>(hand_));
      break;
    }
  }
  if (free_.empty() || frames_.size() - free_.size() >= max_frames_) return kAbsent;
  const int32_t frame = free_.back();
  free_.pop_back();
  return frame;
}

std::vector<RowPager::Wanted> RowPager::pages_of(int32_t k, std::span<const int32_t> rows) const {
  std::vector<Wanted> wanted;
  for (size_t i = 0; i < rows.size(); i++) {
    const int64_t block = rows[i] / kRowsPerBlock;
    const int32_t page = k * codec_.row_pages_per_layer() + rows[i] % kRowsPerBlock / kRowsPerPage;
    if (wanted.empty() || wanted.back().i_block != block || wanted.back().page != page) {
      wanted.push_back({block, page, i, i});
    }
    wanted.back().end = i + 1;
  }
  return wanted;
}

bool RowPager::read_page(const PagedRows& rows, int32_t page, uint8_t* to) const {
  const size_t n = codec_.row_page_bytes();
  for (int attempt = 0; attempt < 2; attempt++) {  // before it believes that the disk cannot
    if (!rows.view().read(codec_.row_page_offset(page), to, n + kPageChecksumBytes)) continue;
    uint32_t sum;
    std::memcpy(&sum, to + n, sizeof sum);
    if (sum == page_checksum(rows.key().id, codec_.row_page_number(page), to, n)) return true;
    if (attempt == 1) rows.damaged_ = true;
  }
  return false;
}

// Reads pages into their frames and says so.
void RowPager::load(std::span<const Miss> misses) {
  std::vector<uint8_t> good(misses.size());
  for (size_t i = 0; i < misses.size(); i++) {
    good[i] = read_page(*misses[i].owner, misses[i].page, frame_data(misses[i].frame));
  }
  std::lock_guard lock(mutex_);
  for (size_t i = 0; i < misses.size(); i++) {
    Frame& f = frames_[misses[i].frame];
    f.loading = false;
    f.failed = !good[i];
  }
  loaded_.notify_all();
}

void RowPager::gather(
    std::span<const std::shared_ptr<KvBlock>> blocks,
    int32_t k,
    std::span<const int32_t> rows,
    bool stream,
    uint8_t* out) {
  const std::vector<Wanted> wanted = pages_of(k, rows);
  const int64_t layer_offset = layout_.layers[layout_.layers_4[k]].kv_offset;
  bool frames;
  {
    std::lock_guard lock(mutex_);
    frames = max_frames_ > 0;
  }
  if (stream || !frames) {
    if (!stream) {
      std::lock_guard lock(mutex_);
      stats_.misses += wanted.size();
    }
    gather_runs(blocks, wanted, rows, layer_offset, out);
  } else {
    gather_frames(blocks, wanted, rows, layer_offset, out);
  }
}

void RowPager::gather_frames(
    std::span<const std::shared_ptr<KvBlock>> blocks,
    std::span<const Wanted> wanted,
    std::span<const int32_t> rows,
    int64_t layer_offset,
    uint8_t* out) {
  const int64_t row_bytes = layout_.kv.row_bytes();
  std::vector<int32_t> frame_of(wanted.size());
  std::vector<uint8_t> own(codec_.row_page_bytes() + kPageChecksumBytes);
  std::vector<Miss> misses;
  misses.reserve(wanted.size());
  for (size_t begin = 0; begin < wanted.size();) {
    // As many pages as frames can be had at once.
    size_t end = begin;
    int64_t lost = -1;
    misses.clear();
    {
      std::lock_guard lock(mutex_);
      const uint64_t pin = ++last_pin_;
      for (; end < wanted.size(); end++) {
        const Wanted& w = wanted[end];
        frame_of[end] = kAbsent;
        if (blocks[w.i_block]->rows.data()) continue;
        const std::shared_ptr<PagedRows>& paged = blocks[w.i_block]->paged;
        if (!paged) {  // what is being read comes first
          lost = w.i_block;
          break;
        }
        int32_t& frame = paged->frames_[w.page];
        if (frame == kAbsent) {
          const int32_t fresh = take_frame(pin);
          if (fresh == kAbsent) break;
          frame = fresh;
          frames_[frame] = {paged.get(), w.page, true, false, false, pin};
          misses.push_back({paged.get(), w.page, frame});
          stats_.misses++;
        } else {
          stats_.hits++;
        }
        frames_[frame].referenced = true;
        frames_[frame].pin = pin;
        frame_of[end] = frame;
      }
    }
    if (end == begin && lost < 0) {  // no frame at all: past them
      const Wanted& w = wanted[begin];
      const PagedRows& paged = *blocks[w.i_block]->paged;
      if (!read_page(paged, w.page, own.data())) throw RowsLost(w.i_block);
      {
        std::lock_guard lock(mutex_);
        stats_.misses++;
      }
      for (size_t i = w.begin; i < w.end; i++) {
        std::memcpy(
            out + i * row_bytes, own.data() + rows[i] % kRowsPerPage * row_bytes, row_bytes);
      }
      begin++;
      continue;
    }
    const int64_t n_tasks =
        (static_cast<int64_t>(misses.size()) + kPagesPerTask - 1) / kPagesPerTask;
    io_.parallel_for(n_tasks, [&](int64_t i) {
      load(
          std::span(misses).subspan(
              i * kPagesPerTask,
              std::min<size_t>(kPagesPerTask, misses.size() - i * kPagesPerTask)));
    });
    {
      std::unique_lock lock(mutex_);
      for (size_t i = begin; i < end; i++) {
        if (frame_of[i] == kAbsent) continue;
        loaded_.wait(lock, [&] { return !frames_[frame_of[i]].loading; });
        if (frames_[frame_of[i]].failed) {
          drop_frame(frame_of[i]);
          throw RowsLost(wanted[i].i_block);
        }
      }
    }
    if (lost >= 0) throw RowsLost(lost);
    for (; begin < end; begin++) {
      const Wanted& w = wanted[begin];
      const uint8_t* const page =
          frame_of[begin] == kAbsent
              ? blocks[w.i_block]->rows.data() + layer_offset +
                    rows[w.begin] % kRowsPerBlock / kRowsPerPage * kRowsPerPage * row_bytes
              : frame_data(frame_of[begin]);
      for (size_t i = w.begin; i < w.end; i++) {
        std::memcpy(out + i * row_bytes, page + rows[i] % kRowsPerPage * row_bytes, row_bytes);
      }
    }
  }
}

void RowPager::gather_runs(
    std::span<const std::shared_ptr<KvBlock>> blocks,
    std::span<const Wanted> wanted,
    std::span<const int32_t> rows,
    int64_t layer_offset,
    uint8_t* out) {
  const int64_t row_bytes = layout_.kv.row_bytes(), page_bytes = codec_.row_page_bytes();
  std::vector<std::pair<size_t, size_t>> runs;  // of `wanted`, one for each block
  for (size_t i = 0; i < wanted.size(); i++) {
    if (runs.empty() || wanted[runs.back().first].i_block != wanted[i].i_block) {
      runs.push_back({i, i});
    }
    runs.back().second = i + 1;
  }
  std::vector<uint8_t> failed(runs.size());
  std::atomic<uint64_t> n_read{0};
  io_.parallel_for(static_cast<int64_t>(runs.size()), [&](int64_t task) {
    const auto [begin, end] = runs[task];
    const KvBlock& block = *blocks[wanted[begin].i_block];
    const int32_t first = wanted[begin].page;
    const uint8_t* resident = block.rows.data();
    std::vector<uint8_t> bytes;
    bool whole = false;
    if (!resident) {
      if (!block.paged) {
        failed[task] = 1;
        return;
      }
      const size_t n = (wanted[end - 1].page - first + 1) * (page_bytes + kPageChecksumBytes);
      bytes.resize(n);
      whole = block.paged->view().read(codec_.row_page_offset(first), bytes.data(), n);
      n_read += n;
    }
    for (size_t w = begin; w < end; w++) {
      const uint8_t* page;
      if (resident) {
        page = resident + layer_offset +
               rows[wanted[w].begin] % kRowsPerBlock / kRowsPerPage * page_bytes;
      } else {
        uint8_t* const own =
            bytes.data() + (wanted[w].page - first) * (page_bytes + kPageChecksumBytes);
        page = own;
        uint32_t sum;
        std::memcpy(&sum, own + page_bytes, sizeof sum);
        const uint32_t number = codec_.row_page_number(wanted[w].page);
        if ((!whole || sum != page_checksum(block.paged->key().id, number, own, page_bytes)) &&
            !read_page(*block.paged, wanted[w].page, own)) {
          failed[task] = 1;
          return;
        }
      }
      for (size_t i = wanted[w].begin; i < wanted[w].end; i++) {
        std::memcpy(out + i * row_bytes, page + rows[i] % kRowsPerPage * row_bytes, row_bytes);
      }
    }
  });
  for (size_t task = 0; task < runs.size(); task++) {
    if (!failed[task]) continue;
    throw RowsLost(wanted[runs[task].first].i_block);
  }
  std::lock_guard lock(mutex_);
  stats_.streamed_bytes += n_read;
}

void RowPager::prefetch(
    std::span<const std::shared_ptr<KvBlock>> blocks, int32_t k, std::span<const int32_t> rows) {
  const std::vector<Wanted> wanted = pages_of(k, rows);
  std::vector<Miss> misses;
  misses.reserve(wanted.size());
  {
    std::lock_guard lock(mutex_);
    const uint64_t pin = last_pin_;  // what was gathered last is not given up for a guess
    for (const Wanted& w : wanted) {
      if (w.i_block >= static_cast<int64_t>(blocks.size())) break;
      const KvBlock& block = *blocks[w.i_block];
      if (block.rows.data() || !block.paged) continue;
      int32_t& frame = block.paged->frames_[w.page];
      if (frame != kAbsent) {
        frames_[frame].referenced = true;
        continue;
      }
      const int32_t fresh = take_frame(pin);
      if (fresh == kAbsent) break;
      frame = fresh;
      frames_[frame] = {block.paged.get(), w.page, true, false, true, 0};
      misses.push_back({block.paged.get(), w.page, frame});
    }
    stats_.prefetched += misses.size();
  }
  for (size_t at = 0; at < misses.size(); at += kPagesPerTask) {
    const size_t end = std::min(misses.size(), at + kPagesPerTask);
    const std::span<const Miss> part(misses.data() + at, end - at);
    try {
      io_.post([this, copy = std::vector<Miss>(part.begin(), part.end())] { load(copy); });
    } catch (const std::exception&) {
      load(part);
    }
  }
}

}  // namespace grebe
