// Metal's classes as the simulation has them.
#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "../runtime/emu.h"
#include "objc_runtime.h"

namespace fake_metal {

constexpr NSUInteger kPageBytes = 16384;
constexpr NSUInteger kMaxSetBytes = 4096;
constexpr NSUInteger kMaxThreadgroupBytes = 32768;
constexpr NSUInteger kMaxThreads = 1024;
constexpr NSUInteger kBindings = 31;

/// An object that owns others through `keep`.
struct Labelled : Object {
  ~Labelled();
  void keep(Object* object);
  std::string label;
  std::vector<Object*> kept;
};

/// A labelled object that command buffers use, with or without retaining it.
struct Resource : Labelled {
  ~Resource();
  /// Command buffers that are not done. Outlives the resource.
  std::shared_ptr<std::atomic<int>> n_users = std::make_shared<std::atomic<int>>(0);
};

struct Buffer final : Resource {
  ~Buffer();
  void* contents = nullptr;
  NSUInteger n_bytes = 0;
  void* mapping = nullptr;  ///< with the guards; null: memory of the caller
  size_t mapping_bytes = 0;
  int access = MSL_WRITABLE;
};

struct Device final : Object {};
struct CompileOptions final : Object {
  NSUInteger language = 0;
  NSInteger math_mode = 2, math_functions = 0;
  bool fast_math = true;
};
struct Library final : Labelled {
  void* executable = nullptr;
};
struct ConstantValues final : Object {
  std::map<uint32_t, msl_constant> values;
};
struct Function final : Labelled {
  std::string name;
  Library* library = nullptr;
  int kernel = -1;
  std::vector<msl_constant> constants;
};
struct PipelineDescriptor final : Labelled {
  Function* function = nullptr;
};
struct Pipeline final : Resource {
  Function* function = nullptr;
};
struct ResidencyDescriptor final : Labelled {};
struct ResidencySet final : Labelled {
  ~ResidencySet();
  std::mutex mutex;
  std::vector<Buffer*> live, pending;
  bool changed = false;
};

struct SharedEvent final : Object {
  void signal(uint64_t value);
  bool wait(uint64_t value, uint64_t milliseconds);
  std::mutex mutex;
  std::condition_variable changed;
  uint64_t value = 0;
};
struct Fence final : Object {
  std::atomic<bool> updated{false};
};

/// Runs committed command buffers one after the other on a thread of its own.
struct Queue final : Labelled {
  Queue();
  ~Queue();
  void submit(std::function<void()> work);

  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> work;
    bool stop = false;
  };
  std::shared_ptr<Shared> shared;
  std::thread thread;
  std::vector<ResidencySet*> residency;
  /// Dispatches with the same value are not ordered. Only the queue's thread uses it.
  uint64_t hazard = 0;
};

enum CommandStatus : NSUInteger { kNotEnqueued = 0, kCommitted = 2, kCompleted = 4, kFailed = 5 };

struct CommandBuffer final : Labelled {
  ~CommandBuffer();
  /// Keeps a resource, or only notes that it must live until this is done.
  void use(Resource* resource);
  void done();

  Queue* queue = nullptr;
  bool retains = true;
  bool encoding = false;
  std::vector<std::function<void(Queue&)>> work;
  std::vector<std::shared_ptr<std::atomic<int>>> users;
  std::vector<msl_range> resident;  ///< at the time of the commit
  std::mutex mutex;
  std::condition_variable changed;
  CommandStatus status = kNotEnqueued;
  Error* error = nullptr;
};

struct Binding {
  Buffer* buffer = nullptr;
  NSUInteger offset = 0;
  std::shared_ptr<const std::vector<char>> bytes;  ///< of setBytes
};

struct Encoder final : Labelled {
  ~Encoder();
  CommandBuffer* commands = nullptr;
  Pipeline* pipeline = nullptr;
  Binding bindings[kBindings];
  uint32_t threadgroup_bytes[kBindings] = {};
  /// Of useResource; shared by the dispatches that follow.
  std::shared_ptr<std::vector<msl_range>> indirect = std::make_shared<std::vector<msl_range>>();
  const Fence* updated = nullptr;
  bool concurrent = false, ended = false;
};

}  // namespace fake_metal
