// A session as bytes, in memory or in a file.
//
//   0    u8[4]   magic "GRBS"
//   4    u32     format version
//   8    u64     bytes of the whole
//   16   u8[64]  fingerprint of the model, hex
//   80   u8[64]  its name, for people; zeros fill it
//   144  u8[48]  how the rows were computed, "cpu fast official 1" (or "mixed"); zeros fill it
//   192  u32     KV row kind, u32 KV row bytes, u32 index row bytes, u32 window rows
//   208  u32     flags: 1 logits, 2 exact kernels; u32 tokens of a block
//   216  i64     n_ctx
//   224  i64     n_tokens
//   232  i64[2]  positions of the newest checkpoints, ascending; 0: none
//   248  u32     zero
//   252  u32     CRC-32C of these 252 bytes
//   256          if there are tokens, pages:
//        root    i32[n_tokens]
//        block   for every 512 tokens: the payload of the block's record in a KV store
//        end     window rows, a page a layer; f32[pools] if there are any; of the tokens after the
//                last block: index rows, rows of ratio 128, rows of ratio 4, a page a layer;
//                f32[vocab] logits with flag 1
//        anchor  for every checkpoint: window rows, a page a layer, and a page of the triples of
//                ratio 4, as in an anchor of a KV store
//   end  u32     CRC-32C of all before
//
// Each page ends with its checksum (u32) over the name of what it belongs to, its number therein
// and its data: page_checksum() of store/block_store.h. Names follow from the tokens, block by
// block from a root that stands for the model and its numerics; the end is named as an anchor there
// [kv-store.md]. So a page is bound to its place and to all tokens before it.
//
// Everything is exact, so a restored session goes on bit for bit, and equal sessions give equal
// bytes. Lengths follow from the header and the model, so a damaged header cannot ask for more than
// the bytes that are there. To add a field: bump the version, keep reading the old one.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "core/blake3.h"
#include "session/kv_codec.h"

namespace grebe {

constexpr size_t kSavedCheckpoints = 2;  // enough to step back 128 tokens

/// What a snapshot says of the model that made it, and what it must agree with.
struct SnapshotModel {
  std::string fingerprint, name;
  std::string numerics;  ///< of the session that is saved, or of the model that restores
  std::string settings;  ///< for messages
  bool exact = false;
  int32_t vocab_size = 0;
  int64_t max_context = 0;
};

struct SnapshotHeader {
  static constexpr uint32_t kHasLogits = 1, kExact = 2;  // flags

  char magic[4];
  uint32_t version;
  uint64_t n_bytes;
  char fingerprint[64], name[64], numerics[48];
  uint32_t kv_kind, kv_row_bytes, index_row_bytes, window_size;
  uint32_t flags, block_tokens;
  int64_t n_ctx, n_tokens;
  int64_t checkpoints[kSavedCheckpoints];
  uint32_t zero, crc;

  size_t n_checkpoints() const;
  std::string numerics_text() const;
};
static_assert(sizeof(SnapshotHeader) == 256);

/// n_bytes and crc are filled in. `checkpoints` ascend, at most kSavedCheckpoints.
SnapshotHeader make_header(
    const SnapshotModel& model,
    const KvLayout& layout,
    int64_t n_ctx,
    int64_t n_tokens,
    std::span<const int64_t> checkpoints,
    bool has_logits);

/// Checks the header of `n_bytes` bytes named `source`. Throws FormatError when it lies,
/// InvalidArgument when it is of another model, with both fingerprints, or of other settings.
void check_header(
    const SnapshotHeader& header,
    uint64_t n_bytes,
    const SnapshotModel& model,
    const KvLayout& layout,
    const std::string& source);

/// Names of a snapshot's parts.
struct SnapshotNames {
  Digest root;
  std::vector<Digest> blocks;  ///< full ones

  SnapshotNames() = default;
  SnapshotNames(const Digest& root, std::span<const int32_t> tokens);
  /// Of the state after `pos` of the tokens.
  Digest state(std::span<const int32_t> tokens, int64_t pos) const;
};

/// The end of a session, page by page: f(pointer, bytes). `keys` and `rows` of its last block,
/// which holds n_tail tokens.
template <class F>
void end_pages(
    const KvLayout& layout,
    uint8_t* ring,
    float* pools,
    int64_t n_tail,
    uint8_t* keys,
    uint8_t* rows,
    F&& f) {
  const int64_t row_bytes = layout.kv.row_bytes();
  for (const KvLayout::Layer& l : layout.layers) {
    f(ring + l.ring_offset, layout.window_size * row_bytes);
  }
  if (layout.pool_floats > 0) f(reinterpret_cast<uint8_t*>(pools), layout.pool_bytes());
  if (n_tail >= 4) {
    for (int32_t i : layout.layers_4) {
      f(keys + layout.layers[i].index_offset, n_tail / 4 * layout.index.row_bytes());
    }
  }
  if (n_tail >= 128) {
    for (int32_t i : layout.layers_128) {
      f(keys + layout.layers[i].kv_offset, n_tail / 128 * row_bytes);
    }
  }
  if (n_tail >= 4) {
    for (int32_t i : layout.layers_4) {
      f(rows + layout.layers[i].kv_offset, n_tail / 4 * row_bytes);
    }
  }
}

/// Hands on bytes in order and sums them up.
class SnapshotWriter {
 public:
  using Put = std::function<void(const void* data, size_t n)>;
  explicit SnapshotWriter(Put put) : put_(std::move(put)) {}

  void write(const void* data, size_t n);
  /// The next page of what is called so; numbers begin again with each name.
  void page(const Digest& id, const void* data, size_t n);
  /// The sum of all before.
  void finish();

 private:
  Put put_;
  Digest id_;
  uint32_t n_pages_ = 0;
  uint32_t crc_ = 0;
};

/// The same way back. Throws FormatError where the `size` bytes of `source` are not as written.
class SnapshotReader {
 public:
  using Get = std::function<void(uint64_t offset, void* to, size_t n)>;
  SnapshotReader(Get get, uint64_t size, std::string source)
      : get_(std::move(get)), size_(size), source_(std::move(source)) {}

  uint64_t size() const { return size_; }
  const std::string& source() const { return source_; }
  void read(void* to, size_t n);
  void page(const Digest& id, void* to, size_t n);
  void finish();
  [[noreturn]] void damaged(const std::string& what) const;
  /// A page within the last n bytes is.
  [[noreturn]] void page_damaged(size_t n) const;

 private:
  Get get_;
  uint64_t size_;
  std::string source_;
  uint64_t offset_ = 0;
  Digest id_;
  uint32_t n_pages_ = 0;
  uint32_t crc_ = 0;
};

}  // namespace grebe
