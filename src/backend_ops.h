// grebe._engine.BackendOps: single ops of backend/backend.h on NumPy arrays, for tests and the
// doctor. Split by subject over backend_*_ops.cpp; each file adds its methods to the class.
//
// Everything an op reads or writes is copied to memory from Backend::allocate(), one allocation of
// the exact size for each array, so that a checker of bounds is exact too.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backend/backend.h"
#include "bindings.h"
#include "model/rope.h"

namespace grebe::bind {

template <class T, size_t N>
using Array = nb::ndarray<const T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;
using Bytes = Array<uint8_t, 1>;

inline void expect(bool ok, const char* what) {
  if (!ok) throw InvalidArgument(std::string("shapes do not fit: ") + what);
}

/// Flash's rotation tables for the given positions, f32[n, 32] each.
struct Angles {
  std::vector<float> cos, sin;
  size_t half;

  Angles(const Array<int64_t, 1>& pos, bool compressed) {
    const std::vector<float> f = rope_frequencies(ModelConfig{}, compressed);
    half = f.size();
    cos.resize(pos.size() * half);
    sin.resize(cos.size());
    for (size_t i = 0; i < pos.size(); i++)
      rope_angles(f, pos.data()[i], &cos[i * half], &sin[i * half]);
  }
};

/// "bf16" and "f32": packed, by the rotary channels; "off": plain f32 rows.
inline KvRowFormat kv_format(const std::string& name, int64_t head_dim, int64_t rope_dim) {
  KvRowFormat format;
  if (name == "bf16") {
    format.kind = KvRowFormat::Kind::kPackedBf16;
  } else if (name == "f32") {
    format.kind = KvRowFormat::Kind::kPackedF32;
  } else if (name == "off") {
    format.kind = KvRowFormat::Kind::kF32;
  } else {
    throw InvalidArgument("row format '" + name + "' is unknown; use bf16, f32 or off");
  }
  format.head_dim = static_cast<int32_t>(head_dim);
  format.rope_dim = static_cast<int32_t>(rope_dim);
  expect(
      rope_dim >= 0 && head_dim % 16 == 0 && rope_dim <= head_dim &&
          (format.kind == KvRowFormat::Kind::kF32 || (head_dim - rope_dim) % 64 == 0),
      "rows of head_dim, a multiple of 16; when packed, nope a multiple of 64");
  return format;
}

class BackendOps {
 public:
  BackendOps(const std::string& backend, const std::string& isa, int n_threads, bool exact)
      : backend_(make_backend(backend, {n_threads, exact, isa})) {}

  Backend& backend() { return *backend_; }
  std::string name() const { return backend_->name(); }
  std::string description() const { return backend_->description(); }
  double elapsed_ms() const { return elapsed_ms_; }

  /// One step of the backend: f() records the ops. Releases the GIL.
  template <class F>
  void step(F&& f) {
    const WithoutGil release;
    const auto start = std::chrono::steady_clock::now();
    backend_->begin();
    f();
    backend_->commit();
    backend_->wait();
    elapsed_ms_ =
        std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
  }

 private:
  std::unique_ptr<Backend> backend_;
  double elapsed_ms_ = 0;
};

/// The memory of one call.
class OpMemory {
 public:
  explicit OpMemory(BackendOps& ops) : backend_(ops.backend()) {}
  OpMemory(const OpMemory&) = delete;
  ~OpMemory() {
    for (const auto& [data, bytes] : blocks_) backend_.release(data, bytes);
  }

  /// Zeroed. Null when count is 0.
  template <class T>
  T* make(size_t count) {
    if (count == 0) return nullptr;
    blocks_.reserve(blocks_.size() + 1);
    void* data = backend_.allocate(count * sizeof(T), "an array of a test");
    blocks_.emplace_back(data, count * sizeof(T));
    return static_cast<T*>(data);
  }
  template <class T>
  T* copy(const T* values, size_t count) {
    T* data = make<T>(count);
    if (count != 0) std::memcpy(data, values, count * sizeof(T));
    return data;
  }
  template <class... A>
  auto* copy(const nb::ndarray<A...>& values) {
    return copy(values.data(), values.size());
  }
  RopeTable rope(const Array<float, 2>& cos, const Array<float, 2>& sin, size_t n) {
    expect(
        cos.shape(0) == n && sin.shape(0) == n && cos.shape(1) == sin.shape(1),
        "cos and sin f32[rows, rope_dim / 2]");
    return {copy(cos), copy(sin), static_cast<int32_t>(cos.shape(1))};
  }
  /// `data` must be exactly as many bytes as the shape needs.
  Weight weight(
      const void* data,
      size_t n_bytes,
      const std::string& dtype,
      int64_t n_out,
      int64_t n_in,
      int64_t n_experts,
      const std::optional<Bytes>& scale);
  Weight weight(
      const Bytes& data,
      const std::string& dtype,
      int64_t n_out,
      int64_t n_in,
      int64_t n_experts = 1,
      const std::optional<Bytes>& scale = {}) {
    return weight(data.data(), data.size(), dtype, n_out, n_in, n_experts, scale);
  }
  /// f32[n_out, n_in]
  Weight weight(const Array<float, 2>& values) {
    return weight(
        values.data(),
        values.size() * sizeof(float),
        "F32",
        static_cast<int64_t>(values.shape(0)),
        static_cast<int64_t>(values.shape(1)),
        1,
        {});
  }
  /// (data u8[:], dtype) or (data, dtype, scale u8[:])
  Weight weight(nb::handle tuple, int64_t n_out, int64_t n_in, int64_t n_experts);

  Backend::Route route(
      const Array<float, 2>& logits,
      const std::optional<Array<float, 1>>& bias,
      int32_t n_used,
      double scale,
      const std::optional<Array<int32_t, 2>>& tid2eid,
      const std::optional<Array<int32_t, 1>>& tokens);

  /// A Python object that must be such an array.
  template <class T, size_t N>
  static Array<T, N> cast(nb::handle values, const char* what) {
    Array<T, N> array;
    if (!nb::try_cast(values, array))
      throw InvalidArgument(std::string(what) + " is not an array of the right type and rank");
    return array;
  }

 private:
  Backend& backend_;
  std::vector<std::pair<void*, uint64_t>> blocks_;
};

/// A copy of backend memory as a NumPy array.
template <class T, class... Shape>
auto to_array(const T* data, Shape... shape) {
  const size_t count = (size_t{1} * ... * static_cast<size_t>(shape));
  return to_numpy(std::vector<T>(data, data + count), shape...);
}

void bind_hyper_ops(nb::class_<BackendOps>& c);
void bind_matmul_ops(nb::class_<BackendOps>& c);
void bind_rows_ops(nb::class_<BackendOps>& c);
void bind_attention_ops(nb::class_<BackendOps>& c);

}  // namespace grebe::bind
