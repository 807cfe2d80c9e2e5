// The implementation behind ops.h, included once per instruction set. Every loop's float order is
// fixed and depends on its own row only, so results are the same on all tables.
#include <algorithm>

#include "backend/cpu/ops.h"
#include "backend/cpu/simd.h"

namespace grebe::cpu::GREBE_ISA {
namespace {

#if defined(GREBE_ISA_AVX512)
constexpr int kQkRows = 16, kPvVectors = 4;  // 16 accumulators of 32 registers
#elif defined(GREBE_ISA_AVX2)
constexpr int kQkRows = 4, kPvVectors = 1;  // two registers a vector, 16 in all
#else
constexpr int kQkRows = 4, kPvVectors = 1;
#endif

float inverse_rms(const float* x, int64_t n, float eps) {
  f32x16 a[4] = {zero16(), zero16(), zero16(), zero16()};
  int64_t i = 0;
  for (; i + 64 <= n; i += 64) {
    for (int j = 0; j < 4; j++) {
      const f32x16 v = load16(x + i + 16 * j);
      a[j] = fma16(v, v, a[j]);
    }
  }
  for (; i < n; i += 16) {
    const f32x16 v = load16_n(x + i, static_cast<int>(std::min<int64_t>(16, n - i)));
    a[0] = fma16(v, v, a[0]);
  }
  const float sum = reduce16((a[0] + a[1]) + (a[2] + a[3]));
  return 1.f / std::sqrt(sum / static_cast<float>(n) + eps);
}

void rms_norm(const float* x, const float* weight, int64_t n, float eps, float* out) {
  const float r = inverse_rms(x, n, eps);
  const f32x16 rv = set16(r);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    f32x16 v = load16(x + i) * rv;
    if (weight) v = v * load16(weight + i);
    store16(out + i, v);
  }
  for (; i < n; i++) out[i] = weight ? x[i] * r * weight[i] : x[i] * r;
}

void hc_collapse(const float* X, const float* pre, int32_t n_streams, int64_t d, float* out) {
  int64_t i = 0;
  for (; i + 16 <= d; i += 16) {
    f32x16 acc = load16(X + i) * set16(pre[0]);
    for (int32_t j = 1; j < n_streams; j++) acc = fma16(load16(X + j * d + i), set16(pre[j]), acc);
    store16(out + i, acc);
  }
  for (; i < d; i++) {
    float acc = X[i] * pre[0];
    for (int32_t j = 1; j < n_streams; j++) acc = std::fma(X[j * d + i], pre[j], acc);
    out[i] = acc;
  }
}

void hc_expand(
    float* X,
    const float* y,
    const float* post,
    const float* comb,
    int32_t n_streams,
    int64_t d,
    int64_t begin,
    int64_t end) {
  constexpr int kMaxStreams = 8;
  int64_t i = begin;
  for (; i + 16 <= end; i += 16) {
    f32x16 in[kMaxStreams];
    for (int32_t j = 0; j < n_streams; j++) in[j] = load16(X + j * d + i);
    const f32x16 yv = load16(y + i);
    for (int32_t k = 0; k < n_streams; k++) {
      f32x16 acc = yv * set16(post[k]);
      for (int32_t j = 0; j < n_streams; j++)
        acc = fma16(in[j], set16(comb[j * n_streams + k]), acc);
      store16(X + k * d + i, acc);
    }
  }
  for (; i < end; i++) {
    float in[kMaxStreams];
    for (int32_t j = 0; j < n_streams; j++) in[j] = X[j * d + i];
    for (int32_t k = 0; k < n_streams; k++) {
      float acc = y[i] * post[k];
      for (int32_t j = 0; j < n_streams; j++) acc = std::fma(in[j], comb[j * n_streams + k], acc);
      X[k * d + i] = acc;
    }
  }
}

void pool_add(
    float* triple,
    int64_t dim,
    const float* kv,
    const float* gate,
    const float* ape,
    int64_t begin,
    int64_t end) {
  float *mx = triple, *sum = triple + dim, *wsum = triple + 2 * dim;
  for (int64_t i = begin; i < end; i += 16) {
    const int n = static_cast<int>(std::min<int64_t>(16, end - i));
    const f32x16 z = load16_n(gate + i, n) + load16_n(ape + i, n);
    const f32x16 old = load16_n(mx + i, n);
    const f32x16 top = max16(old, z);
    const f32x16 keep = exp16(old - top), e = exp16(z - top);
    store16_n(mx + i, top, n);
    store16_n(sum + i, fma16(load16_n(sum + i, n), keep, e), n);
    store16_n(wsum + i, fma16(load16_n(wsum + i, n), keep, e * load16_n(kv + i, n)), n);
  }
}

void unpack_kv_row(const uint8_t* row, const KvRowFormat& f, float* out) {
  if (f.kind == KvRowFormat::Kind::kF32) {
    std::memcpy(out, row, sizeof(float) * f.head_dim);
    return;
  }
  const int32_t nope = f.nope();
  const uint8_t* exponents = row + f.scale_offset();
  for (int32_t b = 0; b < nope / 64; b++) {
    const float scale = e8m0_to_f32(exponents[b]) * 256.f;
    for (int32_t i = 64 * b; i < 64 * b + 64; i += 16)
      store16(out + i, load16_e4m3(row + i, scale));
  }
  const uint8_t* rope = row + f.rope_offset();
  if (f.kind == KvRowFormat::Kind::kPackedF32) {
    std::memcpy(out + nope, rope, sizeof(float) * f.rope_dim);
    return;
  }
  int32_t i = 0;
  for (; i + 16 <= f.rope_dim; i += 16) store16(out + nope + i, load16_bf16(rope + 2 * i));
  for (; i < f.rope_dim; i++) {
    uint16_t h;
    std::memcpy(&h, rope + 2 * i, 2);
    out[nope + i] = bf16_to_f32(h);
  }
}

// s[r][lane] = q of head `lane` . row r, for R rows; qt is f32[head_dim][16].
template <int R>
void qk_tile(const float* qt, const float* kv, int32_t head_dim, f32x16 scale, float* s) {
  f32x16 acc[R];
  for (int r = 0; r < R; r++) acc[r] = zero16();
  for (int32_t k = 0; k < head_dim; k++) {
    const f32x16 q = load16(qt + 16 * k);
    for (int r = 0; r < R; r++) acc[r] = fma16(q, set16(kv[int64_t{r} * head_dim + k]), acc[r]);
  }
  for (int r = 0; r < R; r++) store16(s + 16 * r, acc[r] * scale);
}

// Rows [r, n) in tiles of R rows, the rest in halves of that.
template <int R>
int64_t qk_rows(
    const float* qt,
    const float* kv,
    int32_t head_dim,
    f32x16 scale,
    float* s,
    int64_t r,
    int64_t n) {
  for (; r + R <= n; r += R) qk_tile<R>(qt, kv + r * head_dim, head_dim, scale, s + 16 * r);
  if constexpr (R > 1) {
    return qk_rows<R / 2>(qt, kv, head_dim, scale, s, r, n);
  } else {
    return r;
  }
}

// out[h][c] += sum over rows of w[r][h] kv[r][c] for H heads and V vectors of channels.
template <int H, int V>
void pv_tile(const float* w, const float* kv, int64_t n_rows, int32_t head_dim, float* out) {
  f32x16 acc[H][V];
  for (int h = 0; h < H; h++)
    for (int v = 0; v < V; v++) acc[h][v] = load16(out + int64_t{h} * head_dim + 16 * v);
  for (int64_t r = 0; r < n_rows; r++) {
    f32x16 x[V];
    for (int v = 0; v < V; v++) x[v] = load16(kv + r * head_dim + 16 * v);
    for (int h = 0; h < H; h++) {
      const f32x16 wh = set16(w[16 * r + h]);
      for (int v = 0; v < V; v++) acc[h][v] = fma16(wh, x[v], acc[h][v]);
    }
  }
  for (int h = 0; h < H; h++)
    for (int v = 0; v < V; v++) store16(out + int64_t{h} * head_dim + 16 * v, acc[h][v]);
}

template <int H>
void pv_heads(const float* w, const float* kv, int64_t n_rows, int32_t head_dim, float* out) {
  int32_t c = 0;
  for (; c + 16 * kPvVectors <= head_dim; c += 16 * kPvVectors) {
    pv_tile<H, kPvVectors>(w, kv + c, n_rows, head_dim, out + c);
  }
  for (; c < head_dim; c += 16) pv_tile<H, 1>(w, kv + c, n_rows, head_dim, out + c);
}

// Online softmax over tiles of the row list. The sink is one more logit with a zero value: it seeds
// max and sum.
void attention(const AttentionUnit& a) {
  const int32_t hd = a.format.head_dim, groups = (a.n_heads + 15) / 16;
  float* qt = a.scratch;                         // [groups][hd][16]
  float* kv = qt + int64_t{groups} * 16 * hd;    // [kAttentionTile][hd]
  float* s = kv + int64_t{kAttentionTile} * hd;  // [kAttentionTile][16]
  float* mx = s + kAttentionTile * 16;           // [groups][16]
  float* sum = mx + 16 * groups;                 // [groups][16]
  std::fill(qt, qt + int64_t{groups} * 16 * hd, 0.f);
  for (int32_t h = 0; h < a.n_heads; h++) {
    float* t = qt + int64_t{h / 16} * 16 * hd + h % 16;
    const float* q = a.q + int64_t{h} * hd;
    for (int32_t k = 0; k < hd; k++) t[16 * k] = q[k];
  }
  for (int32_t h = 0; h < 16 * groups; h++) {
    mx[h] = h < a.n_heads ? a.sinks[h] : 0.f;
    sum[h] = 1.f;
  }
  std::fill(a.out, a.out + int64_t{a.n_heads} * hd, 0.f);

  const f32x16 scale = set16(a.scale);
  for (int64_t begin = 0; begin < a.n_rows; begin += kAttentionTile) {
    const int64_t n = std::min<int64_t>(kAttentionTile, a.n_rows - begin);
    for (int64_t r = 0; r < n; r++) unpack_kv_row(a.rows[begin + r], a.format, kv + r * hd);
    for (int32_t g = 0; g < groups; g++) {
      const float* q = qt + int64_t{g} * 16 * hd;
      int64_t r = qk_rows<kQkRows>(q, kv, hd, scale, s, 0, n);

      const f32x16 old = load16(mx + 16 * g);
      f32x16 top = old;
      for (r = 0; r < n; r++) top = max16(top, load16(s + 16 * r));
      alignas(64) float keep[16];
      store16(keep, exp16(old - top));
      store16(mx + 16 * g, top);
      f32x16 z = load16(sum + 16 * g) * load16(keep);
      for (r = 0; r < n; r++) {
        const f32x16 w = exp16(load16(s + 16 * r) - top);
        store16(s + 16 * r, w);
        z = z + w;
      }
      store16(sum + 16 * g, z);

      const int32_t heads = std::min(16, a.n_heads - 16 * g);
      float* out = a.out + int64_t{g} * 16 * hd;
      for (int32_t h = 0; h < heads; h++) {
        if (keep[h] == 1.f) continue;
        const f32x16 k = set16(keep[h]);
        float* o = out + int64_t{h} * hd;
        for (int32_t c = 0; c < hd; c += 16) store16(o + c, load16(o + c) * k);
      }
      int32_t h = 0;
      for (; h + 4 <= heads; h += 4) pv_heads<4>(s + h, kv, n, hd, out + int64_t{h} * hd);
      for (; h < heads; h++) pv_heads<1>(s + h, kv, n, hd, out + int64_t{h} * hd);
    }
  }

  const int32_t half = a.format.rope_dim / 2;
  for (int32_t h = 0; h < a.n_heads; h++) {
    float* o = a.out + int64_t{h} * hd;
    const f32x16 inv = set16(1.f / sum[h]);
    for (int32_t c = 0; c < hd; c += 16) store16(o + c, load16(o + c) * inv);
    rope_rotate(o + a.format.nope(), a.cos, a.sin, half, -1.f);
  }
}

void index_panel(
    const uint8_t* const* rows, int32_t n_rows, int32_t dim, uint8_t* codes, float* scales) {
  // Two codes a byte, doubled and moved up by 12 so that they are unsigned.
  static const auto kPairs = [] {
    struct {
      uint16_t v[256];
    } t{};
    for (int i = 0; i < 256; i++) {
      const int lo = static_cast<int>(2 * kE2M1[i & 15]) + 12,
                hi = static_cast<int>(2 * kE2M1[i >> 4]) + 12;
      t.v[i] = static_cast<uint16_t>(lo | hi << 8);
    }
    return t;
  }();
  for (int32_t r = 0; r < n_rows; r++) {
    const uint8_t* row = rows[r];
    for (int32_t k = 0; k < dim / 4; k++) {
      const uint32_t four = kPairs.v[row[2 * k]] | static_cast<uint32_t>(kPairs.v[row[2 * k + 1]])
                                                       << 16;
      std::memcpy(codes + (int64_t{k} * 16 + r) * 4, &four, 4);
    }
    for (int32_t b = 0; b < dim / 32; b++)
      scales[16 * b + r] = e8m0_to_f32(row[dim / 2 + b]) * 0.5f;
  }
  for (int32_t r = n_rows; r < 16; r++) {
    for (int32_t k = 0; k < dim / 4; k++) std::memset(codes + (int64_t{k} * 16 + r) * 4, 12, 4);
    for (int32_t b = 0; b < dim / 32; b++) scales[16 * b + r] = 0.f;
  }
}

void index_score(
    const IndexQuery& q,
    int32_t n_heads,
    int32_t dim,
    const uint8_t* codes,
    const float* scales,
    float* scores) {
  const int32_t blocks = dim / 32;
  f32x16 total = zero16();
  for (int32_t h = 0; h < n_heads; h++) {
    const int8_t* qc = q.codes + int64_t{h} * dim;
    f32x16 dot = zero16();
    for (int32_t b = 0; b < blocks; b++) {
      i32x16 acc = iset16(-12 * q.sums[h * blocks + b]);
      for (int32_t k = 8 * b; k < 8 * b + 8; k++) {
        int32_t four;
        std::memcpy(&four, qc + 4 * k, 4);
        acc = dot4(acc, codes + 64 * k, four);
      }
      dot = fma16(to_f32(acc), load16(scales + 16 * b) * set16(q.scales[h * blocks + b]), dot);
    }
    total = fma16(max16(zero16(), dot), set16(q.weights[h]), total);
  }
  store16(scores, total);
}

float index_score_f32(
    const float* q, const float* weights, int32_t n_heads, int32_t dim, const float* row) {
  float total = 0.f;
  for (int32_t h = 0; h < n_heads; h++) {
    total = std::fma(std::max(dot16(q + int64_t{h} * dim, row, dim), 0.f), weights[h], total);
  }
  return total;
}

}  // namespace

extern const OpsTable kOps;
const OpsTable kOps = {
    rms_norm,
    inverse_rms,
    hc_collapse,
    hc_expand,
    pool_add,
    unpack_kv_row,
    attention,
    index_panel,
    index_score,
    index_score_f32};

}  // namespace grebe::cpu::GREBE_ISA
