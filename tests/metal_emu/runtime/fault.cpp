#include "fault.h"

#include <ucontext.h>

#include <csignal>
#include <cstdint>
#include <mutex>

#include "job.h"
#include "report.h"
#include "worker.h"

namespace msl {
namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction previous[sizeof kSignals / sizeof *kSignals];

const void* program_counter(void* context) {
  const auto& machine = static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__x86_64__)
  return reinterpret_cast<const void*>(machine.gregs[REG_RIP] + 1);
#else
  return reinterpret_cast<const void*>(machine.pc + 1);
#endif
}

/// Runs on the lane's own stack, which abandon() leaves for good. The runtime itself does not
/// fault, so no lock is held here.
void on_fault(int signal, siginfo_t* info, void* context) {
  Worker* worker = current_worker();
  if (worker && worker->lane) {
    report(
        program_counter(context),
        "the kernel crashed: %s at address %p [kernel %s, thread %u of threadgroup %llu]",
        signal == SIGFPE ? "division by zero" : "invalid access",
        info->si_addr,
        worker->job->kernel->name,
        worker->lane->id,
        static_cast<unsigned long long>(worker->threadgroup));
    worker->abandon();
  }
  for (size_t i = 0; i < sizeof kSignals / sizeof *kSignals; ++i) {
    if (kSignals[i] == signal) sigaction(signal, &previous[i], nullptr);
  }
  // Returning repeats the faulty instruction under the previous handler.
}

}  // namespace

void install_fault_handler() {
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action{};
    action.sa_sigaction = on_fault;
    // The handler does not return, so its signal must not stay blocked.
    action.sa_flags = SA_SIGINFO | SA_NODEFER;
    for (size_t i = 0; i < sizeof kSignals / sizeof *kSignals; ++i) {
      sigaction(kSignals[i], &action, &previous[i]);
    }
  });
}

}  // namespace msl
