#include "backend/cpu/indexer.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

namespace grebe::cpu {

uint64_t Indexer::scratch_bytes() const {
  return codes_.capacity() + sizeof(int32_t) * sums_.capacity() +
         sizeof(float) *
             (scales_.capacity() + weights_.capacity() + scores_.capacity() + scratch_.capacity());
}

void Indexer::select(
    std::span<const IndexTask> tasks,
    const IndexShape& shape,
    float* q,
    const RopeTable& rope,
    const float* weights,
    int64_t n) {
  prepare(shape, q, rope, weights, n);
  for (const IndexTask& task : tasks) {
    const int64_t pos = task.segment.pos, total = task.segment.n;
    // Scores of a group of queries at a time, so that a long history does not need n x rows
    // floats.
    constexpr int64_t kMaxScores = int64_t{8} << 20;
    const int64_t rows_end = (pos + total) / shape.ratio;
    const int64_t stride = (rows_end + kIndexPanel - 1) / kIndexPanel * kIndexPanel;
    const int64_t group = std::clamp<int64_t>(kMaxScores / std::max<int64_t>(stride, 1), 1, total);
    scores_.resize(std::max<size_t>(scores_.size(), group * stride));
    for (int64_t first = 0; first < total; first += group) {
      const int64_t count = std::min(group, total - first);
      score_rows(task, shape, q, first, count, stride);
      pool_.parallel_for(count, [&](int64_t i, int) {
        const int64_t visible = (pos + first + i + 1) / shape.ratio;
        if (!select_top(
                scores_.data() + i * stride,
                visible,
                shape.top_k,
                task.selected + (first + i) * shape.top_k)) {
          not_finite_.store(true, std::memory_order_relaxed);
        }
      });
    }
  }
}

void Indexer::prepare(
    const IndexShape& shape, float* q, const RopeTable& rope, const float* weights, int64_t n) {
  const int64_t dim = shape.format.dim, heads = shape.n_heads, blocks = dim / 32;
  codes_.resize(std::max<size_t>(codes_.size(), n * heads * dim));
  scales_.resize(std::max<size_t>(scales_.size(), n * heads * blocks));
  sums_.resize(std::max<size_t>(sums_.size(), n * heads * blocks));
  weights_.resize(std::max<size_t>(weights_.size(), n * heads));
  const float scale = static_cast<float>(
      1.0 / std::sqrt(static_cast<double>(dim)) / std::sqrt(static_cast<double>(heads)));
  const int64_t groups = (heads + kHeadGroup - 1) / kHeadGroup;
  pool_.parallel_for(n * groups, [&](int64_t unit, int) {
    const int64_t i = unit / groups, first = unit % groups * kHeadGroup;
    for (int64_t h = first; h < std::min(first + kHeadGroup, heads); h++) {
      const int64_t at = i * heads + h;
      float* head = q + at * dim;
      weights_[at] = weights[at] * scale;
      rope_rotate(
          head + dim - 2 * rope.half,
          rope.cos + i * rope.half,
          rope.sin + i * rope.half,
          rope.half,
          1.f);
      if (!all_finite(head, dim) || !all_finite(&weights_[at], 1)) not_finite_ = true;
      if (!shape.format.packed) continue;
      hadamard(head, static_cast<int32_t>(dim));
      int8_t* codes = codes_.data() + at * dim;
      fp4_codes(head, static_cast<int32_t>(dim), codes, scales_.data() + at * blocks);
      for (int64_t b = 0; b < blocks; b++) {
        sums_[at * blocks + b] = std::accumulate(codes + 32 * b, codes + 32 * b + 32, 0);
      }
    }
  });
}

// scores_[i * stride + row] for queries [first, first + count) of the task, all rows visible to
// the last of them.
void Indexer::score_rows(
    const IndexTask& task,
    const IndexShape& shape,
    const float* q,
    int64_t first,
    int64_t count,
    int64_t stride) {
  const int64_t dim = shape.format.dim, heads = shape.n_heads, blocks = dim / 32;
  const int64_t n_rows = (task.segment.pos + first + count) / shape.ratio;
  const int64_t n_panels = (n_rows + kIndexPanel - 1) / kIndexPanel;
  const int64_t query0 = task.segment.row + first;
  const int64_t floats = 16 * blocks + 16 + 4 * dim;  // scales, and codes of one panel
  scratch_.resize(std::max<size_t>(scratch_.size(), floats * pool_.size()));
  float* scratch = scratch_.data();
  pool_.parallel_for(n_panels, [&](int64_t panel, int thread) {
    float* scales = scratch + thread * floats;
    uint8_t* codes = reinterpret_cast<uint8_t*>(scales + 16 * blocks);
    const uint8_t* rows[kIndexPanel];
    const int64_t row0 = panel * kIndexPanel;
    const int32_t n = static_cast<int32_t>(std::min<int64_t>(kIndexPanel, n_rows - row0));
    for (int32_t r = 0; r < n; r++) rows[r] = task.rows.row(row0 + r);
    if (shape.format.packed) ops_.index_panel(rows, n, shape.format.dim, codes, scales);
    for (int64_t i = 0; i < count; i++) {
      const int64_t at = (query0 + i) * heads;
      float* out = scores_.data() + i * stride + row0;
      if ((task.segment.pos + first + i + 1) / shape.ratio <= row0) continue;  // not visible yet
      if (shape.format.packed) {
        ops_.index_score(
            {codes_.data() + at * dim,
             scales_.data() + at * blocks,
             sums_.data() + at * blocks,
             weights_.data() + at},
            shape.n_heads,
            shape.format.dim,
            codes,
            scales,
            out);
      } else {
        for (int32_t r = 0; r < n; r++) {
          out[r] = ops_.index_score_f32(
              q + at * dim,
              weights_.data() + at,
              shape.n_heads,
              shape.format.dim,
              reinterpret_cast<const float*>(rows[r]));
        }
      }
    }
  });
}

// The top_k best of the visible rows in ascending order; the lowest row wins a tie. Finds the score
// of the last row taken by radix, 11 bits at a time, so nothing is sorted or moved.
bool Indexer::select_top(const float* scores, int64_t visible, int32_t top_k, int32_t* out) {
  if (visible <= top_k) {
    for (int32_t r = 0; r < top_k; r++) out[r] = r < visible ? r : -1;
    return true;
  }
  // Unsigned integers in the order of the floats; adding zero makes -0 and 0 equal.
  const auto key = [](float f) {
    const uint32_t b = std::bit_cast<uint32_t>(f + 0.f);
    return b ^ (b >> 31 ? 0xffffffffu : 0x80000000u);
  };
  constexpr uint32_t kLowest = 0x007fffffu, kHighest = 0xff800000u;  // -inf, +inf
  bool numbers = true;
  uint32_t threshold = 0;  // known leading bits of the last score taken
  int64_t wanted = top_k;  // rows still to take among those that share them
  int known = 32;          // bits to the right of those
  for (const int shift : {21, 10, 0}) {
    uint32_t count[2048] = {};
    const uint32_t mask = shift == 0 ? 1023 : 2047;
    for (int64_t r = 0; r < visible; r++) {
      const uint32_t u = key(scores[r]);
      if (known == 32) {
        numbers &= u >= kLowest && u <= kHighest;
      } else if (u >> known != threshold >> known) {
        continue;
      }
      count[u >> shift & mask]++;
    }
    uint32_t digit = mask;
    while (count[digit] < wanted) wanted -= count[digit--];
    threshold |= digit << shift;
    known = shift;
  }
  int32_t k = 0;
  for (int64_t r = 0; r < visible && k < top_k; r++) {
    const uint32_t u = key(scores[r]);
    if (u > threshold || (u == threshold && wanted-- > 0)) out[k++] = static_cast<int32_t>(r);
  }
  return numbers;
}

}  // namespace grebe::cpu
