// Rows of ratio 4 that are on disk only, fetched when the index has chosen them.
//
// Pages of 8 rows are kept in frames, up to a budget, and given up in the order of a clock (second
// chance). A decoded token gathers the rows that attention wants of one layer: what frames hold is
// copied, what is missing is read by several threads side by side. A prompt's chunk wants most rows
// of a long stretch once: those are read in long runs past the frames. While a layer computes, the
// pages that the next one wanted for the token before are brought in.
//
// A page that is not as written, or cannot be read, throws RowsLost: the caller computes the block
// again from its tokens.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "core/error.h"
#include "core/io_pool.h"
#include "session/kv_codec.h"

namespace grebe {

class RowPager;

/// The disk does not have the rows of a block any more.
struct RowsLost : Error {
  explicit RowsLost(int64_t i_block)
      : Error("rows of a KV block could not be read back"), i_block(i_block) {}
  int64_t i_block;              ///< in the session
  const KvState* kv = nullptr;  ///< whose
};

/// Rows of one saved block.
class PagedRows {
 public:
  PagedRows(std::shared_ptr<RowPager> pager, const RecordKey& key);
  ~PagedRows();

  const RecordKey& key() const { return key_; }
  /// The first n_rows rows of every layer into a block's row memory; false when damaged or gone.
  bool read(int64_t n_rows, uint8_t* rows) const;
  /// A page was there and was not as written.
  bool damaged() const { return damaged_; }

 private:
  friend class RowPager;
  RecordView view() const;

  std::shared_ptr<RowPager> pager_;
  RecordKey key_;
  mutable std::mutex mutex_;  // of the view
  mutable RecordView view_;
  mutable uint64_t epoch_ = 0;  // of the store, when the view was taken
  mutable std::atomic<bool> damaged_{false};
  std::vector<int32_t> frames_;  // of each row page: its frame, kAbsent; under the pager's mutex
};

struct PagerStats {
  uint64_t hits = 0, misses = 0;  ///< pages, of tokens
  uint64_t prefetched = 0;        ///< pages brought in before they were wanted
  uint64_t streamed_bytes = 0;    ///< of runs read for prompts
  uint64_t frame_bytes = 0;       ///< held now
};

class RowPager {
 public:
  RowPager(const KvLayout& layout, std::shared_ptr<BlockStore> store);
  ~RowPager();

  const KvCodec& codec() const { return codec_; }
  /// Frames beyond it are given up at once.
  void set_budget(uint64_t bytes);
  PagerStats stats() const;

  /// Copies rows of the k-th ratio-4 layer, ascending, to out u8[n, row_bytes]. `stream`: they are
  /// those of many tokens. Throws RowsLost. One caller at a time.
  void gather(
      std::span<const std::shared_ptr<KvBlock>> blocks,
      int32_t k,
      std::span<const int32_t> rows,
      bool stream,
      uint8_t* out);
  /// Brings in pages of rows that will probably be gathered; returns at once.
  void prefetch(
      std::span<const std::shared_ptr<KvBlock>> blocks, int32_t k, std::span<const int32_t> rows);

 private:
  friend class PagedRows;
  static constexpr int32_t kAbsent = -1;
  struct Frame {
    PagedRows* owner = nullptr;
    int32_t page = 0;
    bool loading = false, failed = false, referenced = false;
    uint64_t pin = 0;  // the gather that needs it
  };
  struct Miss {
    PagedRows* owner;  // waits for it before it goes
    int32_t page, frame;
  };
  struct Wanted {  // consecutive rows of one page
    int64_t i_block;
    int32_t page;
    size_t begin, end;  // of the list of rows
  };

  std::vector<Wanted> pages_of(int32_t k, std::span<const int32_t> rows) const;
  uint8_t* frame_data(int32_t frame) const;
  int32_t take_frame(uint64_t pin);
  void drop_frame(int32_t frame);
  void load(std::span<const Miss> misses);
  bool read_page(const PagedRows& rows, int32_t page, uint8_t* to) const;
  void gather_frames(
      std::span<const std::shared_ptr<KvBlock>> blocks,
      std::span<const Wanted> wanted,
      std::span<const int32_t> rows,
      int64_t layer_offset,
      uint8_t* out);
  void gather_runs(
      std::span<const std::shared_ptr<KvBlock>> blocks,
      std::span<const Wanted> wanted,
      std::span<const int32_t> rows,
      int64_t layer_offset,
      uint8_t* out);

  const KvLayout& layout_;
  KvCodec codec_;
  std::shared_ptr<BlockStore> store_;
  mutable std::mutex mutex_;
  std::condition_variable loaded_;
  std::vector<std::unique_ptr<uint8_t[]>> slabs_;
  std::vector<Frame> frames_;
  std::vector<int32_t> free_;
  size_t max_frames_ = 0, hand_ = 0;
  uint64_t last_pin_ = 0;
  PagerStats stats_;
  IoPool io_;  // last: its threads end first
};

}  // namespace grebe
