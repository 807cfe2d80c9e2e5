#include "backend/metal/metal_backend.h"

#include <unistd.h>

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

#include "backend/metal/device_loader.h"
#include "backend/metal/ops.h"
#include "core/error.h"

namespace grebe::metal {
namespace {

// Up to this many rows a step is bound by reading weights once, and small ops are worth joining
// with their neighbours; beyond it each row's own work dominates.
constexpr int64_t kFewRows = 8;

// Steps of more rows than this are handed over a layer at a time, so that the device starts while
// the rest is recorded and an interrupt waits for at most kMaxInFlight layers.
constexpr int64_t kSplitRows = 32;
constexpr size_t kMaxInFlight = 2;
constexpr uint64_t kPollMs = 20;

constexpr const char* kLibraries[] = {
    "embed",
    "hyper_connection",
    "matvec",
    "matmul",
    "norm",
    "route",
    "rows",
    "indexer",
    "attention_decode",
    "attention_prefill",
    "moe",
    "moe_prefill"};

class MetalBackend final : public Backend {
 public:
  MetalBackend(std::unique_ptr<Device> device, bool exact)
      : device_(std::move(device)), buffers_(*device_), pipelines_(*device_), exact_(exact) {}
  ~MetalBackend() override {
    drain();
    drop_ahead();
  }

  std::string name() const override { return "metal"; }
  std::string description() const override { return std::string("metal: ") + device_->info().name; }

  void* allocate(uint64_t bytes, const char* what) override {
    if (pid_ != getpid())
      throw Error("a Metal device does not outlive fork(); load the model again");
    return buffers_.allocate(bytes, what);
  }
  void release(void* memory, uint64_t) noexcept override {
    if (pid_ == getpid()) buffers_.release(memory);  // a forked child has no device
  }
  uint64_t scratch_bytes() const override {
    uint64_t n = 0;
    for (const auto& r : all_) n += r->arena_bytes();
    return n;
  }
  void map_weights(std::span<const std::span<const uint8_t>> files, uint64_t longest) override {
    buffers_.map_files(files, longest);
    pipelines_.compile_ahead(kLibraries);
  }
  bool takes_host_memory() const override { return false; }

  // ---- a step

  void begin(Interrupted interrupted) override {
    drain();
    drop_ahead();
    start_recording();
    interrupted_ = std::move(interrupted);
  }

  void flush() override {
    check_interrupted();
    if (rows_ <= kSplitRows || recording_ahead_) {
      recorder_->reuse_scratch();
      return;
    }
    submit("prefill");
    while (in_flight_.size() > kMaxInFlight) wait_for_first();
    if (!recorder_) recorder_ = take_recorder();
  }

  void commit() override {
    settle();
    submit(rows_ <= kSplitRows ? "decode" : "prefill");
  }

  void wait() override {
    while (!in_flight_.empty()) wait_for_first();
  }

  void abandon() override { drain(); }

  std::string trace() const override {
    std::string lines;
    for (const Recorder::Record& r : trace_) {
      lines += std::string(r.kernel) + (r.barrier ? "\t1\t" : "\t0\t");
      lines += std::to_string(r.reads_bytes) + "\n";
    }
    return lines;
  }

  bool can_record_ahead() const override { return true; }
  void begin_ahead() override {
    drop_ahead();
    recording_ahead_ = true;
    start_recording();
  }
  void end_ahead() override {
    settle();
    recording_ahead_ = false;
    ahead_ = {encode("decode"), std::exchange(recorder_, nullptr)};
  }
  void commit_ahead(Interrupted interrupted) override {
    interrupted_ = std::move(interrupted);
    trace_.clear();
    commit_flight(std::exchange(ahead_, {}));
  }
  void drop_ahead() override {
    recording_ahead_ = false;
    if (!ahead_.recorder) return;
    const Flight flight = std::exchange(ahead_, {});
    device_->discard(flight.command_buffer);
    give_back(flight.recorder);
  }

  // ---- ops

  void embed(
      const Weight& w, const int32_t* tokens, int64_t n, int32_t n_streams, float* X) override {
    settle();
    rows_ = n;
    metal::embed(*recorder_, w, tokens, n, n_streams, X);
  }

  void hc_pre(
      const HcPre& p, const float* X, int64_t n, float* x, float* post, float* comb) override {
    HcPost previous;
    if (post_ && post_->X == X && post_->n == n && post_->n_streams == p.n_streams &&
        post_->hidden == p.hidden) {
      if (last_ && can_update_streams(p)) {
        StreamUpdate update;
        update.next = p;
        update.X = post_->X;
        update.post = post_->p.post;
        update.comb = post_->p.comb;
        post_.reset();
        run(*std::exchange(last_, {}), &update);
        settle();
        return metal::hc_pre_finish(*recorder_, update, x, post, comb);
      }
      settle_last();
      previous = std::exchange(post_, {})->p;
    }
    settle();
    metal::hc_pre(*recorder_, p, const_cast<float*>(X), previous, n, x, post, comb);
  }

  void hc_post(
      float* X,
      const float* y,
      const float* post,
      const float* comb,
      int64_t n,
      int32_t n_streams,
      int64_t hidden) override {
    const bool ends = last_ && last_->y == y && n == 1 && last_->width == hidden;
    if (!ends) settle();
    post_ = PostOp{X, {y, post, comb}, n, n_streams, hidden};
  }

  void hc_head(const HcPre& p, const float* X, const int32_t* rows, int64_t n, float* x) override {
    settle();
    metal::hc_head(*recorder_, p, X, rows, n, x);
  }

  void matmul(std::span<const Product> products, int64_t n) override {
    InputNorm norm;
    const bool fits =
        norm_ && norm_->n == n &&
        std::all_of(products.begin(), products.end(), [&](const Product& p) {
          return p.x == norm_->x && p.x_stride == norm_->width && p.w->n_in == norm_->width;
        });
    if (fits) {
      norm = {norm_->weight, norm_->eps};
      norm_.reset();
    }
    settle();
    const Product& p = products.front();
    if (n == 1 && products.size() == 1 && !norm.weight && p.row_begin == 0 &&
        p.n_rows == p.w->n_out) {
      last_ = LastOp{p, {}, p.y, p.n_rows};
    } else {
      metal::matmul(*recorder_, products, n, norm);
    }
  }

  void rms_norm(float* x, const float* weight, int64_t n, int64_t width, float eps) override {
    settle();
    if (n <= kFewRows) {
      norm_ = NormOp{x, weight, n, width, eps};
    } else {
      metal::rms_norm(*recorder_, x, weight, n, width, eps);
    }
  }

  void q_norm_rope(
      float* q, const RopeTable& rope, int64_t n, int32_t n_heads, int32_t head_dim, float eps)
      override {
    settle();
    const QNormOp op{q, rope, n, n_heads, head_dim, eps};
    if (n <= kFewRows) {
      q_norm_ = op;
    } else {
      run(op);
    }
  }

  void kv_rows(
      const float* kv,
      const float* norm,
      const RopeTable& rope,
      int64_t n,
      const KvRowFormat& format,
      float eps,
      uint8_t* out) override {
    settle_but_q_norm();
    rows_op_.raw = RawRows{kv, norm, rope, n, out};
    rows_op_.kv_format = format;
    rows_op_.eps = eps;
    rows_op_.any = true;
  }

  void pool(std::span<const PoolTask> tasks) override {
    if (!rows_op_.pools.empty()) settle_rows();
    settle_all_but_rows();
    rows_op_.pools.assign(tasks.begin(), tasks.end());
    rows_op_.any = true;
  }

  void store_kv_rows(
      std::span<const StoreRowsTask> tasks, const KvRowFormat& format, float eps) override {
    settle_all_but_rows();
    if (!pooled_here(tasks) || !rows_op_.kv_rows.empty()) settle_rows();
    rows_op_.kv_rows.assign(tasks.begin(), tasks.end());
    rows_op_.kv_format = format;
    rows_op_.eps = eps;
    rows_op_.any = true;
  }

  void store_index_rows(
      std::span<const StoreRowsTask> tasks, const IndexRowFormat& format, float eps) override {
    settle_all_but_rows();
    if (!pooled_here(tasks) || !rows_op_.index_rows.empty()) settle_rows();
    rows_op_.index_rows.assign(tasks.begin(), tasks.end());
    rows_op_.index_format = format;
    rows_op_.eps = eps;
    rows_op_.any = true;
  }

  void index_select(
      std::span<const IndexTask> tasks,
      const IndexShape& shape,
      float* q,
      const RopeTable& rope,
      const float* weights,
      int64_t n) override {
    settle_but_q_norm();
    metal::index_select(*recorder_, tasks, shape, q, rope, weights, n);
  }

  void attention(
      std::span<const AttentionTask> tasks,
      const KvRowFormat& format,
      float* q,
      const RopeTable& rope,
      const float* sinks,
      int32_t n_heads,
      int32_t window_size) override {
    float eps = 0;
    const bool norm_q =
        q_norm_ && q_norm_->q == q && q_norm_->rope.cos == rope.cos && q_norm_->n_heads == n_heads;
    if (norm_q) {
      eps = q_norm_->eps;
      q_norm_.reset();
    }
    settle();
    metal::attention(*recorder_, tasks, format, q, rope, sinks, n_heads, window_size, norm_q, eps);
  }

  void route(
      const Route& p, const float* logits, int64_t n, int32_t* experts, float* weights) override {
    settle();
    const RouteOp op{p, logits, n, experts, weights};
    if (moe_can_route(p, n)) {
      route_ = op;
    } else {
      run(op);
    }
  }

  void moe(
      const Moe& p,
      const float* x,
      const int32_t* experts,
      const float* weights,
      int64_t n,
      float* y) override {
    std::optional<RouteOp> route;
    if (route_ && route_->experts == experts && route_->weights == weights && route_->n == n) {
      std::swap(route, route_);
    }
    settle();
    const MoeOp op{p, route, x, const_cast<int32_t*>(experts), const_cast<float*>(weights), n, y};
    if (n == 1) {
      last_ = LastOp{{}, op, y, p.down->n_out};
    } else {
      run(op, nullptr);
    }
  }

 private:
  struct Flight {  // a command buffer and what it was recorded with
    uint64_t command_buffer = 0;
    Recorder* recorder = nullptr;
  };

  // Ops that wait for the one they may be joined with.
  struct PostOp {
    float* X;
    HcPost p;
    int64_t n;
    int32_t n_streams;
    int64_t hidden;
  };
  struct NormOp {
    float* x;
    const float* weight;
    int64_t n, width;
    float eps;
  };
  struct QNormOp {
    float* q;
    RopeTable rope;
    int64_t n;
    int32_t n_heads, head_dim;
    float eps;
  };
  struct RouteOp {
    Route p;
    const float* logits;
    int64_t n;
    int32_t* experts;
    float* weights;
  };
  struct MoeOp {
    Moe p;
    std::optional<RouteOp> route;
    const float* x;
    int32_t* experts;
    float* weights;
    int64_t n;
    float* y;
  };
  struct LastOp {  // of one row, and perhaps the last of a sublayer
    Product product;
    std::optional<MoeOp> moe;
    const float* y;
    int64_t width;
  };
  struct RawRows {
    const float *kv, *norm;
    RopeTable rope;
    int64_t n;
    uint8_t* out;
  };
  struct RowsParts {
    bool any = false;
    RawRows raw{};
    std::vector<PoolTask> pools;
    std::vector<StoreRowsTask> kv_rows, index_rows;
    KvRowFormat kv_format;
    IndexRowFormat index_format;
    float eps = 0;
  };

  // ---- joining

  void run(const QNormOp& op) {
    metal::q_norm_rope(*recorder_, op.q, op.rope, op.n, op.n_heads, op.head_dim, op.eps);
  }
  void run(const RouteOp& op) {
    metal::route(*recorder_, op.p, op.logits, op.n, op.experts, op.weights);
  }

  void run(const MoeOp& op, StreamUpdate* update) {
    metal::moe(
        *recorder_,
        op.p,
        op.x,
        op.experts,
        op.weights,
        op.n,
        op.y,
        op.route ? &op.route->p : nullptr,
        op.route ? op.route->logits : nullptr,
        update);
  }
  void run(const LastOp& op, StreamUpdate* update) {
    if (op.moe) {
      run(*op.moe, update);
    } else if (update) {
      metal::matmul_into_streams(*recorder_, op.product, *update);
    } else {
      metal::matmul(*recorder_, {&op.product, 1}, 1);
    }
  }

  // Every store task takes the rows of a pool task that waits.
  bool pooled_here(std::span<const StoreRowsTask> tasks) const {
    return std::all_of(tasks.begin(), tasks.end(), [&](const StoreRowsTask& task) {
      return std::any_of(rows_op_.pools.begin(), rows_op_.pools.end(), [&](const PoolTask& pool) {
        return pool.rows == task.rows;
      });
    });
  }

  void settle_rows() {
    if (!rows_op_.any) return;
    const RowsParts parts = std::exchange(rows_op_, {});
    RowsOp op;
    op.kv = parts.raw.kv;
    op.kv_norm = parts.raw.norm;
    op.rope = parts.raw.rope;
    op.n = parts.raw.n;
    op.out = parts.raw.out;
    op.pools = parts.pools;
    op.kv_rows = parts.kv_rows;
    op.index_rows = parts.index_rows;
    op.kv_format = parts.kv_format;
    op.index_format = parts.index_format;
    op.eps = parts.eps;
    metal::rows(*recorder_, op);
  }
  void settle_q_norm() {
    if (const auto op = std::exchange(q_norm_, {})) run(*op);
  }
  void settle_last() {
    if (const auto op = std::exchange(last_, {})) run(*op, nullptr);
  }
  // What never waits across another op: a last product and its post, norm, route.
  void settle_others() {
    settle_last();
    if (const auto op = std::exchange(post_, {})) {
      metal::hc_post(*recorder_, op->X, op->p, op->n, op->n_streams, op->hidden);
    }
    if (const auto op = std::exchange(norm_, {})) {
      metal::rms_norm(*recorder_, op->x, op->weight, op->n, op->width, op->eps);
    }
    if (const auto op = std::exchange(route_, {})) run(*op);
  }
  // The rows touch neither q nor its norm, so both may wait while the other is recorded.
  void settle_all_but_rows() { settle_others(); }
  void settle_but_q_norm() {
    settle_others();
    settle_rows();
  }
  void settle() {
    settle_but_q_norm();
    settle_q_norm();
  }

  // ---- command buffers

  void start_recording() {
    last_.reset();
    post_.reset();
    norm_.reset();
    q_norm_.reset();
    route_.reset();
    rows_op_ = {};
    rows_ = 0;
    if (!recording_ahead_) {
      interrupted_ = nullptr;
      trace_.clear();
    }
    give_back(std::exchange(recorder_, nullptr));
    recorder_ = take_recorder();
  }

  Recorder* take_recorder() {
    if (free_.empty()) {
      free_.reserve(all_.size() + 1);  // giving back cannot fail
      all_.push_back(std::make_unique<Recorder>(buffers_, pipelines_, exact_));
      return all_.back().get();
    }
    Recorder* recorder = free_.back();
    free_.pop_back();
    return recorder;
  }
  void give_back(Recorder* recorder) {
    if (!recorder) return;
    recorder->clear();
    free_.push_back(recorder);
  }

  uint64_t encode(const char* label) {
    uint64_t command_buffer = 0;
    const Status status = device_->encode(recorder_->list(label), &command_buffer);
    if (!status.ok()) throw BackendError(std::string("metal: ") + status.message, "encode");
    return command_buffer;
  }
  void submit(const char* label) {
    if (recorder_->empty()) return;
    const uint64_t command_buffer = encode(label);
    commit_flight({command_buffer, std::exchange(recorder_, nullptr)});
  }
  void commit_flight(const Flight& flight) {
    const auto& records = flight.recorder->records();
    trace_.insert(trace_.end(), records.begin(), records.end());
    in_flight_.push_back(flight);
    const Status status = device_->commit(flight.command_buffer);
    if (status.ok()) return;
    in_flight_.pop_back();
    device_->discard(flight.command_buffer);
    give_back(flight.recorder);
    throw BackendError(std::string("metal: ") + status.message, "commit");
  }

  // A step that throws leaves nothing running: its buffers may be freed next.
  void wait_for_first() {
    Status status;
    for (;;) {
      status = device_->wait(in_flight_.front().command_buffer, kPollMs);
      if (status.code != Status::kInterrupted) break;
      check_interrupted();
    }
    give_back(in_flight_.front().recorder);
    in_flight_.pop_front();
    if (status.ok()) return;
    drain();
    const std::string message = std::string("metal: the device stopped: ") + status.message;
    if (status.code == Status::kOutOfMemory) throw OutOfMemory(message, 0);
    throw BackendError(message, "wait");
  }
  void check_interrupted() {
    if (!interrupted_ || !interrupted_()) return;
    drain();
    throw Cancelled("cancelled between two layers");
  }
  void drain() noexcept {
    while (!in_flight_.empty()) {
      while (device_->wait(in_flight_.front().command_buffer, kPollMs).code ==
             Status::kInterrupted) {
      }
      give_back(in_flight_.front().recorder);
      in_flight_.pop_front();
    }
  }

  std::unique_ptr<Device> device_;
  BufferTable buffers_;
  PipelineCache pipelines_;
  bool exact_;
  const pid_t pid_ = getpid();
  Interrupted interrupted_;
  int64_t rows_ = 0;                     // of the step
  std::vector<Recorder::Record> trace_;  // of the step

  std::optional<LastOp> last_;
  std::optional<PostOp> post_;
  std::optional<NormOp> norm_;
  std::optional<QNormOp> q_norm_;
  std::optional<RouteOp> route_;
  RowsParts rows_op_;

  std::vector<std::unique_ptr<Recorder>> all_;
  std::vector<Recorder*> free_;
  Recorder* recorder_ = nullptr;
  std::deque<Flight> in_flight_;
  Flight ahead_;
  bool recording_ahead_ = false;
};

}  // namespace

std::unique_ptr<Backend> make_metal_backend(const BackendOptions& options) {
  Status status;
  std::unique_ptr<Device> device(new_device(&status));
  if (!device) {
    throw BackendUnavailable(
        std::string("backend 'metal' is not available: ") + status.message, "metal");
  }
  return std::make_unique<MetalBackend>(std::move(device), options.exact);
}

bool is_available() {
  Status status;
  return std::unique_ptr<Device>(new_device(&status)) != nullptr;
}

}  // namespace grebe::metal
