#include "session/kv_codec.h"

#include <algorithm>
#include <cstring>

namespace grebe {
namespace {

// Appends pages to a record.
struct PageWriter {
  NewRecord& record;
  uint32_t n_pages = 0;

  void operator()(const uint8_t* data, size_t n, bool new_group) {
    if (new_group) record.groups.push_back({0, static_cast<uint32_t>(n + kPageChecksumBytes)});
    record.groups.back().n_pages++;
    const uint32_t sum = page_checksum(record.info.key.id, n_pages++, data, n);
    record.payload.insert(record.payload.end(), data, data + n);
    const uint8_t* tail = reinterpret_cast<const uint8_t*>(&sum);
    record.payload.insert(record.payload.end(), tail, tail + sizeof sum);
  }
};

// Takes pages from payload bytes; `good` tells whether all of them were as written.
struct PageReader {
  const uint8_t* from;
  const Digest& id;
  uint32_t page;
  bool good = true;

  void operator()(uint8_t* data, size_t n, bool) {
    uint32_t sum;
    std::memcpy(&sum, from + n, sizeof sum);
    good = good && sum == page_checksum(id, page, from, n);
    page++;
    if (good) std::memcpy(data, from, n);
    from += n + kPageChecksumBytes;
  }
};

struct PageCounter {
  uint64_t bytes = 0;
  uint32_t n_pages = 0;

  void operator()(const uint8_t*, size_t n, bool) {
    bytes += n + kPageChecksumBytes;
    n_pages++;
  }
};

}  // namespace

KvCodec::KvCodec(const KvLayout& layout) : layout_(layout) {
  row_pages_ = (kBlockTokens / 4 + kRowsPerPage - 1) / kRowsPerPage;
  PageCounter keys;
  key_pieces(nullptr, kBlockTokens, keys);
  rows_offset_ = keys.bytes;
  first_row_page_ = keys.n_pages;
}

template <class F>
void KvCodec::key_pieces(uint8_t* keys, int64_t n_tokens, F&& f) const {
  bool first = true;
  if (n_tokens < 4) return;
  for (int32_t i : layout_.layers_4) {
    f(keys + layout_.layers[i].index_offset, n_tokens / 4 * layout_.index.row_bytes(), first);
    first = false;
  }
  first = true;
  if (n_tokens < 128) return;
  for (int32_t i : layout_.layers_128) {
    f(keys + layout_.layers[i].kv_offset, n_tokens / 128 * layout_.kv.row_bytes(), first);
    first = false;
  }
}

template <class F>
void KvCodec::row_pieces(uint8_t* rows, int64_t n_tokens, F&& f) const {
  bool first = true;
  for (int32_t i : layout_.layers_4) {
    for (int64_t r = 0; r < n_tokens / 4; r += kRowsPerPage) {
      f(rows + layout_.layers[i].kv_offset + r * layout_.kv.row_bytes(), row_page_bytes(), first);
      first = false;
    }
  }
}

template <class F>
void KvCodec::anchor_pieces(
    const Checkpoint& anchor, float* triples, const KvBlock* tail, F&& f) const {
  bool first = true;
  const size_t window = layout_.window_size * layout_.kv.row_bytes();
  for (const KvLayout::Layer& layer : layout_.layers) {
    f(anchor.ring.data() + layer.ring_offset, window, first);
    first = false;
  }
  if (triple_floats() > 0) {
    f(reinterpret_cast<uint8_t*>(triples), triple_floats() * sizeof(float), true);
  }
  if (!tail) return;
  const int64_t n_tail = anchor.pos % kBlockTokens;
  key_pieces(tail->keys.data(), n_tail, f);
  row_pieces(tail->rows.data(), n_tail, f);
}

// Of a ratio-4 compressor only part 0 says something at a multiple of 4 tokens: the row being
// built, seeded with the half before.
int64_t KvCodec::triple_floats() const {
  int64_t n = 0;
  for (int32_t i : layout_.layers_4) {
    n += 3 * (layout_.layers[i].pool.dim + layout_.layers[i].index_pool.dim);
  }
  return n;
}

void KvCodec::copy_triples(float* pools, float* packed, bool pack) const {
  for (int32_t i : layout_.layers_4) {
    const KvLayout::Layer& l = layout_.layers[i];
    for (const auto& [offset, dim] :
         {std::pair{l.pool_offset, l.pool.dim}, {l.index_pool_offset, l.index_pool.dim}}) {
      float* part = pools + offset;
      std::memcpy(pack ? packed : part, pack ? part : packed, sizeof(float) * 3 * dim);
      packed += int64_t{3} * dim;
    }
  }
}

uint64_t KvCodec::anchor_payload_bytes(int64_t n_tail) const {
  Checkpoint shape;
  shape.pos = n_tail;
  const KvBlock block;
  PageCounter count;
  anchor_pieces(shape, nullptr, n_tail > 0 ? &block : nullptr, count);
  return count.bytes;
}

void KvCodec::encode_block(const KvBlock& block, NewRecord& record) const {
  encode_block(block.keys.data(), block.rows.data(), record);
}

void KvCodec::encode_block(uint8_t* keys, uint8_t* rows, NewRecord& record) const {
  record.payload.reserve(block_payload_bytes());
  PageWriter write{record};
  key_pieces(keys, kBlockTokens, write);
  row_pieces(rows, kBlockTokens, write);
}

void KvCodec::encode_anchor(
    const Checkpoint& anchor, const KvBlock* tail, NewRecord& record) const {
  record.payload.reserve(anchor_payload_bytes(anchor.pos % kBlockTokens));
  std::vector<float> triples(triple_floats());
  copy_triples(anchor.pools.as<float>(), triples.data(), true);
  PageWriter write{record};
  anchor_pieces(anchor, triples.data(), tail, write);
}

Decoded KvCodec::decode_keys(const RecordView& view, const Digest& id, KvBlock& block) const {
  std::vector<uint8_t> bytes(rows_offset_);
  if (!view.read(0, bytes.data(), bytes.size())) return Decoded::kUnreadable;
  PageReader read{bytes.data(), id, 0};
  key_pieces(block.keys.data(), kBlockTokens, read);
  return read.good ? Decoded::kGood : Decoded::kDamaged;
}

Decoded KvCodec::decode_rows(
    const RecordView& view, const Digest& id, int64_t n_rows, uint8_t* rows) const {
  const int64_t n_pages = (n_rows + kRowsPerPage - 1) / kRowsPerPage;
  std::vector<uint8_t> bytes(n_pages * (row_page_bytes() + kPageChecksumBytes));
  for (size_t k = 0; k < layout_.layers_4.size(); k++) {
    const int32_t first = static_cast<int32_t>(k) * row_pages_;
    if (!view.read(row_page_offset(first), bytes.data(), bytes.size())) return Decoded::kUnreadable;
    PageReader read{bytes.data(), id, row_page_number(first)};
    uint8_t* to = rows + layout_.layers[layout_.layers_4[k]].kv_offset;
    for (int64_t p = 0; p < n_pages; p++) read(to + p * row_page_bytes(), row_page_bytes(), false);
    if (!read.good) return Decoded::kDamaged;
  }
  return Decoded::kGood;
}

Decoded KvCodec::decode_anchor(
    const RecordView& view, const Digest& id, Checkpoint& anchor, KvBlock* tail) const {
  std::vector<uint8_t> bytes(anchor_payload_bytes(anchor.pos % kBlockTokens));
  if (!view.read(0, bytes.data(), bytes.size())) return Decoded::kUnreadable;
  return decode_anchor(bytes.data(), id, anchor, tail) ? Decoded::kGood : Decoded::kDamaged;
}

bool KvCodec::decode_block(const uint8_t* payload, const Digest& id, KvBlock& block) const {
  PageReader read{payload, id, 0};
  key_pieces(block.keys.data(), kBlockTokens, read);
  row_pieces(block.rows.data(), kBlockTokens, read);
  return read.good;
}

bool KvCodec::decode_anchor(
    const uint8_t* payload, const Digest& id, Checkpoint& anchor, KvBlock* tail) const {
  std::vector<float> triples(triple_floats());
  PageReader read{payload, id, 0};
  anchor_pieces(anchor, triples.data(), tail, read);
  if (!read.good) return false;
  layout_.clear_pools(anchor.pools.as<float>());
  copy_triples(anchor.pools.as<float>(), triples.data(), false);
  return true;
}

}  // namespace grebe
