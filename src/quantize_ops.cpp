// The quantizers, on NumPy arrays: for grebe quantize, tests and benchmarks.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>

#include "bindings.h"
#include "core/dtype.h"
#include "quant/quantize.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;
using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Vector = nb::ndarray<const float, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr DType kTypes[] = {
    DType::kQ8_0,
    DType::kQ2_K,
    DType::kQ4_K,
    DType::kQ5_K,
    DType::kQ6_K,
    DType::kIQ2_XXS,
    DType::kIQ2_S,
    DType::kIQ3_XXS,
    DType::kMXFP4};

auto quantize(
    const std::string& dtype,
    const Matrix& x,
    const std::optional<Vector>& importance,
    int n_threads,
    const std::string& isa) {
  DType type = DType::kF32;
  for (const DType t : kTypes) {
    if (dtype == dtype_info(t).name) type = t;
  }
  if (type == DType::kF32) {
    throw InvalidArgument(
        "no quantizer for '" + dtype + "'; see grebe._engine.quantizable_dtypes()");
  }
  const auto n_rows = static_cast<int64_t>(x.shape(0)), n_in = static_cast<int64_t>(x.shape(1));
  if (importance && static_cast<int64_t>(importance->shape(0)) != n_in) {
    throw InvalidArgument(
        "importance has " + std::to_string(importance->shape(0)) + " columns; x has " +
        std::to_string(n_in));
  }
  if (n_threads < 0 || n_threads > 1024) throw InvalidArgument("n_threads must be 0 to 1024");
  const DTypeInfo info = dtype_info(type);
  std::vector<uint8_t> out(
      static_cast<size_t>(
          n_rows * ((n_in + info.block_size - 1) / info.block_size) * info.block_bytes));
  {
    const WithoutGil release;
    ThreadPool pool(n_threads > 0 ? n_threads : usable_cores());
    grebe::quantize(
        pool,
        choose_isa(isa),
        type,
        x.data(),
        n_rows,
        n_in,
        importance ? importance->data() : nullptr,
        out.data());
  }
  const size_t n_bytes = out.size();
  return to_numpy(std::move(out), n_bytes);
}

}  // namespace

void bind_quantize_ops(nb::module_& m) {
  m.def(
      "quantizable_dtypes",
      [] {
        std::vector<std::string> names;
        for (const DType type : kTypes) names.emplace_back(dtype_info(type).name);
        return names;
      },
      "Tensor types that quantize() makes.");
  m.def(
      "quantize",
      &quantize,
      "dtype"_a,
      "x"_a,
      "importance"_a = nb::none(),
      nb::kw_only(),
      "n_threads"_a = 0,
      "isa"_a = "",
      "Blocks of f32[n_rows, n_in] as u8 bytes, with the least squared error weighted by the "
      "importance of the columns. The bytes do not depend on n_threads and isa.");
}

}  // namespace grebe::bind
