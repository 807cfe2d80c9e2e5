// Dense products: quantize every distinct x once, then one parallel loop over the row chunks of all
// tasks.
#include "backend/cpu/matmul.h"

#include <algorithm>

#include "backend/cpu/matmul_impl.h"
#include "quant/dequant.h"

namespace grebe::cpu {
namespace {

// Panels kept at a time while all tiles of x pass: 64 rows of 4096 are 256 KiB, a part of L2.
constexpr int64_t kPanelGroup = 4;
// Up to this many tiles of x, panels are packed in parts of kPartWeights per row: 16 rows of 1024
// are 19 KiB.
constexpr int64_t kFewTiles = 4;
constexpr int64_t kPartWeights = 1024;
// Rows converted at a time for the float kernels; more would leave L2.
constexpr int64_t kConvertRows = 16;
// Below this many values quantizing x is quicker than waking the pool.
constexpr int64_t kParallelQuantize = 16384;

}  // namespace

int64_t Matmul::Impl::chunk_rows(int64_t n_rows, bool is_float) const {
  const int64_t step = is_float ? 4 : 16;
  const int64_t wanted = n_rows / (4 * pool.size()) / step * step;
  return std::clamp<int64_t>(wanted, step, 64);
}

void Matmul::Impl::multiply_float(
    const Weight& w,
    int64_t i_expert,
    int64_t row,
    int64_t n_rows,
    const Acts& acts,
    float* y,
    int64_t y_stride,
    int thread) {
  const int64_t row_bytes = static_cast<int64_t>(w.row_bytes());
  const uint8_t* rows = w.expert_data(i_expert) + row * row_bytes;
  const MultiplyFloat direct = w.dtype == DType::kF32    ? k.multiply_f32
                               : w.dtype == DType::kF16  ? k.multiply_f16
                               : w.dtype == DType::kBF16 ? k.multiply_bf16
                                                         : nullptr;
  if (direct)
    return direct(rows, row_bytes, n_rows, w.n_in, acts.x, acts.x_stride, acts.n, y, y_stride);
  float* converted =
      reinterpret_cast<float*>(thread_scratch[thread].grow(kConvertRows * w.n_in * 4));
  for (int64_t r = 0; r < n_rows; r += kConvertRows) {
    const int64_t count = std::min(kConvertRows, n_rows - r);
    if (w.dtype == DType::kF8E4M3) {
      GREBE_ASSERT(w.scale != nullptr);
      const uint8_t* scales = w.expert_scale(i_expert);
      for (int64_t i = 0; i < count; i++) {
        k.dequantize_f8(
            rows + (r + i) * row_bytes,
            scales + (row + r + i) / 128 * ceil_div(w.n_in, 128),
            w.n_in,
            converted + i * w.n_in);
      }
    } else {
      dequantize_rows(w, i_expert, row + r, count, converted);
    }
    k.multiply_f32(
        reinterpret_cast<const uint8_t*>(converted),
        w.n_in * 4,
        count,
        w.n_in,
        acts.x,
        acts.x_stride,
        acts.n,
        y + r,
        y_stride);
  }
}

void Matmul::Impl::multiply_rows(
    const Weight& w,
    int64_t i_expert,
    int64_t row,
    int64_t n_rows,
    const Acts& acts,
    float* y,
    int64_t y_stride,
    int thread) {
  GREBE_ASSERT(row >= 0 && row + n_rows <= w.n_out);
  if (acts.kind == Acts::Kind::kFloat)
    return multiply_float(w, i_expert, row, n_rows, acts, y, y_stride, thread);
  const int64_t row_bytes = static_cast<int64_t>(w.row_bytes());
  const uint8_t* rows = w.expert_data(i_expert) + row * row_bytes;
  const QuantKernels& quant = quant_kernels(k, w.dtype);
  if (acts.kind == Acts::Kind::kRows) {
    constexpr int64_t kBatch = 16;
    ActRow batch[kBatch];
    for (int64_t t = 0; t < acts.n; t += kBatch) {
      const int64_t count = std::min(kBatch, acts.n - t);
      for (int64_t i = 0; i < count; i++)
        batch[i] = acts.rows.row(acts.index ? acts.index[t + i] : acts.first_row + t + i);
      quant.matvec(rows, row_bytes, n_rows, w.n_in, batch, count, y + t * y_stride, y_stride);
    }
    return;
  }
  multiply_tiles(w, rows, n_rows, acts, y, y_stride, thread);
}

void Matmul::Impl::multiply_tiles(
    const Weight& w,
    const uint8_t* rows,
    int64_t n_rows,
    const Acts& acts,
    float* y,
    int64_t y_stride,
    int thread) {
  const int64_t row_bytes = static_cast<int64_t>(w.row_bytes());
  const DTypeInfo info = dtype_info(w.dtype);
  const QuantKernels& quant = quant_kernels(k, w.dtype);
  const LayoutKernels& layout = layout_kernels(k, w.dtype);
  const int64_t n_blocks = w.n_in / info.block_size;
  const int64_t tile_bytes = layout.tile_block_bytes * n_blocks;  // per row of x
  // With few tiles packing matters: short parts of a panel stay in L1 between packing and use. With
  // many tiles whole panels are packed, several at a time, so that x passes less often.
  const bool few = acts.tiling.n_tiles <= kFewTiles;
  const int64_t part_blocks = few ? kPartWeights / info.block_size : n_blocks;
  const int64_t group_rows = k.panel_rows * (few ? 1 : kPanelGroup);
  const int64_t panel_bytes = align64(layout.panel_block_bytes * part_blocks);
  uint8_t* panels = thread_scratch[thread].grow(panel_bytes * (few ? 1 : kPanelGroup));
  for (int64_t begin = 0; begin < n_rows; begin += group_rows) {
    const int64_t end = std::min(n_rows, begin + group_rows);
    for (int64_t block = 0; block < n_blocks; block += part_blocks) {
      const int64_t n_in = std::min(part_blocks, n_blocks - block) * info.block_size;
      for (int64_t r = begin; r < end; r += k.panel_rows) {
        quant.pack_panel(
            rows + r * row_bytes + block * info.block_bytes,
            row_bytes,
            std::min<int64_t>(k.panel_rows, end - r),
            n_in,
            panels + (r - begin) / k.panel_rows * panel_bytes);
      }
      for (int64_t i = 0; i < acts.tiling.n_tiles; i++) {
        const int64_t t = acts.tiling.begin(i);
        const int count = acts.tiling.size(i);
        const uint8_t* tile = acts.tiles + t * tile_bytes + block * layout.tile_block_bytes * count;
        for (int64_t r = begin; r < end; r += k.panel_rows) {
          layout.multiply(
              panels + (r - begin) / k.panel_rows * panel_bytes,
              std::min<int64_t>(k.panel_rows, end - r),
              n_in,
              tile,
              count,
              y + t * y_stride + r,
              y_stride,
              block > 0);
        }
      }
    }
  }
}

void Matmul::run(std::span<const MatmulTask> tasks, int64_t n) {
  Impl& impl = *impl_;
  const KernelTable& k = impl.k;

  // One source per distinct x and way to present it.
  struct Source {
    const float* x;
    int64_t x_stride, n_in;
    int group;
    bool tiled;
    TileLayout layout;
    int64_t offset, tile_row;  // bytes
    Acts acts;
  };
  std::vector<Source> sources;
  std::vector<int> source_of;
  source_of.reserve(tasks.size());
  int64_t bytes = 0, n_values = 0, total_rows = 0;
  bool all_float = true;
  for (const MatmulTask& task : tasks) {
    GREBE_ASSERT(task.w && task.x && task.y && n >= 1);
    Source s{
        task.x,
        task.x_stride,
        task.w->n_in,
        act_group(task.w->dtype, impl.exact),
        false,
        TileLayout::k32,
        0,
        0,
        {}};
    if (s.group) {
      GREBE_ASSERT(s.n_in % s.group == 0);
      s.tiled = use_tiles(k, task.w->dtype, n);
      if (s.tiled) s.layout = quant_kernels(k, task.w->dtype).layout;
      all_float = false;
    }
    total_rows += task.n_rows;
    const auto same = [&](const Source& o) {
      return o.x == s.x && o.x_stride == s.x_stride && o.n_in == s.n_in && o.group == s.group &&
             o.tiled == s.tiled && o.layout == s.layout;
    };
    const auto found = std::find_if(sources.begin(), sources.end(), same);
    source_of.push_back(static_cast<int>(found - sources.begin()));
    if (found != sources.end()) continue;
    if (s.group) {
      s.offset = bytes;
      s.tile_row = s.tiled ? tile_row_bytes(k, task.w->dtype, s.n_in) : 0;
      bytes += s.tiled ? align64(n * s.tile_row) : QuantRows::bytes(n, s.n_in, s.group);
      n_values += n * s.n_in;
    }
    sources.push_back(s);
  }

  uint8_t* memory = impl.acts.grow(bytes);
  std::vector<std::pair<int, int64_t>> units;  // source, and its row or tile
  for (size_t i = 0; i < sources.size(); i++) {
    Source& s = sources[i];
    s.acts.n = n;
    s.acts.x = s.x;
    s.acts.x_stride = s.x_stride;
    if (!s.group) continue;
    s.acts.kind = s.tiled ? Acts::Kind::kTiles : Acts::Kind::kRows;
    if (s.tiled) {
      s.acts.tiling = Tiling(n, k.max_tile);
      s.acts.tiles = memory + s.offset;
    } else {
      s.acts.rows = QuantRows(memory + s.offset, n, s.n_in, s.group);
    }
    const int64_t count = s.tiled ? s.acts.tiling.n_tiles : n;
    for (int64_t u = 0; u < count; u++) units.emplace_back(static_cast<int>(i), u);
  }
  const auto quantize_unit = [&](int64_t u, int thread) {
    const Source& s = sources[units[u].first];
    const int64_t i = units[u].second;
    if (!s.tiled) return s.acts.rows.quantize(k, i, s.x + i * s.x_stride);
    const int64_t first = s.acts.tiling.begin(i);
    const int count = s.acts.tiling.size(i);
    uint8_t* scratch =
        impl.thread_scratch[thread].grow(QuantRows::bytes(k.max_tile, s.n_in, s.group));
    const QuantRows rows(scratch, k.max_tile, s.n_in, s.group);
    std::vector<ActRow> batch(count);
    for (int t = 0; t < count; t++) {
      rows.quantize(k, t, s.x + (first + t) * s.x_stride);
      batch[t] = rows.row(t);
    }
    k.layouts[static_cast<int>(s.layout)].pack_tile(
        batch.data(), count, s.n_in, memory + s.offset + first * s.tile_row);
  };
  if (n_values >= kParallelQuantize) {
    impl.pool.parallel_for(static_cast<int64_t>(units.size()), quantize_unit);
  } else {
    for (size_t u = 0; u < units.size(); u++) quantize_unit(static_cast<int64_t>(u), 0);
  }

  const int64_t step = impl.chunk_rows(total_rows, all_float);
  std::vector<int64_t> first_chunk(tasks.size() + 1, 0);
  for (size_t i = 0; i < tasks.size(); i++)
    first_chunk[i + 1] = first_chunk[i] + ceil_div(tasks[i].n_rows, step);
  impl.pool.parallel_for(first_chunk.back(), [&](int64_t chunk, int thread) {
    const size_t i =
        std::upper_bound(first_chunk.begin(), first_chunk.end(), chunk) - first_chunk.begin() - 1;
    const MatmulTask& task = tasks[i];
    const int64_t r = (chunk - first_chunk[i]) * step;
    impl.multiply_rows(
        *task.w,
        0,
        task.row_begin + r,
        std::min(step, task.n_rows - r),
        sources[source_of[i]].acts,
        task.y + r,
        task.y_stride,
        thread);
  });
}

Matmul::Matmul(ThreadPool& pool, const KernelTable& kernels, bool exact)
    : impl_(std::make_unique<Impl>(pool, kernels, exact)) {}
Matmul::~Matmul() = default;

uint64_t Matmul::scratch_bytes() const {
  int64_t total = impl_->acts.size() + impl_->moe_x.size() + impl_->moe_h.size() +
                  impl_->moe_acts.size() + impl_->moe_y.size();
  for (const Buffer& b : impl_->thread_scratch) total += b.size();
  for (const Buffer& b : impl_->thread_rows) total += b.size();
  return static_cast<uint64_t>(total);
}

void dequantize_rows(const Weight& w, int64_t i_expert, int64_t row, int64_t n_rows, float* out) {
  GREBE_ASSERT(row >= 0 && n_rows >= 0 && row + n_rows <= w.n_out && i_expert < w.n_experts);
  const uint64_t row_bytes = w.row_bytes();
  for (int64_t r = row; r < row + n_rows; r++, out += w.n_in) {
    const uint8_t* bytes = w.expert_data(i_expert) + static_cast<uint64_t>(r) * row_bytes;
    if (w.dtype == DType::kF8E4M3) {
      const uint8_t* scales = w.expert_scale(i_expert);
      GREBE_ASSERT(scales != nullptr);
      dequantize_f8(bytes, scales + r / 128 * ((w.n_in + 127) / 128), w.n_in, out);
    } else {
      dequantize(w.dtype, bytes, w.n_in, out);
    }
  }
}

}  // namespace grebe::cpu
