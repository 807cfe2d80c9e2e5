#include "quant/quantize.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "core/error.h"
#include "quant/quantize_row.h"

namespace grebe {
namespace {

quant::RowFn row_fn(Isa isa, DType dtype) {
#if defined(__x86_64__)
  if (isa == Isa::kAvx512) return quant::avx512::row_fn(dtype);
  if (isa == Isa::kAvx2) return quant::avx2::row_fn(dtype);
#endif
  (void)isa;
  return quant::generic::row_fn(dtype);
}

// Importances with mean 1 and a floor, so that a column that was never active still has a share in
// the choice of scales.
std::vector<float> column_weights(const float* importance, int64_t n) {
  std::vector<float> w(static_cast<size_t>(n), 1.f);
  if (!importance) return w;
  double total = 0;
  for (int64_t i = 0; i < n; i++) {
    if (!(importance[i] >= 0) || !std::isfinite(importance[i])) {
      throw InvalidArgument(
          "quantize: importance of column " + std::to_string(i) + " is " +
          std::to_string(importance[i]) + "; it must be finite and not negative");
    }
    total += static_cast<double>(importance[i]);
  }
  if (total == 0) return w;
  constexpr double kFloor = 1e-5;
  for (int64_t i = 0; i < n; i++) {
    w[static_cast<size_t>(i)] = static_cast<float>(
        std::max(static_cast<double>(importance[i]) * static_cast<double>(n) / total, kFloor));
  }
  return w;
}

}  // namespace

bool can_quantize(DType dtype) { return quant::generic::row_fn(dtype) != nullptr; }

void quantize(
    ThreadPool& pool,
    Isa isa,
    DType dtype,
    const float* x,
    int64_t n_rows,
    int64_t n_in,
    const float* importance,
    uint8_t* out) {
  const quant::RowFn fn = row_fn(isa, dtype);
  if (!fn) throw InvalidArgument("quantize: no quantizer for " + dtype_name(dtype));
  const DTypeInfo info = dtype_info(dtype);
  if (n_in <= 0 || n_in % info.block_size != 0) {
    throw InvalidArgument(
        "quantize: rows of " + std::to_string(n_in) + " do not divide into blocks of " +
        std::to_string(info.block_size));
  }
  const std::vector<float> w = column_weights(importance, n_in);
  const int64_t row_bytes = n_in / info.block_size * info.block_bytes;
  std::vector<std::vector<float>> scratch(static_cast<size_t>(pool.size()));
  pool.parallel_for(n_rows, [&](int64_t i_row, int thread) {
    std::vector<float>& own = scratch[static_cast<size_t>(thread)];
    own.resize(quant::kScratchFloats);
    const float* row = x + i_row * n_in;
    for (int64_t i = 0; i < n_in; i++) {
      if (!std::isfinite(row[i])) {
        throw InvalidArgument(
            "quantize: row " + std::to_string(i_row) + ", column " + std::to_string(i) +
            " is not finite");
      }
    }
    fn(row, w.data(), n_in, out + i_row * row_bytes, own.data());
  });
}

}  // namespace grebe
