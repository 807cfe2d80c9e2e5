#include "core/thread_pool.h"

#include <unistd.h>

#include <string>

#include "core/error.h"

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace grebe {
namespace {

void cpu_relax() {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About 50 us of pauses before parking: longer than the gap between two ops of a layer, shorter
// than anyone notices.
constexpr int kSpins = 2000;

}  // namespace

ThreadPool::ThreadPool(int n_threads) : n_threads_(n_threads < 1 ? 1 : n_threads), pid_(getpid()) {
  try {
    threads_.reserve(n_threads_ - 1);
    for (int i = 1; i < n_threads_; i++) threads_.emplace_back([this, i] { worker_main(i); });
  } catch (const std::exception& e) {
    stop();
    throw Error(
        "could not start thread " + std::to_string(threads_.size() + 2) + " of " +
        std::to_string(n_threads_) + " (" + e.what() + "); ask for fewer with n_threads");
  }
}

void ThreadPool::stop() {
  stopping_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& t : threads_) t.join();
}

ThreadPool::~ThreadPool() {
  if (pid_ != getpid()) {  // a forked child: the threads exist only in the parent
    for (std::thread& t : threads_) t.detach();
    return;
  }
  stop();
}

void ThreadPool::run(int64_t n_tasks, TaskFn fn, void* ctx) {
  if (n_threads_ == 1 || n_tasks == 1) {
    for (int64_t i = 0; i < n_tasks; i++) fn(ctx, i, 0);
    return;
  }
  fn_ = fn;
  ctx_ = ctx;
  n_tasks_ = n_tasks;
  n_done_.store(0, std::memory_order_relaxed);
  n_unclaimed_.store(n_tasks, std::memory_order_release);
  epoch_.fetch_add(1, std::memory_order_seq_cst);
  if (n_parked_.load(std::memory_order_seq_cst) > 0) epoch_.notify_all();
  work(0);
  for (int spin = 0; n_done_.load(std::memory_order_acquire) != n_tasks; spin++) {
    if (spin < kSpins) {
      cpu_relax();
    } else {
      std::this_thread::yield();  // a worker lost its core inside a task: give it ours
    }
  }
  if (failed_.load(std::memory_order_relaxed)) {
    failed_.store(false);
    std::exception_ptr error = std::move(error_);
    error_ = nullptr;
    std::rethrow_exception(error);
  }
}

// A worker may come late, even into the next job: whatever it claims is a task of the job that is
// running now, and fn_, ctx_ and n_tasks_ cannot change before it has counted the task as done.
void ThreadPool::work(int thread) {
  int64_t left = n_unclaimed_.load(std::memory_order_relaxed);
  while (left > 0) {
    if (!n_unclaimed_.compare_exchange_weak(
            left, left - 1, std::memory_order_acquire, std::memory_order_relaxed)) {
      continue;
    }
    try {
      fn_(ctx_, n_tasks_ - left, thread);
    } catch (...) {
      if (!failed_.exchange(true)) error_ = std::current_exception();
    }
    n_done_.fetch_add(1, std::memory_order_release);
    left = n_unclaimed_.load(std::memory_order_relaxed);
  }
}

void ThreadPool::worker_main(int thread) {
  uint32_t seen = 0;
  for (;;) {
    uint32_t epoch = epoch_.load(std::memory_order_acquire);
    for (int spin = 0; epoch == seen; spin++) {
      if (spin < kSpins) {
        cpu_relax();
      } else {
        n_parked_.fetch_add(1, std::memory_order_seq_cst);
        epoch_.wait(seen, std::memory_order_seq_cst);
        n_parked_.fetch_sub(1, std::memory_order_relaxed);
      }
      epoch = epoch_.load(std::memory_order_acquire);
    }
    seen = epoch;
    if (stopping_.load()) return;
    work(thread);
  }
}

}  // namespace grebe
