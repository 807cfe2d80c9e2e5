// The lightning indexer: which rows are scored by which dispatch (metal/indexer.metal).
#include <algorithm>
#include <cmath>
#include <vector>

#include "args/indexer_args.h"
#include "backend/metal/ops.h"

namespace grebe::metal {
namespace {

using Shape = Backend::IndexShape;

// Scores of as many queries as fit are computed, then chosen from: 32 MiB, 32 queries of a million
// tokens. Scoring these takes a hundred times longer than choosing, so the passes need not overlap.
constexpr int64_t kMaxScores = int64_t{8} << 20;

// A threadgroup of 1,024 threads with 16 scores each.
constexpr int64_t kTopThreads = 1024;
constexpr int64_t kSlice = kTopThreads * kTopKeys;

int64_t round_up(int64_t x, int64_t unit) { return (x + unit - 1) / unit * unit; }

/// A task with what the passes need of it.
struct Session {
  const IndexTask* task;
  uint64_t selected;  // on the device
  int64_t n_scored;   // queries that see more than top_k rows: the last of the segment
};

class Selection {
 public:
  Selection(Recorder& r, std::span<const IndexTask> tasks, const Shape& shape)
      : r_(r),
        shape_(shape),
        heads_(round_up(shape.n_heads, kIndexHeads)),
        channels_(round_up(shape.format.dim, 32)) {
    for (const IndexTask& task : tasks) {
      const Segment& s = task.segment;
      Session session{&task, r.address(task.selected), 0};
      while (session.n_scored < s.n && visible(task, s.n - 1 - session.n_scored) > shape.top_k)
        session.n_scored++;
      // Blocks begin at multiples of more than 4 bytes.
      if (task.rows.offset % 4 != 0 || task.rows.row_bytes % 4 != 0) is_aligned_ = false;
      all_scores_ += session.n_scored * round_up(visible(task, s.n - 1), 4);
      sessions_.push_back(session);
    }
  }

  void run(const float* q, const RopeTable& rope, const float* weights, int64_t n) {
    prepare(q, rope, weights, n);
    for (const Session& session : sessions_) {
      const Segment& s = session.task->segment;
      for (int64_t i = 0; i < s.n;) {
        // Queries that share an unpacked tile; they lie in one pass.
        const bool scored = i >= s.n - session.n_scored;
        const int64_t end =
            scored ? std::min<int64_t>(i + kIndexQueries, s.n) : s.n - session.n_scored;
        const int64_t stride = scored ? round_up(visible(*session.task, end - 1), 4) : 0;
        int64_t count = end - i;
        if (scored && n_scores_ + count * stride > kMaxScores) {
          finish_pass();
          count = std::clamp<int64_t>(kMaxScores / stride, 1, count);
        }
        if (scored) add_group(session, i, count);
        for (int64_t k = i; k < i + count; k++) add_query(session, k, scored, stride);
        i += count;
      }
    }
    finish_pass();
  }

 private:
  int64_t visible(const IndexTask& task, int64_t i) const {
    return (task.segment.pos + i + 1) / shape_.ratio;
  }
  int64_t tile_rows() const { return shape_.format.packed ? kIndexRowsPacked : kIndexRowsF32; }

  /// Heads of the scored queries, rotated and rounded, in tiles.
  void prepare(const float* q, const RopeTable& rope, const float* weights, int64_t n) {
    std::vector<int32_t> rows;
    for (const Session& session : sessions_) {
      const Segment& s = session.task->segment;
      for (int64_t i = s.n - session.n_scored; i < s.n; i++)
        rows.push_back(static_cast<int32_t>(s.row + i));
    }
    if (rows.empty()) return;
    const int64_t count = static_cast<int64_t>(rows.size()), dim = shape_.format.dim;
    const uint64_t element = shape_.format.packed ? 2 : 4;
    prepared_bytes_ = count * heads_ * channels_ * element;
    weight_bytes_ = count * heads_ * sizeof(float);
    prepared_ = r_.scratch(prepared_bytes_);
    weights_ = static_cast<float*>(r_.scratch(weight_bytes_));
    IndexQueriesArgs args{};
    args.n_heads = shape_.n_heads;
    args.heads = static_cast<int32_t>(heads_);
    args.dim = static_cast<int32_t>(dim);
    args.channels = static_cast<int32_t>(channels_);
    args.pairs = rope.half;
    const double root = std::sqrt(static_cast<double>(dim));
    args.weight_scale =
        static_cast<float>(1.0 / root / std::sqrt(static_cast<double>(shape_.n_heads)));
    args.hadamard_scale = static_cast<float>(1.0 / root);
    // Four heads a threadgroup, fewer if they do not fit threadgroup memory.
    int64_t simds = 4;
    while (simds > 1 && simds * channels_ * 4 > 32768) simds /= 2;
    const uint64_t rope_bytes = sizeof(float) * n * rope.half;
    r_.dispatch("indexer", "index_queries")
        .constant(0, shape_.format.packed)
        .args(args)
        .read(1, q, sizeof(float) * n * shape_.n_heads * dim)
        .read(2, weights, sizeof(float) * n * shape_.n_heads)
        .read(3, rope.half > 0 ? rope.cos : nullptr, rope_bytes)
        .read(4, rope.half > 0 ? rope.sin : nullptr, rope_bytes)
        .table(5, std::span<const int32_t>(rows))
        .write(6, prepared_, prepared_bytes_)
        .write(7, weights_, weight_bytes_)
        .threadgroup_memory(simds * channels_ * sizeof(float))
        .run(heads_ / simds, count, 1, static_cast<uint32_t>(32 * simds));
  }

  void add_group(const Session& session, int64_t i, int64_t count) {
    const IndexTask& task = *session.task;
    IndexGroup group{};
    group.first_tile = n_tiles_;
    group.first_query = static_cast<int32_t>(queries_.size());
    group.n_queries = static_cast<int32_t>(count);
    group.n_rows = static_cast<int32_t>(visible(task, i + count - 1));
    group.rows_per_block = task.rows.rows_per_block;
    group.offset = static_cast<int32_t>(task.rows.offset);
    group.row_bytes = static_cast<int32_t>(task.rows.row_bytes);
    n_tiles_ += static_cast<uint32_t>((group.n_rows + tile_rows() - 1) / tile_rows());
    // The rows come from memory once a pass; the other groups find them in the cache.
    if (group_tasks_.empty() || group_tasks_.back() != &task) row_bytes_ += last_bytes_;
    last_bytes_ = static_cast<uint64_t>(group.n_rows) * group.row_bytes;
    groups_.push_back(group);
    group_tasks_.push_back(&task);
  }

  void add_query(const Session& session, int64_t i, bool scored, int64_t stride) {
    const IndexTask& task = *session.task;
    IndexQuery query{};
    query.out = session.selected + sizeof(int32_t) * i * shape_.top_k;
    query.scores = static_cast<uint32_t>(n_scores_);
    query.visible = static_cast<int32_t>(visible(task, i));
    query.prepared = scored ? n_prepared_++ : 0;
    n_scores_ += stride;
    max_visible_ = std::max<int64_t>(max_visible_, query.visible);
    queries_.push_back(query);
    outputs_.push_back(task.selected + i * shape_.top_k);
  }

  void finish_pass() {
    if (queries_.empty()) return;
    float* scores = nullptr;
    if (n_scores_ > 0) {
      const int64_t most = std::max(n_scores_, std::min(kMaxScores, all_scores_));
      scores = static_cast<float*>(memory(scores_, sizeof(float) * most));
      score(scores);
    }
    choose(scores);
    queries_.clear();
    groups_.clear();
    group_tasks_.clear();
    outputs_.clear();
    n_tiles_ = 0;
    n_scores_ = max_visible_ = 0;
    row_bytes_ = last_bytes_ = 0;
  }

  void score(float* scores) {
    IndexScoreArgs args{};
    args.n_groups = static_cast<int32_t>(groups_.size());
    args.heads = static_cast<int32_t>(heads_);
    args.dim = shape_.format.dim;
    args.channels = static_cast<int32_t>(channels_);
    Recorder::Builder b =
        r_.dispatch("indexer", shape_.format.packed ? "index_score_packed" : "index_score_f32");
    for (size_t i = 0; i < groups_.size(); i++) {
      const IndexTask& task = *group_tasks_[i];
      const int64_t rows = visible(task, task.segment.n - 1), per_block = task.rows.rows_per_block;
      groups_[i].blocks = b.blocks(task.rows.blocks, (rows + per_block - 1) / per_block);
    }
    b.constant(1, is_aligned_)
        .args(args)
        .table(1, std::span<const IndexGroup>(groups_))
        .table(2, std::span<const IndexQuery>(queries_))
        .read(3, prepared_, prepared_bytes_)
        .read(4, weights_, weight_bytes_)
        .write(5, scores, sizeof(float) * n_scores_)
        .reads_bytes(row_bytes_ + last_bytes_);
    b.run(n_tiles_, 1, 1, 128);
  }

  void choose(const float* scores) {
    // A top_k that slices would not reduce is searched for in one piece.
    const bool wide = 2 * int64_t{shape_.top_k} > kSlice;
    const int64_t slice = wide ? INT32_MAX : kSlice, n = static_cast<int64_t>(queries_.size());
    int64_t most = std::max<int64_t>(max_visible_, 1), stride = 0;
    // Keys and rows of the candidates, each 4 bytes [n, stride].
    uint8_t *in = nullptr, *out = nullptr;
    for (int32_t level = 0;; level++) {
      const int64_t slices = (most + slice - 1) / slice;
      const int64_t threads =
          std::min(kTopThreads, round_up((std::min(most, slice) + kTopKeys - 1) / kTopKeys, 32));
      const int64_t next_stride = slices > 1 ? slices * shape_.top_k : 0;
      const uint64_t in_bytes = 4 * n * stride, out_bytes = 4 * n * next_stride;
      if (slices > 1) {
        out = static_cast<uint8_t*>(memory(candidates_[level % 2], 2 * out_bytes));
      }
      IndexTopArgs args{};
      args.top_k = shape_.top_k;
      args.slice = static_cast<int32_t>(slice);
      args.level = level;
      args.stride = static_cast<int32_t>(stride);
      args.next_stride = static_cast<int32_t>(next_stride);
      Recorder::Builder b = r_.dispatch("indexer", "index_top");
      b.constant(2, wide)
          .args(args)
          .table(1, std::span<const IndexQuery>(queries_))
          .read(2, level == 0 ? scores : nullptr, sizeof(float) * n_scores_)
          .read(3, level > 0 ? in : nullptr, in_bytes)
          .read(4, level > 0 ? in + in_bytes : nullptr, in_bytes)
          .write(5, slices > 1 ? out : nullptr, out_bytes)
          .write(6, slices > 1 ? out + out_bytes : nullptr, out_bytes);
      for (size_t i = 0; i < outputs_.size();) {  // outputs that follow each other in memory
        size_t end = i + 1;
        while (end < outputs_.size() && outputs_[end] == outputs_[end - 1] + shape_.top_k) end++;
        b.indirect(outputs_[i], sizeof(int32_t) * (end - i) * shape_.top_k, true);
        i = end;
      }
      b.run(slices, n, 1, static_cast<uint32_t>(threads));
      if (slices == 1) return;
      most = slices * shape_.top_k;
      stride = next_stride;
      in = out;
    }
  }

  // Scratch that the passes use again.
  struct Buffer {
    void* data = nullptr;
    uint64_t n_bytes = 0;
  };
  void* memory(Buffer& buffer, uint64_t n_bytes) {
    if (buffer.n_bytes < n_bytes) buffer = {r_.scratch(n_bytes), n_bytes};
    return buffer.data;
  }

  Recorder& r_;
  const Shape& shape_;
  const int64_t heads_, channels_;  // padded
  std::vector<Session> sessions_;
  bool is_aligned_ = true;
  void* prepared_ = nullptr;
  float* weights_ = nullptr;
  uint64_t prepared_bytes_ = 0, weight_bytes_ = 0;
  int32_t n_prepared_ = 0;
  Buffer scores_, candidates_[2];  // a level reads one and writes the other
  int64_t all_scores_ = 0;

  // Of the pass.
  std::vector<IndexQuery> queries_;
  std::vector<IndexGroup> groups_;
  std::vector<const IndexTask*> group_tasks_;
  std::vector<int32_t*> outputs_;
  uint32_t n_tiles_ = 0;
  int64_t n_scores_ = 0, max_visible_ = 0;
  uint64_t row_bytes_ = 0, last_bytes_ = 0;
};

}  // namespace

void index_select(
    Recorder& r,
    std::span<const IndexTask> tasks,
    const Backend::IndexShape& shape,
    float* q,
    const RopeTable& rope,
    const float* weights,
    int64_t n) {
  Selection(r, tasks, shape).run(q, rope, weights, n);
}

}  // namespace grebe::metal
