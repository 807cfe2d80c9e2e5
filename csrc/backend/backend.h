// What an engine must be able to do to run the model: memory, and one small table of ops.
//
// The forward pass (model/forward.cpp) is written once over this interface. Every pointer that an
// op takes points into memory from allocate() or into the mapped weights; both CPU and
// unified-memory GPUs address them directly, and a GPU backend finds its buffer by address. Ops may
// be enqueued: results are valid after wait(). The rows of a step may come from several sessions:
// consecutive rows of one session form a Segment.
//
// Shapes are row-major, n = rows of the step. The mathematics is numbered after [V4] sections.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backend/rows.h"
#include "backend/weight.h"

namespace grebe {

/// Rotation table: for row i the cos and sin of rope_dim/2 angles, f32[n, rope_dim / 2] each
/// [V4 4.5].
struct RopeTable {
  const float* cos = nullptr;
  const float* sin = nullptr;
  int32_t half = 0;  ///< rope_dim / 2
};

/// Consecutive rows of one session in a step.
struct Segment {
  int64_t row = 0;  ///< first row in the step
  int64_t n = 0;    ///< number of rows
  int64_t pos = 0;  ///< absolute position of the first
};

/// Online softmax pooling state of one compressor: f32[n_parts, 3, width] = (max, sum, weighted
/// sum) per channel. Ratio 128: one part, the row being built. Ratio 4: part 0 the row being built
/// (seeded with the previous window's A half), part 1 the A half of the current window. max = -inf
/// where nothing has been pooled.
struct PoolShape {
  int32_t ratio = 0;
  int32_t dim = 0;  ///< channels of a row

  bool overlap() const { return ratio == 4; }
  int32_t width() const { return overlap() ? 2 * dim : dim; }
  int64_t n_floats() const { return int64_t{3} * dim * (overlap() ? 2 : 1); }
};

/// Where to copy pooling states after `pos` tokens.
struct PoolCheckpoint {
  int64_t pos = 0;
  float* states = nullptr;
};

/// Pools the tokens of one segment. Emitted rows (not yet normalised) go to `rows`, one after
/// another.
struct PoolTask {
  PoolShape shape;
  Segment segment;
  const float* kv = nullptr;    ///< f32[n_step, kv_stride]: rows of the step, width() wide
  const float* gate = nullptr;  ///< same shape
  int64_t stride = 0;
  const float* ape = nullptr;                   ///< f32[ratio, width]
  const float* state_in = nullptr;              ///< f32[n_floats]
  float* state_out = nullptr;                   ///< f32[n_floats], distinct from state_in
  std::span<const PoolCheckpoint> checkpoints;  ///< ascending positions in (pos, pos + n]
  int64_t checkpoint_offset = 0;                ///< of this state, in floats
  float* rows = nullptr;                        ///< f32[rows completed by this segment, dim]
};

/// Normalises, rotates, rounds and stores finished rows: n_rows rows f32[n_rows, dim] -> stream
/// rows [first_row, ...).
struct StoreRowsTask {
  const float* rows = nullptr;
  int64_t n_rows = 0;
  const float* norm = nullptr;  ///< f32[dim]
  RopeTable rope;               ///< one entry per row
  RowStream out;
  int64_t first_row = 0;
};

/// Attention of one segment's queries [V4 4.6].
struct AttentionTask {
  Segment segment;
  const uint8_t* ring = nullptr;  ///< raw rows before the segment: position p at slot p % ring_rows
  int32_t ring_rows = 0;
  const uint8_t* new_rows = nullptr;  ///< packed raw rows of the segment, contiguous
  RowStream rows;                     ///< compressed rows; unused when ratio is 0
  int32_t ratio = 0;
  /// Ratio 4 with more visible rows than top_k: i32[n, top_k] row numbers in ascending order,
  /// padded with -1; else null: all visible.
  const int32_t* selected = nullptr;
  int32_t top_k = 0;
};

/// Index scoring of one segment [V4 4.9]; rows [0, (pos + i + 1) / ratio) are visible to row i.
struct IndexTask {
  Segment segment;
  RowStream rows;
  int32_t* selected = nullptr;  ///< i32[n, top_k] out, ascending, padded with -1
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual std::string name() const = 0;         ///< "cpu"
  virtual std::string description() const = 0;  ///< "cpu: avx512, 2 threads"

  // Memory. allocate() returns zeroed, 64-byte aligned memory; throws OutOfMemory.
  /// Announces the mapped files that weights point into, before the first op; `longest` is the size
  /// of the largest tensor. Throws OutOfMemory when the device cannot hold them.
  virtual void map_weights(std::span<const std::span<const uint8_t>> files, uint64_t longest) = 0;
  /// Whether ops take any host pointer, or only those of allocate() and the mapped weights.
  virtual bool takes_host_memory() const = 0;
  virtual void* allocate(uint64_t bytes, const char* what) = 0;
  virtual void release(void* memory, uint64_t bytes) noexcept = 0;
  virtual uint64_t scratch_bytes() const = 0;

  /// Whether an op has run when its call returns: then the step may look at what the index chose
  /// and fetch rows from disk before attention.
  virtual bool runs_ops_at_once() const { return false; }

  // A step is recorded between begin() and commit(); wait() returns when it has run, or throws
  // BackendError. When `interrupted` says so, flush() or wait() stops the step and throws
  // Cancelled; what it wrote is then undefined.
  using Interrupted = std::function<bool()>;
  virtual void begin(Interrupted interrupted = {}) = 0;
  /// Between layers: what has been recorded may start to run.
  virtual void flush() = 0;
  virtual void commit() = 0;
  virtual void wait() = 0;
  /// Ends a step that threw before its wait(): nothing of it runs any more.
  virtual void abandon() {}

  /// The dispatches of the last step, a line each; see Model::trace().
  virtual std::string trace() const { return {}; }

  // A backend that records may record the step after this one while this one runs. The ops between
  // begin_ahead() and end_ahead() are kept; commit_ahead() runs them in place of begin() ...
  // commit(), drop_ahead() forgets them.
  virtual bool can_record_ahead() const { return false; }
  virtual void begin_ahead() {}
  virtual void end_ahead() {}
  virtual void commit_ahead(Interrupted interrupted) { (void)interrupted; }
  virtual void drop_ahead() {}

  /// X[i, j, :] = w[tokens[i], :] for all streams j. X f32[n, n_streams, hidden] [4.1].
  virtual void embed(
      const Weight& w, const int32_t* tokens, int64_t n, int32_t n_streams, float* X) = 0;

  /// Before a sublayer [4.2]: x = rms_norm(sum_j pre[j] X[j]) * norm.
  struct HcPre {
    const Weight* fn;
    const float *base, *scale, *norm;
    int32_t n_streams, sinkhorn_iters;
    float hc_eps, rms_eps;
    int64_t hidden;
  };
  ///   x f32[n, hidden], post f32[n, n_streams], comb f32[n, n_streams, n_streams]
  virtual void hc_pre(
      const HcPre& p, const float* X, int64_t n, float* x, float* post, float* comb) = 0;
  /// After a sublayer [4.3]: X[k] = post[k] y + sum_j comb[j, k] X[j], in place.
  virtual void hc_post(
      float* X,
      const float* y,
      const float* post,
      const float* comb,
      int64_t n,
      int32_t n_streams,
      int64_t hidden) = 0;
  /// Output head collapse [4.11]: as hc_pre without post and comb; rows picks the rows of X,
  /// i32[n].
  virtual void hc_head(
      const HcPre& p, const float* X, const int32_t* rows, int64_t n, float* x) = 0;

  /// One product of the step: y[t, r] = sum_k w[row_begin + r, k] x[t, k].
  struct Product {
    const Weight* w;
    int64_t row_begin, n_rows;
    const float* x;
    int64_t x_stride;
    float* y;
    int64_t y_stride;
  };
  virtual void matmul(std::span<const Product> products, int64_t n) = 0;

  /// x = rms_norm(x) * weight, rows of `width` floats, in place. A backend may leave it to the
  /// matmul that follows: then x itself stays as it was.
  virtual void rms_norm(float* x, const float* weight, int64_t n, int64_t width, float eps) = 0;
  /// Query heads [4.6.2]: each head rms-normalised without weight, then rotated. q f32[n, n_heads,
  /// head_dim], in place. A backend may leave it to the attention over the same q.
  virtual void q_norm_rope(
      float* q, const RopeTable& rope, int64_t n, int32_t n_heads, int32_t head_dim, float eps) = 0;
  /// Raw KV rows [4.6.3]: norm, rotate, round, pack. kv f32[n, head_dim] -> u8[n, row_bytes].
  virtual void kv_rows(
      const float* kv,
      const float* norm,
      const RopeTable& rope,
      int64_t n,
      const KvRowFormat& format,
      float eps,
      uint8_t* out) = 0;

  virtual void pool(std::span<const PoolTask> tasks) = 0;
  virtual void store_kv_rows(
      std::span<const StoreRowsTask> tasks, const KvRowFormat& format, float eps) = 0;
  virtual void store_index_rows(
      std::span<const StoreRowsTask> tasks, const IndexRowFormat& format, float eps) = 0;

  /// Lightning indexer [4.9]: q f32[n, n_heads, dim] (rotated and rounded here), weights f32[n,
  /// n_heads] (scaled here).
  struct IndexShape {
    int32_t n_heads, top_k, ratio;
    IndexRowFormat format;
  };
  virtual void index_select(
      std::span<const IndexTask> tasks,
      const IndexShape& shape,
      float* q,
      const RopeTable& rope,
      const float* weights,
      int64_t n) = 0;

  /// q f32[n, n_heads, head_dim] in, attention output with the inverse rotation out, in place
  /// [4.6.4 - 4.6.6].
  virtual void attention(
      std::span<const AttentionTask> tasks,
      const KvRowFormat& format,
      float* q,
      const RopeTable& rope,
      const float* sinks,
      int32_t n_heads,
      int32_t window_size) = 0;

  /// Router [4.10.1-3]: logits f32[n, n_experts] -> experts i32[n, n_used], weights f32[n, n_used].
  /// `bias` chooses but does not weigh; when tid2eid i32[vocab, n_used] is given it chooses by
  /// token instead.
  struct Route {
    const float* bias;
    const int32_t* tid2eid;
    const int32_t* tokens;
    int32_t n_experts, n_used;
    float scale;
  };
  virtual void route(
      const Route& p, const float* logits, int64_t n, int32_t* experts, float* weights) = 0;

  /// Routed and shared experts [4.10.4-5]. x f32[n, hidden] -> y f32[n, hidden].
  struct Moe {
    const Weight *gate, *up, *down, *shared_gate, *shared_up, *shared_down;
    int32_t n_used;
    float clamp, shared_clamp;
  };
  virtual void moe(
      const Moe& p,
      const float* x,
      const int32_t* experts,
      const float* weights,
      int64_t n,
      float* y) = 0;
};

struct BackendOptions {
  int n_threads = 0;   ///< 0: all usable cores
  bool exact = false;  ///< f32 activations everywhere
  std::string isa;     ///< "" = best
};

/// "auto" or a name. Throws BackendUnavailable{name} with the reason and the names that exist.
std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options);

}  // namespace grebe
