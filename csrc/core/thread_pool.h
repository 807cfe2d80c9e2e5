// A persistent pool of worker threads with spin-then-park barriers.
//
// One job at a time: parallel_for hands out task numbers from an atomic counter, the caller works
// too, and returns when all tasks are done. It waits for tasks, never for workers: one that has
// lost its core to another program holds nobody up unless it lost it inside a task. Which thread
// runs which task never changes a result (see docs/determinism.md): tasks write disjoint outputs.
// Workers spin for some tens of microseconds after a job, since the next one usually follows at
// once, then park.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace grebe {

class ThreadPool {
 public:
  /// n_threads >= 1 counts the calling thread; 1 starts no thread at all.
  explicit ThreadPool(int n_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return n_threads_; }

  /// Calls f(i_task, i_thread) for every i_task in [0, n_tasks), i_thread in [0, size()). Returns
  /// when all are done. The first exception thrown by a task is rethrown here after the others have
  /// finished. Not reentrant: f must not call parallel_for on the same pool; one caller at a time.
  template <class F>
  void parallel_for(int64_t n_tasks, F&& f) {
    if (n_tasks <= 0) return;
    using Fn = std::remove_reference_t<F>;
    run(
        n_tasks,
        [](void* ctx, int64_t task, int thread) { (*static_cast<Fn*>(ctx))(task, thread); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  using TaskFn = void (*)(void* ctx, int64_t task, int thread);
  void run(int64_t n_tasks, TaskFn fn, void* ctx);
  void stop();
  void work(int thread);
  void worker_main(int thread);

  int n_threads_;
  int pid_;  // of the process that has the threads
  std::vector<std::thread> threads_;

  // The job. Written by run() before n_unclaimed_; read by who has claimed a task, which keeps it.
  TaskFn fn_ = nullptr;
  void* ctx_ = nullptr;
  int64_t n_tasks_ = 0;
  alignas(64) std::atomic<int64_t> n_unclaimed_{0};
  alignas(64) std::atomic<int64_t> n_done_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};  ///< counts jobs; workers wait for it to change
  std::atomic<int32_t> n_parked_{0};
  std::atomic<bool> stopping_{false};
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

}  // namespace grebe
