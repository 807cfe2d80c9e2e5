// The rows that a step adds to the cache: a table of jobs, one threadgroup each (metal/rows.metal).
#include <algorithm>
#include <cmath>
#include <vector>

#include "args/rows_args.h"
#include "backend/metal/ops.h"
#include "core/error.h"

namespace grebe::metal {
namespace {

constexpr uint64_t kMaxThreads = 512;  // of a threadgroup, as rows.metal says

uint64_t floats(int64_t n) { return sizeof(float) * static_cast<uint64_t>(n); }

/// Builds the tables and tells the recorder what they point to.
class Jobs {
 public:
  Jobs(Recorder& r, Recorder::Builder& dispatch, const RowsOp& op)
      : r_(r), dispatch_(dispatch), op_(op) {}

  void add_raw_rows() {
    const int32_t dim = op_.kv_format.head_dim;
    const int32_t source = add_source(dim, op_.kv_norm, op_.rope, op_.n);
    const uint64_t in = read(op_.kv, floats(op_.n * dim));
    const int64_t bytes = op_.kv_format.row_bytes();
    dispatch_.indirect(op_.out, op_.n * bytes, true);
    const uint64_t out = r_.address(op_.out);
    for (int64_t i = 0; i < op_.n; i++) {
      RowsJob& job = add_job(source, kRowsKv, out + i * bytes);
      job.in = in + floats(i * dim);
      job.entry = static_cast<int32_t>(i);
    }
  }

  /// Pools a segment; `store` says what becomes of the finished rows (null: f32 to task.rows).
  void add_pool(const PoolTask& task, const StoreRowsTask* store, RowsJobKind kind) {
    const PoolShape& shape = task.shape;
    const Segment& segment = task.segment;
    const int64_t dim = shape.dim, ratio = shape.ratio, width = shape.width();
    const int64_t n_rows = (segment.pos + segment.n) / ratio - segment.pos / ratio;
    const RowsJobKind row_kind = store ? kind : kRowsPlain;
    const int32_t i_source = store ? add_source(shape.dim, store->norm, store->rope, store->n_rows)
                                   : add_source(shape.dim, nullptr, {}, 0);
    RowsSource& source = sources_.back();
    const int64_t begin = segment.row * task.stride, n = (segment.n - 1) * task.stride + width;
    source.kv = read(task.kv + begin, floats(n));
    source.gate = read(task.gate + begin, floats(n));
    source.ape = read(task.ape, floats(ratio * width));
    source.state_in = read(task.state_in, floats(shape.n_floats()));
    dispatch_.reads_bytes(floats(shape.n_floats()));
    source.stride = static_cast<int32_t>(task.stride);
    source.width = static_cast<int32_t>(width);
    source.ratio = shape.ratio;
    source.slot = static_cast<int32_t>(segment.pos % ratio);

    // Window w takes tokens [w ratio, (w + 1) ratio); those before the segment are in state_in:
    // part 0 is the row of the first window, part 1 the A half of that window.
    const int64_t first = segment.pos / ratio;
    const auto window = [&](RowsJob& job, int64_t w, int64_t end) {
      const auto token = [&](int64_t pos) {
        return static_cast<int32_t>(std::clamp(pos, segment.pos, end) - segment.pos);
      };
      job.start = w == first ? 0 : w == first + 1 && shape.overlap() ? 1 : -1;
      if (shape.overlap()) {
        job.a_begin = token((w - 1) * ratio);
        job.a_end = token(w * ratio);
      }
      job.b_begin = token(w * ratio);
      job.b_end = token((w + 1) * ratio);
    };
    for (int64_t i = 0; i < n_rows; i++) {
      const uint64_t out = store ? row_address(*store, i) : r_.address(task.rows + i * dim);
      RowsJob& job = add_job(i_source, row_kind, out);
      job.entry = static_cast<int32_t>(i);
      window(job, first + i, segment.pos + segment.n);
    }
    if (!store && n_rows > 0) dispatch_.indirect(task.rows, floats(n_rows * dim), true);

    const auto state = [&](float* states, int64_t end) {
      dispatch_.indirect(states, floats(shape.n_floats()), true);
      const uint64_t out = r_.address(states);
      const int64_t w = end / ratio;
      window(add_job(i_source, kRowsState, out), w, end);
      if (!shape.overlap()) return;
      RowsJob& next = add_job(i_source, kRowsState, out + floats(3 * dim));
      window(next, w + 1, end);  // its A half is all of it so far
    };
    state(task.state_out, segment.pos + segment.n);
    for (const PoolCheckpoint& c : task.checkpoints) {
      state(c.states + task.checkpoint_offset, c.pos);
    }
  }

  void add_store(const StoreRowsTask& task, int32_t dim, RowsJobKind kind) {
    const int32_t source = add_source(dim, task.norm, task.rope, task.n_rows);
    const uint64_t in = read(task.rows, floats(task.n_rows * dim));
    for (int64_t i = 0; i < task.n_rows; i++) {
      RowsJob& job = add_job(source, kind, row_address(task, i));
      job.in = in + floats(i * dim);
      job.entry = static_cast<int32_t>(i);
    }
  }

  void run() {
    if (jobs_.empty()) return;
    end_run();
    const int32_t rope_dim = op_.kv_format.rope_dim;
    RowsArgs args{};
    args.eps = op_.eps;
    args.hadamard_scale =
        static_cast<float>(1.0 / std::sqrt(static_cast<double>(std::max(op_.index_format.dim, 1))));
    args.rope_bytes = op_.kv_format.scale_offset() - op_.kv_format.nope();
    args.kv_row_bytes = static_cast<int32_t>(op_.kv_format.row_bytes());
    int32_t longest = rope_dim;
    for (const RowsSource& source : sources_) longest = std::max(longest, source.dim);
    const uint64_t threads = std::min<uint64_t>(kMaxThreads, (longest + 31) / 32 * 32);
    dispatch_.constant(0, static_cast<uint32_t>(op_.kv_format.kind))
        .constant(1, op_.index_format.packed)
        .args(args)
        .table(1, std::span<const RowsSource>(sources_))
        .table(2, std::span<const RowsJob>(jobs_))
        .threadgroup_memory(floats(longest + 32))
        .run(jobs_.size(), 1, 1, static_cast<uint32_t>(threads));
  }

 private:
  uint64_t read(const float* data, uint64_t n_bytes) {
    dispatch_.indirect(data, n_bytes, false);
    return r_.address(data);
  }

  int32_t add_source(int32_t dim, const float* norm, const RopeTable& rope, int64_t n_entries) {
    RowsSource source{};
    source.dim = dim;
    source.pairs = n_entries > 0 ? rope.half : 0;
    if (norm) source.norm = read(norm, floats(dim));
    if (source.pairs > 0) {
      source.cos = read(rope.cos, floats(n_entries * rope.half));
      source.sin = read(rope.sin, floats(n_entries * rope.half));
    }
    sources_.push_back(source);
    return static_cast<int32_t>(sources_.size()) - 1;
  }

  RowsJob& add_job(int32_t source, RowsJobKind kind, uint64_t out) {
    RowsJob job{};
    job.source = source;
    job.kind = kind;
    job.out = out;
    job.start = -1;
    return jobs_.emplace_back(job);
  }

  /// Where row i of a task goes. Rows that follow each other in memory are announced together.
  uint64_t row_address(const StoreRowsTask& task, int64_t i) {
    uint8_t* row = task.out.row(task.first_row + i);
    const uint64_t bytes = static_cast<uint64_t>(task.out.row_bytes);
    if (row != run_ + run_bytes_ || !run_) {
      end_run();
      run_ = row;
      run_address_ = r_.address(row);
    }
    run_bytes_ += bytes;
    return run_address_ + run_bytes_ - bytes;
  }
  void end_run() {
    if (run_) dispatch_.indirect(run_, run_bytes_, true);
    run_ = nullptr;
    run_bytes_ = 0;
  }

  Recorder& r_;
  Recorder::Builder& dispatch_;
  const RowsOp& op_;
  std::vector<RowsSource> sources_;
  std::vector<RowsJob> jobs_;
  uint8_t* run_ = nullptr;
  uint64_t run_bytes_ = 0, run_address_ = 0;
};

}  // namespace

void rows(Recorder& r, const RowsOp& op) {
  Recorder::Builder dispatch = r.dispatch("rows", "rows");
  Jobs jobs(r, dispatch, op);
  if (op.kv && op.n > 0) jobs.add_raw_rows();

  const auto is_pooled_here = [&](const StoreRowsTask& store) {
    return std::any_of(op.pools.begin(), op.pools.end(), [&](const PoolTask& pool) {
      return pool.rows == store.rows;
    });
  };
  for (const PoolTask& pool : op.pools) {
    const auto find = [&](std::span<const StoreRowsTask> stores) -> const StoreRowsTask* {
      for (const StoreRowsTask& store : stores)
        if (store.rows == pool.rows && store.n_rows > 0) return &store;
      return nullptr;
    };
    if (const StoreRowsTask* store = find(op.kv_rows)) {
      jobs.add_pool(pool, store, kRowsKv);
    } else {
      jobs.add_pool(pool, find(op.index_rows), kRowsIndex);
    }
  }
  for (const StoreRowsTask& store : op.kv_rows) {
    if (!is_pooled_here(store)) jobs.add_store(store, op.kv_format.head_dim, kRowsKv);
  }
  for (const StoreRowsTask& store : op.index_rows) {
    if (!is_pooled_here(store)) jobs.add_store(store, op.index_format.dim, kRowsIndex);
  }
  jobs.run();
}

}  // namespace grebe::metal
