#include "worker.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <new>

#include "checker.h"
#include "fiber.h"
#include "job.h"
#include "report.h"

namespace msl {
namespace {

// At the far end of every stack: overwritten when a kernel needs more than kStackBytes.
constexpr uint64_t kCanary = 0x5afe57acc5afe57aull;

thread_local Worker* worker_of_thread = nullptr;

void* reserve(size_t n_bytes) {
  void* p = mmap(
      nullptr, n_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  return p;
}

const char* op_name(msl_op op) {
  switch (op) {
    case kMslReduceOp:
      return "simd reduction";
    case kMslPrefixOp:
      return "simd prefix sum";
    case kMslShuffleOp:
      return "simd shuffle";
    case kMslVoteOp:
      return "simd vote";
    case kMslMatrixOp:
      return "simdgroup matrix multiplication";
    case kMslBarrierOp:
      return "simdgroup_barrier";
  }
  return "collective";
}

}  // namespace

// Fibers move between no threads, but the compiler must not keep the address of a thread_local
// across a switch either.
[[gnu::noinline]] Worker*& current_worker() { return worker_of_thread; }

Worker::Worker() {
  stacks_ = static_cast<char*>(reserve(kStackBytes * kMaxThreads));
  memory_ = static_cast<char*>(reserve(kThreadgroupBytes));
}

Worker::~Worker() {
  munmap(stacks_, kStackBytes * kMaxThreads);
  munmap(memory_, kThreadgroupBytes);
}

// ---- scheduling ----

uint32_t Worker::random() {  // xorshift
  random_state_ ^= random_state_ << 13;
  random_state_ ^= random_state_ >> 7;
  random_state_ ^= random_state_ << 17;
  return static_cast<uint32_t>(random_state_ >> 32);
}

void Worker::push(unsigned id) { ready_[tail_++ % (2 * kMaxThreads)] = static_cast<uint16_t>(id); }

int Worker::pop() {
  const unsigned n = tail_ - head_;
  if (n == 0) return -1;
  uint16_t& front = ready_[head_ % (2 * kMaxThreads)];
  if (job->seed) std::swap(front, ready_[(head_ + random() % n) % (2 * kMaxThreads)]);
  ++head_;
  return front;
}

void Worker::switch_to(void** save, Lane& to) {
  lane = &to;
  ++work.switches;
  msl_fiber_switch(save, to.sp);
}

/// The running lane waits: another one runs, or the scheduler in run() decides.
void Worker::block() {
  Lane* self = lane;
  const int next = pop();
  if (next < 0) {
    lane = nullptr;
    ++work.switches;
    msl_fiber_switch(&self->sp, main_sp_);
  } else if (&lanes_[next] != self) {
    switch_to(&self->sp, lanes_[next]);
  }
}

void Worker::abandon() {
  job->abandoned = true;
  void* unused;
  lane = nullptr;
  msl_fiber_switch(&unused, main_sp_);
  abort();  // never switched back to
}

/// Runs the collective that the waiting lanes of a SIMD-group agree on, once all of them wait.
/// `stuck`: nothing else can run, so settle for the lanes that do agree.
bool Worker::resolve(SimdGroup& group, Lane* self, bool stuck) {
  const Lane* first = nullptr;
  bool uniform = true, at_barrier = false;
  for (unsigned l = 0; l < group.n; ++l) {
    const Lane& x = lanes_[group.first + l];
    if (x.state == LaneState::kBarrier) at_barrier = true;
    if (x.state != LaneState::kCollective && x.state != LaneState::kSimdBarrier) continue;
    if (!first) first = &x;
    uniform &= x.site == first->site && x.leader == first->leader;
  }
  if (!first || (!stuck && (!uniform || at_barrier))) return false;
  uint32_t mask = 0;
  const void* in[kSimdWidth] = {};
  void* out[kSimdWidth] = {};
  for (unsigned l = 0; l < group.n; ++l) {
    const Lane& x = lanes_[group.first + l];
    if (x.state != first->state || x.leader != first->leader || x.site != first->site) continue;
    mask |= 1u << l;
    in[l] = x.in;
    out[l] = x.out;
  }
  const auto n_lanes = static_cast<unsigned>(__builtin_popcount(mask));
  const char* kernel = job->kernel->name;
  const bool wants_all = first->op == kMslMatrixOp || first->op == kMslBarrierOp;
  if (!uniform) {
    report(
        first->site,
        "lanes of one SIMD-group wait at different collectives: %s and others [kernel %s]",
        op_name(first->op),
        kernel);
  } else if (wants_all && (n_lanes != group.n || n_lanes != kSimdWidth)) {
    // A last SIMD-group of fewer lanes may have barriers, but no matrices.
    if (first->op == kMslMatrixOp || n_lanes != group.n) {
      report(
          first->site,
          "%s with %u of %u lanes [kernel %s]",
          op_name(first->op),
          n_lanes,
          first->op == kMslMatrixOp ? kSimdWidth : group.n,
          kernel);
    }
  }
  if (first->state == LaneState::kSimdBarrier) {
    unsigned flags = 0;
    for (unsigned l = 0; l < group.n; ++l) {
      if (mask >> l & 1) flags |= lanes_[group.first + l].flags;
    }
    if (flags & kMslThreadgroupMemory) ++group.threadgroup_epoch;
    if (flags & kMslDeviceMemory) {
      ++group.device_epoch;
      for (unsigned l = 0; l < group.n; ++l) lanes_[group.first + l].segment = 0;
    }
  } else {
    first->leader(mask, const_cast<void* const*>(reinterpret_cast<const void* const*>(in)), out);
  }
  for (unsigned l = 0; l < group.n; ++l) {
    if (!(mask >> l & 1)) continue;
    Lane& x = lanes_[group.first + l];
    x.state = LaneState::kRunning;
    --group.waiting;
    if (&x != self) push(group.first + l);
  }
  ++work.collectives;
  return true;
}

void Worker::release_barrier(Lane* self) {
  unsigned flags = 0;
  const void* site = nullptr;
  bool uniform = true;
  for (unsigned i = 0; i < n_; ++i) {
    const Lane& x = lanes_[i];
    if (x.state != LaneState::kBarrier) continue;
    flags |= x.flags;
    if (!site) site = x.site;
    uniform &= x.site == site;
  }
  if (!uniform) {
    report(site, "threads wait at different threadgroup barriers [kernel %s]", job->kernel->name);
  }
  if (alive_ != n_) {
    report(
        site,
        "threadgroup_barrier after %u of %u threads have returned [kernel %s]",
        n_ - alive_,
        n_,
        job->kernel->name);
  }
  if (flags & kMslThreadgroupMemory) ++threadgroup_epoch;
  if (flags & kMslDeviceMemory) {
    ++device_epoch;
    for (unsigned i = 0; i < n_; ++i) lanes_[i].segment = 0;
  }
  ++work.barriers;
  at_barrier_ = 0;
  for (unsigned i = 0; i < n_; ++i) {
    Lane& x = lanes_[i];
    if (x.state != LaneState::kBarrier) continue;
    x.state = LaneState::kRunning;
    --simd_groups[i / kSimdWidth].waiting;
    if (&x != self) push(i);
  }
}

// ---- called by kernels ----

void Worker::collective(msl_leader leader, const void* in, void* out, msl_op op, const void* site) {
  Lane& self = *lane;
  self.leader = leader;
  self.in = in;
  self.out = out;
  self.op = op;
  self.site = site;
  self.state = LaneState::kCollective;
  SimdGroup& group = simd_groups[self.id / kSimdWidth];
  if (++group.waiting == group.alive && resolve(group, &self, false)) return;
  block();
}

void Worker::simdgroup_barrier(unsigned flags, const void* site) {
  Lane& self = *lane;
  self.leader = nullptr;
  self.flags = flags;
  self.op = kMslBarrierOp;
  self.site = site;
  self.state = LaneState::kSimdBarrier;
  SimdGroup& group = simd_groups[self.id / kSimdWidth];
  if (++group.waiting == group.alive && resolve(group, &self, false)) return;
  block();
}

void Worker::threadgroup_barrier(unsigned flags, const void* site) {
  Lane& self = *lane;
  self.flags = flags;
  self.site = site;
  self.state = LaneState::kBarrier;
  ++simd_groups[self.id / kSimdWidth].waiting;
  if (++at_barrier_ == alive_) {
    release_barrier(&self);
    return;
  }
  block();
}

void* Worker::threadgroup_alloc(unsigned slot, unsigned long n_bytes, unsigned long alignment) {
  if (slot >= sizeof slots_ / sizeof *slots_) abort();
  if (slots_[slot]) return slots_[slot];
  const auto begin =
      static_cast<unsigned>((threadgroup_top + alignment - 1) / alignment * alignment);
  if (begin + n_bytes > kThreadgroupLimit) {
    report(
        nullptr,
        "kernel %s: more than %u bytes of threadgroup memory",
        job->kernel->name,
        kThreadgroupLimit);
  }
  if (begin + n_bytes > kThreadgroupBytes) abandon();
  threadgroup_top = begin + static_cast<unsigned>(n_bytes);
  return slots_[slot] = memory_ + begin;
}

// ---- a threadgroup ----

void Worker::fill_context(msl_context& context, unsigned id) const {
  const Job& j = *job;
  unsigned shape[3];
  for (int d = 0; d < 3; ++d) {
    shape[d] = j.threads[d];
    if (!j.by_threads) continue;
    // Threadgroups at the edge of dispatchThreads are smaller.
    const unsigned rest = j.grid[d] - position_[d] * j.threads[d];
    if (rest < shape[d]) shape[d] = rest;
  }
  const unsigned t[3] = {id % shape[0], id / shape[0] % shape[1], id / (shape[0] * shape[1])};
  auto& in = context.inputs;
  for (int d = 0; d < 3; ++d) {
    in[kMslThreadPositionInThreadgroup][d] = t[d];
    in[kMslThreadgroupPositionInGrid][d] = position_[d];
    in[kMslThreadPositionInGrid][d] = position_[d] * j.threads[d] + t[d];
    in[kMslThreadsPerThreadgroup][d] = shape[d];
    in[kMslThreadgroupsPerGrid][d] = j.groups[d];
    in[kMslThreadsPerGrid][d] = j.by_threads ? j.grid[d] : j.groups[d] * j.threads[d];
    in[kMslDispatchThreadsPerThreadgroup][d] = j.threads[d];
    in[kMslGridSize][d] = in[kMslThreadsPerGrid][d];
  }
  in[kMslThreadIndexInThreadgroup][0] = id;
  in[kMslThreadIndexInSimdgroup][0] = id % kSimdWidth;
  in[kMslSimdgroupIndexInThreadgroup][0] = id / kSimdWidth;
  in[kMslSimdgroupsPerThreadgroup][0] = n_groups_;
  in[kMslDispatchSimdgroupsPerThreadgroup][0] =
      (j.threads[0] * j.threads[1] * j.threads[2] + kSimdWidth - 1) / kSimdWidth;
  in[kMslThreadsPerSimdgroup][0] = in[kMslThreadExecutionWidth][0] = kSimdWidth;
  in[kMslQuadgroupIndexInThreadgroup][0] = id / 4;
  in[kMslThreadIndexInQuadgroup][0] = id % 4;
}

void Worker::lane_main() {
  current_worker()->run_lane();
  abort();  // a lane that is done is never continued
}

void Worker::run_lane() {
  Lane& self = *lane;
  msl_context context = job->context;
  for (int i = 0; i < 32; ++i) {
    if (job->threadgroup_bytes[i]) context.threadgroup[i] = memory_ + arguments[i].begin;
  }
  fill_context(context, self.id);
  job->kernel->run(&context);

  self.state = LaneState::kDone;
  --alive_;
  SimdGroup& group = simd_groups[self.id / kSimdWidth];
  --group.alive;
  if (group.alive && group.waiting == group.alive) resolve(group, nullptr, false);
  if (alive_ && at_barrier_ == alive_) release_barrier(nullptr);
  block();
}

void Worker::run(Job& next_job, uint64_t index) {
  job = &next_job;
  threadgroup = index;
  current_worker() = this;
  position_[0] = static_cast<unsigned>(index % job->groups[0]);
  position_[1] = static_cast<unsigned>(index / job->groups[0] % job->groups[1]);
  position_[2] = static_cast<unsigned>(index / job->groups[0] / job->groups[1]);
  n_ = 1;
  for (int d = 0; d < 3; ++d) {
    unsigned n = job->threads[d];
    if (job->by_threads) {
      const unsigned rest = job->grid[d] - position_[d] * n;
      if (rest < n) n = rest;
    }
    n_ *= n;
  }
  alive_ = n_;
  n_groups_ = (n_ + kSimdWidth - 1) / kSimdWidth;
  at_barrier_ = head_ = tail_ = 0;
  first_epoch = ++threadgroup_epoch;
  ++device_epoch;
  random_state_ = ((job->seed + 1) * 0x9e3779b97f4a7c15ull) ^ ((index + 1) * 0xd1b54a32d192ed03ull);
  memset(slots_, 0, sizeof slots_);
  threadgroup_top = 0;
  for (int i = 0; i < 32; ++i) {
    const unsigned begin = (threadgroup_top + 15) & ~15u;
    arguments[i] = {begin, begin + job->threadgroup_bytes[i]};
    if (job->threadgroup_bytes[i]) threadgroup_top = arguments[i].end;
  }
  memset(memory_, 0xff, kThreadgroupLimit);  // NaN as float, half and bfloat

  for (unsigned i = 0; i < n_; ++i) {
    Lane& l = lanes_[i];
    l = {};
    l.id = static_cast<uint16_t>(i);
    char* stack = stacks_ + i * kStackBytes;
    memcpy(stack, &kCanary, sizeof kCanary);
    l.sp = new_fiber(stack, kStackBytes, &lane_main);
    push(i);
  }
  for (unsigned s = 0; s < n_groups_; ++s) {
    SimdGroup& group = simd_groups[s];
    group.first = s * kSimdWidth;
    group.n = group.alive = n_ - group.first < kSimdWidth ? n_ - group.first : kSimdWidth;
    group.waiting = 0;
    group.threadgroup_epoch = group.device_epoch = 1;
  }

  while (alive_ && !job->abandoned) {
    const int next = pop();
    if (next >= 0) {
      switch_to(&main_sp_, lanes_[next]);
      continue;
    }
    bool progress = false;
    for (unsigned s = 0; s < n_groups_; ++s) progress |= resolve(simd_groups[s], nullptr, true);
    if (progress) continue;
    report(
        nullptr,
        "kernel %s: deadlock, %u of %u threads wait at a threadgroup barrier",
        job->kernel->name,
        at_barrier_,
        alive_);
    job->abandoned = true;
  }
  for (unsigned i = 0; i < n_; ++i) {
    if (memcmp(stacks_ + i * kStackBytes, &kCanary, sizeof kCanary) != 0) {
      report(
          nullptr, "kernel %s: needs more than %zu bytes of stack", job->kernel->name, kStackBytes);
      break;
    }
  }
  work.threads += n_;
  current_worker() = nullptr;
}

}  // namespace msl
