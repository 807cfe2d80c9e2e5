// The extension module grebe._engine. Private: python/grebe is the interface; its stub is
// python/grebe/_engine.pyi.
#include <chrono>
#include <thread>

#include "bindings.h"

namespace grebe::bind {
namespace {

// Threads within a WithoutGil, callbacks included, that are not parked; and whether Python ends.
std::atomic<int> working{0};
std::atomic<bool> exiting{false};
std::atomic<unsigned long> exit_thread{0};

// A thread that would take the GIL says so first and looks after: one of it and end_work() sees the
// other.
void take_or_park() noexcept {
  if (!is_exiting()) return;
  working--;
  park();
}

// Ends what computes in daemon threads before the interpreter ends: the work stops at its next
// chunk, and its thread stays where it is. A step of a big model can take longer than the wait; its
// thread is parked when it is done, and the process may be gone by then.
void end_work() {
  constexpr auto kWait = std::chrono::seconds(2);
  exit_thread = PyThread_get_thread_ident();
  exiting = true;
  const nb::gil_scoped_release release;
  const auto deadline = std::chrono::steady_clock::now() + kWait;
  while (working > 0 && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

}  // namespace

bool is_exiting() noexcept { return exiting && exit_thread != PyThread_get_thread_ident(); }

void park() noexcept {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(24));
}

WithoutGil::WithoutGil() noexcept : state_(PyEval_SaveThread()) {
  working++;
  take_or_park();
}
WithoutGil::~WithoutGil() {
  take_or_park();
  PyEval_RestoreThread(state_);
  working--;
}

WithGil::WithGil() noexcept {
  take_or_park();
  state_ = PyGILState_Ensure();
}
WithGil::~WithGil() { PyGILState_Release(state_); }

void bind_exit(nb::module_& m) {
  m.def("end_work", &end_work, "Stops what computes in other threads, for good: Python is ending.");
  nb::module_::import_("atexit").attr("register")(m.attr("end_work"));
#if defined(NDEBUG)
  nb::set_leak_warnings(false);  // what a parked thread holds is never freed
#endif
}

}  // namespace grebe::bind

NB_MODULE(_engine, m) {
  m.doc() = "The engine of grebe. Private; use the names of the package grebe.";
  m.attr("version") = GREBE_VERSION;
  grebe::bind::bind_errors(m);
  grebe::bind::bind_exit(m);
  bind_tokenizer(m);
  bind_sampler(m);
  grebe::bind::bind_inspect(m);
  grebe::bind::bind_storage_ops(m);
  grebe::bind::bind_store(m);
  grebe::bind::bind_cache(m);
  grebe::bind::bind_model(m);
  grebe::bind::bind_session(m);
  grebe::bind::bind_ops(m);
  grebe::bind::bind_backend_ops(m);
  grebe::bind::bind_bench_ops(m);
  grebe::bind::bind_quantize_ops(m);
}
