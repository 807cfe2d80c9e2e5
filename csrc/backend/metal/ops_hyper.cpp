#include <algorithm>

#include "args/hyper_args.h"
#include "backend/metal/ops.h"
#include "backend/metal/weight_types.h"

namespace grebe::metal {
namespace {

// Function constants of hyper_connection.metal.
enum : uint32_t {
  kType = 0,
  kTokens = 1,
  kSegments = 2,
  kChunk = 3,
  kUpdate = 4,
  kGather = 5,
  kStreams = 6,
};

constexpr const char* kLibrary = "hyper_connection";

// Channels of each stream that a threadgroup takes: 64 threadgroups at 4,096 channels, so every
// core of a large GPU has one or two and each has 6 KiB to 12 KiB of fn in flight. 8 tokens of 8
// streams are 16 KiB of threadgroup memory.
constexpr uint32_t kChunkChannels = 64;

struct Rows {
  const int32_t* rows = nullptr;  ///< null: token t is row t
  int64_t end = 0;                ///< of the rows of X that are read
};

void finish(
    Recorder& r,
    const Backend::HcPre& p,
    const HyperArgs& args,
    const float* partials,
    const float* X,
    const Rows& rows,
    float* x,
    float* post,
    float* comb) {
  const uint64_t s = static_cast<uint64_t>(p.n_streams), hidden = static_cast<uint64_t>(p.hidden);
  const uint64_t n = args.n, row_bytes = s * hidden * sizeof(float);
  const bool head = post == nullptr;
  // A decode step waits for this one threadgroup, so it gets all the threads that have work; with
  // many tokens smaller ones fill the cores better.
  const uint64_t wanted = (hidden + 127) / 128 * 32;
  const uint32_t threads = static_cast<uint32_t>(std::min<uint64_t>(wanted, n <= 8 ? 1024 : 256));
  auto b = r.dispatch(kLibrary, "hc_finish");
  b.constant(kGather, rows.rows != nullptr)
      .constant(kStreams, p.n_streams)
      .args(args)
      .read(1, partials, n * (args.n_mixes + 1) * args.n_chunks * sizeof(float))
      .read(2, X, rows.end * row_bytes)
      .read(3, rows.rows, n * sizeof(int32_t))
      .read(4, p.base, args.n_mixes * sizeof(float))
      .read(5, p.scale, (head ? 1 : 3) * sizeof(float))
      .read(6, p.norm, hidden * sizeof(float))
      .write(7, x, n * hidden * sizeof(float))
      .write(8, post, n * s * sizeof(float))
      .write(9, comb, n * s * s * sizeof(float));
  b.run(n, head ? 1 : 2, 1, threads);
}

HyperArgs hyper_args(const Backend::HcPre& p, int64_t n) {
  HyperArgs args{};
  args.fn_row_bytes = p.fn->row_bytes();
  args.n = static_cast<uint32_t>(n);
  args.hidden = static_cast<uint32_t>(p.hidden);
  args.n_mixes = static_cast<uint32_t>(p.fn->n_out);
  args.sinkhorn_iters = static_cast<uint32_t>(p.sinkhorn_iters);
  args.hc_eps = p.hc_eps;
  args.rms_eps = p.rms_eps;
  return args;
}

bool is_plain(WeightType type) {
  return type == kWeightF32 || type == kWeightF16 || type == kWeightBF16;
}

void mix(
    Recorder& r,
    const Backend::HcPre& p,
    float* X,
    const HcPost& previous,
    int64_t n,
    const Rows& rows,
    float* x,
    float* post,
    float* comb) {
  const WeightType type = weight_type(p.fn->dtype);
  const bool plain = is_plain(type);
  const uint64_t s = static_cast<uint64_t>(p.n_streams), hidden = static_cast<uint64_t>(p.hidden);
  // Blocks of weights are read 16 at a time, from multiples of 16.
  bool update = previous.y != nullptr;
  if (update && !plain && hidden % 16 != 0) {
    hc_post(r, X, previous, n, p.n_streams, p.hidden);
    update = false;
  }
  const uint32_t segments = update ? p.n_streams : 1;
  const uint32_t chunk = update ? kChunkChannels : kChunkChannels * p.n_streams;
  const uint32_t tokens = n == 1 ? 1 : n == 2 ? 2 : n <= 4 ? 4 : 8;

  HyperArgs args = hyper_args(p, n);
  args.segment = static_cast<uint32_t>(s * hidden / segments);
  args.n_chunks = (args.segment + chunk - 1) / chunk;

  const uint64_t partials_bytes =
      static_cast<uint64_t>(n) * (args.n_mixes + 1) * args.n_chunks * sizeof(float);
  auto* partials = static_cast<float*>(r.scratch(partials_bytes));
  auto b = r.dispatch(kLibrary, "hc_mix");
  b.constant(kType, type)
      .constant(kTokens, tokens)
      .constant(kSegments, segments)
      .constant(kChunk, chunk)
      .constant(kUpdate, update)
      .constant(kGather, rows.rows != nullptr)
      .args(args)
      .weight(1, p.fn->data)
      .weight(2, p.fn->scale)
      .read(4, rows.rows, n * sizeof(int32_t))
      .read(5, update ? previous.y : nullptr, n * hidden * sizeof(float))
      .read(6, update ? previous.post : nullptr, n * s * sizeof(float))
      .read(7, update ? previous.comb : nullptr, n * s * s * sizeof(float))
      .write(8, partials, partials_bytes)
      .threadgroup_memory(uint64_t{tokens} * segments * chunk * sizeof(float))
      .reads_bytes(p.fn->n_bytes());
  const uint64_t X_bytes = rows.end * s * hidden * sizeof(float);
  if (update) {
    b.read_write(3, X, X_bytes);
  } else {
    b.read(3, X, X_bytes);
  }
  b.run(args.n_chunks, (n + tokens - 1) / tokens, 1, 256);
  finish(r, p, args, partials, X, rows, x, post, comb);
}

}  // namespace

void hc_pre(
    Recorder& r,
    const Backend::HcPre& p,
    float* X,
    const HcPost& previous,
    int64_t n,
    float* x,
    float* post,
    float* comb) {
  mix(r, p, X, previous, n, {nullptr, n}, x, post, comb);
}

bool can_update_streams(const Backend::HcPre& next) {
  const int32_t s = next.n_streams;
  return (s == 1 || s == 2 || s == 4 || s == 8) && is_plain(weight_type(next.fn->dtype));
}

void hc_pre_finish(Recorder& r, const StreamUpdate& update, float* x, float* post, float* comb) {
  HyperArgs args = hyper_args(update.next, 1);
  args.segment = args.hidden;
  args.n_chunks = update.n_chunks;
  finish(r, update.next, args, update.partials, update.X, {nullptr, 1}, x, post, comb);
}

void hc_post(Recorder& r, float* X, const HcPost& p, int64_t n, int32_t n_streams, int64_t hidden) {
  const uint64_t s = static_cast<uint64_t>(n_streams), rows = static_cast<uint64_t>(n);
  HyperArgs args{};
  args.n = static_cast<uint32_t>(n);
  args.hidden = static_cast<uint32_t>(hidden);
  auto b = r.dispatch(kLibrary, "hc_post");
  b.constant(kStreams, n_streams)
      .args(args)
      .read_write(1, X, rows * s * hidden * sizeof(float))
      .read(2, p.y, rows * hidden * sizeof(float))
      .read(3, p.post, rows * s * sizeof(float))
      .read(4, p.comb, rows * s * s * sizeof(float))
      .run((hidden + 255) / 256, n, 1, 256);
}

void hc_head(
    Recorder& r,
    const Backend::HcPre& p,
    const float* X,
    const int32_t* rows,
    int64_t n,
    float* x) {
  if (n == 0) return;
  // How far X is read is known from the rows, which lie in host memory too.
  const int64_t end = *std::max_element(rows, rows + n) + 1;
  mix(r, p, const_cast<float*>(X), {}, n, {rows, end}, x, nullptr, nullptr);
}

}  // namespace grebe::metal
