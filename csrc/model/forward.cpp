#include "model/forward.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "model/rope.h"

namespace grebe {

// Rows of the output head at a time: 64 x 129,280 f32 = 33 MB.
constexpr int64_t kLogitRows = 64;

/// Buffers of a step, sized for n_rows rows in n_segments segments. Shapes in comments; n = rows.
struct Forward::Scratch {
  int64_t n_rows = 0, n_segments = 0;
  std::vector<DeviceMemory> memory;
  int32_t* tokens;                 // [n]
  float *X, *x, *y, *post, *comb;  // [n, s, D] [n, D] [n, D] [n, s] [n, s, s]
  float *qr, *q, *kv, *low;        // [n, q_lora] [n, H hd] [n, hd] [n, G o_lora]
  float *pool_kv, *pool_gate;      // [n, 2 hd]
  float *ipool_kv, *ipool_gate;    // [n, 2 index_dim]
  float *pooled, *ipooled;         // finished rows, before norm
  float *iq, *iw;                  // [n, index_heads index_dim] [n, index_heads]
  DeviceMemory selected;           // [n, index_top_k]
  float* router;                   // [n, n_experts]
  int32_t* experts;                // [n, n_used]
  float* expert_weights;           // [n, n_used]
  uint8_t* new_rows;               // [layers, n, row_bytes]
  float* pools;                    // [segments, pool_floats]
  float *cos[2], *sin[2];          // [n, r/2], plain and compressed
  float *row_cos[2], *row_sin[2];  // rows finished in this step, ratio 4 and 128
  int32_t* logit_rows;             // [n]
  float* hidden;                   // [kLogitRows, D]
  DeviceMemory logits;             // [n_logits, vocab], for backends that need memory of their own
};

struct Forward::Step {
  struct Part {
    KvState* kv;
    Segment segment;
    std::vector<PoolCheckpoint> checkpoints;
    int64_t row_begin[2];  // into row_cos / pooled, ratio 4 and 128
    int64_t rows_before[2], rows_done[2];
    bool select;  // more visible index rows than top_k at the end of the segment
    int64_t n_logits;
  };
  std::vector<Part> parts;
  int64_t n = 0;
  int64_t n_logits = 0;
  int64_t n_finished[2] = {0, 0};
  bool any_select = false;
};

namespace {
constexpr int32_t kRatios[2] = {4, 128};
int ratio_index(int32_t ratio) { return ratio == 4 ? 0 : 1; }

void require_finite(const float* x, int64_t n, const char* what, int32_t token) {
  float lanes[16] = {};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; j++) lanes[j] += x[i + j] * 0.f;  // 0, or NaN for NaN and infinity
  for (; i < n; i++) lanes[0] += x[i] * 0.f;
  for (int j = 1; j < 16; j++) lanes[0] += lanes[j];
  if (lanes[0] == 0.f) return;
  throw BackendError(
      std::string("the model produced ") + what + " that is not finite after token " +
          std::to_string(token) + "; the weights or the session's state are damaged",
      "forward");
}
}  // namespace

Forward::Forward(
    Backend& backend,
    const ModelConfig& config,
    const ModelWeights& weights,
    const KvLayout& layout)
    : backend_(backend), config_(config), weights_(weights), layout_(layout), staging_(backend) {
  const ModelConfig& c = config;
  const auto hc = [&](const HyperWeights& w, const Vec& norm) {
    return Backend::HcPre{
        &w.fn,
        upload(w.base),
        upload(w.scale),
        upload(norm),
        c.hc_mult,
        c.hc_sinkhorn_iters,
        c.hc_eps,
        c.rms_eps,
        c.hidden_size};
  };
  for (const LayerWeights& l : weights.layers) {
    LayerTables t{};
    t.hc_attn = hc(l.hc_attn, l.attn_norm);
    t.hc_ffn = hc(l.hc_ffn, l.ffn_norm);
    t.q_a_norm = upload(l.q_a_norm);
    t.kv_norm = upload(l.kv_norm);
    t.sinks = upload(l.sinks);
    t.router_bias = upload(l.router_bias);
    t.ape = upload(l.compressor.ape);
    t.pool_norm = upload(l.compressor.norm);
    t.index_ape = upload(l.index_compressor.ape);
    t.index_pool_norm = upload(l.index_compressor.norm);
    if (!l.tid2eid.empty()) {
      uploads_.emplace_back(backend, l.tid2eid.size() * sizeof(int32_t), "a hash routing table");
      std::memcpy(uploads_.back().data(), l.tid2eid.data(), l.tid2eid.size() * sizeof(int32_t));
      t.tid2eid = uploads_.back().as<int32_t>();
    }
    tables_.push_back(t);
  }
  head_ = {
      &weights.output_hc_fn,
      upload(weights.output_hc_base),
      upload(weights.output_hc_scale),
      upload(weights.output_norm),
      c.hc_mult,
      0,
      c.hc_eps,
      c.rms_eps,
      c.hidden_size};
  frequencies_[0] = rope_frequencies(config, false);
  frequencies_[1] = rope_frequencies(config, true);
}

const float* Forward::upload(const Vec& v) {
  if (v.empty()) return nullptr;
  uploads_.emplace_back(backend_, v.size() * sizeof(float), "a weight vector");
  std::memcpy(uploads_.back().data(), v.data(), v.size() * sizeof(float));
  return uploads_.back().as<float>();
}

void Forward::ensure_scratch(const Step& step) {
  int64_t n_rows = step.n, n_segments = static_cast<int64_t>(step.parts.size());
  if (!scratch_ || scratch_->n_rows < n_rows || scratch_->n_segments < n_segments) {
    allocate_scratch(n_rows, n_segments);
  }
  Scratch& s = *scratch_;
  const auto grow = [&](DeviceMemory& memory, uint64_t bytes, const char* what) {
    if (memory.bytes() >= bytes) return;
    forget_ahead();
    memory = {};
    memory = DeviceMemory(backend_, bytes, what);
  };
  // Only when some history is longer than top_k rows, so a file cannot ask for more than its users'
  // tokens justify.
  if (step.any_select) {
    grow(s.selected, sizeof(int32_t) * s.n_rows * config_.index_top_k, "index selections");
  }
  if (!backend_.takes_host_memory()) {
    grow(s.logits, sizeof(float) * step.n_logits * weights_.output.n_out, "logits");
  }
}

void Forward::forget_ahead() {
  if (ahead_.empty()) return;
  ahead_.clear();
  backend_.drop_ahead();
}

void Forward::allocate_scratch(int64_t n_rows, int64_t n_segments) {
  forget_ahead();
  if (scratch_) {
    n_rows = std::max(n_rows, scratch_->n_rows);
    n_segments = std::max(n_segments, scratch_->n_segments);
  }
  scratch_.reset();  // the old one goes first: peak memory is one set
  scratch_bytes_ = 0;
  auto s = std::make_shared<Scratch>();
  s->n_rows = n_rows;
  s->n_segments = n_segments;
  const ModelConfig& c = config_;
  const auto take = [&]<class T>(T*& p, int64_t count) {
    s->memory.emplace_back(backend_, sizeof(T) * count, "scratch buffers");
    scratch_bytes_ += s->memory.back().bytes();
    p = s->memory.back().template as<T>();
  };
  const int64_t n = n_rows, streams = c.hc_mult, half = c.rope_dim / 2;
  int32_t max_experts = c.n_experts;
  for (const LayerWeights& l : weights_.layers) max_experts = std::max(max_experts, l.n_experts);
  take(s->tokens, n);
  take(s->X, n * streams * c.hidden_size);
  take(s->x, n * c.hidden_size);
  take(s->y, n * c.hidden_size);
  take(s->post, n * streams);
  take(s->comb, n * streams * streams);
  take(s->qr, n * c.q_lora_rank);
  take(s->q, n * c.n_heads * c.head_dim);
  take(s->kv, n * c.head_dim);
  take(s->low, n * c.o_groups * c.o_lora_rank);
  take(s->pool_kv, n * 2 * c.head_dim);
  take(s->pool_gate, n * 2 * c.head_dim);
  take(s->ipool_kv, n * 2 * c.index_head_dim);
  take(s->ipool_gate, n * 2 * c.index_head_dim);
  const int64_t finished = n / 4 + n_segments;  // rows completed by n tokens in so many segments
  take(s->pooled, finished * c.head_dim);
  take(s->ipooled, finished * c.index_head_dim);
  take(s->iq, n * c.index_n_heads * c.index_head_dim);
  take(s->iw, n * c.index_n_heads);
  take(s->router, n * max_experts);
  take(s->experts, n * c.n_experts_per_token);
  take(s->expert_weights, n * c.n_experts_per_token);
  take(s->new_rows, c.n_layers * n * layout_.kv.row_bytes());
  take(s->pools, n_segments * layout_.pool_floats);
  for (int k = 0; k < 2; k++) {
    take(s->cos[k], n * half);
    take(s->sin[k], n * half);
    take(s->row_cos[k], finished * half);
    take(s->row_sin[k], finished * half);
  }
  take(s->logit_rows, n);
  take(s->hidden, kLogitRows * c.hidden_size);
  scratch_ = std::move(s);
}

// The step of these inputs, or the one that appends one token more to each of them.
Forward::Step Forward::plan(std::span<const ForwardInput> inputs, bool ahead) const {
  Step step;
  for (const ForwardInput& in : inputs) {
    const int64_t n = static_cast<int64_t>(in.tokens.size());
    Step::Part part{};
    part.kv = in.kv;
    if (ahead) {
      part.segment = {step.n, 1, in.kv->pos() + n};
      part.n_logits = 1;
    } else {
      part.segment = {step.n, n, in.kv->pos()};
      part.n_logits = in.n_logits;
      for (const auto& c : in.checkpoints) {
        part.checkpoints.push_back({c->pos, c->pools.as<float>()});
      }
    }
    const int64_t end = part.segment.pos + part.segment.n;
    for (int k = 0; k < 2; k++) {
      part.rows_before[k] = part.segment.pos / kRatios[k];
      part.rows_done[k] = end / kRatios[k] - part.rows_before[k];
      part.row_begin[k] = step.n_finished[k];
      step.n_finished[k] += part.rows_done[k];
    }
    part.select = end / 4 > config_.index_top_k;
    step.any_select |= part.select;
    step.n += part.segment.n;
    step.n_logits += part.n_logits;
    step.parts.push_back(part);
  }
  return step;
}

// What the recorded ops read beside weights and state: tokens, rotations, rows with logits.
void Forward::fill_tables(const Step& step, std::span<const ForwardInput> inputs) {
  Scratch& s = *scratch_;
  const int64_t half = config_.rope_dim / 2;
  int64_t n_logits = 0;
  for (size_t i = 0; i < inputs.size(); i++) {
    const Step::Part& part = step.parts[i];
    std::copy(inputs[i].tokens.begin(), inputs[i].tokens.end(), s.tokens + part.segment.row);
    for (int64_t t = 0; t < part.segment.n; t++) {
      const int64_t at = (part.segment.row + t) * half;
      for (int k = 0; k < 2; k++)
        rope_angles(frequencies_[k], part.segment.pos + t, s.cos[k] + at, s.sin[k] + at);
    }
    for (int k = 0; k < 2; k++) {
      for (int64_t r = 0; r < part.rows_done[k]; r++) {
        const int64_t at = (part.row_begin[k] + r) * half;
        // A row stands at the position of its first own token [4.7].
        rope_angles(
            frequencies_[1],
            (part.rows_before[k] + r) * kRatios[k],
            s.row_cos[k] + at,
            s.row_sin[k] + at);
      }
    }
    for (int64_t t = part.segment.n - part.n_logits; t < part.segment.n; t++) {
      s.logit_rows[n_logits++] = static_cast<int32_t>(part.segment.row + t);
    }
  }
}

void Forward::run(
    std::span<const ForwardInput> inputs, float* logits, Backend::Interrupted interrupted) {
  const Step step = plan(inputs, false);
  ensure_scratch(step);
  Scratch& s = *scratch_;
  fill_tables(step, inputs);
  float* out = backend_.takes_host_memory() ? logits : s.logits.as<float>();
  try {
    if (recorded_ahead(inputs)) {
      ahead_.clear();
      backend_.commit_ahead(std::move(interrupted));
    } else {
      ahead_.clear();
      backend_.begin(std::move(interrupted));
      record(step, out);
      backend_.commit();
    }
    record_ahead(inputs);
    backend_.wait();
  } catch (...) {
    backend_.abandon();
    throw;
  }

  // Numbers that are not finite would poison the cache: refuse the step before anything is
  // accepted.
  const int64_t width = int64_t{config_.hc_mult} * config_.hidden_size;
  const int64_t vocab = weights_.output.n_out;
  for (int64_t i = 0; i < step.n; i++)
    require_finite(s.X + i * width, width, "a hidden state", s.tokens[i]);
  for (int64_t i = 0; i < step.n_logits; i++)
    require_finite(out + i * vocab, vocab, "a row of logits", s.tokens[s.logit_rows[i]]);
  if (out != logits) std::memcpy(logits, out, sizeof(float) * step.n_logits * vocab);
}

void Forward::record(const Step& step, float* logits) {
  Scratch& s = *scratch_;
  backend_.embed(weights_.token_embd, s.tokens, step.n, config_.hc_mult, s.X);
  for (int32_t i = 0; i < config_.n_layers; i++) {
    attention_layer(step, i);
    feed_forward_layer(step, i);
    backend_.flush();
  }
  output_logits(step, logits);
}

// After a step of single tokens most likely comes another one of the same sessions: its ops are
// recorded while the device runs this one. Not where the next token needs new memory (a block, a
// checkpoint).
void Forward::record_ahead(std::span<const ForwardInput> inputs) {
  constexpr size_t kMaxSessions = 8;
  if (!backend_.can_record_ahead() || inputs.size() > kMaxSessions) return;
  for (const ForwardInput& in : inputs) {
    const int64_t next = in.kv->pos() + 1;
    if (in.tokens.size() != 1 || in.n_logits != 1) return;
    if (next % kBlockTokens == 0 || (next + 1) % kCheckpointTokens == 0) return;
  }
  try {
    const Step step = plan(inputs, true);
    ensure_scratch(step);
    backend_.begin_ahead();
    record(step, scratch_->logits.as<float>());
    backend_.end_ahead();
    for (const ForwardInput& in : inputs) ahead_.push_back({in.kv->stamp(), in.kv->pos() + 1});
  } catch (const std::exception&) {  // the step itself, when it comes, says why
    ahead_.clear();
    backend_.drop_ahead();
  }
}

bool Forward::recorded_ahead(std::span<const ForwardInput> inputs) const {
  return !ahead_.empty() && std::equal(
                                inputs.begin(),
                                inputs.end(),
                                ahead_.begin(),
                                ahead_.end(),
                                [](const ForwardInput& in, const Expected& expected) {
                                  return in.kv->stamp() == expected.stamp &&
                                         in.kv->pos() == expected.pos && in.tokens.size() == 1 &&
                                         in.n_logits == 1 && in.checkpoints.empty();
                                });
}

void Forward::attention_layer(const Step& step, int32_t i) {
  Scratch& s = *scratch_;
  const ModelConfig& c = config_;
  const LayerWeights& w = weights_.layers[i];
  const LayerTables& t = tables_[i];
  const int32_t ratio = layout_.layers[i].ratio;
  const int64_t n = step.n, D = c.hidden_size, hd = c.head_dim, row_bytes = layout_.kv.row_bytes();
  const int kind = ratio != 0;
  const RopeTable rope{s.cos[kind], s.sin[kind], c.rope_dim / 2};
  const bool select = ratio == 4 && step.any_select;

  backend_.hc_pre(t.hc_attn, s.X, n, s.x, s.post, s.comb);

  std::vector<Backend::Product> products;
  const auto add = [&](const Weight& weight, const float* x, float* y) {
    products.push_back({&weight, 0, weight.n_out, x, weight.n_in, y, weight.n_out});
  };
  add(w.q_a, s.x, s.qr);
  add(w.kv, s.x, s.kv);
  if (ratio != 0) {
    add(w.compressor.kv, s.x, s.pool_kv);
    add(w.compressor.gate, s.x, s.pool_gate);
  }
  if (ratio == 4) {
    add(w.index_compressor.kv, s.x, s.ipool_kv);
    add(w.index_compressor.gate, s.x, s.ipool_gate);
  }
  if (select) add(w.index_proj, s.x, s.iw);
  backend_.matmul(products, n);

  backend_.rms_norm(s.qr, t.q_a_norm, n, c.q_lora_rank, c.rms_eps);
  products.clear();
  add(w.q_b, s.qr, s.q);
  if (select) add(w.index_q_b, s.qr, s.iq);
  backend_.matmul(products, n);
  backend_.q_norm_rope(s.q, rope, n, c.n_heads, c.head_dim, c.rms_eps);
  uint8_t* new_rows = s.new_rows + int64_t{i} * s.n_rows * row_bytes;
  backend_.kv_rows(s.kv, t.kv_norm, rope, n, layout_.kv, c.rms_eps, new_rows);

  if (ratio != 0) compress(step, i);

  if (select) {
    std::vector<IndexTask> tasks;
    for (const Step::Part& p : step.parts) {
      if (!p.select) continue;
      tasks.push_back(
          {p.segment,
           p.kv->index_rows(i),
           s.selected.as<int32_t>() + p.segment.row * c.index_top_k});
    }
    backend_.index_select(
        tasks, {c.index_n_heads, c.index_top_k, ratio, layout_.index}, s.iq, rope, s.iw, n);
  }

  std::vector<AttentionTask> tasks;
  staging_.begin_layer();
  for (const Step::Part& p : step.parts) {
    AttentionTask task;
    task.segment = p.segment;
    task.ring = p.kv->ring(i);
    task.ring_rows = layout_.window_size;
    task.new_rows = new_rows + p.segment.row * row_bytes;
    task.ratio = ratio;
    if (ratio != 0) task.rows = p.kv->kv_rows(i);
    if (ratio == 4 && p.select)
      task.selected = s.selected.as<int32_t>() + p.segment.row * c.index_top_k;
    task.top_k = c.index_top_k;
    if (ratio == 4 && p.kv->paged()) {
      staging_.stage(task, *p.kv, layout_.layers[i].k, const_cast<int32_t*>(task.selected));
    }
    tasks.push_back(task);
  }
  backend_.attention(tasks, layout_.kv, s.q, rope, t.sinks, c.n_heads, c.window_size);

  // Grouped output projection: group g reads its own heads and writes its own part of `low`
  // [4.6.7].
  products.clear();
  const int64_t group_in = c.n_heads * hd / c.o_groups,
                low_width = int64_t{c.o_groups} * c.o_lora_rank;
  for (int64_t g = 0; g < c.o_groups; g++) {
    products.push_back(
        {&w.o_a,
         g * c.o_lora_rank,
         c.o_lora_rank,
         s.q + g * group_in,
         c.n_heads * hd,
         s.low + g * c.o_lora_rank,
         low_width});
  }
  backend_.matmul(products, n);
  products.clear();
  add(w.o_b, s.low, s.y);
  backend_.matmul(products, n);
  backend_.hc_post(s.X, s.y, s.post, s.comb, n, c.hc_mult, D);
}

void Forward::compress(const Step& step, int32_t i) {
  Scratch& s = *scratch_;
  const ModelConfig& c = config_;
  const KvLayout::Layer& layer = layout_.layers[i];
  const LayerTables& t = tables_[i];
  const int k = ratio_index(layer.ratio);
  std::vector<PoolTask> pools;
  std::vector<StoreRowsTask> kv_rows, index_rows;
  for (size_t p = 0; p < step.parts.size(); p++) {
    const Step::Part& part = step.parts[p];
    float* state = s.pools + static_cast<int64_t>(p) * layout_.pool_floats;
    const auto add = [&](const PoolShape& shape,
                         int64_t offset,
                         const float* kv,
                         const float* gate,
                         const float* ape,
                         const float* norm,
                         float* rows,
                         RowStream out,
                         std::vector<StoreRowsTask>& store) {
      PoolTask task;
      task.shape = shape;
      task.segment = part.segment;
      task.kv = kv;
      task.gate = gate;
      task.stride = shape.width();
      task.ape = ape;
      task.state_in = part.kv->pools() + offset;
      task.state_out = state + offset;
      task.checkpoints = part.checkpoints;
      task.checkpoint_offset = offset;
      task.rows = rows + part.row_begin[k] * shape.dim;
      pools.push_back(task);
      if (part.rows_done[k] == 0) return;
      const int64_t half = c.rope_dim / 2;
      store.push_back(
          {task.rows,
           part.rows_done[k],
           norm,
           {s.row_cos[k] + part.row_begin[k] * half,
            s.row_sin[k] + part.row_begin[k] * half,
            static_cast<int32_t>(half)},
           out,
           part.rows_before[k]});
    };
    add(layer.pool,
        layer.pool_offset,
        s.pool_kv,
        s.pool_gate,
        t.ape,
        t.pool_norm,
        s.pooled,
        part.kv->kv_rows(i),
        kv_rows);
    if (layer.ratio == 4) {
      add(layer.index_pool,
          layer.index_pool_offset,
          s.ipool_kv,
          s.ipool_gate,
          t.index_ape,
          t.index_pool_norm,
          s.ipooled,
          part.kv->index_rows(i),
          index_rows);
    }
  }
  backend_.pool(pools);
  if (!kv_rows.empty()) backend_.store_kv_rows(kv_rows, layout_.kv, c.rms_eps);
  if (!index_rows.empty()) backend_.store_index_rows(index_rows, layout_.index, c.rms_eps);
}

void Forward::feed_forward_layer(const Step& step, int32_t i) {
  Scratch& s = *scratch_;
  const ModelConfig& c = config_;
  const LayerWeights& w = weights_.layers[i];
  const LayerTables& t = tables_[i];
  const int64_t n = step.n;
  backend_.hc_pre(t.hc_ffn, s.X, n, s.x, s.post, s.comb);
  const Backend::Product product{
      &w.router, 0, w.router.n_out, s.x, w.router.n_in, s.router, w.router.n_out};
  backend_.matmul({&product, 1}, n);
  backend_.route(
      {t.router_bias,
       t.tid2eid,
       s.tokens,
       w.n_experts,
       c.n_experts_per_token,
       c.routed_scaling_factor},
      s.router,
      n,
      s.experts,
      s.expert_weights);
  backend_.moe(
      {&w.gate_exps,
       &w.up_exps,
       &w.down_exps,
       &w.gate_shexp,
       &w.up_shexp,
       &w.down_shexp,
       c.n_experts_per_token,
       c.swiglu_clamp[i],
       c.swiglu_clamp_shared[i]},
      s.x,
      s.experts,
      s.expert_weights,
      n,
      s.y);
  backend_.hc_post(s.X, s.y, s.post, s.comb, n, c.hc_mult, c.hidden_size);
}

void Forward::output_logits(const Step& step, float* logits) {
  Scratch& s = *scratch_;
  const Weight& w = weights_.output;
  for (int64_t first = 0; first < step.n_logits; first += kLogitRows) {
    const int64_t count = std::min(kLogitRows, step.n_logits - first);
    backend_.hc_head(head_, s.X, s.logit_rows + first, count, s.hidden);
    const Backend::Product product{
        &w, 0, w.n_out, s.hidden, w.n_in, logits + first * w.n_out, w.n_out};
    backend_.matmul({&product, 1}, count);
  }
}

void Forward::accept(std::span<const ForwardInput> inputs) {
  Scratch& s = *scratch_;
  const int64_t row_bytes = layout_.kv.row_bytes(), layer_stride = s.n_rows * row_bytes;
  int64_t row = 0;
  for (size_t i = 0; i < inputs.size(); i++) {
    const ForwardInput& in = inputs[i];
    const uint8_t* new_rows = s.new_rows + row * row_bytes;
    for (const auto& checkpoint : in.checkpoints) {
      for (int32_t layer = 0; layer < config_.n_layers; layer++) {
        in.kv->copy_window(
            layer,
            new_rows + layer * layer_stride,
            checkpoint->pos - layout_.window_size,
            checkpoint->pos,
            checkpoint->ring.data());
      }
    }
    in.kv->accept(
        static_cast<int64_t>(in.tokens.size()),
        new_rows,
        layer_stride,
        s.pools + static_cast<int64_t>(i) * layout_.pool_floats);
    row += static_cast<int64_t>(in.tokens.size());
  }
}

}  // namespace grebe
