// Times the matrix products of one table at the shapes of DeepSeek V4 Flash.
//
// Usage: bench_kernels [--isa NAME] [--threads N] [--seconds S] [--only TEXT] [--clock wall|cpu]
// --clock cpu suits a busy machine: honest for compute, optimistic for bandwidth.
// GB/s counts weight bytes, each once per call; GOP/s counts 2 per multiply-add. Medians; the last
// line is one JSON document. Matrices are larger than any L3 together for n = 1, so that rows come
// from memory as they do in a model.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <functional>
#include <string>

#include "backend/cpu/kernels.h"
#include "backend/cpu/matmul.h"
#include "core/cpu_features.h"
#include "random_weights.h"

namespace grebe {
namespace {

int cpu_clock_threads = 0;  // > 0: report CPU time of the process divided by this

double now_s() {
  if (cpu_clock_threads > 0)
    return static_cast<double>(std::clock()) / CLOCKS_PER_SEC / cpu_clock_threads;
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double median_s(double budget_s, const std::function<void()>& f) {
  f();
  std::vector<double> times;
  const double start = now_s();
  while (times.size() < 3 || now_s() - start < budget_s) {
    const double t = now_s();
    f();
    times.push_back(now_s() - t);
  }
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

// Bytes per second that plain summing reads, the ceiling of a matvec.
double read_bandwidth(ThreadPool& pool, double budget_s) {
  constexpr int64_t kChunk = 1 << 20, kChunks = 512;
  const std::vector<uint64_t> data(kChunk * kChunks / 8, 1);
  std::vector<uint64_t> sums(kChunks);
  const double s = median_s(budget_s, [&] {
    pool.parallel_for(kChunks, [&](int64_t i, int) {
      const uint64_t* p = data.data() + i * (kChunk / 8);
      uint64_t a[8] = {};
      for (int64_t k = 0; k < kChunk / 8; k += 8)
        for (int j = 0; j < 8; j++) a[j] += p[k + j];
      sums[i] = a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7];
    });
  });
  return kChunk * kChunks / s;
}

struct Case {
  const char* name;
  DType dtype;
  int64_t n_in, n_out;
};

constexpr Case kDense[] = {
    {"q_b", DType::kQ8_0, 1024, 32768},
    {"out_b", DType::kQ8_0, 8192, 4096},
    {"shared_gate", DType::kQ8_0, 4096, 2048},
    {"compressor", DType::kF16, 4096, 1024},
    {"hc", DType::kF16, 16384, 24},
    {"gate", DType::kIQ2_XXS, 4096, 2048},
    {"down", DType::kQ2_K, 2048, 4096},
    {"gate", DType::kQ4_K, 4096, 2048},
    {"gate", DType::kMXFP4, 4096, 2048},
    {"gate", DType::kQ6_K, 4096, 2048},
    {"gate", DType::kQ5_K, 4096, 2048},
    {"gate", DType::kIQ3_XXS, 4096, 2048},
    {"gate", DType::kIQ2_S, 4096, 2048},
    {"gate", DType::kQ3_K, 4096, 2048},
    {"gate", DType::kF8E4M3, 4096, 2048},
    {"gate", DType::kBF16, 4096, 2048},
    {"gate", DType::kF32, 4096, 2048},
};

std::string json;

void report(const std::string& name, DType dtype, int64_t n, double s, double bytes, double ops) {
  std::printf(
      "%-12s %-8s n=%-4lld %9.3f ms %7.2f GB/s %7.1f GOP/s\n",
      name.c_str(),
      dtype_name(dtype).c_str(),
      static_cast<long long>(n),
      s * 1e3,
      bytes / s * 1e-9,
      ops / s * 1e-9);
  std::fflush(stdout);
  char row[256];
  std::snprintf(
      row,
      sizeof row,
      "%s{\"name\":\"%s\",\"type\":\"%s\",\"n\":%lld,\"s\":%.6g,\"gb_per_s\":%.4g,\"gop_per_s\":%."
      "4g}",
      json.empty() ? "" : ",",
      name.c_str(),
      dtype_name(dtype).c_str(),
      static_cast<long long>(n),
      s,
      bytes / s * 1e-9,
      ops / s * 1e-9);
  json += row;
}

void bench_dense(cpu::Matmul& mm, const Case& c, double budget_s) {
  const Weight one{"", c.dtype, c.n_in, c.n_out, 1};
  const int64_t copies = std::max<int64_t>(1, (96 << 20) / static_cast<int64_t>(one.n_bytes()));
  const OwnedWeight w(c.dtype, c.n_in, c.n_out, copies, 1);
  for (int64_t n : {1, 2, 4, 12, 512}) {
    const std::vector<float> x = random_x(n * c.n_in, 2);
    std::vector<float> y(static_cast<size_t>(n * c.n_out));
    int64_t i = 0;
    const double s = median_s(budget_s, [&] {
      Weight matrix = w;  // the next copy, which has left the caches since its last use
      matrix.data = w.expert_data(i);
      matrix.scale = w.expert_scale(i);
      matrix.n_experts = 1;
      i = (i + 1) % copies;
      const cpu::MatmulTask task{&matrix, 0, c.n_out, x.data(), c.n_in, y.data(), c.n_out};
      mm.run({&task, 1}, n);
    });
    report(
        c.name,
        c.dtype,
        n,
        s,
        static_cast<double>(one.n_bytes()),
        2.0 * static_cast<double>(n * c.n_in * c.n_out));
  }
}

// The mixture of the q2 files: 64 of the 256 experts, so n = 128 gives the 12 rows an expert of a
// 512-token prompt.
void bench_moe(cpu::Matmul& mm, DType gate_type, DType down_type, double budget_s) {
  constexpr int64_t kHidden = 4096, kFf = 2048, kExperts = 64, kUsed = 6;
  const OwnedWeight gate(gate_type, kHidden, kFf, kExperts, 1),
      up(gate_type, kHidden, kFf, kExperts, 2), down(down_type, kFf, kHidden, kExperts, 3),
      sgate(DType::kQ8_0, kHidden, kFf, 1, 4), sup(DType::kQ8_0, kHidden, kFf, 1, 5),
      sdown(DType::kQ8_0, kFf, kHidden, 1, 6);
  for (bool shared : {false, true}) {
    for (int64_t n : {1, 4, 128, 512}) {
      const std::vector<float> x = random_x(n * kHidden, 7);
      std::vector<float> y(x.size()), weights(n * kUsed, 0.25f);
      std::vector<int32_t> experts(n * kUsed);
      Rng rng(8);
      std::vector<char> touched;
      const double s = median_s(budget_s, [&] {
        touched.assign(kExperts, 0);
        for (int64_t t = 0; t < n; t++) {  // distinct experts for a token
          for (int64_t i = 0; i < kUsed; i++) {
            bool again = true;
            while (again) {
              experts[t * kUsed + i] = static_cast<int32_t>(rng.next() % kExperts);
              again = std::count(
                          experts.begin() + t * kUsed,
                          experts.begin() + t * kUsed + i,
                          experts[t * kUsed + i]) > 0;
            }
            touched[experts[t * kUsed + i]] = 1;
          }
        }
        cpu::MoeTask task;
        task.gate = &gate, task.up = &up, task.down = &down;
        if (shared) task.shared_gate = &sgate, task.shared_up = &sup, task.shared_down = &sdown;
        task.x = x.data(), task.experts = experts.data(), task.expert_weights = weights.data();
        task.n = n, task.n_used = kUsed, task.clamp = 10.f, task.y = y.data();
        mm.moe(task);
      });
      const double n_touched = static_cast<double>(std::count(touched.begin(), touched.end(), 1));
      double bytes = n_touched * static_cast<double>(
                                     gate.expert_bytes() + up.expert_bytes() + down.expert_bytes());
      if (shared) bytes += static_cast<double>(sgate.n_bytes() + sup.n_bytes() + sdown.n_bytes());
      report(
          shared ? "moe+shared" : "moe",
          gate_type,
          n,
          s,
          bytes,
          2.0 * 3 * static_cast<double>(n * (kUsed + shared) * kHidden * kFf));
    }
  }
}

}  // namespace
}  // namespace grebe

int main(int argc, char** argv) {
  using namespace grebe;
  std::string isa, only;
  int threads = usable_cores();
  double budget_s = 0.5;
  bool use_cpu_clock = false;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string option = argv[i];
    if (option == "--isa")
      isa = argv[i + 1];
    else if (option == "--threads")
      threads = std::atoi(argv[i + 1]);
    else if (option == "--seconds")
      budget_s = std::atof(argv[i + 1]);
    else if (option == "--only")
      only = argv[i + 1];
    else if (option == "--clock")
      use_cpu_clock = std::string(argv[i + 1]) == "cpu";
  }
  if (use_cpu_clock) cpu_clock_threads = threads;
  const cpu::KernelTable& table = cpu::kernel_table(choose_isa(isa));
  ThreadPool pool(threads);
  cpu::Matmul mm(pool, table, false);
  const double bandwidth = read_bandwidth(pool, budget_s);
  std::printf(
      "%s, %d threads, plain read %.1f GB/s\n", isa_name(table.isa), threads, bandwidth * 1e-9);
  const auto wanted = [&](const std::string& what) { return what.find(only) != std::string::npos; };
  for (const Case& c : kDense) {
    if (wanted(std::string(c.name) + " " + dtype_name(c.dtype))) bench_dense(mm, c, budget_s);
  }
  if (wanted("moe IQ2_XXS")) bench_moe(mm, DType::kIQ2_XXS, DType::kQ2_K, budget_s);
  if (wanted("moe MXFP4")) bench_moe(mm, DType::kMXFP4, DType::kMXFP4, budget_s);
  std::printf(
      "{\"isa\":\"%s\",\"threads\":%d,\"read_gb_per_s\":%.4g,\"rows\":[%s]}\n",
      isa_name(table.isa),
      threads,
      bandwidth * 1e-9,
      json.c_str());
}
