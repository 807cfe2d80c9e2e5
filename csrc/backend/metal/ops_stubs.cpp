// Temporary.
#include "backend/metal/ops.h"
#include "core/error.h"
#pragma GCC diagnostic ignored "-Wunused-parameter"
namespace grebe::metal {
#if !__has_include("ops_matmul.cpp")
void embed(
    Recorder& r, const Weight& w, const int32_t* tokens, int64_t n, int32_t n_streams, float* X) {
  throw Error("pending: ops_matmul");
}
void matmul(
    Recorder& r, std::span<const Backend::Product> products, int64_t n, const InputNorm& norm) {
  throw Error("pending: ops_matmul");
}
#endif
#if !__has_include("ops_moe.cpp")
void moe(
    Recorder& r,
    const Backend::Moe& p,
    const float* x,
    int32_t* experts,
    float* weights,
    int64_t n,
    float* y,
    const Backend::Route* route,
    const float* logits) {
  throw Error("pending: ops_moe");
}
bool moe_can_route(const Backend::Route& route, int64_t n) { throw Error("pending: ops_moe"); }
#endif
#if !__has_include("ops_hyper.cpp")
void hc_pre(
    Recorder& r,
    const Backend::HcPre& p,
    float* X,
    const HcPost& previous,
    int64_t n,
    float* x,
    float* post,
    float* comb) {
  throw Error("pending: ops_hyper");
}
void hc_post(Recorder& r, float* X, const HcPost& p, int64_t n, int32_t n_streams, int64_t hidden) {
  throw Error("pending: ops_hyper");
}
void hc_head(
    Recorder& r,
    const Backend::HcPre& p,
    const float* X,
    const int32_t* rows,
    int64_t n,
    float* x) {
  throw Error("pending: ops_hyper");
}
#endif
#if !__has_include("ops_norm.cpp")
void rms_norm(Recorder& r, float* x, const float* weight, int64_t n, int64_t width, float eps) {
  throw Error("pending: ops_norm");
}
void q_norm_rope(
    Recorder& r,
    float* q,
    const RopeTable& rope,
    int64_t n,
    int32_t n_heads,
    int32_t head_dim,
    float eps) {
  throw Error("pending: ops_norm");
}
void route(
    Recorder& r,
    const Backend::Route& p,
    const float* logits,
    int64_t n,
    int32_t* experts,
    float* weights) {
  throw Error("pending: ops_norm");
}
#endif
#if !__has_include("ops_rows.cpp")
void rows(Recorder& r, const RowsOp& op) { throw Error("pending: ops_rows"); }
#endif
#if !__has_include("ops_indexer.cpp")
void index_select(
    Recorder& r,
    std::span<const IndexTask> tasks,
    const Backend::IndexShape& shape,
    float* q,
    const RopeTable& rope,
    const float* weights,
    int64_t n) {
  throw Error("pending: ops_indexer");
}
#endif
#if !__has_include("ops_attention.cpp")
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
    float eps) {
  throw Error("pending: ops_attention");
}
#endif
#if !__has_include("../../../cmake/metal.cmake")
const char* library_source(const std::string&) { return nullptr; }
#endif
}  // namespace grebe::metal
