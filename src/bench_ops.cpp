// grebe._engine.bench_matmul: how fast a product of one type and shape runs, without the model
// around it.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <memory>

#include "backend/cpu/kernels.h"
#include "backend/cpu/matmul.h"
#include "bindings.h"

namespace grebe::bind {
namespace {

using namespace nb::literals;

DType bench_dtype(const std::string& name) {
  for (uint32_t number : {0u, 1u, 8u, 10u, 11u, 12u, 13u, 14u, 16u, 18u, 22u, 30u, 39u}) {
    if (name == dtype_info(static_cast<DType>(number)).name) return static_cast<DType>(number);
  }
  throw InvalidArgument("dtype '" + name + "' cannot be measured");
}

// Seconds of each call. Weights are arbitrary finite codes in fresh anonymous memory; x is read
// from cache after the first call.
std::vector<double> bench_matmul(
    const std::string& dtype,
    int64_t n_in,
    int64_t n_out,
    int64_t n,
    int n_threads,
    double seconds,
    const std::string& isa) {
  Weight w;
  w.name = "bench";
  w.dtype = bench_dtype(dtype);
  w.n_in = n_in;
  w.n_out = n_out;
  if (n_in < 1 || n_out < 1 || n < 1 || n_threads < 1 ||
      n_in % dtype_info(w.dtype).block_size != 0) {
    throw InvalidArgument("shapes must be positive, n_in a multiple of the block");
  }
  nb::gil_scoped_release release;
  const size_t bytes = w.n_bytes();
  const std::unique_ptr<uint8_t[]> data(new uint8_t[bytes]);
  uint64_t state = 88172645463325252u;
  for (size_t i = 0; i < bytes; i++) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    data[i] = static_cast<uint8_t>(state >> 56 & 0x3b);  // any two bytes are then a finite f16
  }
  w.data = data.get();
  const std::vector<float> x(static_cast<size_t>(n * n_in), 0.25f);
  std::vector<float> y(static_cast<size_t>(n * n_out));
  ThreadPool pool(n_threads);
  cpu::Matmul matmul(pool, cpu::kernel_table(choose_isa(isa)), false);
  const cpu::MatmulTask task{&w, 0, n_out, x.data(), n_in, y.data(), n_out};
  std::vector<double> times;
  const auto start = std::chrono::steady_clock::now();
  for (auto last = start;
       times.size() < 4 || std::chrono::duration<double>(last - start).count() < seconds;) {
    matmul.run({&task, 1}, n);
    const auto now = std::chrono::steady_clock::now();
    times.push_back(std::chrono::duration<double>(now - last).count());
    last = now;
  }
  times.erase(times.begin());  // the first pays for page faults and scratch
  return times;
}

}  // namespace

void bind_bench_ops(nb::module_& m) {
  m.def(
      "bench_matmul",
      &bench_matmul,
      "dtype"_a,
      "n_in"_a,
      "n_out"_a,
      "n"_a,
      "n_threads"_a,
      "seconds"_a = 0.5,
      "isa"_a = "",
      "Seconds of each call of y = x w^T with n rows of x, weights resident in memory.");
}

}  // namespace grebe::bind
