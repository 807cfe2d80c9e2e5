// What the binding sources share: conversion of Python values, and the way a computing call leaves
// and re-enters Python.
//
// src/ converts, holds or drops the GIL, and documents. It decides nothing: policy is in
// python/grebe, arithmetic in csrc.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

#include "grebe.h"

namespace grebe::bind {

namespace nb = nanobind;

void bind_errors(nb::module_& m);
void bind_inspect(nb::module_& m);
void bind_model(nb::module_& m);
void bind_session(nb::module_& m);
void bind_cache(nb::module_& m);
void bind_ops(nb::module_& m);
void bind_storage_ops(nb::module_& m);
void bind_store(nb::module_& m);
void bind_backend_ops(nb::module_& m);
void bind_bench_ops(nb::module_& m);
void bind_quantize_ops(nb::module_& m);

/// Token ids from a list, a tuple, any other iterable of integers, or a 1-d integer array. Throws
/// InvalidArgument that names `what`, the index, the value and the range: a bool, a float or an id
/// outside [0, vocab_size) is a caller's slip.
std::vector<int32_t> to_tokens(nb::handle object, int32_t vocab_size, const char* what = "tokens");

/// One token id, by the same rules.
int32_t to_token(nb::handle object, int32_t vocab_size, const char* what = "token");

/// A str, bytes or path-like object as the bytes of a path.
std::string to_path(nb::handle object);

/// The fields of grebe.ModelConfig, in its names.
nb::dict config_dict(const ModelConfig& config);
/// bytes_per_token, total_bytes, expert_bytes (each shared payload counted once), ignored.
nb::dict weights_dict(const ModelWeights& weights);

/// Whether the interpreter is about to end. Set once, by a hook of the module atexit; the thread
/// that runs the hooks goes on as ever, since they may use the engine.
bool is_exiting() noexcept;

/// Work without the GIL, in place of nb::gil_scoped_release. A daemon thread cannot have the GIL
/// back while the interpreter ends: CPython would unwind it through C++ frames, which ends the
/// process with an abort. Such a thread stays here for the rest of the process instead.
class WithoutGil {
 public:
  WithoutGil() noexcept;
  ~WithoutGil();
  WithoutGil(const WithoutGil&) = delete;
  WithoutGil& operator=(const WithoutGil&) = delete;

 private:
  PyThreadState* state_;
};

/// The GIL for a callback within WithoutGil, by the same rule.
class WithGil {
 public:
  WithGil() noexcept;
  ~WithGil();
  WithGil(const WithGil&) = delete;
  WithGil& operator=(const WithGil&) = delete;

 private:
  PyGILState_STATE state_;
};

/// Never returns: where a thread stays that Python wants to unwind while it ends.
[[noreturn]] void park() noexcept;
void bind_exit(nb::module_& m);

/// Hands the vector's memory to NumPy, without a copy. Product of shape = size.
template <class T, class... Shape>
auto to_numpy(std::vector<T>&& values, Shape... shape) {
  auto* owned = new std::vector<T>(std::move(values));
  nb::capsule owner(owned, [](void* p) noexcept { delete static_cast<std::vector<T>*>(p); });
  return nb::ndarray<nb::numpy, T, nb::ndim<sizeof...(Shape)>, nb::c_contig>(
      owned->data(), {static_cast<size_t>(shape)...}, owner);
}

/// A session and who is computing with it. The engine refuses two steps at once but lets anyone
/// read, so reads and steps are kept apart here: `user` changes and is looked at under the GIL
/// only, and a step holds it across its release of the GIL.
struct BoundSession {
  std::shared_ptr<Session> engine;
  unsigned long user = 0;  ///< thread that computes, 0: none
  uint64_t changes = 0;    ///< calls so far that may have changed the state

  /// The session for a quick look. A progress callback may look, another thread may not.
  const Session& look() const {
    if (user != 0 && user != PyThread_get_thread_ident()) refuse();
    return *engine;
  }
  [[noreturn]] static void refuse() {
    throw InvalidArgument("the session is busy: a call that computes with it has not returned");
  }
  int32_t vocab_size() const { return engine->model()->config().vocab_size; }
};

/// Marks a session as in use for the length of a computing call. Made and destroyed with the GIL
/// held.
class Use {
 public:
  explicit Use(BoundSession& session) : session_(&session) {
    if (session.user != 0) BoundSession::refuse();
    session.user = PyThread_get_thread_ident();
  }
  Use(BoundSession& session, bool changes) : Use(session) { session.changes += changes; }
  Use(Use&& other) noexcept : session_(std::exchange(other.session_, nullptr)) {}
  Use& operator=(Use&&) = delete;
  ~Use() {
    if (session_) session_->user = 0;
  }

 private:
  BoundSession* session_;
};

/// Runs f(progress) without the GIL. Between layers and chunks the engine calls `progress`, which
/// takes the GIL back and lets Python's signal handlers run (Ctrl-C); between chunks it also calls
/// on_progress(done, total), and between layers between_layers() (which must not use the model),
/// unless they are None. What any of them raises cancels the work and is raised here, after the
/// engine has put the session into the state that it documents for Cancelled.
template <class F>
auto compute(nb::handle on_progress, F&& f, nb::handle between_layers = nb::none())
    -> std::invoke_result_t<F, const Progress&> {
  std::exception_ptr raised;
  const auto call = [&](const auto& python) {
    if (is_exiting()) return false;
    const WithGil gil;
    try {
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
      python();
      return true;
#if defined(__GLIBCXX__)
    } catch (abi::__forced_unwind&) {  // the interpreter ended while the callback ran
      park();
#endif
    } catch (...) {
      raised = std::current_exception();
      return false;
    }
  };
  Progress progress;
  progress.chunk = [&](int64_t done, int64_t total) {
    return call([&] {
      if (!on_progress.is_none()) on_progress(done, total);
    });
  };
  progress.layer = [&] {
    return call([&] {
      if (!between_layers.is_none()) between_layers();
    });
  };
  const auto run = [&] {
    const WithoutGil release;
    return f(progress);
  };
  try {
    if constexpr (std::is_void_v<std::invoke_result_t<F, const Progress&>>) {
      run();
      if (raised)
        std::rethrow_exception(
            raised);  // raised after the last chunk: the work is done, the exception still counts
    } else {
      auto result = run();
      if (raised) std::rethrow_exception(raised);
      return result;
    }
  } catch (const Cancelled&) {
    if (raised) std::rethrow_exception(raised);
    throw;
  }
}

}  // namespace grebe::bind

void bind_tokenizer(nanobind::module_& m);
void bind_sampler(nanobind::module_& m);
