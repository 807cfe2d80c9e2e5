// The class BackendOps and the memory of its calls, and operations of the CPU backend that are no
// op of the interface.
#include "backend_ops.h"

#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>

#include "backend/cpu/ops.h"
#include "core/dtype.h"

namespace grebe::bind {

using namespace nb::literals;

namespace {

DType dtype_of(const std::string& name) {
  for (uint32_t number = 0; number < 64; number++) {
    const char* known = dtype_info(static_cast<DType>(number)).name;
    if (known && name == known) return static_cast<DType>(number);
  }
  if (name == dtype_info(DType::kF8E4M3).name) return DType::kF8E4M3;
  throw InvalidArgument("dtype '" + name + "' is unknown; see grebe._engine.dtypes()");
}

std::vector<float> frequencies(bool compressed) {
  return rope_frequencies(ModelConfig{}, compressed);
}

auto rope(const Array<float, 3>& x, const Array<int64_t, 1>& pos, bool compressed, bool inverse) {
  const size_t n = x.shape(0), heads = x.shape(1), d = x.shape(2);
  const Angles a(pos, compressed);
  expect(pos.size() == n && d >= 64, "x f32[n, heads, d >= 64], pos i64[n]");
  std::vector<float> out(x.data(), x.data() + x.size());
  for (size_t i = 0; i < n; i++) {
    for (size_t h = 0; h < heads; h++) {
      cpu::rope_rotate(
          &out[(i * heads + h) * d + d - 64],
          a.cos.data() + 32 * i,
          a.sin.data() + 32 * i,
          32,
          inverse ? -1.f : 1.f);
    }
  }
  return to_numpy(std::move(out), n, heads, d);
}

auto rope_table(const Array<int64_t, 1>& pos, bool compressed) {
  Angles a(pos, compressed);
  const size_t n = pos.size();
  return nb::make_tuple(
      to_numpy(std::move(a.cos), n, a.half), to_numpy(std::move(a.sin), n, a.half));
}

// Rows through the packed form and back.
auto kv_round_trip(
    const Array<float, 2>& rows,
    int32_t rope_dim,
    const std::string& rope,
    const std::string& isa) {
  const auto n = rows.shape(0), d = rows.shape(1);
  const KvRowFormat format = kv_format(rope, static_cast<int64_t>(d), rope_dim);
  std::vector<uint8_t> packed(format.row_bytes());
  std::vector<float> out(n * d);
  for (size_t i = 0; i < n; i++) {
    cpu::pack_kv_row(rows.data() + i * d, format, packed.data());
    cpu::ops_table(choose_isa(isa)).unpack_kv_row(packed.data(), format, &out[i * d]);
  }
  return nb::make_tuple(to_numpy(std::move(out), n, d), format.row_bytes());
}

// Rows after rotation -> (Hadamard, the values that the packed FP4 row holds, bytes of a row).
auto index_round_trip(const Array<float, 2>& rows) {
  const auto n = rows.shape(0), d = rows.shape(1);
  expect(d >= 32 && (d & (d - 1)) == 0, "rows f32[n, power of two]");
  const IndexRowFormat format{true, static_cast<int32_t>(d)};
  std::vector<float> turned(rows.data(), rows.data() + n * d), out(n * d), row(d);
  std::vector<uint8_t> packed(format.row_bytes());
  for (size_t i = 0; i < n; i++) {
    std::copy_n(rows.data() + i * d, d, row.begin());
    cpu::hadamard(&turned[i * d], format.dim);
    cpu::pack_index_row(row.data(), format.dim, packed.data());
    for (size_t k = 0; k < d; k++) {
      const uint8_t code = packed[k / 2] >> (k % 2 * 4) & 15;
      out[i * d + k] = kE2M1[code] * e8m0_to_f32(packed[d / 2 + k / 32]);
    }
  }
  return nb::make_tuple(
      to_numpy(std::move(turned), n, d), to_numpy(std::move(out), n, d), format.row_bytes());
}

}  // namespace

Weight OpMemory::weight(
    const void* data,
    size_t n_bytes,
    const std::string& dtype,
    int64_t n_out,
    int64_t n_in,
    int64_t n_experts,
    const std::optional<Bytes>& scale) {
  Weight w;
  w.name = "w";
  w.dtype = dtype_of(dtype);
  w.n_in = n_in;
  w.n_out = n_out;
  w.n_experts = n_experts;
  const int64_t block = dtype_info(w.dtype).block_size;
  if (n_in <= 0 || n_out <= 0 || n_experts <= 0 || n_in % block != 0) {
    throw InvalidArgument(
        "rows of " + std::to_string(n_in) + " do not divide into blocks of " +
        std::to_string(block));
  }
  if (n_bytes != w.n_bytes()) {
    throw InvalidArgument(
        "a weight has " + std::to_string(n_bytes) + " bytes; the shape needs " +
        std::to_string(w.n_bytes()));
  }
  if (w.dtype == DType::kF8E4M3) {
    const int64_t n_scales = ((n_out + 127) / 128) * ((n_in + 127) / 128) * n_experts;
    if (!scale || static_cast<int64_t>(scale->size()) != n_scales)
      throw InvalidArgument("F8_E4M3 needs " + std::to_string(n_scales) + " scale bytes");
    w.scale = copy(*scale);
  }
  w.data = copy(static_cast<const uint8_t*>(data), n_bytes);
  return w;
}

Weight OpMemory::weight(nb::handle tuple, int64_t n_out, int64_t n_in, int64_t n_experts) {
  const nb::tuple parts = nb::cast<nb::tuple>(tuple);
  if (parts.size() != 2 && parts.size() != 3)
    throw InvalidArgument("a weight is (data, dtype) or (data, dtype, scale)");
  std::optional<Bytes> scale;
  if (parts.size() == 3 && !parts[2].is_none()) scale = cast<uint8_t, 1>(parts[2], "scale");
  return weight(
      cast<uint8_t, 1>(parts[0], "data"),
      nb::cast<std::string>(parts[1]),
      n_out,
      n_in,
      n_experts,
      scale);
}

void bind_backend_ops(nb::module_& m) {
  m.def(
      "rope_frequencies",
      [](bool compressed) {
        std::vector<float> f = frequencies(compressed);
        const size_t n = f.size();
        return to_numpy(std::move(f), n);
      },
      "compressed"_a,
      "Flash's angular frequencies.");
  m.def(
      "rope_table",
      &rope_table,
      "pos"_a,
      "compressed"_a,
      "Flash's (cos, sin) at the given positions, f32[n, 32] each.");
  m.def("rope", &rope, "x"_a, "pos"_a, "compressed"_a, "inverse"_a = false);
  m.def("kv_round_trip", &kv_round_trip, "rows"_a, "rope_dim"_a, "rope"_a, "isa"_a = "");
  m.def("index_round_trip", &index_round_trip, "rows"_a);
  nb::class_<BackendOps> c(
      m,
      "BackendOps",
      "Single ops of a backend, for tests and the doctor. Each call is one step of the backend on\n"
      "copies of its arrays. n is the number of rows of the step; a weight of a type is the bytes "
      "of\n"
      "its blocks, row after row.");
  c.def(
       nb::init<const std::string&, const std::string&, int, bool>(),
       "backend"_a = "cpu",
       "isa"_a = "",
       "n_threads"_a = 1,
       "exact"_a = true,
       "Args:\n"
       "    backend: a name that Model.load knows.\n"
       "    isa: CPU instruction set; \"\" is the best.\n"
       "    n_threads: CPU threads; 0 is all usable cores.\n"
       "    exact: float32 arithmetic throughout.\n"
       "\n"
       "Raises:\n"
       "    BackendUnavailableError: no such backend here.")
      .def_prop_ro("name", &BackendOps::name)
      .def_prop_ro("description", &BackendOps::description)
      .def_prop_ro(
          "elapsed_ms", &BackendOps::elapsed_ms, "Time of the last call's step, without copies.");
  bind_hyper_ops(c);
  bind_matmul_ops(c);
  bind_rows_ops(c);
  bind_attention_ops(c);
}

}  // namespace grebe::bind
