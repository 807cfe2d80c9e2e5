// The C interface.
#include <algorithm>
#include <cstring>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "checker.h"
#include "emu.h"
#include "fault.h"
#include "job.h"
#include "library.h"
#include "report.h"
#include "worker.h"

#define MSL_API extern "C" __attribute__((visibility("default")))

namespace msl {
namespace {

// ---- what kernels call ----

void collective(msl_leader leader, const void* in, void* out, msl_op op, const void* site) {
  current_worker()->collective(leader, in, out, op, site);
}
void threadgroup_barrier(unsigned flags, const void* site) {
  current_worker()->threadgroup_barrier(flags, site);
}
void simdgroup_barrier(unsigned flags, const void* site) {
  current_worker()->simdgroup_barrier(flags, site);
}
unsigned lane() { return current_worker()->lane->id % kSimdWidth; }
void* threadgroup_alloc(unsigned slot, unsigned long n_bytes, unsigned long alignment) {
  return current_worker()->threadgroup_alloc(slot, n_bytes, alignment);
}
// One for all libraries; guarded by the dispatch lock.
Checker* const kChecker = new Checker;

void access(const volatile void* data, unsigned long n, unsigned bits, const void* site) {
  kChecker->access(reinterpret_cast<uintptr_t>(data), n, bits, site);
}

const msl_runtime kRuntime = {
    collective,
    threadgroup_barrier,
    simdgroup_barrier,
    lane,
    threadgroup_alloc,
    constant_is_set,
    access,
};

// ---- dispatches ----

struct Dispatcher {
  std::mutex mutex;  // one dispatch at a time: function constants are global to a library
  std::vector<std::unique_ptr<Worker>> workers;
  uint32_t n_dispatches = 0;
  Work work;
};

Dispatcher& dispatcher() {
  static Dispatcher* all = new Dispatcher;
  return *all;
}

/// Refuses what Metal refuses when it encodes a dispatch.
void prepare(Job& job, const msl_run& run) {
  const auto refuse = [&](const std::string& message) {
    throw std::runtime_error("kernel " + std::string(job.kernel->name) + ": " + message);
  };
  uint64_t n_threads = 1;
  for (int d = 0; d < 3; ++d) {
    job.grid[d] = run.grid[d];
    job.threads[d] = run.threads[d];
    n_threads *= run.threads[d];
    if (n_threads == 0 || n_threads > kMaxThreads) {
      refuse("a threadgroup has 1 to " + std::to_string(kMaxThreads) + " threads");
    }
    job.groups[d] =
        run.by_threads ? (run.grid[d] + run.threads[d] - 1) / run.threads[d] : run.grid[d];
    job.n_groups *= job.groups[d];
  }
  if (job.n_groups == 0) refuse("the grid is empty");
  if (job.kernel->max_threads && n_threads > job.kernel->max_threads) {
    refuse(
        std::to_string(n_threads) + " threads exceed max_total_threads_per_threadgroup(" +
        std::to_string(job.kernel->max_threads) + ")");
  }
  uint64_t n_bytes = 0;
  for (int i = 0; run.threadgroup_bytes && i < 31; ++i) {
    job.threadgroup_bytes[i] = run.threadgroup_bytes[i];
    n_bytes += run.threadgroup_bytes[i];
    if (run.threadgroup_bytes[i] % 16) refuse("threadgroup memory is no multiple of 16 bytes");
  }
  if (n_bytes > kThreadgroupLimit) {
    refuse(std::to_string(n_bytes) + " bytes of threadgroup memory, more than 32768");
  }
  for (uint64_t i = 0; i < run.n_binds; ++i) {
    const int slot = run.binds[i].slot;
    if (slot < 0 || slot > 30) refuse("there is no buffer " + std::to_string(slot));
    job.context.buffers[slot] = run.binds[i].data;
  }
  for (unsigned i = 0; i < job.kernel->n_params; ++i) {
    const msl_param& p = job.kernel->params[i];
    if (p.kind == kMslBuffer && !job.context.buffers[p.index]) {
      refuse("buffer " + std::to_string(p.index) + " is not bound");
    }
    if (p.kind == kMslThreadgroup && !job.threadgroup_bytes[p.index]) {
      refuse("threadgroup memory " + std::to_string(p.index) + " has no length");
    }
  }
  job.by_threads = run.by_threads;
  job.seed = run.seed;
  job.hazard = run.hazard;
  if (job.seed && job.n_groups > 1) {  // a step that is coprime to the number visits all
    job.order_offset = job.seed * 0x9e3779b97f4a7c15ull % job.n_groups;
    job.order_step = (job.seed * 0xd1b54a32d192ed03ull % job.n_groups) | 1;
    while (std::gcd(job.order_step, job.n_groups) != 1) job.order_step += 2;
  }
}

void work_on(Job& job, Worker& worker) {
  for (;;) {
    const uint64_t i = job.next++;
    if (i >= job.n_groups || job.abandoned) return;
    const auto place = static_cast<unsigned __int128>(i) * job.order_step + job.order_offset;
    worker.run(job, static_cast<uint64_t>(place % job.n_groups));
  }
}

void dispatch(Library& library, const msl_run& run) {
  Dispatcher& all = dispatcher();
  std::lock_guard lock(all.mutex);
  install_fault_handler();
  if (run.kernel < 0 || static_cast<unsigned>(run.kernel) >= library.abi->n_kernels) {
    throw std::runtime_error("no such kernel");
  }
  Job job;
  job.library = &library;
  job.kernel = &library.abi->kernels[run.kernel];
  job.number = ++all.n_dispatches;
  prepare(job, run);
  set_constants(library, run.constants, run.n_constants);
  if (all.workers.empty()) all.workers.push_back(std::make_unique<Worker>());
  size_t n_workers = 1;
  if (library.abi->checked) {
    kChecker->begin(job, run, *all.workers[0]);
  } else {
    n_workers = static_cast<size_t>(std::max(1, run.n_workers));
    n_workers = static_cast<size_t>(std::min<uint64_t>(n_workers, job.n_groups));
  }
  while (all.workers.size() < n_workers) all.workers.push_back(std::make_unique<Worker>());
  std::vector<std::thread> threads;
  for (size_t i = 1; i < n_workers; ++i) {
    threads.emplace_back([&, i] { work_on(job, *all.workers[i]); });
  }
  work_on(job, *all.workers[0]);
  for (auto& thread : threads) thread.join();
  kChecker->end();
  for (auto& worker : all.workers) {
    all.work.threads += worker->work.threads;
    all.work.switches += worker->work.switches;
    all.work.collectives += worker->work.collectives;
    all.work.barriers += worker->work.barriers;
    worker->work = {};
  }
  if (job.abandoned) {
    throw std::runtime_error(std::string("kernel ") + job.kernel->name + " was stopped");
  }
}

Library& of(void* library) { return *static_cast<Library*>(library); }

}  // namespace
}  // namespace msl

using namespace msl;

MSL_API void* msl_open(const char* path) {
  try {
    return open_library(path, &kRuntime);
  } catch (const std::exception& e) {
    set_error(e.what());
    return nullptr;
  }
}

MSL_API const char* msl_error(void) { return last_error(); }
MSL_API int msl_is_checked(void* library) { return of(library).abi->checked; }
MSL_API int msl_kernel_count(void* library) { return static_cast<int>(of(library).abi->n_kernels); }
MSL_API const char* msl_kernel_name(void* library, int i) {
  return of(library).abi->kernels[i].name;
}

MSL_API int msl_find(void* library, const char* name) {
  const msl_library& abi = *of(library).abi;
  for (unsigned i = 0; i < abi.n_kernels; ++i) {
    if (strcmp(abi.kernels[i].name, name) == 0) return static_cast<int>(i);
  }
  return -1;
}

MSL_API int msl_max_threads(void* library, int i) {
  const unsigned n = of(library).abi->kernels[i].max_threads;
  return static_cast<int>(n ? n : kMaxThreads);
}

MSL_API int msl_constant_count(void* library) {
  return static_cast<int>(of(library).abi->n_constants);
}

MSL_API int msl_constant_info(void* library, int i, uint32_t* index, uint32_t* size) {
  *index = of(library).abi->constants[i].index;
  *size = of(library).abi->constants[i].size;
  return 0;
}

MSL_API int msl_dispatch(void* library, const msl_run* run) {
  try {
    dispatch(of(library), *run);
    return 0;
  } catch (const std::exception& e) {
    set_error(e.what());
    report(nullptr, "%s", e.what());
    return -1;
  }
}

MSL_API int msl_reports(char* text, int capacity) { return take_reports(text, capacity); }

MSL_API void msl_forget(const void* data, uint64_t n_bytes) {
  std::lock_guard lock(dispatcher().mutex);
  const auto begin = reinterpret_cast<uintptr_t>(data);
  kChecker->forget(begin, begin + n_bytes);
}

MSL_API void msl_mark_unwritten(const void* data, uint64_t n_bytes) {
  std::lock_guard lock(dispatcher().mutex);
  const auto begin = reinterpret_cast<uintptr_t>(data);
  kChecker->mark(begin, begin + n_bytes, true);
}

MSL_API void msl_mark_written(const void* data, uint64_t n_bytes) {
  std::lock_guard lock(dispatcher().mutex);
  const auto begin = reinterpret_cast<uintptr_t>(data);
  kChecker->mark(begin, begin + n_bytes, false);
}

MSL_API void msl_stats(uint64_t out[4]) {
  Dispatcher& all = dispatcher();
  std::lock_guard lock(all.mutex);
  const uint64_t work[] = {
      all.work.threads, all.work.switches, all.work.collectives, all.work.barriers};
  memcpy(out, work, sizeof work);
  all.work = {};
}
