// The ops of backend.h as dispatches, one function per op or fused group of ops. Each lives in the
// file named beside it and decides kernel, constants, grid and arguments; metal_backend.cpp decides
// which of them to call.
#pragma once

#include <cstdint>
#include <span>

#include "backend/backend.h"
#include "backend/metal/recorder.h"

namespace grebe::metal {

// ---- the end of a sublayer in a decode step

/// The last product of a sublayer may go on: hc_post of its y into X, and the partial products of
/// the hc_pre that follows. hc_pre_finish() then does what is left of hc_pre.
struct StreamUpdate {
  Backend::HcPre next;
  float* X = nullptr;
  const float *post = nullptr, *comb = nullptr;  ///< of the sublayer that ends
  float* partials = nullptr;                     ///< set by the product
  uint32_t n_chunks = 0;                         ///< set by the product
};
/// Whether the kernels do this for one row and these streams.
bool can_update_streams(const Backend::HcPre& next);

// ---- ops_matmul.cpp: metal/matvec.metal, metal/matmul.metal, metal/embed.metal

/// Root mean square normalisation of a product's input, done while reading it.
struct InputNorm {
  const float* weight = nullptr;  ///< f32[n_in]; null: none
  float eps = 0;
};

void embed(
    Recorder& r, const Weight& w, const int32_t* tokens, int64_t n, int32_t n_streams, float* X);
/// `norm` applies to every x of the products (all have the same).
void matmul(
    Recorder& r, std::span<const Backend::Product> products, int64_t n, const InputNorm& norm = {});
/// One product of one row, all rows of its weight, that ends a sublayer.
void matmul_into_streams(Recorder& r, const Backend::Product& product, StreamUpdate& update);

// ---- ops_moe.cpp: metal/moe.metal

/// `route` not null (few rows only): the routing is done by the same dispatch from `logits`
/// f32[n, n_experts]; experts and weights are then outputs.
void moe(
    Recorder& r,
    const Backend::Moe& p,
    const float* x,
    int32_t* experts,
    float* weights,
    int64_t n,
    float* y,
    const Backend::Route* route = nullptr,
    const float* logits = nullptr,
    StreamUpdate* update = nullptr);
/// Whether moe() takes a route at this size.
bool moe_can_route(const Backend::Route& route, int64_t n);

// ---- ops_hyper.cpp: metal/hyper_connection.metal

/// What hc_post adds, when it is done together with the hc_pre that follows.
struct HcPost {
  const float *y = nullptr, *post = nullptr, *comb = nullptr;
};

/// X (updated first when `previous.y` is not null) -> x, post, comb. `post` and `comb` may be the
/// same memory as previous.post and previous.comb.
void hc_pre(
    Recorder& r,
    const Backend::HcPre& p,
    float* X,
    const HcPost& previous,
    int64_t n,
    float* x,
    float* post,
    float* comb);
/// hc_pre after a product that has updated the streams.
void hc_pre_finish(Recorder& r, const StreamUpdate& update, float* x, float* post, float* comb);
void hc_post(Recorder& r, float* X, const HcPost& p, int64_t n, int32_t n_streams, int64_t hidden);
void hc_head(
    Recorder& r, const Backend::HcPre& p, const float* X, const int32_t* rows, int64_t n, float* x);

// ---- ops_norm.cpp: metal/norm.metal, metal/route.metal

void rms_norm(Recorder& r, float* x, const float* weight, int64_t n, int64_t width, float eps);
void q_norm_rope(
    Recorder& r,
    float* q,
    const RopeTable& rope,
    int64_t n,
    int32_t n_heads,
    int32_t head_dim,
    float eps);
void route(
    Recorder& r,
    const Backend::Route& p,
    const float* logits,
    int64_t n,
    int32_t* experts,
    float* weights);

// ---- ops_rows.cpp: metal/rows.metal

/// The rows that a step adds: raw rows of the window, and what the compressors finish. Any part may
/// be empty; all of it is one dispatch (pool and store of a row happen in the same threadgroup).
struct RowsOp {
  const float* kv = nullptr;  ///< raw rows; null: none
  const float* kv_norm = nullptr;
  RopeTable rope;
  int64_t n = 0;
  uint8_t* out = nullptr;
  std::span<const PoolTask> pools;
  std::span<const StoreRowsTask> kv_rows, index_rows;  ///< each of the rows of one pool task
  KvRowFormat kv_format;
  IndexRowFormat index_format;
  float eps = 0;
};
void rows(Recorder& r, const RowsOp& op);

// ---- ops_indexer.cpp: metal/indexer.metal

void index_select(
    Recorder& r,
    std::span<const IndexTask> tasks,
    const Backend::IndexShape& shape,
    float* q,
    const RopeTable& rope,
    const float* weights,
    int64_t n);

// ---- ops_attention.cpp: metal/attention_decode.metal, metal/attention_prefill.metal

/// `norm_q`: q has not been through q_norm_rope; it is normalised (with `eps`) and rotated here.
void attention(
    Recorder& r,
    std::span<const AttentionTask> tasks,
    const KvRowFormat& format,
    float* q,
    const RopeTable& rope,
    const float* sinks,
    int32_t n_heads,
    int32_t window_size,
    bool norm_q,
    float eps);

// ---- ops_sample.cpp: metal/sample.metal

/// Indices of the k best of logits f32[n] in descending order, the lowest index first among equals,
/// NaN last; -1 pads. best i32[k]. k = 1 is the argmax. A k above 1,024
/// is refused.
void top_k(Recorder& r, const float* logits, int64_t n, int32_t k, int32_t* best);

}  // namespace grebe::metal
