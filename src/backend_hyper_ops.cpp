// BackendOps: hyper-connections, norms and the router.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include "backend_ops.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;

// A weight as the bytes of an array of any type: f32 values, or blocks as u8.
using Raw = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

struct Hyper {
  Weight fn;
  Backend::HcPre pre;
};

// fn [n_rows, s d], base [n_rows], scale [n_scale], norm [d]
std::unique_ptr<Hyper> hyper(
    OpMemory& memory,
    size_t n_streams,
    size_t hidden,
    size_t n_rows,
    const Raw& fn,
    const std::string& dtype,
    const Array<float, 1>& base,
    const Array<float, 1>& scale,
    const Array<float, 1>& norm,
    int32_t iterations,
    double eps) {
  expect(
      n_streams >= 1 && n_streams <= 8 && base.size() == n_rows &&
          scale.size() == (n_rows == n_streams ? 1 : 3) && norm.size() == hidden,
      "X [n, s, d], fn [(2 + s) s, s d], base [(2 + s) s], scale [3], norm [d]; for hc_head fn [s, "
      "s d], base [s], scale [1]");
  auto h = std::make_unique<Hyper>();
  h->fn = memory.weight(
      fn.data(),
      fn.nbytes(),
      dtype,
      static_cast<int64_t>(n_rows),
      static_cast<int64_t>(n_streams * hidden),
      1,
      {});
  h->pre = {
      &h->fn,
      memory.copy(base),
      memory.copy(scale),
      memory.copy(norm),
      static_cast<int32_t>(n_streams),
      iterations,
      static_cast<float>(eps),
      static_cast<float>(eps),
      static_cast<int64_t>(hidden)};
  return h;
}

auto hc_pre(
    BackendOps& ops,
    const Array<float, 3>& X,
    const Raw& fn,
    const Array<float, 1>& base,
    const Array<float, 1>& scale,
    const Array<float, 1>& norm,
    int32_t iterations,
    double eps,
    const std::string& dtype) {
  const size_t n = X.shape(0), s = X.shape(1), d = X.shape(2);
  OpMemory memory(ops);
  const auto h = hyper(memory, s, d, (2 + s) * s, fn, dtype, base, scale, norm, iterations, eps);
  const float* streams = memory.copy(X);
  float *x = memory.make<float>(n * d), *post = memory.make<float>(n * s),
        *comb = memory.make<float>(n * s * s);
  ops.step([&] { ops.backend().hc_pre(h->pre, streams, static_cast<int64_t>(n), x, post, comb); });
  return nb::make_tuple(to_array(x, n, d), to_array(post, n, s), to_array(comb, n, s, s));
}

auto hc_post(
    BackendOps& ops,
    const Array<float, 3>& X,
    const Array<float, 2>& y,
    const Array<float, 2>& post,
    const Array<float, 3>& comb) {
  const size_t n = X.shape(0), s = X.shape(1), d = X.shape(2);
  expect(
      s <= 8 && y.size() == n * d && post.size() == n * s && comb.size() == n * s * s,
      "X [n, s, d], y [n, d], post [n, s], comb [n, s, s]");
  OpMemory memory(ops);
  float* streams = memory.copy(X);
  const float *in = memory.copy(y), *p = memory.copy(post), *c = memory.copy(comb);
  ops.step([&] {
    ops.backend().hc_post(
        streams,
        in,
        p,
        c,
        static_cast<int64_t>(n),
        static_cast<int32_t>(s),
        static_cast<int64_t>(d));
  });
  return to_array(streams, n, s, d);
}

// The end of one sublayer and the beginning of the next, post and comb in the same memory, as in
// the forward pass.
auto hc_post_pre(
    BackendOps& ops,
    const Array<float, 3>& X,
    const Array<float, 2>& y,
    const Array<float, 2>& post,
    const Array<float, 3>& comb,
    const Raw& fn,
    const Array<float, 1>& base,
    const Array<float, 1>& scale,
    const Array<float, 1>& norm,
    int32_t iterations,
    double eps,
    const std::string& dtype) {
  const size_t n = X.shape(0), s = X.shape(1), d = X.shape(2);
  expect(
      y.size() == n * d && post.size() == n * s && comb.size() == n * s * s,
      "X [n, s, d], y [n, d], post [n, s], comb [n, s, s]");
  OpMemory memory(ops);
  const auto h = hyper(memory, s, d, (2 + s) * s, fn, dtype, base, scale, norm, iterations, eps);
  float *streams = memory.copy(X), *p = memory.copy(post), *c = memory.copy(comb),
        *x = memory.make<float>(n * d);
  const float* in = memory.copy(y);
  const int64_t rows = static_cast<int64_t>(n);
  ops.step([&] {
    ops.backend().hc_post(streams, in, p, c, rows, h->pre.n_streams, h->pre.hidden);
    ops.backend().hc_pre(h->pre, streams, rows, x, p, c);
  });
  return nb::make_tuple(
      to_array(streams, n, s, d), to_array(x, n, d), to_array(p, n, s), to_array(c, n, s, s));
}

auto hc_head(
    BackendOps& ops,
    const Array<float, 3>& X,
    const Raw& fn,
    const Array<float, 1>& base,
    const Array<float, 1>& scale,
    const Array<float, 1>& norm,
    const Array<int32_t, 1>& rows,
    double eps,
    const std::string& dtype) {
  const size_t s = X.shape(1), d = X.shape(2), n = rows.size();
  for (size_t i = 0; i < n; i++)
    expect(rows.data()[i] >= 0 && static_cast<size_t>(rows.data()[i]) < X.shape(0), "rows of X");
  OpMemory memory(ops);
  const auto h = hyper(memory, s, d, s, fn, dtype, base, scale, norm, 0, eps);
  const float* streams = memory.copy(X);
  const int32_t* picks = memory.copy(rows);
  float* x = memory.make<float>(n * d);
  ops.step([&] { ops.backend().hc_head(h->pre, streams, picks, static_cast<int64_t>(n), x); });
  return to_array(x, n, d);
}

auto rms_norm(
    BackendOps& ops, const Array<float, 2>& x, const Array<float, 1>& weight, double eps) {
  expect(weight.size() == x.shape(1), "x [n, width], weight [width]");
  OpMemory memory(ops);
  float* out = memory.copy(x);
  const float* w = memory.copy(weight);
  ops.step([&] {
    ops.backend().rms_norm(
        out,
        w,
        static_cast<int64_t>(x.shape(0)),
        static_cast<int64_t>(x.shape(1)),
        static_cast<float>(eps));
  });
  return to_array(out, x.shape(0), x.shape(1));
}

auto q_norm_rope(
    BackendOps& ops,
    const Array<float, 3>& q,
    const Array<float, 2>& cos,
    const Array<float, 2>& sin,
    double eps) {
  expect(2 * cos.shape(1) <= q.shape(2), "q [n, heads, head_dim >= rope_dim]");
  OpMemory memory(ops);
  float* out = memory.copy(q);
  const RopeTable rope = memory.rope(cos, sin, q.shape(0));
  ops.step([&] {
    ops.backend().q_norm_rope(
        out,
        rope,
        static_cast<int64_t>(q.shape(0)),
        static_cast<int32_t>(q.shape(1)),
        static_cast<int32_t>(q.shape(2)),
        static_cast<float>(eps));
  });
  return to_array(out, q.shape(0), q.shape(1), q.shape(2));
}

auto route(
    BackendOps& ops,
    const Array<float, 2>& logits,
    const std::optional<Array<float, 1>>& bias,
    int32_t n_used,
    double scale,
    const std::optional<Array<int32_t, 2>>& tid2eid,
    const std::optional<Array<int32_t, 1>>& tokens) {
  OpMemory memory(ops);
  const Backend::Route r = memory.route(logits, bias, n_used, scale, tid2eid, tokens);
  const size_t n = logits.shape(0);
  const float* in = memory.copy(logits);
  int32_t* experts = memory.make<int32_t>(n * n_used);
  float* weights = memory.make<float>(n * n_used);
  ops.step([&] { ops.backend().route(r, in, static_cast<int64_t>(n), experts, weights); });
  return nb::make_tuple(to_array(experts, n, n_used), to_array(weights, n, n_used));
}

}  // namespace

Backend::Route OpMemory::route(
    const Array<float, 2>& logits,
    const std::optional<Array<float, 1>>& bias,
    int32_t n_used,
    double scale,
    const std::optional<Array<int32_t, 2>>& tid2eid,
    const std::optional<Array<int32_t, 1>>& tokens) {
  const size_t n = logits.shape(0), e = logits.shape(1);
  expect(
      (!bias || bias->size() == e) && n_used >= 1 && static_cast<size_t>(n_used) <= e &&
          (bias || tid2eid) && tokens.has_value() == tid2eid.has_value(),
      "logits [n, e], bias [e], n_used <= e; tid2eid [vocab, n_used] with tokens [n]");
  Backend::Route r{
      nullptr, nullptr, nullptr, static_cast<int32_t>(e), n_used, static_cast<float>(scale)};
  if (bias) r.bias = copy(*bias);
  if (tid2eid) {
    expect(tid2eid->shape(1) == static_cast<size_t>(n_used) && tokens->size() == n, "tid2eid");
    for (size_t i = 0; i < tid2eid->size(); i++)
      expect(tid2eid->data()[i] >= 0 && static_cast<size_t>(tid2eid->data()[i]) < e, "tid2eid");
    for (size_t i = 0; i < n; i++) {
      const int32_t token = tokens->data()[i];
      expect(token >= 0 && static_cast<size_t>(token) < tid2eid->shape(0), "tokens");
    }
    r.tid2eid = copy(*tid2eid);
    r.tokens = copy(*tokens);
  }
  return r;
}

void bind_hyper_ops(nb::class_<BackendOps>& c) {
  c.def(
       "hc_pre",
       &hc_pre,
       "X"_a,
       "fn"_a,
       "base"_a,
       "scale"_a,
       "norm"_a,
       "iterations"_a = 20,
       "eps"_a = 1e-6,
       "dtype"_a = "F32",
       "Before a sublayer.\n"
       "\n"
       "Args:\n"
       "    X: f32[n, s, d].\n"
       "    fn: weight [(2 + s) s, s d]: f32 values, or the bytes of type dtype as u8[:].\n"
       "    base: f32[(2 + s) s].\n"
       "    scale: f32[3].\n"
       "    norm: f32[d].\n"
       "    iterations: of Sinkhorn's normalisation.\n"
       "    eps: of both kinds.\n"
       "    dtype: of fn.\n"
       "\n"
       "Returns:\n"
       "    (x f32[n, d], post f32[n, s], comb f32[n, s, s]).")
      .def(
          "hc_post",
          &hc_post,
          "X"_a,
          "y"_a,
          "post"_a,
          "comb"_a,
          "After a sublayer: X f32[n, s, d], y f32[n, d], post f32[n, s], comb f32[n, s, s] -> the "
          "new X.")
      .def(
          "hc_post_pre",
          &hc_post_pre,
          "X"_a,
          "y"_a,
          "post"_a,
          "comb"_a,
          "fn"_a,
          "base"_a,
          "scale"_a,
          "norm"_a,
          "iterations"_a = 20,
          "eps"_a = 1e-6,
          "dtype"_a = "F32",
          "hc_post and then hc_pre in one step: (X, x, post, comb).")
      .def(
          "hc_head",
          &hc_head,
          "X"_a,
          "fn"_a,
          "base"_a,
          "scale"_a,
          "norm"_a,
          "rows"_a,
          "eps"_a = 1e-6,
          "dtype"_a = "F32",
          "The output head's x f32[len(rows), d] of rows i32[:] of X f32[n, s, d]; fn [s, s d], "
          "base [s], scale [1].")
      .def(
          "rms_norm",
          &rms_norm,
          "x"_a,
          "weight"_a,
          "eps"_a = 1e-6,
          "x f32[n, width] normalised, times weight f32[width].")
      .def(
          "q_norm_rope",
          &q_norm_rope,
          "q"_a,
          "cos"_a,
          "sin"_a,
          "eps"_a = 1e-6,
          "q f32[n, heads, head_dim], each head normalised, its end rotated; cos and sin f32[n, "
          "rope_dim / 2].")
      .def(
          "route",
          &route,
          "logits"_a,
          "bias"_a.none(),
          "n_used"_a,
          "scale"_a,
          "tid2eid"_a = nb::none(),
          "tokens"_a = nb::none(),
          "logits f32[n, e] -> (experts i32[n, n_used], weights f32[n, n_used]). bias f32[e] "
          "chooses, or tid2eid i32[vocab, n_used] by tokens i32[n].");
}

}  // namespace grebe::bind
