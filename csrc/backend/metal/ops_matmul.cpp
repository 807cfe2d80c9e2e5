// Embedding and products with weights: metal/embed.metal, matvec.metal, matmul.metal.
#include <algorithm>
#include <vector>

#include "args/embed_args.h"
#include "args/matmul_args.h"
#include "backend/metal/ops.h"
#include "backend/metal/stream_update.h"
#include "backend/metal/weight_launch.h"
#include "core/error.h"

namespace grebe::metal {
namespace {

// A product, or several that differ in nothing but their rows of the same weight and the place of
// x and y (the grouped output projection [V4 4.6.7]).
struct Grouped {
  Backend::Product product;  // the first
  int64_t n_groups = 1, x_group_stride = 0, y_group_stride = 0;

  bool extend(const Backend::Product& next) {
    const Backend::Product& p = product;
    const int64_t dx = next.x - p.x, dy = next.y - p.y;
    const bool fits = next.w == p.w && next.n_rows == p.n_rows && next.x_stride == p.x_stride &&
                      next.y_stride == p.y_stride &&
                      next.row_begin == p.row_begin + n_groups * p.n_rows && dx > 0 && dy > 0;
    if (!fits) return false;
    if (n_groups == 1) {
      // Parts of the same rows, or the ranges that are declared below would be too large.
      if (dx + p.w->n_in > p.x_stride || dy + p.n_rows > p.y_stride) return false;
      x_group_stride = dx;
      y_group_stride = dy;
    } else if (dx != n_groups * x_group_stride || dy != n_groups * y_group_stride) {
      return false;
    }
    n_groups++;
    return true;
  }

  const uint8_t* rows() const {
    return product.w->data + product.w->row_bytes() * product.row_begin;
  }
  uint64_t weight_bytes() const {
    return rows_bytes(*product.w, static_cast<uint64_t>(product.n_rows * n_groups));
  }
  uint64_t x_bytes(int64_t n) const {
    return sizeof(float) *
           ((n - 1) * product.x_stride + (n_groups - 1) * x_group_stride + product.w->n_in);
  }
  uint64_t y_bytes(int64_t n) const {
    return sizeof(float) *
           ((n - 1) * product.y_stride + (n_groups - 1) * y_group_stride + product.n_rows);
  }
};

std::vector<Grouped> grouped(std::span<const Backend::Product> products) {
  std::vector<Grouped> out;
  for (const Backend::Product& p : products) {
    if (p.n_rows == 0) continue;
    if (out.empty() || !out.back().extend(p)) out.push_back({p});
  }
  return out;
}

// Products that one dispatch of matvec can take: the same x, at most eight, of two types.
class Bundle {
 public:
  bool add(const Grouped& g) {
    const DType type = g.product.w->dtype;
    if (!products_.empty()) {
      const Grouped& first = products_.front();
      const bool fits = products_.size() < kMatvecProducts && g.n_groups == 1 &&
                        first.n_groups == 1 && g.product.x == first.product.x &&
                        g.product.x_stride == first.product.x_stride &&
                        g.product.w->n_in == first.product.w->n_in;
      if (!fits) return false;
    }
    if (std::find(types_.begin(), types_.end(), type) == types_.end()) {
      if (types_.size() == 2) return false;
      types_.push_back(type);
    }
    products_.push_back(g);
    return true;
  }

  void run(Recorder& r, int64_t n, const InputNorm& norm, StreamUpdate* update = nullptr) const {
    const Grouped& first = products_.front();
    int64_t n_rows = 0;
    uint64_t bytes = 0;
    for (const Grouped& g : products_) {
      n_rows += g.product.n_rows * g.n_groups;
      bytes += g.weight_bytes();
    }
    const MatvecTile tile = matvec_tile(n, n_rows);
    const DType other = types_.back();
    uint64_t grid_bytes = grid_table_bytes(types_[0]);
    // Where an update's memory begins, the kernel counts two tables.
    if (types_.size() > 1 || update) grid_bytes += grid_table_bytes(other);
    const uint32_t n_sg = grid_bytes > 0 ? kGridSimdGroups : kSimdGroups;

    auto dispatch = r.dispatch("matvec", tile.kernel);
    MatvecArgs a{};
    a.n_products = static_cast<uint32_t>(products_.size());
    a.n_in = static_cast<uint32_t>(first.product.w->n_in);
    a.n_tokens = static_cast<uint32_t>(n);
    a.x_stride = static_cast<uint32_t>(first.product.x_stride);
    a.x_group_stride = static_cast<uint32_t>(first.x_group_stride);
    a.y_group_stride = static_cast<uint32_t>(first.y_group_stride);
    a.eps = norm.eps;
    uint32_t n_groups = 0;
    bool aligned = true;
    for (uint32_t i = 0; i < kMatvecProducts; i++) {
      if (i >= products_.size()) {
        // An update takes the places of products 1 and 2, all but one.
        const bool taken = update && i <= 2;
        if (!taken || i == 2) dispatch.weight(1 + i, nullptr);
        if (!taken) dispatch.read(9 + i, nullptr, 0).weight(17 + i, nullptr);
        continue;
      }
      const Grouped& g = products_[i];
      const Backend::Product& p = g.product;
      a.products[i] = {
          p.w->row_bytes(),
          n_groups,
          p.w->dtype == types_[0] ? 0u : 1u,
          static_cast<uint32_t>(p.n_rows),
          static_cast<uint32_t>(p.row_begin),
          scale_stride(*p.w),
          static_cast<uint32_t>(p.y_stride)};
      n_groups += static_cast<uint32_t>((p.n_rows + tile.rows * n_sg - 1) / (tile.rows * n_sg));
      aligned &= rows_aligned(*p.w);
      dispatch.weight(1 + i, g.rows()).write(9 + i, p.y, g.y_bytes(n)).weight(17 + i, p.w->scale);
    }
    if (update) {
      a.update = bind_update(r, dispatch, *update, n_groups, {10, 18, 19, 2, 11});
    } else {
      no_update(dispatch);
    }
    dispatch.constant(0, weight_type(types_[0]))
        .constant(1, weight_type(other))
        .constant(2, norm.weight ? 1 : 0)
        .constant(kAlignedRowsConstant, aligned ? 1 : 0)
        .args(a)
        .read(25, first.product.x, first.x_bytes(n))
        .read(26, norm.weight, sizeof(float) * first.product.w->n_in)
        .threadgroup_memory(std::max<uint64_t>(grid_bytes + update_bytes(update, n_sg), 16))
        .reads_bytes(bytes)
        .run(n_groups, first.n_groups, 1, n_sg * 32);
  }

 private:
  std::vector<Grouped> products_;
  std::vector<DType> types_;
};

void run_tiles(Recorder& r, const Grouped& g, int64_t n) {
  const Backend::Product& p = g.product;
  const uint32_t tokens = tile_tokens(n);
  MatmulArgs a{};
  a.row_bytes = p.w->row_bytes();
  a.n_in = static_cast<uint32_t>(p.w->n_in);
  a.n_rows = static_cast<uint32_t>(p.n_rows);
  a.n_tokens = static_cast<uint32_t>(n);
  a.x_stride = static_cast<uint32_t>(p.x_stride);
  a.y_stride = static_cast<uint32_t>(p.y_stride);
  a.x_group_stride = static_cast<uint32_t>(g.x_group_stride);
  a.y_group_stride = static_cast<uint32_t>(g.y_group_stride);
  a.row_begin = static_cast<uint32_t>(p.row_begin);
  a.scale_stride = scale_stride(*p.w);
  const char* const kernels[2][3] = {
      {"matmul_half_t16", "matmul_half_t32", "matmul_half_t64"},
      {"matmul_float_t16", "matmul_float_t32", "matmul_float_t64"}};
  r.dispatch("matmul", kernels[float_tiles(r.exact(), p.w->dtype)][tokens / 32])
      .constant(0, weight_type(p.w->dtype))
      .args(a)
      .weight(1, g.rows())
      .weight(2, p.w->scale)
      .read(3, p.x, g.x_bytes(n))
      .write(4, p.y, g.y_bytes(n))
      .reads_bytes(g.weight_bytes())
      .run(
          (n + tokens - 1) / tokens,
          (p.n_rows + kTileRows - 1) / kTileRows,
          g.n_groups,
          kTileThreads);
}

}  // namespace

void embed(
    Recorder& r, const Weight& w, const int32_t* tokens, int64_t n, int32_t n_streams, float* X) {
  constexpr uint64_t kThreads = 64, kRun = 16;  // 16 columns a thread, as embed.metal says
  const EmbedArgs a{
      w.row_bytes(),
      static_cast<uint32_t>(w.n_in),
      static_cast<uint32_t>(w.n_out),
      static_cast<uint32_t>(n_streams),
      scale_stride(w)};
  r.dispatch("embed", "embed")
      .constant(0, weight_type(w.dtype))
      .args(a)
      .weight(1, w.data)
      .weight(2, w.scale)
      .read(3, tokens, sizeof(int32_t) * n)
      .write(4, X, sizeof(float) * n * n_streams * w.n_in)
      .reads_bytes(n * rows_bytes(w, 1))
      .run((w.n_in + kThreads * kRun - 1) / (kThreads * kRun), n, 1, kThreads);
}

void matmul(
    Recorder& r, std::span<const Backend::Product> products, int64_t n, const InputNorm& norm) {
  const std::vector<Grouped> all = grouped(products);
  if (n > kMatvecTokens) {
    GREBE_ASSERT(!norm.weight);
    for (const Grouped& g : all) run_tiles(r, g, n);
    return;
  }
  Bundle bundle;
  for (size_t i = 0; i < all.size(); i++) {
    if (bundle.add(all[i])) continue;
    bundle.run(r, n, norm);
    bundle = {};
    bundle.add(all[i]);
  }
  if (!all.empty()) bundle.run(r, n, norm);
}

void matmul_into_streams(Recorder& r, const Backend::Product& product, StreamUpdate& update) {
  GREBE_ASSERT(product.n_rows == update.next.hidden && product.row_begin == 0);
  Bundle bundle;
  bundle.add({product});
  bundle.run(r, 1, {}, &update);
}

}  // namespace grebe::metal
