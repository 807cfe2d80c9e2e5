// Attention: which rows every threadgroup works on, and where they lie.
#include <algorithm>
#include <cmath>
#include <vector>

#include "args/attention_args.h"
#include "backend/metal/ops.h"
#include "core/error.h"

namespace grebe::metal {
namespace {

// Segments of this many queries fill a large GPU with one threadgroup for 16 heads of a query
// (attention_prefill: four of them a query for Flash), which needs half the instructions of
// attention_decode. Fewer are better spread over one threadgroup for two heads.
constexpr int64_t kPrefillQueries = 16;
constexpr int32_t kPrefillHeadDim = 512;

// Queries with more rows are split over threadgroups, at the price of a second dispatch that merges
// (about 2 us with its barrier). Flash stays below except in ratio-128 layers beyond 114,000
// positions.
constexpr int64_t kSplitRows = 1024;

constexpr uint32_t kDecodeThreads = 256, kMergeThreads = 256;

// Function constants and buffers of metal/attention_*.metal.
enum Constant : uint32_t { kKvKind = 0, kHeadDim = 1, kRopeDim = 2, kNormQ = 3 };
enum Buffer : uint32_t {
  kSources = 1,
  kWorks = 2,
  kQuery = 3,
  kCos = 4,
  kSin = 5,
  kSinks = 6,
  kPartial = 7,
};
enum MergeBuffer : uint32_t {
  kMergeMerges = 1,
  kMergePartial = 2,
  kMergeCos = 3,
  kMergeSin = 4,
  kMergeQuery = 5,
};

struct Op {
  const KvRowFormat& format;
  float* q;
  const RopeTable& rope;
  const float* sinks;
  int64_t n_heads, window_size;
  bool norm_q;
  float eps;
};

/// Raw rows of the window before a segment's own: positions [first, pos).
int64_t first_old(const AttentionTask& t, int64_t window_size) {
  return std::max<int64_t>(0, t.segment.pos - window_size + 1);
}

int64_t n_visible(const AttentionTask& t, int64_t i) {
  return t.ratio == 0 ? 0 : (t.segment.pos + i + 1) / t.ratio;
}

/// Tasks that go into one dispatch, and the tables for it.
class Batch {
 public:
  Batch(Recorder& r, const Op& op) : recorder_(r), op_(op) {}

  void add(const AttentionTask& t, int64_t split_rows) {
    GREBE_ASSERT(t.segment.pos + t.segment.n <= INT32_MAX);
    // A layer's streams are cut alike.
    if (t.ratio != 0) {
      rows_per_block_ = static_cast<uint32_t>(t.rows.rows_per_block);
      top_k_ = static_cast<uint32_t>(t.top_k);
    }
    for (int64_t i = 0; i < t.segment.n; i++) {
      const int64_t raw = std::min(op_.window_size, t.segment.pos + i + 1),
                    visible = n_visible(t, i),
                    n = raw + (t.selected ? std::min<int64_t>(visible, t.top_k) : visible),
                    share = (n + n_parts(n, split_rows) - 1) / n_parts(n, split_rows),
                    parts = (n + share - 1) / share;
      AttentionWork work{};
      work.source = static_cast<uint32_t>(sources_.size());
      work.i_query = static_cast<uint32_t>(i);
      work.i_row = static_cast<uint32_t>(t.segment.row + i);  // made relative by finish()
      work.n_visible = static_cast<uint32_t>(visible);
      work.slot = kAttentionWhole;
      if (parts > 1) {
        merges_.push_back({work.i_row, n_slots_, static_cast<uint32_t>(parts), 0});
      }
      for (int64_t p = 0; p < parts; p++) {
        work.begin = static_cast<uint32_t>(p * share);
        work.end = static_cast<uint32_t>(std::min(n, (p + 1) * share));
        if (parts > 1) work.slot = n_slots_++;
        works_.push_back(work);
      }
    }
    AttentionSource source{};
    source.ring_at = t.segment.pos > 0 ? recorder_.address(t.ring) : 0;
    source.new_rows_at = recorder_.address(t.new_rows);
    source.selected_at = t.selected ? recorder_.address(t.selected) : 0;
    source.ring_rows = static_cast<uint32_t>(t.ring_rows);
    source.block_offset = static_cast<uint64_t>(t.rows.offset);
    source.pos = static_cast<uint32_t>(t.segment.pos);
    sources_.push_back(source);
    tasks_.push_back(&t);
    const int64_t first = row_end_ == 0 ? t.segment.row : std::min(row_begin_, t.segment.row);
    row_begin_ = first;
    row_end_ = std::max(row_end_, t.segment.row + t.segment.n);
  }

  void record(bool prefill) {
    if (works_.empty()) return;
    for (AttentionWork& w : works_) w.i_row -= static_cast<uint32_t>(row_begin_);
    for (AttentionMerge& m : merges_) m.i_row -= static_cast<uint32_t>(row_begin_);
    if (prefill) {
      record_prefill();
    } else {
      record_decode();
    }
  }

 private:
  static int64_t n_parts(int64_t n, int64_t split_rows) {
    return (n + split_rows - 1) / split_rows;
  }

  AttentionArgs args() const {
    const double d = op_.format.head_dim;
    return {
        static_cast<uint32_t>(op_.n_heads),
        static_cast<uint32_t>(op_.window_size),
        static_cast<uint32_t>(op_.format.row_bytes()),
        rows_per_block_,
        top_k_,
        n_slots_,
        static_cast<float>(1.4426950408889634 / std::sqrt(d)),
        op_.eps};
  }

  uint64_t n_rows() const { return static_cast<uint64_t>(row_end_ - row_begin_); }
  float* q() const { return op_.q + row_begin_ * op_.n_heads * op_.format.head_dim; }
  uint64_t q_bytes() const {
    return sizeof(float) * n_rows() * static_cast<uint64_t>(op_.n_heads * op_.format.head_dim);
  }
  const float* angles(const float* table) const {
    return table ? table + row_begin_ * op_.rope.half : nullptr;
  }
  uint64_t angle_bytes() const {
    return sizeof(float) * n_rows() * static_cast<uint64_t>(op_.rope.half);
  }

  void constants(Recorder::Builder& b) const {
    b.constant(kKvKind, static_cast<uint32_t>(op_.format.kind))
        .constant(kHeadDim, static_cast<uint32_t>(op_.format.head_dim))
        .constant(kRopeDim, static_cast<uint32_t>(op_.format.rope_dim))
        .constant(kNormQ, op_.norm_q);
  }

  /// Everything that attention_decode and attention_prefill have in common.
  void inputs(Recorder::Builder& b) {
    constants(b);
    for (size_t i = 0; i < tasks_.size(); i++) sources_[i].blocks_at = read_rows(*tasks_[i], b);
    b.args(args())
        .table(kSources, std::span<const AttentionSource>(sources_))
        .table(kWorks, std::span<const AttentionWork>(works_))
        .read_write(kQuery, q(), q_bytes())
        .read(kCos, angles(op_.rope.cos), angle_bytes())
        .read(kSin, angles(op_.rope.sin), angle_bytes())
        .read(kSinks, op_.sinks, sizeof(float) * static_cast<uint64_t>(op_.n_heads));
  }

  /// Announces the rows that a task reads, each once. Returns the address of the table of its
  /// history's blocks.
  uint64_t read_rows(const AttentionTask& t, Recorder::Builder& b) const {
    const int64_t bytes = op_.format.row_bytes();
    // Positions [first, pos) of the ring, which may wrap around.
    const int64_t first = first_old(t, op_.window_size), n_old = t.segment.pos - first;
    if (n_old > 0) {
      const int64_t slot = first % t.ring_rows, n = std::min(n_old, t.ring_rows - slot);
      b.indirect(t.ring + slot * bytes, static_cast<uint64_t>(n * bytes), false);
      if (n < n_old) b.indirect(t.ring, static_cast<uint64_t>((n_old - n) * bytes), false);
    }
    b.indirect(t.new_rows, static_cast<uint64_t>(t.segment.n * bytes), false);
    const int64_t visible = n_visible(t, t.segment.n - 1);
    int64_t n_read = n_old + t.segment.n + visible;
    if (t.selected) {
      const int64_t n_picks = t.segment.n * t.top_k;
      b.indirect(t.selected, sizeof(int32_t) * static_cast<uint64_t>(n_picks), false);
      n_read -= visible - std::min(visible, n_picks);
    }
    b.reads_bytes(static_cast<uint64_t>(n_read * bytes));
    if (visible == 0) return 0;
    return b.blocks(t.rows.blocks, (visible + t.rows.rows_per_block - 1) / t.rows.rows_per_block);
  }

  void record_decode() {
    const uint64_t n_heads = static_cast<uint64_t>(op_.n_heads);
    const uint64_t d = static_cast<uint64_t>(op_.format.head_dim);
    const uint64_t partial_bytes = sizeof(float) * n_slots_ * n_heads * (d + 2);
    float* partial = n_slots_ ? static_cast<float*>(recorder_.scratch(partial_bytes)) : nullptr;
    const char* kernel = d <= 256    ? "attention_decode_256"
                         : d <= 512  ? "attention_decode_512"
                         : d <= 1024 ? "attention_decode_1024"
                                     : "attention_decode_8192";
    Recorder::Builder b = recorder_.dispatch("attention_decode", kernel);
    inputs(b);
    b.write(kPartial, partial, partial_bytes);
    b.run((n_heads + 1) / 2, works_.size(), 1, kDecodeThreads);
    if (merges_.empty()) return;

    Recorder::Builder m = recorder_.dispatch("attention_decode", "attention_merge");
    constants(m);
    m.args(args())
        .table(kMergeMerges, std::span<const AttentionMerge>(merges_))
        .read(kMergePartial, partial, partial_bytes)
        .read(kMergeCos, angles(op_.rope.cos), angle_bytes())
        .read(kMergeSin, angles(op_.rope.sin), angle_bytes())
        .write(kMergeQuery, q(), q_bytes());
    m.run(n_heads, merges_.size(), 1, kMergeThreads);
  }

  void record_prefill() {
    // Half-precision tiles hold packed rows exactly (four significant bits, bfloat16's eight) and
    // queries after their norm to 11 bits; rows that were never rounded stay in float.
    const bool half = !recorder_.exact() && op_.format.kind == KvRowFormat::Kind::kPackedBf16;
    const bool few = op_.n_heads <= 8;
    const char* kernel = half ? (few ? "attention_prefill_half_8" : "attention_prefill_half_16")
                              : (few ? "attention_prefill_float_8" : "attention_prefill_float_16");
    Recorder::Builder b = recorder_.dispatch("attention_prefill", kernel);
    inputs(b);
    const uint64_t heads = few ? 8 : 16;
    b.run(
        (static_cast<uint64_t>(op_.n_heads) + heads - 1) / heads,
        works_.size(),
        1,
        static_cast<uint32_t>((op_.format.head_dim + 63) / 64 * 32));
  }

  Recorder& recorder_;
  const Op& op_;
  std::vector<const AttentionTask*> tasks_;
  std::vector<AttentionSource> sources_;
  std::vector<AttentionWork> works_;
  std::vector<AttentionMerge> merges_;
  int64_t row_begin_ = 0, row_end_ = 0;
  uint32_t n_slots_ = 0, rows_per_block_ = 1, top_k_ = 0;
};

}  // namespace

void attention(
    Recorder& r,
    std::span<const AttentionTask> tasks,
    const KvRowFormat& format,
    float* q,
    const RopeTable& rope,
    const float* sinks,
    int32_t n_heads,
    int32_t window_size,
    bool norm_q,
    float eps) {
  GREBE_ASSERT(format.head_dim % 16 == 0 && format.head_dim <= 8192 && format.rope_dim % 16 == 0);
  const Op op{format, q, rope, sinks, n_heads, window_size, norm_q, eps};
  // The kernel of a task depends on that task alone, so its answer does not change with the
  // company it has in a step.
  Batch decode(r, op), prefill(r, op);
  for (const AttentionTask& t : tasks) {
    if (t.segment.n >= kPrefillQueries && format.head_dim <= kPrefillHeadDim) {
      prefill.add(t, INT32_MAX);
    } else {
      decode.add(t, kSplitRows);
    }
  }
  decode.record(false);
  prefill.record(true);
}

}  // namespace grebe::metal
