// Matrix products of every table against the scalar one (same bits) and of the scalar table against
// doubles.
//
// Usage: test_kernels [isa ...]   default: all that this machine has. Prints one line per failure;
// exit status 1 if any.
#include <cmath>
#include <cstdio>
#include <string>

#include "backend/cpu/kernels.h"
#include "backend/cpu/matmul.h"
#include "core/cpu_features.h"
#include "quant/dequant.h"
#include "random_weights.h"

namespace grebe {
namespace {

int n_failed = 0, n_checked = 0;

void check(bool ok, const std::string& what) {
  n_checked++;
  if (ok) return;
  n_failed++;
  std::printf("FAILED %s\n", what.c_str());
}

std::string describe(const Weight& w, int64_t n, const std::string& isa) {
  return isa + " " + dtype_name(w.dtype) + " " + std::to_string(w.n_in) + "->" +
         std::to_string(w.n_out) + " n=" + std::to_string(n);
}

// First differing element, -1 if none; bits are compared so that NaN equals itself.
int64_t first_difference(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); i++) {
    if (std::isnan(a[i]) && std::isnan(b[i])) continue;
    if (std::memcmp(&a[i], &b[i], 4) != 0) return static_cast<int64_t>(i);
  }
  return -1;
}

constexpr float kGuard = -12345.f;

// y f32[n, rows + 3]: three guard values after each row.
std::vector<float> product(
    cpu::Matmul& mm,
    const Weight& w,
    const std::vector<float>& x,
    int64_t n,
    int64_t row_begin = 0) {
  const int64_t rows = w.n_out - row_begin, stride = rows + 3;
  std::vector<float> y(static_cast<size_t>(n * stride), kGuard);
  const cpu::MatmulTask task{&w, row_begin, rows, x.data(), w.n_in, y.data(), stride};
  mm.run({&task, 1}, n);
  return y;
}

void check_guards(const std::vector<float>& y, int64_t n, const std::string& what) {
  const int64_t stride = static_cast<int64_t>(y.size()) / n;
  bool ok = true;
  for (int64_t t = 0; t < n; t++)
    for (int64_t i = stride - 3; i < stride; i++) ok &= y[t * stride + i] == kGuard;
  check(ok, what + ": wrote past a row of y");
}

std::vector<float> dequantized(const Weight& w) {
  std::vector<float> f(static_cast<size_t>(w.n_in * w.n_out));
  cpu::dequantize_rows(w, 0, 0, w.n_out, f.data());
  return f;
}

// Normalized error of y against doubles. Quantized x costs about 1/127/sqrt(12) of amax per value.
void check_against_double(
    const Weight& w,
    const std::vector<float>& x,
    int64_t n,
    const std::vector<float>& y,
    double bound,
    const std::string& what) {
  const std::vector<float> f = dequantized(w);
  double error = 0, norm = 0;
  for (int64_t t = 0; t < n; t++) {
    for (int64_t r = 0; r < w.n_out; r++) {
      double sum = 0;
      for (int64_t k = 0; k < w.n_in; k++)
        sum += static_cast<double>(f[r * w.n_in + k]) * x[t * w.n_in + k];
      const double diff = sum - y[t * (w.n_out + 3) + r];
      error += diff * diff;
      norm += sum * sum;
    }
  }
  check(
      std::sqrt(error) <= bound * std::sqrt(norm),
      what + ": error " + std::to_string(std::sqrt(error / norm)));
}

struct Shape {
  int64_t n_in, n_out;
};

std::vector<Shape> shapes(DType t) {
  switch (dtype_info(t).block_size) {
    case 256:
      return {{256, 1}, {512, 17}, {768, 31}, {2048, 64}, {1024, 147}};
    case 32:
      return {{32, 1}, {64, 17}, {96, 33}, {288, 64}, {1024, 147}, {4064, 40}};
    default:
      return {{1, 1}, {15, 5}, {16, 3}, {33, 9}, {130, 131}, {1024, 67}};
  }
}

void test_products(const cpu::KernelTable& scalar, const cpu::KernelTable& table) {
  const std::string isa = isa_name(table.isa);
  ThreadPool one(1), three(3);
  uint64_t seed = 1;
  for (DType t : kWeightTypes) {
    for (const Shape shape : shapes(t)) {
      const OwnedWeight w(t, shape.n_in, shape.n_out, 1, seed++);
      constexpr int64_t kMax = 29;
      std::vector<float> x = random_x(kMax * w.n_in, seed++);
      for (bool exact : {false, true}) {
        cpu::Matmul reference(one, scalar, exact), mm(three, table, exact);
        const std::vector<float> want = product(reference, w, x, kMax);
        if (&scalar == &table) {
          check_against_double(w, x, kMax, want, exact ? 2e-6 : 0.02, describe(w, kMax, isa));
        }
        const int64_t stride = w.n_out + 3;
        for (int64_t n : {1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 25, 29}) {
          const std::vector<float> y = product(mm, w, x, n);
          const std::vector<float> head(want.begin(), want.begin() + n * stride);
          const int64_t i = first_difference(head, y);
          check(
              i < 0,
              describe(w, n, isa) + (exact ? " exact" : "") + ": differs from scalar at row " +
                  std::to_string(i % stride) + ", token " + std::to_string(i / stride));
          check_guards(y, n, describe(w, n, isa));
        }
        if (w.n_out > 16) {  // a view that starts inside the matrix
          const std::vector<float> y = product(mm, w, x, 5, 7);
          bool same = true;
          for (int64_t r = 7; r < w.n_out; r++)
            same &= y[2 * (stride - 7) + r - 7] == want[2 * stride + r];
          check(same, describe(w, 5, isa) + ": row_begin");
        }
      }
    }
  }
}

void test_not_finite(const cpu::KernelTable& table) {
  ThreadPool pool(1);
  for (DType t : kWeightTypes) {
    const OwnedWeight w(t, 512, 20, 1, 99);
    cpu::Matmul mm(pool, table, false);
    for (int64_t n : {1, 6}) {
      for (float bad : {std::nanf(""), INFINITY}) {
        std::vector<float> x = random_x(n * w.n_in, 7);
        x[(n - 1) * w.n_in + 300] = bad;
        const std::vector<float> y = product(mm, w, x, n);
        bool ok = true;
        for (int64_t r = 0; r < w.n_out; r++) {
          ok &= !std::isfinite(y[(n - 1) * (w.n_out + 3) + r]);
          if (n > 1) ok &= std::isfinite(y[r]);
        }
        // Inf times a zero weight is NaN, but E4M3 and integer formats may hold zeros elsewhere:
        // only "not finite" counts.
        check(ok, describe(w, n, isa_name(table.isa)) + ": a value that is not finite was lost");
      }
    }
  }
  // Zeros, and values whose reciprocal overflows, quantize to nothing.
  const OwnedWeight w(DType::kQ8_0, 64, 4, 1, 3);
  cpu::Matmul mm(pool, table, false);
  std::vector<float> x(64, 1e-40f);
  const std::vector<float> y = product(mm, w, x, 1);
  check(
      std::isfinite(y[0]) && std::fabs(y[0]) < 1e-30f,
      std::string(isa_name(table.isa)) + ": denormal x");
}

void test_f8(const cpu::KernelTable& table) {
  std::vector<uint8_t> codes(300), scales = {0, 127, 255};
  for (size_t i = 0; i < codes.size(); i++) codes[i] = static_cast<uint8_t>(i);
  for (int64_t n : {1, 16, 129, 300}) {
    std::vector<float> want(static_cast<size_t>(n)), got(want);
    dequantize_f8(codes.data(), scales.data(), n, want.data());
    table.dequantize_f8(codes.data(), scales.data(), n, got.data());
    check(
        first_difference(want, got) < 0,
        std::string(isa_name(table.isa)) + ": E4M3 row of " + std::to_string(n));
  }
}

struct MoeTypes {
  DType gate, up, down, shared;
};

void test_moe(const cpu::KernelTable& scalar, const cpu::KernelTable& table) {
  const MoeTypes sets[] = {
      {DType::kIQ2_XXS, DType::kIQ2_XXS, DType::kQ2_K, DType::kQ8_0},
      {DType::kMXFP4, DType::kMXFP4, DType::kMXFP4, DType::kQ8_0},
      {DType::kQ4_K, DType::kQ6_K, DType::kQ5_K, DType::kF16},
      {DType::kIQ2_S, DType::kQ8_0, DType::kIQ3_XXS, DType::kF8E4M3},
      {DType::kF32, DType::kBF16, DType::kF16, DType::kQ3_K}};
  constexpr int64_t kHidden = 512, kFf = 256, kExperts = 7, kUsed = 3;
  ThreadPool one(1), three(3);
  for (const MoeTypes& types : sets) {
    const OwnedWeight gate(types.gate, kHidden, kFf, kExperts, 11),
        up(types.up, kHidden, kFf, kExperts, 12), down(types.down, kFf, kHidden, kExperts, 13),
        sgate(types.shared, kHidden, kFf, 1, 14), sup(types.shared, kHidden, kFf, 1, 15),
        sdown(types.shared, kFf, kHidden, 1, 16);
    for (int64_t n : {1, 2, 9, 40}) {
      for (bool exact : {false, true}) {
        const std::vector<float> x = random_x(n * kHidden, 17);
        Rng rng(18);
        std::vector<int32_t> experts(n * kUsed);
        std::vector<float> weights(n * kUsed);
        for (int64_t i = 0; i < n * kUsed; i++) {
          experts[i] = static_cast<int32_t>((rng.next() % 2 + i % kUsed * 2) % kExperts);
          weights[i] = 0.3f + 0.2f * rng.uniform();
        }
        for (bool shared : {true, false}) {
          const auto run =
              [&](ThreadPool& pool, const cpu::KernelTable& k, int64_t first, int64_t count) {
                std::vector<float> y(static_cast<size_t>(count * kHidden));
                cpu::MoeTask task;
                task.gate = &gate, task.up = &up, task.down = &down;
                if (shared)
                  task.shared_gate = &sgate, task.shared_up = &sup, task.shared_down = &sdown;
                task.x = x.data() + first * kHidden;
                task.experts = experts.data() + first * kUsed;
                task.expert_weights = weights.data() + first * kUsed;
                task.n = count, task.n_used = kUsed, task.clamp = 3.f, task.shared_clamp = 0.f,
                task.y = y.data();
                cpu::Matmul mm(pool, k, exact);
                mm.moe(task);
                return y;
              };
          const std::string what = std::string(isa_name(table.isa)) + " moe " +
                                   dtype_name(types.gate) + " n=" + std::to_string(n) +
                                   (exact ? " exact" : "") + (shared ? "" : " no shared");
          const std::vector<float> want = run(one, scalar, 0, n), y = run(three, table, 0, n);
          check(first_difference(want, y) < 0, what + ": differs from scalar");
          const std::vector<float> last = run(three, table, n - 1, 1);
          check(
              first_difference(std::vector<float>(want.end() - kHidden, want.end()), last) < 0,
              what + ": last token alone");
          if (&scalar != &table || n > 9) continue;

          // Doubles over the same dequantized experts.
          double error = 0, norm = 0;
          for (int64_t t = 0; t < n; t++) {
            std::vector<double> sum(kHidden, 0.0);
            for (int64_t slot = shared ? -1 : 0; slot < kUsed; slot++) {
              const bool s = slot < 0;
              const int64_t e = s ? 0 : experts[t * kUsed + slot];
              std::vector<float> g(kFf * kHidden), u(kFf * kHidden), d(kFf * kHidden);
              cpu::dequantize_rows(s ? sgate : gate, e, 0, kFf, g.data());
              cpu::dequantize_rows(s ? sup : up, e, 0, kFf, u.data());
              cpu::dequantize_rows(s ? sdown : down, e, 0, kHidden, d.data());
              std::vector<double> h(kFf);
              for (int64_t f = 0; f < kFf; f++) {
                double a = 0, b = 0;
                for (int64_t k = 0; k < kHidden; k++) {
                  a += static_cast<double>(g[f * kHidden + k]) * x[t * kHidden + k];
                  b += static_cast<double>(u[f * kHidden + k]) * x[t * kHidden + k];
                }
                if (!s) a = std::fmin(a, 3.0), b = std::fmax(-3.0, std::fmin(b, 3.0));
                h[f] = a / (1 + std::exp(-a)) * b * (s ? 1.f : weights[t * kUsed + slot]);
              }
              for (int64_t c = 0; c < kHidden; c++)
                for (int64_t f = 0; f < kFf; f++) sum[c] += d[c * kFf + f] * h[f];
            }
            for (int64_t c = 0; c < kHidden; c++) {
              error += (sum[c] - want[t * kHidden + c]) * (sum[c] - want[t * kHidden + c]);
              norm += sum[c] * sum[c];
            }
          }
          check(
              std::sqrt(error / norm) < (exact ? 1e-5 : 0.05),
              what + ": error " + std::to_string(std::sqrt(error / norm)));
        }
      }
    }
  }
}

// Several tasks in one call: shared and different x, different types.
void test_task_lists(const cpu::KernelTable& table) {
  ThreadPool pool(2);
  const OwnedWeight a(DType::kQ8_0, 256, 40, 1, 1), b(DType::kQ6_K, 256, 9, 1, 2),
      c(DType::kF16, 256, 33, 1, 3);
  for (int64_t n : {1, 14}) {
    const std::vector<float> x = random_x(n * 256, 5), z = random_x(n * 256, 6);
    cpu::Matmul mm(pool, table, false);
    std::vector<std::vector<float>> want, got;
    std::vector<cpu::MatmulTask> tasks;
    for (const std::vector<float>* in : {&x, &z}) {
      for (const Weight* w :
           {static_cast<const Weight*>(&a),
            static_cast<const Weight*>(&b),
            static_cast<const Weight*>(&c)}) {
        want.push_back(product(mm, *w, *in, n));
        got.emplace_back(want.back().size(), kGuard);
        tasks.push_back({w, 0, w->n_out, in->data(), 256, nullptr, w->n_out + 3});
      }
    }
    for (size_t i = 0; i < tasks.size(); i++) tasks[i].y = got[i].data();
    mm.run(tasks, n);
    check(
        want == got, std::string(isa_name(table.isa)) + ": tasks together differ from tasks alone");
  }
}

}  // namespace
}  // namespace grebe

int main(int argc, char** argv) {
  using namespace grebe;
  const cpu::KernelTable& scalar = cpu::kernel_table(Isa::kScalar);
  std::vector<Isa> isas = available_isas();
  if (argc > 1) {
    isas.clear();
    for (int i = 1; i < argc; i++) isas.push_back(choose_isa(argv[i]));
  }
  for (Isa isa : isas) {
    const cpu::KernelTable& table = cpu::kernel_table(isa);
    test_products(scalar, table);
    test_not_finite(table);
    test_f8(table);
    test_task_lists(table);
    test_moe(scalar, table);
    std::printf("%s: %d checks, %d failed so far\n", isa_name(isa), n_checked, n_failed);
  }
  return n_failed ? 1 : 0;
}
