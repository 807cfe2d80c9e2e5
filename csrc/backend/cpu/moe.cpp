// The feed-forward part of a layer: tokens are grouped by expert, so each expert's weights are read
// once per call.
//
// A "pair" is a (token, slot) that an expert works on; pairs are numbered expert by expert, the
// shared expert's last. Stages, each a parallel loop: quantize x; per batch of experts { tile x,
// gate + up + SwiGLU, quantize h }; per slab of output columns { down, sum over slots }. Batches
// and slabs only bound the scratch memory.
#include <algorithm>

#include "backend/cpu/matmul_impl.h"

namespace grebe::cpu {
namespace {

constexpr int64_t kBatchPairs = 4096;              // 32 MiB of h at 2048 columns
constexpr int64_t kSlabBytes = int64_t{48} << 20;  // of down results before they are summed

// One expert and its pairs.
struct Job {
  const Weight *gate, *up, *down;
  int64_t expert;
  int64_t first, count;  // pairs
  float clamp;
  Acts gate_x, up_x, h;
};

}  // namespace

struct Matmul::Impl::MoeRun {
  Impl& impl;
  const KernelTable& k;
  const MoeTask& task;
  int64_t hidden, n_pairs = 0;  // with the shared expert's
  std::vector<Job> jobs;
  std::vector<int32_t> token;    // of each pair
  std::vector<float> weight;     // of each pair
  std::vector<int64_t> pair_of;  // [n, n_used]
  QuantRows x32, x256;           // x in the groups that some expert asks for
  int64_t down_bytes = 0;

  MoeRun(Impl& impl, const MoeTask& task)
      : impl(impl), k(impl.k), task(task), hidden(task.down->n_out) {}

  void run() {
    group_pairs();
    quantize_x();
    plan_down();
    for (size_t begin = 0; begin < jobs.size();) {
      size_t end = begin;
      int64_t pairs = 0;
      do {
        pairs += jobs[end++].count;
      } while (end < jobs.size() && pairs + jobs[end].count <= kBatchPairs);
      gate_up(std::span(jobs).subspan(begin, end - begin));
      begin = end;
    }
    down_and_sum();
  }

  void group_pairs() {
    const int64_t routed = task.n * task.n_used;
    n_pairs = routed + (task.shared_gate ? task.n : 0);
    token.resize(n_pairs);
    weight.resize(n_pairs);
    pair_of.resize(routed);
    std::vector<int64_t> first(task.gate->n_experts + 1, 0);
    for (int64_t i = 0; i < routed; i++) {
      GREBE_ASSERT(task.experts[i] >= 0 && task.experts[i] < task.gate->n_experts);
      first[task.experts[i] + 1]++;
    }
    for (int64_t e = 0; e < task.gate->n_experts; e++) {
      if (first[e + 1] > 0) {
        jobs.push_back(
            {task.gate, task.up, task.down, e, first[e], first[e + 1], task.clamp, {}, {}, {}});
      }
      first[e + 1] += first[e];
    }
    for (int64_t i = 0; i < routed; i++) {
      const int64_t pair = first[task.experts[i]]++;
      token[pair] = static_cast<int32_t>(i / task.n_used);
      weight[pair] = task.expert_weights[i];
      pair_of[i] = pair;
    }
    if (!task.shared_gate) return;
    jobs.push_back(
        {task.shared_gate,
         task.shared_up,
         task.shared_down,
         0,
         routed,
         task.n,
         task.shared_clamp,
         {},
         {},
         {}});
    for (int64_t t = 0; t < task.n; t++) {
      token[routed + t] = static_cast<int32_t>(t);
      weight[routed + t] = 1.f;
    }
  }

  void quantize_x() {
    bool need32 = false, need256 = false;
    for (const Job& job : jobs) {
      for (const Weight* w : {job.gate, job.up}) {
        const int group = act_group(w->dtype, impl.exact);
        GREBE_ASSERT(w->n_in == hidden && (group == 0 || w->n_in % group == 0));
        need32 |= group == 32;
        need256 |= group == 256;
      }
    }
    const int64_t bytes32 = need32 ? QuantRows::bytes(task.n, hidden, 32) : 0;
    uint8_t* memory =
        impl.moe_x.grow(bytes32 + (need256 ? QuantRows::bytes(task.n, hidden, 256) : 0));
    if (need32) x32 = QuantRows(memory, task.n, hidden, 32);
    if (need256) x256 = QuantRows(memory + bytes32, task.n, hidden, 256);
    const auto quantize = [&](int64_t t, int) {
      if (need32) x32.quantize(k, t, task.x + t * hidden);
      if (need256) x256.quantize(k, t, task.x + t * hidden);
    };
    if (task.n < 4) {
      for (int64_t t = 0; t < task.n; t++) quantize(t, 0);
    } else {
      impl.pool.parallel_for(task.n, quantize);
    }
  }

  // Presentation of `rows` (null: f32) to w for `count` pairs from `first`; tiles go to memory +
  // bytes, which grows.
  Acts plan(
      const Weight& w,
      int64_t first,
      int64_t count,
      const QuantRows* rows,
      uint8_t* memory,
      int64_t& bytes) const {
    Acts acts;
    acts.n = count;
    if (!rows) return acts;
    if (use_tiles(k, w.dtype, count)) {
      acts.kind = Acts::Kind::kTiles;
      acts.tiling = Tiling(count, k.max_tile);
      acts.tiles = at(memory, bytes);
      bytes += align64(count * tile_row_bytes(k, w.dtype, w.n_in));
    } else {
      acts.kind = Acts::Kind::kRows;
      acts.rows = *rows;
      acts.first_row = first;
    }
    return acts;
  }

  bool same_presentation(const Weight& a, const Weight& b) const {
    if (act_group(a.dtype, impl.exact) != act_group(b.dtype, impl.exact)) return false;
    if (act_group(a.dtype, impl.exact) == 0) return true;
    const QuantKernels &qa = quant_kernels(k, a.dtype), &qb = quant_kernels(k, b.dtype);
    return !qa.pack_panel == !qb.pack_panel && qa.layout == qb.layout;
  }

  const QuantRows* x_rows(const Weight& w) const {
    const int group = act_group(w.dtype, impl.exact);
    return group == 32 ? &x32 : group == 256 ? &x256 : nullptr;
  }

  // Gathers x for the batch: tiles, or f32 rows when the weights are float.
  void gather_x(std::span<Job> batch) {
    for (int pass = 0; pass < 2; pass++) {  // sizes, then addresses
      int64_t bytes = 0;
      uint8_t* memory = pass ? impl.acts.grow(0) : nullptr;
      for (Job& job : batch) {
        const auto present = [&](const Weight& w) {
          Acts acts = plan(w, 0, job.count, x_rows(w), memory, bytes);
          acts.index = token.data() + job.first;
          if (acts.kind == Acts::Kind::kFloat) {
            acts.x = reinterpret_cast<float*>(at(memory, bytes));
            acts.x_stride = hidden;
            bytes += align64(job.count * hidden * 4);
          }
          return acts;
        };
        job.gate_x = present(*job.gate);
        job.up_x = same_presentation(*job.gate, *job.up) ? job.gate_x : present(*job.up);
      }
      if (pass == 0) impl.acts.grow(bytes);
    }
    struct Unit {
      const Weight* w;
      const Acts* acts;
      int64_t i;
    };
    std::vector<Unit> units;
    for (const Job& job : batch) {
      const auto add = [&](const Weight* w, const Acts& acts) {
        const int64_t count = acts.kind == Acts::Kind::kTiles   ? acts.tiling.n_tiles
                              : acts.kind == Acts::Kind::kFloat ? acts.n
                                                                : 0;
        for (int64_t i = 0; i < count; i++) units.push_back({w, &acts, i});
      };
      add(job.gate, job.gate_x);
      if (job.up_x.tiles != job.gate_x.tiles || job.up_x.x != job.gate_x.x) add(job.up, job.up_x);
    }
    impl.pool.parallel_for(static_cast<int64_t>(units.size()), [&](int64_t u, int) {
      const auto& [w, acts, i] = units[u];
      if (acts->kind == Acts::Kind::kFloat) {
        std::copy_n(
            task.x + acts->index[i] * hidden, hidden, const_cast<float*>(acts->x) + i * hidden);
        return;
      }
      const QuantRows& rows = *x_rows(*w);
      pack(*w, acts->tiling, i, acts->tiles, [&](int64_t t) { return rows.row(acts->index[t]); });
    });
  }

  template <class RowOf>
  void pack(
      const Weight& w, const Tiling& tiling, int64_t i, const uint8_t* tiles, RowOf row_of) const {
    constexpr int kMaxTile = 64;
    GREBE_ASSERT(k.max_tile <= kMaxTile);
    ActRow batch[kMaxTile];
    const int64_t first = tiling.begin(i);
    for (int t = 0; t < tiling.size(i); t++) batch[t] = row_of(first + t);
    layout_kernels(k, w.dtype)
        .pack_tile(
            batch,
            tiling.size(i),
            w.n_in,
            const_cast<uint8_t*>(tiles) + first * tile_row_bytes(k, w.dtype, w.n_in));
  }

  // h of a job lies in moe_acts, quantized or as tiles, until the down product; as f32 in moe_h
  // when the weights are float.
  void plan_down() {
    for (int pass = 0; pass < 2; pass++) {
      int64_t bytes = 0;
      uint8_t* memory = pass ? impl.moe_acts.grow(0) : nullptr;
      for (Job& job : jobs) {
        const int64_t ff = job.down->n_in;
        const int group = act_group(job.down->dtype, impl.exact);
        GREBE_ASSERT(job.gate->n_out == ff && job.up->n_out == ff && job.down->n_out == hidden);
        GREBE_ASSERT(group == 0 || ff % group == 0);
        if (group == 0) {
          job.h = Acts{};
          job.h.n = job.count;
          job.h.x = reinterpret_cast<float*>(at(memory, bytes));
          job.h.x_stride = ff;
          bytes += align64(job.count * ff * 4);
          continue;
        }
        QuantRows rows;
        if (!use_tiles(k, job.down->dtype, job.count)) {
          rows = QuantRows(at(memory, bytes), job.count, ff, group);
          bytes += QuantRows::bytes(job.count, ff, group);
        }
        job.h = plan(*job.down, 0, job.count, &rows, memory, bytes);
      }
      if (pass == 0) impl.moe_acts.grow(bytes);
    }
  }

  void gate_up(std::span<Job> batch) {
    gather_x(batch);
    std::vector<int64_t> first_chunk{0}, first_h{0};
    int64_t total_rows = 0;
    for (const Job& job : batch) {
      total_rows += job.gate->n_out;
      first_h.push_back(
          first_h.back() + (job.h.kind == Acts::Kind::kFloat ? 0 : job.count * job.gate->n_out));
    }
    const int64_t step = impl.chunk_rows(total_rows, false);
    for (const Job& job : batch)
      first_chunk.push_back(first_chunk.back() + ceil_div(job.gate->n_out, step));
    float* const h = reinterpret_cast<float*>(impl.moe_h.grow(first_h.back() * 4));
    const auto h_of = [&](size_t j) {
      return batch[j].h.kind == Acts::Kind::kFloat ? const_cast<float*>(batch[j].h.x)
                                                   : h + first_h[j];
    };
    impl.thread_rows.resize(impl.pool.size());
    impl.pool.parallel_for(first_chunk.back(), [&](int64_t chunk, int thread) {
      const size_t j =
          std::upper_bound(first_chunk.begin(), first_chunk.end(), chunk) - first_chunk.begin() - 1;
      const Job& job = batch[j];
      const int64_t ff = job.gate->n_out;
      const int64_t row = (chunk - first_chunk[j]) * step, n_rows = std::min(step, ff - row);
      float* gate =
          reinterpret_cast<float*>(impl.thread_rows[thread].grow(2 * job.count * step * 4));
      float* up = gate + job.count * step;
      impl.multiply_rows(*job.gate, job.expert, row, n_rows, job.gate_x, gate, step, thread);
      impl.multiply_rows(*job.up, job.expert, row, n_rows, job.up_x, up, step, thread);
      for (int64_t t = 0; t < job.count; t++) {
        k.swiglu(gate + t * step, up + t * step, n_rows, job.clamp, weight[job.first + t]);
        std::copy_n(gate + t * step, n_rows, h_of(j) + t * ff + row);
      }
    });
    quantize_h(batch, h_of);
  }

  template <class HOf>
  void quantize_h(std::span<Job> batch, HOf h_of) {
    std::vector<std::pair<size_t, int64_t>> units;
    for (size_t j = 0; j < batch.size(); j++) {
      const Acts& acts = batch[j].h;
      const int64_t count = acts.kind == Acts::Kind::kTiles  ? acts.tiling.n_tiles
                            : acts.kind == Acts::Kind::kRows ? acts.n
                                                             : 0;
      for (int64_t i = 0; i < count; i++) units.emplace_back(j, i);
    }
    impl.pool.parallel_for(static_cast<int64_t>(units.size()), [&](int64_t u, int thread) {
      const auto [j, i] = units[u];
      const Job& job = batch[j];
      const int64_t ff = job.down->n_in;
      if (job.h.kind == Acts::Kind::kRows) return job.h.rows.quantize(k, i, h_of(j) + i * ff);
      const int group = act_group(job.down->dtype, impl.exact);
      const QuantRows rows(
          impl.thread_scratch[thread].grow(QuantRows::bytes(k.max_tile, ff, group)),
          k.max_tile,
          ff,
          group);
      const int64_t first = job.h.tiling.begin(i);
      pack(*job.down, job.h.tiling, i, job.h.tiles, [&](int64_t t) {
        rows.quantize(k, t - first, h_of(j) + t * ff);
        return rows.row(t - first);
      });
    });
  }

  void down_and_sum() {
    const int64_t slab =
        std::min(hidden, std::max<int64_t>(64, kSlabBytes / 4 / n_pairs / 64 * 64));
    float* const parts = reinterpret_cast<float*>(impl.moe_y.grow(n_pairs * slab * 4));
    for (int64_t begin = 0; begin < hidden; begin += slab) {
      const int64_t width = std::min(slab, hidden - begin);
      const int64_t step = impl.chunk_rows(width * static_cast<int64_t>(jobs.size()), false);
      const int64_t n_chunks = ceil_div(width, step);
      impl.pool.parallel_for(
          n_chunks * static_cast<int64_t>(jobs.size()), [&](int64_t i, int thread) {
            const Job& job = jobs[i / n_chunks];
            const int64_t row = i % n_chunks * step;
            impl.multiply_rows(
                *job.down,
                job.expert,
                begin + row,
                std::min(step, width - row),
                job.h,
                parts + job.first * slab + row,
                slab,
                thread);
          });
      const int64_t routed = task.n * task.n_used;
      const auto sum = [&](int64_t t, int) {
        float* y = task.y + t * hidden + begin;
        if (task.shared_gate)
          std::copy_n(parts + (routed + t) * slab, width, y);
        else
          std::fill_n(y, width, 0.f);
        for (int64_t slot = 0; slot < task.n_used; slot++) {
          const float* part = parts + pair_of[t * task.n_used + slot] * slab;
          for (int64_t c = 0; c < width; c++) y[c] += part[c];
        }
      };
      if (task.n < 4) {
        for (int64_t t = 0; t < task.n; t++) sum(t, 0);
      } else {
        impl.pool.parallel_for(task.n, sum);
      }
    }
  }
};

void Matmul::moe(const MoeTask& task) {
  GREBE_ASSERT(
      task.n >= 1 && task.n_used >= 1 && task.gate && task.up && task.down && task.x && task.y);
  Impl::MoeRun(*impl_, task).run();
}

}  // namespace grebe::cpu
