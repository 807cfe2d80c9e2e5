// BackendOps: embedding, products and experts.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <deque>

#include "backend_ops.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;
using Matrix = Array<float, 2>;

auto embed(
    BackendOps& ops,
    const Bytes& weight,
    const std::string& dtype,
    int64_t n_out,
    int64_t n_in,
    const Array<int32_t, 1>& tokens,
    int32_t n_streams,
    const std::optional<Bytes>& scale) {
  const size_t n = tokens.size();
  expect(n_streams >= 1 && n_streams <= 8, "1 to 8 streams");
  for (size_t i = 0; i < n; i++)
    expect(tokens.data()[i] >= 0 && tokens.data()[i] < n_out, "tokens in [0, n_out)");
  OpMemory memory(ops);
  const Weight w = memory.weight(weight, dtype, n_out, n_in, 1, scale);
  const int32_t* ids = memory.copy(tokens);
  float* X = memory.make<float>(n * n_streams * n_in);
  ops.step([&] { ops.backend().embed(w, ids, static_cast<int64_t>(n), n_streams, X); });
  return to_array(X, n, n_streams, n_in);
}

auto matmul(
    BackendOps& ops,
    const Bytes& weight,
    const std::string& dtype,
    int64_t n_out,
    int64_t n_in,
    const Matrix& x,
    const std::optional<Bytes>& scale) {
  const int64_t n = static_cast<int64_t>(x.shape(0));
  expect(static_cast<int64_t>(x.shape(1)) == n_in, "x [n, n_in]");
  OpMemory memory(ops);
  const Weight w = memory.weight(weight, dtype, n_out, n_in, 1, scale);
  const float* in = memory.copy(x);
  float* y = memory.make<float>(n * n_out);
  const Backend::Product product{&w, 0, n_out, in, n_in, y, n_out};
  ops.step([&] { ops.backend().matmul({&product, 1}, n); });
  return to_array(y, n, n_out);
}

nb::list matmul_bundle(
    BackendOps& ops,
    const nb::list& weights,
    const Matrix& x,
    const std::optional<Array<float, 1>>& norm,
    double eps) {
  const int64_t n = static_cast<int64_t>(x.shape(0)), n_in = static_cast<int64_t>(x.shape(1));
  expect(!norm || norm->size() == x.shape(1), "norm [n_in]");
  OpMemory memory(ops);
  float* in = memory.copy(x);
  const float* norm_weight = norm ? memory.copy(*norm) : nullptr;
  std::deque<Weight> w;
  std::vector<Backend::Product> products;
  for (nb::handle item : weights) {
    const nb::tuple parts = nb::cast<nb::tuple>(item);
    if (parts.size() != 3 && parts.size() != 4)
      throw InvalidArgument("a weight is (data, dtype, n_out) or (data, dtype, n_out, scale)");
    const int64_t n_out = nb::cast<int64_t>(parts[2]);
    const nb::object scale = parts.size() == 4 ? nb::object(parts[3]) : nb::none();
    w.push_back(memory.weight(nb::make_tuple(parts[0], parts[1], scale), n_out, n_in, 1));
    products.push_back({&w.back(), 0, n_out, in, n_in, memory.make<float>(n * n_out), n_out});
  }
  ops.step([&] {
    if (norm_weight) ops.backend().rms_norm(in, norm_weight, n, n_in, static_cast<float>(eps));
    ops.backend().matmul(products, n);
  });
  nb::list out;
  for (const Backend::Product& p : products) out.append(to_array(p.y, n, p.n_rows));
  return out;
}

// Group g of the output projection reads its own part of x and writes its own part of y [V4 4.6.7].
auto matmul_grouped(
    BackendOps& ops,
    const Bytes& weight,
    const std::string& dtype,
    int64_t n_groups,
    int64_t rank,
    const Matrix& x,
    const std::optional<Bytes>& scale) {
  const int64_t n = static_cast<int64_t>(x.shape(0)), width = static_cast<int64_t>(x.shape(1));
  expect(n_groups >= 1 && rank >= 1 && width % n_groups == 0, "x [n, n_groups * n_in]");
  const int64_t n_in = width / n_groups, n_out = n_groups * rank;
  OpMemory memory(ops);
  const Weight w = memory.weight(weight, dtype, n_out, n_in, 1, scale);
  const float* in = memory.copy(x);
  float* y = memory.make<float>(n * n_out);
  std::vector<Backend::Product> products;
  for (int64_t g = 0; g < n_groups; g++)
    products.push_back({&w, g * rank, rank, in + g * n_in, width, y + g * rank, n_out});
  ops.step([&] { ops.backend().matmul(products, n); });
  return to_array(y, n, n_out);
}

struct Experts {
  Weight gate, up, down, shared_gate, shared_up, shared_down;
  Backend::Moe moe;
};

std::unique_ptr<Experts> experts_of(
    OpMemory& memory,
    const nb::dict& weights,
    int64_t n_experts,
    int64_t n_ff,
    int64_t hidden,
    int64_t n_shared_ff,
    int32_t n_used,
    double clamp,
    double shared_clamp) {
  auto e = std::make_unique<Experts>();
  e->gate = memory.weight(weights["gate"], n_ff, hidden, n_experts);
  e->up = memory.weight(weights["up"], n_ff, hidden, n_experts);
  e->down = memory.weight(weights["down"], hidden, n_ff, n_experts);
  e->moe = {
      &e->gate,
      &e->up,
      &e->down,
      nullptr,
      nullptr,
      nullptr,
      n_used,
      static_cast<float>(clamp),
      static_cast<float>(shared_clamp)};
  if (weights.contains("shared_gate")) {
    const int64_t ff = n_shared_ff > 0 ? n_shared_ff : n_ff;
    e->shared_gate = memory.weight(weights["shared_gate"], ff, hidden, 1);
    e->shared_up = memory.weight(weights["shared_up"], ff, hidden, 1);
    e->shared_down = memory.weight(weights["shared_down"], hidden, ff, 1);
    e->moe.shared_gate = &e->shared_gate;
    e->moe.shared_up = &e->shared_up;
    e->moe.shared_down = &e->shared_down;
  }
  return e;
}

auto moe(
    BackendOps& ops,
    const nb::dict& weights,
    int64_t n_experts,
    int64_t n_ff,
    const Matrix& x,
    const Array<int32_t, 2>& experts,
    const Matrix& expert_weights,
    double clamp,
    double shared_clamp,
    int64_t n_shared_ff) {
  const size_t n = x.shape(0), d = x.shape(1), n_used = experts.shape(1);
  expect(
      experts.shape(0) == n && expert_weights.shape(0) == n && expert_weights.shape(1) == n_used,
      "x [n, d], experts and expert_weights [n, n_used]");
  for (size_t i = 0; i < experts.size(); i++)
    expect(experts.data()[i] >= 0 && experts.data()[i] < n_experts, "experts in [0, n_experts)");
  OpMemory memory(ops);
  const auto e = experts_of(
      memory,
      weights,
      n_experts,
      n_ff,
      static_cast<int64_t>(d),
      n_shared_ff,
      static_cast<int32_t>(n_used),
      clamp,
      shared_clamp);
  const float* in = memory.copy(x);
  const int32_t* picks = memory.copy(experts);
  const float* mix = memory.copy(expert_weights);
  float* y = memory.make<float>(n * d);
  ops.step([&] { ops.backend().moe(e->moe, in, picks, mix, static_cast<int64_t>(n), y); });
  return to_array(y, n, d);
}

auto route_moe(
    BackendOps& ops,
    const Matrix& logits,
    const std::optional<Array<float, 1>>& bias,
    int32_t n_used,
    double scale,
    const nb::dict& weights,
    int64_t n_ff,
    const Matrix& x,
    double clamp,
    double shared_clamp,
    int64_t n_shared_ff,
    const std::optional<Array<int32_t, 2>>& tid2eid,
    const std::optional<Array<int32_t, 1>>& tokens) {
  const size_t n = x.shape(0), d = x.shape(1);
  expect(logits.shape(0) == n, "x [n, d], logits [n, n_experts]");
  OpMemory memory(ops);
  const Backend::Route r = memory.route(logits, bias, n_used, scale, tid2eid, tokens);
  const auto e = experts_of(
      memory,
      weights,
      r.n_experts,
      n_ff,
      static_cast<int64_t>(d),
      n_shared_ff,
      n_used,
      clamp,
      shared_clamp);
  const float *in = memory.copy(x), *scores = memory.copy(logits);
  int32_t* picks = memory.make<int32_t>(n * n_used);
  float *mix = memory.make<float>(n * n_used), *y = memory.make<float>(n * d);
  const int64_t rows = static_cast<int64_t>(n);
  ops.step([&] {
    ops.backend().route(r, scores, rows, picks, mix);
    ops.backend().moe(e->moe, in, picks, mix, rows, y);
  });
  return nb::make_tuple(to_array(y, n, d), to_array(picks, n, n_used), to_array(mix, n, n_used));
}

// One routed expert of weight 1, no shared expert.
auto swiglu_mlp(
    BackendOps& ops,
    const Matrix& x,
    const Matrix& gate,
    const Matrix& up,
    const Matrix& down,
    double clamp) {
  const size_t n = x.shape(0), d = x.shape(1);
  expect(
      gate.shape(1) == d && up.shape(1) == d && up.shape(0) == gate.shape(0) &&
          down.shape(0) == d && down.shape(1) == gate.shape(0),
      "x [n, d], gate and up [ff, d], down [d, ff]");
  OpMemory memory(ops);
  const Weight g = memory.weight(gate), u = memory.weight(up), w = memory.weight(down);
  const float* in = memory.copy(x);
  const int32_t* experts = memory.make<int32_t>(n);
  const std::vector<float> ones(n, 1.f);
  const float* mix = memory.copy(ones.data(), n);
  float* y = memory.make<float>(n * d);
  const float limit = static_cast<float>(clamp);
  ops.step([&] {
    ops.backend().moe(
        {&g, &u, &w, nullptr, nullptr, nullptr, 1, limit, limit},
        in,
        experts,
        mix,
        static_cast<int64_t>(n),
        y);
  });
  return to_array(y, n, d);
}

}  // namespace

void bind_matmul_ops(nb::class_<BackendOps>& c) {
  c.def(
       "embed",
       &embed,
       "weight"_a,
       "dtype"_a,
       "n_out"_a,
       "n_in"_a,
       "tokens"_a,
       "n_streams"_a,
       "scale"_a = nb::none(),
       "Rows tokens i32[n] of weight [n_out, n_in] as every stream: f32[n, n_streams, n_in].")
      .def(
          "matmul",
          &matmul,
          "weight"_a,
          "dtype"_a,
          "n_out"_a,
          "n_in"_a,
          "x"_a,
          "scale"_a = nb::none(),
          "f32[n, n_out] = x f32[n, n_in] times the transpose of weight [n_out, n_in]; scale u8[:] "
          "for F8_E4M3.")
      .def(
          "matmul_bundle",
          &matmul_bundle,
          "weights"_a,
          "x"_a,
          "norm"_a = nb::none(),
          "eps"_a = 1e-6,
          "Products of one x f32[n, n_in], which rms_norm with norm f32[n_in] passes first unless "
          "it is None.\n"
          "\n"
          "Args:\n"
          "    weights: (data u8[:], dtype, n_out) or (data, dtype, n_out, scale u8[:]) each.\n"
          "    x: f32[n, n_in].\n"
          "    norm: f32[n_in] or None.\n"
          "    eps: of the norm.\n"
          "\n"
          "Returns:\n"
          "    f32[n, n_out] of each.")
      .def(
          "matmul_grouped",
          &matmul_grouped,
          "weight"_a,
          "dtype"_a,
          "n_groups"_a,
          "rank"_a,
          "x"_a,
          "scale"_a = nb::none(),
          "Grouped output projection: rows [g rank, (g + 1) rank) of weight [n_groups rank, n_in] "
          "times part g of x f32[n, n_groups n_in] -> f32[n, n_groups rank].")
      .def(
          "moe",
          &moe,
          "weights"_a,
          "n_experts"_a,
          "n_ff"_a,
          "x"_a,
          "experts"_a,
          "expert_weights"_a,
          "clamp"_a = 10.0,
          "shared_clamp"_a = 10.0,
          "n_shared_ff"_a = 0,
          "Routed and shared experts.\n"
          "\n"
          "Args:\n"
          "    weights: gate and up [n_experts, n_ff, d], down [n_experts, d, n_ff]; and, or not,\n"
          "        shared_gate, shared_up [n_shared_ff, d] and shared_down [d, n_shared_ff]. Each\n"
          "        is (data u8[:], dtype) or (data, dtype, scale u8[:]).\n"
          "    n_experts: routed experts.\n"
          "    n_ff: width of a routed expert.\n"
          "    x: f32[n, d].\n"
          "    experts: i32[n, n_used].\n"
          "    expert_weights: f32[n, n_used].\n"
          "    clamp: of SwiGLU; 0 is none.\n"
          "    shared_clamp: the shared expert's.\n"
          "    n_shared_ff: width of the shared expert; 0 is n_ff.\n"
          "\n"
          "Returns:\n"
          "    f32[n, d].")
      .def(
          "route_moe",
          &route_moe,
          "logits"_a,
          "bias"_a.none(),
          "n_used"_a,
          "scale"_a,
          "weights"_a,
          "n_ff"_a,
          "x"_a,
          "clamp"_a = 10.0,
          "shared_clamp"_a = 10.0,
          "n_shared_ff"_a = 0,
          "tid2eid"_a = nb::none(),
          "tokens"_a = nb::none(),
          "route and then moe in one step: (y, experts, expert_weights). Arguments as theirs.")
      .def(
          "swiglu_mlp",
          &swiglu_mlp,
          "x"_a,
          "gate"_a,
          "up"_a,
          "down"_a,
          "clamp"_a,
          "One expert for all rows: x f32[n, d], gate and up f32[ff, d], down f32[d, ff].");
}

}  // namespace grebe::bind
