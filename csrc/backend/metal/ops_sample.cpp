#include "args/sample_args.h"
#include "backend/metal/ops.h"
#include "core/error.h"

namespace grebe::metal {

void top_k(Recorder& r, const float* logits, int64_t n, int32_t k, int32_t* best) {
  constexpr uint64_t kRun = 2048;  // candidates of a threadgroup, as in sample.metal
  // With more than half a run left of each, the candidates would never fit one.
  GREBE_ASSERT(n >= 1 && k >= 1 && k <= static_cast<int32_t>(kRun / 2));
  const int32_t* in = nullptr;
  uint64_t candidates = static_cast<uint64_t>(n);
  for (;;) {
    const uint64_t groups = (candidates + kRun - 1) / kRun, left = groups * k;
    const bool done = groups == 1;
    int32_t* out = done ? best : static_cast<int32_t*>(r.scratch(left * sizeof(int32_t)));
    const TopKArgs args{static_cast<uint32_t>(candidates), static_cast<uint32_t>(k)};
    r.dispatch("sample", "top_k")
        .constant(0, in == nullptr)
        .args(args)
        .read(1, logits, n * sizeof(float))
        .read(2, in, candidates * sizeof(int32_t))
        .write(3, out, left * sizeof(int32_t))
        .run(groups, 1, 1, 256);
    if (done) return;
    in = out;
    candidates = left;
  }
}

}  // namespace grebe::metal
