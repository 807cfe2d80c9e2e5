// The CPU backend: ops run at once, on the calling thread and the pool.
//
// This file decides how an op is cut into tasks; the loops are in ops_impl.h, the products in
// matmul.cpp and moe.cpp. A cut never changes a result. Single-token steps keep the small ops on
// the calling thread: a barrier costs more than they do.
#include "backend/cpu/cpu_backend.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "backend/cpu/indexer.h"
#include "backend/cpu/kernels.h"
#include "backend/cpu/matmul.h"
#include "backend/cpu/ops.h"
#include "core/error.h"
#include "core/thread_pool.h"

namespace grebe::cpu {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

// [4.2] steps 2 to 4 for one row: mix f32[(2 + s) s] -> pre, post f32[s], comb f32[s, s]. In
// double: 24 numbers.
void hc_split(const Backend::HcPre& p, const float* mix, float* pre, float* post, float* comb) {
  constexpr int kMax = 8;
  const int s = p.n_streams;
  const double eps = p.hc_eps;
  for (int j = 0; j < s; j++) {
    pre[j] = static_cast<float>(sigmoid(double{mix[j]} * p.scale[0] + p.base[j]) + eps);
    post[j] = static_cast<float>(2 * sigmoid(double{mix[s + j]} * p.scale[1] + p.base[s + j]));
  }
  double c[kMax][kMax];
  for (int j = 0; j < s; j++) {
    double top = -INFINITY, sum = 0;
    for (int k = 0; k < s; k++) {
      const int i = 2 * s + j * s + k;
      c[j][k] = double{mix[i]} * p.scale[2] + p.base[i];
      top = std::max(top, c[j][k]);
    }
    for (int k = 0; k < s; k++) sum += c[j][k] = std::exp(c[j][k] - top);
    for (int k = 0; k < s; k++) c[j][k] = c[j][k] / sum + eps;
  }
  for (int iteration = 0; iteration < p.sinkhorn_iters; iteration++) {
    if (iteration > 0) {
      for (int j = 0; j < s; j++) {
        double sum = eps;
        for (int k = 0; k < s; k++) sum += c[j][k];
        for (int k = 0; k < s; k++) c[j][k] /= sum;
      }
    }
    for (int k = 0; k < s; k++) {
      double sum = eps;
      for (int j = 0; j < s; j++) sum += c[j][k];
      for (int j = 0; j < s; j++) c[j][k] /= sum;
    }
  }
  for (int j = 0; j < s; j++)
    for (int k = 0; k < s; k++) comb[j * s + k] = static_cast<float>(c[j][k]);
}

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::fabs(x))); }

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(const BackendOptions& o)
      : isa_(choose_isa(o.isa)),
        pool_(o.n_threads > 0 ? o.n_threads : usable_cores()),
        ops_(ops_table(isa_)),
        matmul_(pool_, kernel_table(isa_), o.exact),
        indexer_(pool_, ops_) {}

  std::string name() const override { return "cpu"; }
  std::string description() const override {
    return std::string("cpu: ") + isa_name(isa_) + ", " + std::to_string(pool_.size()) +
           (pool_.size() == 1 ? " thread" : " threads");
  }

  void* allocate(uint64_t bytes, const char* what) override {
    const uint64_t size = (std::max<uint64_t>(bytes, 1) + 63) / 64 * 64;
    void* memory = std::aligned_alloc(64, size);
    if (!memory) {
      throw OutOfMemory("out of memory: " + std::to_string(bytes) + " bytes for " + what, bytes);
    }
    std::memset(memory, 0, size);
    return memory;
  }
  void release(void* memory, uint64_t) noexcept override { std::free(memory); }
  uint64_t scratch_bytes() const override {
    return matmul_.scratch_bytes() + indexer_.scratch_bytes() +
           sizeof(float) * (mix_.capacity() + scratch_.capacity());
  }

  void map_weights(std::span<const std::span<const uint8_t>>, uint64_t) override {}
  bool takes_host_memory() const override { return true; }
  bool runs_ops_at_once() const override { return true; }

  void begin(Interrupted interrupted) override {
    fault_ = nullptr;
    indexer_.take_fault();
    interrupted_ = std::move(interrupted);
  }
  void flush() override {
    if (interrupted_ && interrupted_()) throw Cancelled("cancelled between two layers");
  }
  void commit() override {}
  void wait() override {
    const char* op = indexer_.take_fault() ? "index_select" : fault_.load();
    if (!op) return;
    throw BackendError(
        std::string(op) +
            " met numbers that are not finite; the weights or the session's state are damaged",
        op);
  }

  void embed(
      const Weight& w, const int32_t* tokens, int64_t n, int32_t n_streams, float* X) override {
    pool_.parallel_for(n, [&](int64_t i, int) {
      float* row = X + i * n_streams * w.n_in;
      dequantize_rows(w, 0, tokens[i], 1, row);
      for (int32_t j = 1; j < n_streams; j++)
        std::memcpy(row + j * w.n_in, row, sizeof(float) * w.n_in);
    });
  }

  void hc_pre(
      const HcPre& p, const float* X, int64_t n, float* x, float* post, float* comb) override {
    const int64_t s = p.n_streams, width = s * p.hidden, mixes = (2 + s) * s;
    mix_.resize(std::max<size_t>(mix_.size(), n * mixes));
    const MatmulTask task{p.fn, 0, mixes, X, width, mix_.data(), mixes};
    matmul_.run({&task, 1}, n);
    pool_.parallel_for(n, [&](int64_t i, int) {
      float* mix = mix_.data() + i * mixes;
      const float r = ops_.inverse_rms(X + i * width, width, p.rms_eps);
      for (int64_t j = 0; j < mixes; j++) mix[j] *= r;
      float pre[8];
      hc_split(p, mix, pre, post + i * s, comb + i * s * s);
      float* out = x + i * p.hidden;
      ops_.hc_collapse(X + i * width, pre, p.n_streams, p.hidden, out);
      ops_.rms_norm(out, p.norm, p.hidden, p.rms_eps, out);
    });
  }

  void hc_post(
      float* X,
      const float* y,
      const float* post,
      const float* comb,
      int64_t n,
      int32_t n_streams,
      int64_t hidden) override {
    pool_.parallel_for(n, [&](int64_t i, int) {
      ops_.hc_expand(
          X + i * n_streams * hidden,
          y + i * hidden,
          post + i * n_streams,
          comb + i * n_streams * n_streams,
          n_streams,
          hidden,
          0,
          hidden);
    });
  }

  void hc_head(const HcPre& p, const float* X, const int32_t* rows, int64_t n, float* x) override {
    const int64_t s = p.n_streams, width = s * p.hidden;
    mix_.resize(std::max<size_t>(mix_.size(), s));
    for (int64_t i = 0; i < n; i++) {
      const float* streams = X + rows[i] * width;
      const MatmulTask task{p.fn, 0, s, streams, width, mix_.data(), s};
      matmul_.run({&task, 1}, 1);
      const float r = ops_.inverse_rms(streams, width, p.rms_eps);
      float pre[8];
      for (int64_t j = 0; j < s; j++) {
        pre[j] =
            static_cast<float>(sigmoid(double{mix_[j] * r} * p.scale[0] + p.base[j]) + p.hc_eps);
      }
      float* out = x + i * p.hidden;
      ops_.hc_collapse(streams, pre, p.n_streams, p.hidden, out);
      ops_.rms_norm(out, p.norm, p.hidden, p.rms_eps, out);
    }
  }

  void matmul(std::span<const Product> products, int64_t n) override {
    tasks_.clear();
    for (const Product& p : products) {
      tasks_.push_back({p.w, p.row_begin, p.n_rows, p.x, p.x_stride, p.y, p.y_stride});
    }
    matmul_.run(tasks_, n);
  }

  void rms_norm(float* x, const float* weight, int64_t n, int64_t width, float eps) override {
    pool_.parallel_for(n, [&](int64_t i, int) {
      ops_.rms_norm(x + i * width, weight, width, eps, x + i * width);
    });
  }

  void q_norm_rope(
      float* q, const RopeTable& rope, int64_t n, int32_t n_heads, int32_t head_dim, float eps)
      override {
    const int64_t groups = (n_heads + kHeadGroup - 1) / kHeadGroup;
    pool_.parallel_for(n * groups, [&](int64_t unit, int) {
      const int64_t i = unit / groups, first = unit % groups * kHeadGroup;
      for (int64_t h = first; h < std::min<int64_t>(first + kHeadGroup, n_heads); h++) {
        float* head = q + (i * n_heads + h) * head_dim;
        ops_.rms_norm(head, nullptr, head_dim, eps, head);
        rope_rotate(
            head + head_dim - 2 * rope.half,
            rope.cos + i * rope.half,
            rope.sin + i * rope.half,
            rope.half,
            1.f);
      }
    });
  }

  void kv_rows(
      const float* kv,
      const float* norm,
      const RopeTable& rope,
      int64_t n,
      const KvRowFormat& format,
      float eps,
      uint8_t* out) override {
    const int64_t bytes = format.row_bytes();
    float* scratch = thread_scratch(format.head_dim);
    pool_.parallel_for(n, [&](int64_t i, int thread) {
      float* row = scratch + int64_t{thread} * format.head_dim;
      ops_.rms_norm(kv + i * format.head_dim, norm, format.head_dim, eps, row);
      rope_rotate(
          row + format.nope(), rope.cos + i * rope.half, rope.sin + i * rope.half, rope.half, 1.f);
      if (!all_finite(row, format.head_dim)) fault_ = "kv_rows";
      pack_kv_row(row, format, out + i * bytes);
    });
  }

  void pool(std::span<const PoolTask> tasks) override {
    // Tokens of a segment are sequential, channels independent: a task is a block of channels.
    constexpr int64_t kBlock = 128;
    int64_t n_units = 0;
    for (const PoolTask& t : tasks) n_units += (t.shape.dim + kBlock - 1) / kBlock;
    pool_.parallel_for(n_units, [&](int64_t unit, int) {
      size_t i = 0;
      for (;; i++) {
        const int64_t blocks = (tasks[i].shape.dim + kBlock - 1) / kBlock;
        if (unit < blocks) break;
        unit -= blocks;
      }
      const int64_t begin = unit * kBlock;
      pool_channels(tasks[i], begin, std::min<int64_t>(begin + kBlock, tasks[i].shape.dim));
    });
  }

  void store_kv_rows(
      std::span<const StoreRowsTask> tasks, const KvRowFormat& format, float eps) override {
    store_rows(tasks, format.head_dim, eps, [&](float* row, uint8_t* out) {
      pack_kv_row(row, format, out);
    });
  }

  void store_index_rows(
      std::span<const StoreRowsTask> tasks, const IndexRowFormat& format, float eps) override {
    store_rows(tasks, format.dim, eps, [&](float* row, uint8_t* out) {
      if (format.packed) {
        pack_index_row(row, format.dim, out);
      } else {
        std::memcpy(out, row, sizeof(float) * format.dim);
      }
    });
  }

  void index_select(
      std::span<const IndexTask> tasks,
      const IndexShape& shape,
      float* q,
      const RopeTable& rope,
      const float* weights,
      int64_t n) override {
    indexer_.select(tasks, shape, q, rope, weights, n);
  }

  void attention(
      std::span<const AttentionTask> tasks,
      const KvRowFormat& format,
      float* q,
      const RopeTable& rope,
      const float* sinks,
      int32_t n_heads,
      int32_t window_size) override {
    int64_t n = 0;
    for (const AttentionTask& t : tasks) n += t.segment.n;
    // A unit is a query and a range of heads; whole queries unpack each row once, so heads are
    // split only for parallelism.
    const int32_t head_groups = (n_heads + 15) / 16;
    int32_t split = 1;
    while (split < head_groups && n * split < pool_.size()) split *= 2;
    split = std::min(split, head_groups);
    const int32_t unit_heads = (head_groups + split - 1) / split * 16;
    const int64_t floats = attention_scratch_floats(unit_heads, format.head_dim);
    float* scratch = thread_scratch(floats);
    row_lists_.resize(pool_.size());
    const float scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(format.head_dim)));
    pool_.parallel_for(n * split, [&](int64_t unit, int thread) {
      int64_t i = unit / split;
      const int32_t head = static_cast<int32_t>(unit % split) * unit_heads;
      if (head >= n_heads) return;
      const AttentionTask* task = tasks.data();
      while (i >= task->segment.n) i -= (task++)->segment.n;
      std::vector<const uint8_t*>& rows = row_lists_[thread];
      list_rows(*task, i, format.row_bytes(), window_size, rows);
      const int64_t step_row = task->segment.row + i;
      float* heads = q + (step_row * n_heads + head) * format.head_dim;
      ops_.attention(
          {heads,
           heads,
           std::min(unit_heads, n_heads - head),
           rows.data(),
           static_cast<int64_t>(rows.size()),
           format,
           sinks + head,
           scale,
           rope.cos + step_row * rope.half,
           rope.sin + step_row * rope.half,
           scratch + thread * floats});
    });
  }

  void route(
      const Route& p, const float* logits, int64_t n, int32_t* experts, float* weights) override {
    const int64_t floats = 2 * int64_t{p.n_experts};
    float* scratch = thread_scratch(floats);
    pool_.parallel_for(n, [&](int64_t i, int thread) {
      float* score = scratch + thread * floats;
      float* biased = score + p.n_experts;
      for (int32_t e = 0; e < p.n_experts; e++) {
        score[e] = static_cast<float>(std::sqrt(softplus(logits[i * p.n_experts + e])));
      }
      int32_t* pick = experts + i * p.n_used;
      if (p.tid2eid) {
        std::copy_n(p.tid2eid + int64_t{p.tokens[i]} * p.n_used, p.n_used, pick);
      } else {
        // Selection uses score + bias, the mix below uses score alone [V4 4.10.2]. Lowest expert
        // wins a tie.
        for (int32_t e = 0; e < p.n_experts; e++) biased[e] = score[e] + p.bias[e];
        for (int32_t k = 0; k < p.n_used; k++) {
          int32_t best = 0;
          for (int32_t e = 1; e < p.n_experts; e++)
            if (biased[e] > biased[best]) best = e;
          pick[k] = best;
          biased[best] = -INFINITY;
        }
      }
      float sum = 0.f;
      for (int32_t k = 0; k < p.n_used; k++) sum += score[pick[k]];
      for (int32_t k = 0; k < p.n_used; k++)
        weights[i * p.n_used + k] = score[pick[k]] / sum * p.scale;
    });
  }

  void moe(
      const Moe& p,
      const float* x,
      const int32_t* experts,
      const float* weights,
      int64_t n,
      float* y) override {
    MoeTask t;
    t.gate = p.gate;
    t.up = p.up;
    t.down = p.down;
    t.shared_gate = p.shared_gate;
    t.shared_up = p.shared_up;
    t.shared_down = p.shared_down;
    t.x = x;
    t.experts = experts;
    t.expert_weights = weights;
    t.n = n;
    t.n_used = p.n_used;
    t.clamp = p.clamp;
    t.shared_clamp = p.shared_clamp;
    t.y = y;
    matmul_.moe(t);
  }

 private:
  /// Scratch of `floats` for each thread, contiguous. Valid until the next call.
  float* thread_scratch(int64_t floats) {
    scratch_.resize(std::max<size_t>(scratch_.size(), floats * pool_.size()));
    return scratch_.data();
  }

  void pool_channels(const PoolTask& t, int64_t begin, int64_t end) {
    const int64_t dim = t.shape.dim, ratio = t.shape.ratio, part = 3 * dim, count = end - begin;
    const int parts = t.shape.overlap() ? 2 : 1;
    const auto copy = [&](float* to, const float* from) {
      for (int64_t row = 0; row < 3 * parts; row++) {
        std::memcpy(to + row * dim + begin, from + row * dim + begin, sizeof(float) * count);
      }
    };
    const auto clear = [&](float* triple) {
      std::fill_n(triple + begin, count, -INFINITY);
      std::fill_n(triple + dim + begin, count, 0.f);
      std::fill_n(triple + 2 * dim + begin, count, 0.f);
    };
    float* building = t.state_out;
    float* next = t.state_out + part;
    copy(t.state_out, t.state_in);
    float* out = t.rows;
    auto checkpoint = t.checkpoints.begin();
    for (int64_t i = 0; i < t.segment.n; i++) {
      const int64_t pos = t.segment.pos + i;
      const float* kv = t.kv + (t.segment.row + i) * t.stride;
      const float* gate = t.gate + (t.segment.row + i) * t.stride;
      const float* ape = t.ape + pos % ratio * t.shape.width();
      if (parts == 2) {  // A half into the next row, B half into this one [4.7]
        ops_.pool_add(next, dim, kv, gate, ape, begin, end);
        ops_.pool_add(building, dim, kv + dim, gate + dim, ape + dim, begin, end);
      } else {
        ops_.pool_add(building, dim, kv, gate, ape, begin, end);
      }
      if ((pos + 1) % ratio == 0) {
        for (int64_t c = begin; c < end; c++) out[c] = building[2 * dim + c] / building[dim + c];
        out += dim;
        if (parts == 2) {
          for (int64_t row = 0; row < 3; row++) {
            std::memcpy(
                building + row * dim + begin, next + row * dim + begin, sizeof(float) * count);
          }
          clear(next);
        } else {
          clear(building);
        }
      }
      if (checkpoint != t.checkpoints.end() && checkpoint->pos == pos + 1) {
        copy((checkpoint++)->states + t.checkpoint_offset, t.state_out);
      }
    }
  }

  template <class Pack>
  void store_rows(std::span<const StoreRowsTask> tasks, int32_t dim, float eps, Pack&& pack) {
    int64_t n = 0;
    for (const StoreRowsTask& t : tasks) n += t.n_rows;
    float* scratch = thread_scratch(dim);
    pool_.parallel_for(n, [&](int64_t i, int thread) {
      const StoreRowsTask* t = tasks.data();
      while (i >= t->n_rows) i -= (t++)->n_rows;
      float* row = scratch + int64_t{thread} * dim;
      ops_.rms_norm(t->rows + i * dim, t->norm, dim, eps, row);
      rope_rotate(
          row + dim - 2 * t->rope.half,
          t->rope.cos + i * t->rope.half,
          t->rope.sin + i * t->rope.half,
          t->rope.half,
          1.f);
      if (!all_finite(row, dim)) fault_ = "store_rows";
      pack(row, t->out.row(t->first_row + i));
    });
  }

  // Raw rows of the window in ascending position, then compressed rows in ascending order: the
  // order of summation.
  static void list_rows(
      const AttentionTask& t,
      int64_t i,
      int64_t row_bytes,
      int32_t window_size,
      std::vector<const uint8_t*>& out) {
    out.clear();
    const int64_t pos = t.segment.pos + i;
    for (int64_t p = std::max<int64_t>(0, pos - window_size + 1); p <= pos; p++) {
      out.push_back(
          p < t.segment.pos ? t.ring + p % t.ring_rows * row_bytes
                            : t.new_rows + (p - t.segment.pos) * row_bytes);
    }
    if (t.ratio == 0) return;
    if (t.selected) {
      const int32_t* picks = t.selected + i * t.top_k;
      for (int32_t k = 0; k < t.top_k && picks[k] >= 0; k++) out.push_back(t.rows.row(picks[k]));
    } else {
      const int64_t visible = (pos + 1) / t.ratio;
      for (int64_t r = 0; r < visible; r++) out.push_back(t.rows.row(r));
    }
  }

  Isa isa_;
  ThreadPool pool_;
  const OpsTable& ops_;
  Matmul matmul_;
  Indexer indexer_;
  Interrupted interrupted_;
  std::atomic<const char*> fault_{nullptr};  // op of the step that met a number that is not finite
  std::vector<MatmulTask> tasks_;
  std::vector<float> mix_, scratch_;
  std::vector<std::vector<const uint8_t*>> row_lists_;
};

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options) {
  return std::make_unique<CpuBackend>(options);
}

}  // namespace grebe::cpu
