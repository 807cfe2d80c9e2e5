// What matmul.cpp and moe.cpp share: scratch memory, quantized rows of x, and the product of a
// chunk of weight rows with them.
#pragma once

#include <new>
#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/cpu/matmul.h"
#include "core/error.h"

namespace grebe::cpu {

/// Aligned memory that grows and is reused. Contents do not survive grow().
class Buffer {
 public:
  Buffer() = default;
  Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) {
    other.data_ = nullptr;
    other.size_ = 0;
  }
  Buffer& operator=(Buffer&&) = delete;
  ~Buffer() { release(); }

  uint8_t* grow(int64_t bytes) {
    if (bytes > size_) {
      release();
      data_ =
          static_cast<uint8_t*>(::operator new(static_cast<size_t>(bytes), kAlign, std::nothrow));
      if (!data_)
        throw OutOfMemory(
            "cpu: scratch of " + std::to_string(bytes) + " bytes does not fit", bytes);
      size_ = bytes;
    }
    return data_;
  }
  int64_t size() const { return size_; }

 private:
  static constexpr std::align_val_t kAlign{64};
  void release() {
    ::operator delete(data_, kAlign);
    data_ = nullptr;
    size_ = 0;
  }
  uint8_t* data_ = nullptr;
  int64_t size_ = 0;
};

constexpr int64_t align64(int64_t bytes) { return (bytes + 63) & ~int64_t{63}; }
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

/// Size of the groups in which x is quantized for a weight: 32, 256, or 0 for f32.
inline int act_group(DType dtype, bool exact) {
  const int i = quant_index(dtype);
  if (exact || i < 0) return 0;
  return i == kQ8_0 || i == kMXFP4 ? 32 : 256;
}

/// Address of a planned offset; `memory` is null while sizes are being added up.
inline uint8_t* at(uint8_t* memory, int64_t offset) { return memory ? memory + offset : nullptr; }

inline const QuantKernels& quant_kernels(const KernelTable& k, DType dtype) {
  const int i = quant_index(dtype);
  GREBE_ASSERT(i >= 0);
  return k.quant[i];
}
inline const LayoutKernels& layout_kernels(const KernelTable& k, DType dtype) {
  return k.layouts[static_cast<int>(quant_kernels(k, dtype).layout)];
}

/// n quantized rows of n_in, one after the other.
struct QuantRows {
  int64_t n_in = 0;
  int group = 0;
  int8_t* q = nullptr;
  float* d = nullptr;
  int16_t* sums = nullptr;

  static int64_t bytes(int64_t n, int64_t n_in, int group) {
    return align64(n * n_in) + align64(n * (n_in / group) * 4) + align64(n * (n_in / 16) * 2);
  }
  /// Over `memory` of bytes(n, n_in, group).
  QuantRows() = default;
  QuantRows(uint8_t* memory, int64_t n, int64_t n_in, int group) : n_in(n_in), group(group) {
    q = reinterpret_cast<int8_t*>(memory);
    d = reinterpret_cast<float*>(at(memory, align64(n * n_in)));
    sums =
        reinterpret_cast<int16_t*>(at(memory, align64(n * n_in) + align64(n * (n_in / group) * 4)));
  }
  ActRow row(int64_t i) const {
    return {q + i * n_in, d + i * (n_in / group), sums + i * (n_in / 16)};
  }
  void quantize(const KernelTable& k, int64_t i, const float* x) const {
    k.quantize(x, n_in, group, q + i * n_in, d + i * (n_in / group), sums + i * (n_in / 16));
  }
};

/// How n rows of x are cut into tiles of nearly equal size.
struct Tiling {
  int64_t n = 0, n_tiles = 0;
  Tiling() = default;
  Tiling(int64_t n, int max_tile) : n(n), n_tiles(ceil_div(n, max_tile)) {}
  int64_t begin(int64_t tile) const { return n * tile / n_tiles; }
  int size(int64_t tile) const { return static_cast<int>(begin(tile + 1) - begin(tile)); }
};

/// The x side of a product: f32 rows, quantized rows, or tiles; n rows of n_in.
struct Acts {
  enum class Kind { kFloat, kRows, kTiles } kind = Kind::kFloat;
  int64_t n = 0;
  const float* x = nullptr;  // kFloat
  int64_t x_stride = 0;
  QuantRows rows;  // kRows: rows index[0..n), or [first_row, first_row + n) without an index
  const int32_t* index = nullptr;
  int64_t first_row = 0;
  Tiling tiling;  // kTiles
  const uint8_t* tiles = nullptr;
};

/// Tiles rather than rows for n rows of x and this weight type?
inline bool use_tiles(const KernelTable& k, DType dtype, int64_t n) {
  return n >= k.min_tile_rows && quant_kernels(k, dtype).pack_panel != nullptr;
}

/// Bytes of a tile per row of x.
inline int64_t tile_row_bytes(const KernelTable& k, DType dtype, int64_t n_in) {
  return layout_kernels(k, dtype).tile_block_bytes * (n_in / dtype_info(dtype).block_size);
}

struct Matmul::Impl {
  Impl(ThreadPool& pool, const KernelTable& kernels, bool exact)
      : pool(pool), k(kernels), exact(exact), thread_scratch(pool.size()) {}

  ThreadPool& pool;
  const KernelTable& k;
  bool exact;
  std::vector<Buffer> thread_scratch;  // panels, converted rows, one per thread
  std::vector<Buffer> thread_rows;     // moe: gate and up of a chunk
  Buffer acts;                         // x of run(), or of the experts at hand
  Buffer moe_x, moe_h, moe_acts, moe_y;

  struct MoeRun;

  /// y[t * y_stride + r] for r < n_rows, weight rows from `row`, all rows of `acts`.
  void multiply_rows(
      const Weight& w,
      int64_t i_expert,
      int64_t row,
      int64_t n_rows,
      const Acts& acts,
      float* y,
      int64_t y_stride,
      int thread);
  void multiply_tiles(
      const Weight& w,
      const uint8_t* rows,
      int64_t n_rows,
      const Acts& acts,
      float* y,
      int64_t y_stride,
      int thread);
  void multiply_float(
      const Weight& w,
      int64_t i_expert,
      int64_t row,
      int64_t n_rows,
      const Acts& acts,
      float* y,
      int64_t y_stride,
      int thread);
  /// Weight rows in one task of the pool, for `n_rows` rows in all.
  int64_t chunk_rows(int64_t n_rows, bool is_float) const;
};

}  // namespace grebe::cpu
