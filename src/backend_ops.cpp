// grebe._engine.BackendOps: the ops of backend/backend.h one at a time, on NumPy arrays, for tests
// that hold each op against its mathematics. Shapes are those of backend.h.
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include <algorithm>
#include <cstring>
#include <numeric>

#include "backend/backend.h"
#include "backend/cpu/ops.h"
#include "bindings.h"
#include "model/rope.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;
template <class T, size_t N>
using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

Weight f32_weight(const Array<float, 2>& w) {
  Weight out;
  out.name = "w";
  out.n_out = static_cast<int64_t>(w.shape(0));
  out.n_in = static_cast<int64_t>(w.shape(1));
  out.data = reinterpret_cast<const uint8_t*>(w.data());
  return out;
}

void expect(bool ok, const char* what) {
  if (!ok) throw InvalidArgument(std::string("shapes do not fit: ") + what);
}

std::vector<float> frequencies(bool compressed) {
  return rope_frequencies(ModelConfig{}, compressed);
}

// Flash's rotation tables for the given positions.
struct Angles {
  std::vector<float> cos, sin;
  RopeTable table;

  Angles(const Array<int64_t, 1>& pos, bool compressed) {
    const std::vector<float> f = frequencies(compressed);
    cos.resize(pos.size() * f.size());
    sin.resize(cos.size());
    for (size_t i = 0; i < pos.size(); i++)
      rope_angles(f, pos.data()[i], &cos[i * f.size()], &sin[i * f.size()]);
    table = {cos.data(), sin.data(), static_cast<int32_t>(f.size())};
  }
};

auto rope(const Array<float, 3>& x, const Array<int64_t, 1>& pos, bool compressed, bool inverse) {
  const size_t n = x.shape(0), heads = x.shape(1), d = x.shape(2);
  const Angles a(pos, compressed);
  expect(pos.size() == n && d >= 64, "x f32[n, heads, d >= 64], pos i64[n]");
  std::vector<float> out(x.data(), x.data() + x.size());
  for (size_t i = 0; i < n; i++) {
    for (size_t h = 0; h < heads; h++) {
      cpu::rope_rotate(
          &out[(i * heads + h) * d + d - 64],
          a.cos.data() + 32 * i,
          a.sin.data() + 32 * i,
          32,
          inverse ? -1.f : 1.f);
    }
  }
  return to_numpy(std::move(out), n, heads, d);
}

// Rows through the packed form and back. rope: "bf16", "f32" or "off" (plain rows).
auto kv_round_trip(
    const Array<float, 2>& rows,
    int32_t rope_dim,
    const std::string& rope,
    const std::string& isa) {
  const auto n = rows.shape(0), d = rows.shape(1);
  KvRowFormat format;
  format.kind = rope == "bf16"  ? KvRowFormat::Kind::kPackedBf16
                : rope == "f32" ? KvRowFormat::Kind::kPackedF32
                                : KvRowFormat::Kind::kF32;
  format.head_dim = static_cast<int32_t>(d);
  format.rope_dim = rope_dim;
  expect(
      rope_dim >= 0 && d % 16 == 0 && (d - rope_dim) % 64 == 0,
      "rows f32[n, nope + rope_dim], nope a multiple of 64");
  std::vector<uint8_t> packed(format.row_bytes());
  std::vector<float> out(n * d);
  for (size_t i = 0; i < n; i++) {
    cpu::pack_kv_row(rows.data() + i * d, format, packed.data());
    cpu::ops_table(choose_isa(isa)).unpack_kv_row(packed.data(), format, &out[i * d]);
  }
  return nb::make_tuple(to_numpy(std::move(out), n, d), format.row_bytes());
}

// Rows after rotation -> (Hadamard, the values that the packed FP4 row holds, bytes of a row).
auto index_round_trip(const Array<float, 2>& rows) {
  const auto n = rows.shape(0), d = rows.shape(1);
  expect(d >= 32 && (d & (d - 1)) == 0, "rows f32[n, power of two]");
  const IndexRowFormat format{true, static_cast<int32_t>(d)};
  std::vector<float> turned(rows.data(), rows.data() + n * d), out(n * d), row(d);
  std::vector<uint8_t> packed(format.row_bytes());
  for (size_t i = 0; i < n; i++) {
    std::copy_n(rows.data() + i * d, d, row.begin());
    cpu::hadamard(&turned[i * d], format.dim);
    cpu::pack_index_row(row.data(), format.dim, packed.data());
    for (size_t k = 0; k < d; k++) {
      const uint8_t code = packed[k / 2] >> (k % 2 * 4) & 15;
      out[i * d + k] = kE2M1[code] * e8m0_to_f32(packed[d / 2 + k / 32]);
    }
  }
  return nb::make_tuple(
      to_numpy(std::move(turned), n, d), to_numpy(std::move(out), n, d), format.row_bytes());
}

class BackendOps {
 public:
  BackendOps(const std::string& isa, int n_threads)
      : backend_(make_backend("cpu", {n_threads, true, isa})) {}
  std::string description() const { return backend_->description(); }

  auto hc_pre(
      const Array<float, 3>& X,
      const Array<float, 2>& fn,
      const Array<float, 1>& base,
      const Array<float, 1>& scale,
      const Array<float, 1>& norm,
      int32_t iterations,
      float eps) {
    const size_t n = X.shape(0), s = X.shape(1), d = X.shape(2);
    expect(
        s <= 8 && fn.shape(0) == (2 + s) * s && fn.shape(1) == s * d &&
            base.size() == fn.shape(0) && scale.size() == 3 && norm.size() == d,
        "X [n, s, d], fn [(2 + s) s, s d], base [(2 + s) s], scale [3], norm [d]");
    const Weight w = f32_weight(fn);
    std::vector<float> x(n * d), post(n * s), comb(n * s * s);
    backend_->hc_pre(
        {&w,
         base.data(),
         scale.data(),
         norm.data(),
         static_cast<int32_t>(s),
         iterations,
         eps,
         eps,
         static_cast<int64_t>(d)},
        X.data(),
        static_cast<int64_t>(n),
        x.data(),
        post.data(),
        comb.data());
    return nb::make_tuple(
        to_numpy(std::move(x), n, d),
        to_numpy(std::move(post), n, s),
        to_numpy(std::move(comb), n, s, s));
  }

  auto hc_post(
      const Array<float, 3>& X,
      const Array<float, 2>& y,
      const Array<float, 2>& post,
      const Array<float, 3>& comb) {
    const size_t n = X.shape(0), s = X.shape(1), d = X.shape(2);
    expect(
        s <= 8 && y.size() == n * d && post.size() == n * s && comb.size() == n * s * s, "hc_post");
    std::vector<float> out(X.data(), X.data() + X.size());
    backend_->hc_post(
        out.data(),
        y.data(),
        post.data(),
        comb.data(),
        static_cast<int64_t>(n),
        static_cast<int32_t>(s),
        static_cast<int64_t>(d));
    return to_numpy(std::move(out), n, s, d);
  }

  auto route(
      const Array<float, 2>& logits, const Array<float, 1>& bias, int32_t n_used, float scale) {
    const size_t n = logits.shape(0), e = logits.shape(1);
    expect(
        bias.size() == e && n_used >= 1 && static_cast<size_t>(n_used) <= e,
        "logits [n, e], bias [e], n_used <= e");
    std::vector<int32_t> experts(n * n_used);
    std::vector<float> weights(n * n_used);
    backend_->route(
        {bias.data(), nullptr, nullptr, static_cast<int32_t>(e), n_used, scale},
        logits.data(),
        static_cast<int64_t>(n),
        experts.data(),
        weights.data());
    return nb::make_tuple(
        to_numpy(std::move(experts), n, n_used), to_numpy(std::move(weights), n, n_used));
  }

  // Rows finished by n tokens from position 0, before norm: f32[n / ratio, dim].
  auto pool(
      const Array<float, 2>& kv,
      const Array<float, 2>& gate,
      const Array<float, 2>& ape,
      int32_t dim) {
    PoolTask t;
    t.shape = {static_cast<int32_t>(ape.shape(0)), dim};
    const size_t n = kv.shape(0), rows = n / ape.shape(0),
                 width = static_cast<size_t>(t.shape.width());
    expect(
        kv.shape(1) == width && gate.shape(0) == n && gate.shape(1) == width &&
            ape.shape(1) == width,
        "kv and gate [n, width], ape [ratio, width]");
    std::vector<float> in(t.shape.n_floats(), 0.f), state(t.shape.n_floats()), out(rows * dim);
    for (size_t part = 0; part < in.size(); part += 3 * dim)
      std::fill_n(in.begin() + part, dim, -INFINITY);
    t.segment = {0, static_cast<int64_t>(n), 0};
    t.kv = kv.data();
    t.gate = gate.data();
    t.stride = static_cast<int64_t>(width);
    t.ape = ape.data();
    t.state_in = in.data();
    t.state_out = state.data();
    t.rows = out.data();
    backend_->pool({&t, 1});
    return to_numpy(std::move(out), rows, dim);
  }

  // One query over plain f32 rows, no rotation.
  auto attention(
      const Array<float, 2>& q, const Array<float, 2>& rows, const Array<float, 1>& sinks) {
    const size_t heads = q.shape(0), d = q.shape(1), n = rows.shape(0);
    expect(
        rows.shape(1) == d && sinks.size() == heads && d % 16 == 0 && n >= 1,
        "q [h, d], rows [n, d], sinks [h]");
    AttentionTask t;
    t.segment = {0, 1, static_cast<int64_t>(n) - 1};
    t.ring = reinterpret_cast<const uint8_t*>(rows.data());
    t.ring_rows = static_cast<int32_t>(n);
    t.new_rows = t.ring + (n - 1) * d * sizeof(float);
    std::vector<float> out(q.data(), q.data() + q.size());
    const KvRowFormat format{KvRowFormat::Kind::kF32, static_cast<int32_t>(d), 0};
    backend_->attention(
        {&t, 1},
        format,
        out.data(),
        {},
        sinks.data(),
        static_cast<int32_t>(heads),
        static_cast<int32_t>(n));
    return to_numpy(std::move(out), heads, d);
  }

  // top_k best of f32 index rows for each query row i, of which (pos + i + 1) / ratio are visible;
  // -1 pads.
  auto index_select(
      const Array<float, 3>& q,
      const Array<float, 2>& weights,
      const Array<float, 2>& rows,
      int64_t pos,
      int32_t ratio,
      int32_t top_k) {
    const size_t n = q.shape(0), heads = q.shape(1), d = q.shape(2);
    expect(
        weights.size() == n * heads && rows.shape(1) == d && top_k >= 1 && ratio >= 1 &&
            (pos + static_cast<int64_t>(n)) / ratio <= static_cast<int64_t>(rows.shape(0)),
        "q [n, h, d], weights [n, h], rows [>= (pos + n) / ratio, d]");
    std::vector<float> copy(rows.data(), rows.data() + rows.size()),
        queries(q.data(), q.data() + q.size());
    uint8_t* block = reinterpret_cast<uint8_t*>(copy.data());
    const IndexRowFormat format{false, static_cast<int32_t>(d)};
    std::vector<int32_t> selected(n * top_k);
    const IndexTask t{
        {0, static_cast<int64_t>(n), pos},
        {&block, 0, INT32_MAX, format.row_bytes()},
        selected.data()};
    backend_->index_select(
        {&t, 1},
        {static_cast<int32_t>(heads), top_k, ratio, format},
        queries.data(),
        {},
        weights.data(),
        static_cast<int64_t>(n));
    return to_numpy(std::move(selected), n, top_k);
  }

  // One routed expert of weight 1, no shared expert.
  auto swiglu_mlp(
      const Array<float, 2>& x,
      const Array<float, 2>& gate,
      const Array<float, 2>& up,
      const Array<float, 2>& down,
      float clamp) {
    const Weight g = f32_weight(gate), u = f32_weight(up), w = f32_weight(down);
    const size_t n = x.shape(0), d = x.shape(1);
    expect(
        gate.shape(1) == d && up.shape(1) == d && up.shape(0) == gate.shape(0) &&
            down.shape(0) == d && down.shape(1) == gate.shape(0),
        "x [n, d], gate and up [ff, d], down [d, ff]");
    const std::vector<int32_t> experts(n, 0);
    const std::vector<float> weights(n, 1.f);
    std::vector<float> y(n * d);
    backend_->moe(
        {&g, &u, &w, nullptr, nullptr, nullptr, 1, clamp, clamp},
        x.data(),
        experts.data(),
        weights.data(),
        static_cast<int64_t>(n),
        y.data());
    return to_numpy(std::move(y), n, d);
  }

 private:
  std::unique_ptr<Backend> backend_;
};

}  // namespace

void bind_backend_ops(nb::module_& m) {
  m.def(
      "rope_frequencies",
      [](bool compressed) {
        std::vector<float> f = frequencies(compressed);
        const size_t n = f.size();
        return to_numpy(std::move(f), n);
      },
      "compressed"_a,
      "Flash's angular frequencies.");
  m.def("rope", &rope, "x"_a, "pos"_a, "compressed"_a, "inverse"_a = false);
  m.def("kv_round_trip", &kv_round_trip, "rows"_a, "rope_dim"_a, "rope"_a, "isa"_a = "");
  m.def("index_round_trip", &index_round_trip, "rows"_a);
  nb::class_<BackendOps>(
      m, "BackendOps", "Single ops of a CPU backend with exact kernels, for tests.")
      .def(nb::init<const std::string&, int>(), "isa"_a = "", "n_threads"_a = 1)
      .def_prop_ro("description", &BackendOps::description)
      .def(
          "hc_pre",
          &BackendOps::hc_pre,
          "X"_a,
          "fn"_a,
          "base"_a,
          "scale"_a,
          "norm"_a,
          "iterations"_a = 20,
          "eps"_a = 1e-6)
      .def("hc_post", &BackendOps::hc_post, "X"_a, "y"_a, "post"_a, "comb"_a)
      .def("route", &BackendOps::route, "logits"_a, "bias"_a, "n_used"_a, "scale"_a)
      .def("pool", &BackendOps::pool, "kv"_a, "gate"_a, "ape"_a, "dim"_a)
      .def("attention", &BackendOps::attention, "q"_a, "rows"_a, "sinks"_a)
      .def(
          "index_select",
          &BackendOps::index_select,
          "q"_a,
          "weights"_a,
          "rows"_a,
          "pos"_a,
          "ratio"_a,
          "top_k"_a)
      .def("swiglu_mlp", &BackendOps::swiglu_mlp, "x"_a, "gate"_a, "up"_a, "down"_a, "clamp"_a);
}

}  // namespace grebe::bind
