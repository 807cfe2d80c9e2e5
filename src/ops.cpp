// Single operations for tests and tools, on NumPy arrays. The package's own path does not come
// through here.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <thread>

#include "backend/cpu/kernels.h"
#include "backend/cpu/matmul.h"
#include "bindings.h"
#include "core/dtype.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;
using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr DType kDTypes[] = {
    DType::kF32,
    DType::kF16,
    DType::kQ8_0,
    DType::kQ2_K,
    DType::kQ3_K,
    DType::kQ4_K,
    DType::kQ5_K,
    DType::kQ6_K,
    DType::kIQ2_XXS,
    DType::kIQ3_XXS,
    DType::kIQ2_S,
    DType::kBF16,
    DType::kMXFP4,
    DType::kF8E4M3};

DType dtype_of(const std::string& name) {
  for (DType type : kDTypes) {
    if (name == dtype_info(type).name) return type;
  }
  throw InvalidArgument("dtype '" + name + "' is unknown; see grebe._engine.dtypes()");
}

// A Weight over the caller's bytes, which must be exactly as many as its shape needs.
Weight make_weight(
    const std::string& dtype,
    int64_t n_in,
    int64_t n_out,
    int64_t n_experts,
    const Bytes& data,
    const std::optional<Bytes>& scale) {
  Weight w;
  w.name = "w";
  w.dtype = dtype_of(dtype);
  w.n_in = n_in;
  w.n_out = n_out;
  w.n_experts = n_experts;
  w.data = data.data();
  const int64_t block = dtype_info(w.dtype).block_size;
  if (n_in <= 0 || n_out <= 0 || n_experts <= 0 || n_in % block != 0) {
    throw InvalidArgument(
        "rows of " + std::to_string(n_in) + " do not divide into blocks of " +
        std::to_string(block));
  }
  if (data.size() != w.n_bytes()) {
    throw InvalidArgument(
        "data has " + std::to_string(data.size()) + " bytes; the shape needs " +
        std::to_string(w.n_bytes()));
  }
  if (w.dtype == DType::kF8E4M3) {
    const int64_t n_scales = ((n_out + 127) / 128) * ((n_in + 127) / 128) * n_experts;
    if (!scale || static_cast<int64_t>(scale->size()) != n_scales) {
      throw InvalidArgument("F8_E4M3 needs " + std::to_string(n_scales) + " scale bytes");
    }
    w.scale = scale->data();
  }
  return w;
}

auto dequantize(
    const std::string& dtype,
    const Bytes& data,
    int64_t n_out,
    int64_t n_in,
    const std::optional<Bytes>& scale,
    int64_t n_experts,
    int64_t i_expert) {
  const Weight w = make_weight(dtype, n_in, n_out, n_experts, data, scale);
  if (i_expert < 0 || i_expert >= n_experts) throw InvalidArgument("i_expert is out of range");
  std::vector<float> out(static_cast<size_t>(n_in * n_out));
  {
    const WithoutGil release;
    cpu::dequantize_rows(w, i_expert, 0, n_out, out.data());
  }
  return to_numpy(std::move(out), n_out, n_in);
}

using Matrix = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

// y = x w^T through the same code as the model's layers, on the kernel table of `isa`.
auto matmul(
    const Matrix& x,
    const std::string& dtype,
    const Bytes& data,
    int64_t n_out,
    const std::optional<Bytes>& scale,
    const std::string& isa,
    bool exact,
    int n_threads) {
  const auto n = static_cast<int64_t>(x.shape(0)), n_in = static_cast<int64_t>(x.shape(1));
  const Weight w = make_weight(dtype, n_in, n_out, 1, data, scale);
  if (n < 1 || n_threads < 1) throw InvalidArgument("matmul needs a row and a thread");
  std::vector<float> y(static_cast<size_t>(n * n_out));
  {
    const WithoutGil release;
    ThreadPool pool(n_threads);
    cpu::Matmul matmul(pool, cpu::kernel_table(choose_isa(isa)), exact);
    const cpu::MatmulTask task{&w, 0, n_out, x.data(), n_in, y.data(), n_out};
    matmul.run({&task, 1}, n);
  }
  return to_numpy(std::move(y), n, n_out);
}

// Element by element through one of the scalar conversions of core/dtype.h.
template <class From, auto convert>
auto map(nb::ndarray<const From, nb::ndim<1>, nb::c_contig, nb::device::cpu> in) {
  std::vector<decltype(convert(From{}))> out(in.size());
  for (size_t i = 0; i < out.size(); i++) out[i] = convert(in.data()[i]);
  const size_t n = out.size();
  return to_numpy(std::move(out), n);
}

float e2m1_to_f32(uint8_t code) { return kE2M1[code & 15]; }

// Bytes per second that n_threads sum over a buffer far larger than any cache: the roof that decode
// is held against.
double measure_read_bandwidth(int n_threads, double seconds, int64_t buffer_bytes) {
  if (n_threads < 1 || n_threads > 1024) throw InvalidArgument("n_threads must be from 1 to 1024");
  if (!(seconds > 0) || seconds > 60) throw InvalidArgument("seconds must be in (0, 60]");
  if (buffer_bytes < 1 << 20) throw InvalidArgument("buffer_bytes must be at least 1 MiB");
  const size_t n_words =
      static_cast<size_t>(buffer_bytes) / sizeof(uint64_t) / static_cast<size_t>(n_threads) &
      ~size_t{63};
  std::atomic<uint64_t> n_read{0}, sink{0};
  std::atomic<int> n_ready{0};
  std::atomic<bool> go{false};
  std::atomic<int64_t> elapsed_ns{0};
  const auto work = [&] {
    std::vector<uint64_t> words(
        n_words, 1);  // first touched by its reader, so it lies on the reader's memory node
    n_ready.fetch_add(1);
    while (!go.load()) std::this_thread::yield();
    const auto start = std::chrono::steady_clock::now();
    uint64_t sum[8] = {}, passes = 0;
    std::chrono::nanoseconds spent{0};
    do {
      for (size_t i = 0; i < n_words; i += 8) {
        for (size_t j = 0; j < 8; j++) sum[j] += words[i + j];
      }
      passes++;
      spent = std::chrono::steady_clock::now() - start;
    } while (spent.count() < static_cast<int64_t>(seconds * 1e9));
    for (uint64_t s : sum) sink.fetch_add(s);
    n_read.fetch_add(passes * n_words * sizeof(uint64_t));
    int64_t longest = elapsed_ns.load();
    while (spent.count() > longest && !elapsed_ns.compare_exchange_weak(longest, spent.count())) {
    }
  };
  const WithoutGil release;
  std::vector<std::thread> threads;
  for (int i = 0; i < n_threads; i++) threads.emplace_back(work);
  while (n_ready.load() < n_threads) std::this_thread::yield();
  go.store(true);
  for (std::thread& t : threads) t.join();
  return static_cast<double>(n_read.load()) / (static_cast<double>(elapsed_ns.load()) * 1e-9);
}

}  // namespace

void bind_ops(nb::module_& m) {
  m.def(
      "dtypes",
      [] {
        std::vector<std::string> names;
        for (DType type : kDTypes) names.emplace_back(dtype_info(type).name);
        return names;
      },
      "Tensor types that a weight may have.");
  m.def(
      "dequantize",
      &dequantize,
      "dtype"_a,
      "data"_a,
      "n_out"_a,
      "n_in"_a,
      "scale"_a = nb::none(),
      "n_experts"_a = 1,
      "i_expert"_a = 0,
      "f32[n_out, n_in] of one expert's rows, exactly.");
  m.def(
      "matmul",
      &matmul,
      "x"_a,
      "dtype"_a,
      "data"_a,
      "n_out"_a,
      "scale"_a = nb::none(),
      nb::kw_only(),
      "isa"_a = "",
      "exact"_a = false,
      "n_threads"_a = 1,
      "f32[n, n_out] = x f32[n, n_in] times the transpose of a weight.");
  m.def("f16_to_f32", &map<uint16_t, f16_to_f32>, "x"_a);
  m.def("f32_to_f16", &map<float, f32_to_f16>, "x"_a);
  m.def("bf16_to_f32", &map<uint16_t, bf16_to_f32>, "x"_a);
  m.def("f32_to_bf16", &map<float, f32_to_bf16>, "x"_a);
  m.def("e4m3_to_f32", &map<uint8_t, e4m3_to_f32>, "x"_a);
  m.def("f32_to_e4m3", &map<float, f32_to_e4m3>, "x"_a);
  m.def("e8m0_to_f32", &map<uint8_t, e8m0_to_f32>, "x"_a);
  m.def("e2m1_to_f32", &map<uint8_t, e2m1_to_f32>, "x"_a);
  m.def("f32_to_e2m1", &map<float, f32_to_e2m1>, "x"_a);
  m.def(
      "available_isas",
      [] {
        std::vector<std::string> names;
        for (Isa isa : available_isas()) names.emplace_back(isa_name(isa));
        return names;
      },
      "Kernel tables that this build has and this machine can run, best last.");
  m.def("usable_cores", &usable_cores, "Physical cores that this process may use.");
  m.def(
      "measure_read_bandwidth",
      &measure_read_bandwidth,
      "n_threads"_a,
      "seconds"_a,
      "buffer_bytes"_a = int64_t{1} << 28,
      "Bytes per second read by n_threads from a buffer of buffer_bytes.");
}

}  // namespace grebe::bind
