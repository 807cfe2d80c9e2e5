#include "backend/observer.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace grebe {

struct Observer::Ffn {
  const Weight *gate, *up, *down;
  float clamp;
};

Observer::Observer(std::unique_ptr<Backend> inner, What what)
    : inner_(std::move(inner)), what_(what) {
  if (inner_->runs_ops_at_once() && inner_->takes_host_memory()) return;
  throw BackendUnavailable(
      "activations can be observed on backend cpu only, not on " + inner_->name(), inner_->name());
}

void Observer::add(const Weight& w, int64_t i_matrix, const float* x, int64_t n, int64_t stride) {
  InputStats& stats = inputs_[w.name];
  if (stats.name.empty()) {
    stats.name = w.name;
    stats.n_in = w.n_in;
    stats.sums.resize(w.n_experts * w.n_in);
    stats.counts.resize(w.n_experts);
  }
  double* sums = stats.sums.data() + i_matrix * w.n_in;
  for (int64_t i = 0; i < n; i++) {
    const float* row = x + i * stride;
    for (int64_t k = 0; k < w.n_in; k++) sums[k] += double{row[k]} * row[k];
  }
  stats.counts[i_matrix] += n;
}

void Observer::matmul(std::span<const Product> products, int64_t n) {
  inner_->matmul(products, n);
  if (what_ != What::kInputs) return;
  for (const Product& p : products) add(*p.w, 0, p.x, n, p.x_stride);
}

void Observer::hc_post(
    float* X,
    const float* y,
    const float* post,
    const float* comb,
    int64_t n,
    int32_t n_streams,
    int64_t hidden) {
  inner_->hc_post(X, y, post, comb, n, n_streams, hidden);
  const bool layer_ends = n_sublayers_++ % 2 == 1;
  if (what_ != What::kHidden || !layer_ends) return;
  const size_t i_layer = n_sublayers_ / 2 - 1;
  if (hidden_.size() <= i_layer) hidden_.resize(i_layer + 1);
  hidden_[i_layer].insert(hidden_[i_layer].end(), X, X + n * n_streams * hidden);
}

// Gate and up once more, for what down is given: `rows_` are the rows of x that the expert gets.
void Observer::expert(const Ffn& ffn, int64_t i_expert, const std::vector<float>& weights) {
  const auto n = static_cast<int64_t>(weights.size());
  const int64_t n_in = ffn.gate->n_in, width = ffn.gate->n_out;
  add(*ffn.gate, i_expert, rows_.data(), n, n_in);
  add(*ffn.up, i_expert, rows_.data(), n, n_in);
  const auto alone = [&](const Weight& w) {
    Weight one = w;
    one.data = w.expert_data(i_expert);
    one.scale = w.expert_scale(i_expert);
    one.n_experts = 1;
    return one;
  };
  const Weight gate = alone(*ffn.gate), up = alone(*ffn.up);
  gate_.resize(n * width);
  up_.resize(n * width);
  const Product products[] = {
      {&gate, 0, width, rows_.data(), n_in, gate_.data(), width},
      {&up, 0, width, rows_.data(), n_in, up_.data(), width}};
  inner_->matmul(products, n);
  for (int64_t i = 0; i < n * width; i++) {
    float g = gate_[i], u = up_[i];
    if (ffn.clamp > 0) {
      g = std::min(g, ffn.clamp);
      u = std::clamp(u, -ffn.clamp, ffn.clamp);
    }
    gate_[i] = g / (1 + std::exp(-g)) * u * weights[i / width];
  }
  add(*ffn.down, i_expert, gate_.data(), n, width);
}

void Observer::moe(
    const Moe& p,
    const float* x,
    const int32_t* experts,
    const float* weights,
    int64_t n,
    float* y) {
  inner_->moe(p, x, experts, weights, n, y);
  if (what_ != What::kInputs) return;
  const int64_t n_in = p.gate->n_in;
  std::vector<float> shares;
  for (int64_t e = 0; e < p.gate->n_experts; e++) {
    rows_.clear();
    shares.clear();
    for (int64_t i = 0; i < n * p.n_used; i++) {
      if (experts[i] != e) continue;
      const float* row = x + i / p.n_used * n_in;
      rows_.insert(rows_.end(), row, row + n_in);
      shares.push_back(weights[i]);
    }
    if (!shares.empty()) expert({p.gate, p.up, p.down, p.clamp}, e, shares);
  }
  if (!p.shared_gate) return;
  rows_.assign(x, x + n * n_in);
  shares.assign(n, 1.f);
  expert({p.shared_gate, p.shared_up, p.shared_down, p.shared_clamp}, 0, shares);
}

std::vector<InputStats> Observer::take_inputs() {
  std::vector<InputStats> out;
  for (auto& [name, stats] : inputs_) out.push_back(std::move(stats));
  inputs_.clear();
  return out;
}

std::vector<std::vector<float>> Observer::take_hidden() { return std::exchange(hidden_, {}); }

}  // namespace grebe
