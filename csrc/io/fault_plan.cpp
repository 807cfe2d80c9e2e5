#include "io/fault_plan.h"

#include <iterator>

namespace grebe {
namespace {

using Op = Fault::Op;
using Action = Fault::Action;

// What an action needs, whatever operation the entry names.
bool applies(Action action, Op op) {
  switch (action) {
    case Action::kShortWrite:
    case Action::kTornWrite:
    case Action::kGarbageWrite:
      return op == Op::kWrite;
    case Action::kFlipBit:
      return op == Op::kRead;
    case Action::kShiftClock:
      return op == Op::kNow;
    case Action::kFail:
      return op != Op::kNow;  // a clock has no way to fail
    default:
      return true;
  }
}

bool matches(const Fault& fault, Op op, const std::string& path) {
  const bool named = fault.op == op || (fault.op == Op::kAny && op != Op::kNow);
  return named && applies(fault.action, op) && path.find(fault.path) != std::string::npos;
}

}  // namespace

const char* fault_op_name(Op op) {
  constexpr const char* kNames[] = {
      "any",
      "open",
      "read",
      "write",
      "sync",
      "truncate",
      "rename",
      "remove",
      "sync_directory",
      "list",
      "lock",
      "exists",
      "make_directory",
      "now"};
  static_assert(std::size(kNames) == Fault::kNumOps);
  return kNames[static_cast<int>(op)];
}

const char* fault_action_name(Action action) {
  constexpr const char* kNames[] = {
      "fail",
      "short_write",
      "torn_write",
      "garbage_write",
      "end_before",
      "end_after",
      "flip_bit",
      "delay",
      "shift_clock"};
  static_assert(std::size(kNames) == Fault::kNumActions);
  return kNames[static_cast<int>(action)];
}

std::string MetFaults::names() const {
  std::string all;
  for (const Fault& f : faults_)
    all += (all.empty() ? "" : ",") + std::string(fault_action_name(f.action));
  return all;
}

const Fault* MetFaults::find(Action action) const {
  for (const Fault& f : faults_)
    if (f.action == action) return &f;
  return nullptr;
}

MetFaults FaultPlan::meet(Op op, const std::string& path) {
  MetFaults met;
  for (Entry& e : entries_) {
    if (!matches(e.fault, op, path)) continue;
    const uint64_t i = e.n_matched++;
    if (i >= e.fault.first && i - e.fault.first < e.fault.count) met.add(e.fault);
  }
  return met;
}

}  // namespace grebe
