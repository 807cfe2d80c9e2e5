// What a dispatch needs beside its own to end a sublayer; see StreamUpdate and hyper_update.h.
#pragma once

#include "args/hyper_args.h"
#include "backend/metal/ops.h"
#include "backend/metal/weight_types.h"
#include "core/error.h"

namespace grebe::metal {

// Function constants of hyper_update.h.
constexpr uint32_t kUpdateStreams = 13, kUpdateType = 14;

/// For a dispatch of a kernel that could, and does not.
inline void no_update(Recorder::Builder& dispatch) {
  dispatch.constant(kUpdateStreams, 0).constant(kUpdateType, kWeightF32);
}

/// Buffer indices of hyper_update.h in a kernel.
struct StreamUpdateBuffers {
  uint32_t X, post, comb, fn, partials;
};

/// Allocates the partial products, of one threadgroup each, and binds everything.
inline StreamUpdateArgs bind_update(
    Recorder& r,
    Recorder::Builder& dispatch,
    StreamUpdate& update,
    uint32_t n_groups,
    const StreamUpdateBuffers& at) {
  const Backend::HcPre& next = update.next;
  const uint64_t s = static_cast<uint64_t>(next.n_streams);
  const uint64_t n_mixes = static_cast<uint64_t>(next.fn->n_out);
  GREBE_ASSERT(n_mixes == (2 + s) * s);
  const uint64_t partials_bytes = sizeof(float) * (n_mixes + 1) * n_groups;
  update.n_chunks = n_groups;
  update.partials = static_cast<float*>(r.scratch(partials_bytes));
  dispatch.constant(kUpdateStreams, static_cast<uint32_t>(s))
      .constant(kUpdateType, weight_type(next.fn->dtype))
      .read_write(at.X, update.X, sizeof(float) * s * static_cast<uint64_t>(next.hidden))
      .read(at.post, update.post, sizeof(float) * s)
      .read(at.comb, update.comb, sizeof(float) * s * s)
      .weight(at.fn, next.fn->data)
      .write(at.partials, update.partials, partials_bytes)
      .reads_bytes(next.fn->n_bytes());
  return {static_cast<uint32_t>(next.hidden), static_cast<uint32_t>(n_mixes), n_groups, 0};
}

/// Threadgroup memory for it.
inline uint64_t update_bytes(const StreamUpdate* update, uint32_t n_simdgroups) {
  return update ? sizeof(float) * (update->next.fn->n_out + 1) * n_simdgroups : 0;
}

}  // namespace grebe::metal
