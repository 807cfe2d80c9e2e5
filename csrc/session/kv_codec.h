// History blocks and anchors as records of the store, page by page [docs/kv-store.md].
//
// A block's payload has three groups of pages: index keys (a page a layer), rows of ratio 128 (a
// page a layer), rows of ratio 4 (8 rows a page), so that keys are read in one go and any few rows
// alone. An anchor lies at a multiple of 128 tokens and holds the window rows of every layer, the
// pooling triples of ratio 4 (those of ratio 128 are empty there), and the rows of the tokens after
// its parent block.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "session/kv_layout.h"
#include "session/kv_state.h"
#include "store/block_store.h"

namespace grebe {

constexpr int32_t kRowsPerPage = 8;  // 4,676 bytes with their checksum on Flash

enum class Decoded {
  kGood,
  kDamaged,     ///< a page is not as written
  kUnreadable,  ///< the disk does not give it; it may another time
};

class KvCodec {
 public:
  explicit KvCodec(const KvLayout& layout);

  /// Pages of one ratio-4 layer's rows in a block, and of all of them.
  int32_t row_pages_per_layer() const { return row_pages_; }
  int32_t n_row_pages() const { return row_pages_ * static_cast<int32_t>(layout_.layers_4.size()); }
  int64_t row_page_bytes() const { return kRowsPerPage * layout_.kv.row_bytes(); }
  /// Payload offset of row page p, and its number in the record.
  uint64_t row_page_offset(int32_t p) const {
    return rows_offset_ + static_cast<uint64_t>(p) * (row_page_bytes() + kPageChecksumBytes);
  }
  uint32_t row_page_number(int32_t p) const { return first_row_page_ + static_cast<uint32_t>(p); }
  uint64_t block_payload_bytes() const { return row_page_offset(n_row_pages()); }
  uint64_t anchor_payload_bytes(int64_t n_tail) const;

  /// Into record.groups and record.payload. n_tokens of the block's: all, or those before an
  /// anchor.
  void encode_block(const KvBlock& block, NewRecord& record) const;
  void encode_block(uint8_t* keys, uint8_t* rows, NewRecord& record) const;
  /// `tail`: the block that holds the tokens after the parent block; null when there are none.
  void encode_anchor(const Checkpoint& anchor, const KvBlock* tail, NewRecord& record) const;

  /// Fill allocated memory.
  Decoded decode_keys(const RecordView& view, const Digest& id, KvBlock& block) const;
  Decoded decode_rows(
      const RecordView& view, const Digest& id, int64_t n_rows, uint8_t* rows) const;
  Decoded decode_anchor(
      const RecordView& view, const Digest& id, Checkpoint& anchor, KvBlock* tail) const;
  /// From payloads in memory, whole ones.
  bool decode_block(const uint8_t* payload, const Digest& id, KvBlock& block) const;
  bool decode_anchor(
      const uint8_t* payload, const Digest& id, Checkpoint& anchor, KvBlock* tail) const;

 private:
  // What the pages of a record hold, in order: f(pointer, bytes of data, new group).
  template <class F>
  void key_pieces(uint8_t* keys, int64_t n_tokens, F&& f) const;
  template <class F>
  void row_pieces(uint8_t* rows, int64_t n_tokens, F&& f) const;
  template <class F>
  void anchor_pieces(const Checkpoint& anchor, float* triples, const KvBlock* tail, F&& f) const;
  int64_t triple_floats() const;
  void copy_triples(float* pools, float* packed, bool pack) const;

  const KvLayout& layout_;
  int32_t row_pages_ = 0;
  uint64_t rows_offset_ = 0;
  uint32_t first_row_page_ = 0;
};

}  // namespace grebe
