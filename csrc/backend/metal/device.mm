// device.h on Metal: the only Objective-C of the project (ARC, no blocks). It decides nothing that
// can be decided above it. Linux compiles the same text against tests/metal_emu.
//
// Ordering. Buffers are not hazard-tracked: within a command buffer the caller's barriers order
// dispatches; consecutive command buffers are ordered by one fence, which every encoder waits for
// at its start and updates at its end. Without it untracked work of two command buffers overlaps.
// Metal evaluates fences when command buffers are submitted, so one that is discarded leaves no
// gap.
//
// Lifetime. Command buffers do not retain what they use (hundreds of dispatches a token would pay
// for it). Pipelines live as long as the device; a buffer freed while a command buffer uses it is
// kept until that is done.
#import <Foundation/Foundation.h>
#import <Metal/Metal.h>

#include <algorithm>
#include <chrono>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "backend/metal/device_loader.h"

namespace grebe::metal {
namespace {

constexpr uint64_t kPageBytes = 16384;  // of every Apple silicon Mac
constexpr uint32_t kLeastThreadgroupBytes = 16;
constexpr uint64_t kMaxArgsBytes = 4096;  // of setBytes
constexpr uint32_t kMaxBindings = 31;
// A failed command buffer may never signal its event; its status is asked for this often.
constexpr uint64_t kPollMs = 20;
constexpr MTLResourceOptions kBufferOptions =
    MTLResourceStorageModeShared | MTLResourceHazardTrackingModeUntracked;

__attribute__((format(printf, 2, 3))) Status failure(Status::Code code, const char *format, ...) {
  Status status;
  status.code = code;
  va_list values;
  va_start(values, format);
  std::vsnprintf(status.message, sizeof(status.message), format, values);
  va_end(values);
  return status;
}

NSString *text(const char *utf8) { return [NSString stringWithUTF8String:utf8 ? utf8 : ""]; }

const char *describe(NSError *error) {
  const char *message = error.localizedDescription.UTF8String;
  return message ? message : "no reason given";
}

class MetalDevice final : public Device {
 public:
  /// Sets up everything; `status` says why not.
  explicit MetalDevice(Status *status) noexcept;
  ~MetalDevice() override;

  const DeviceInfo &info() const noexcept override { return info_; }
  Status new_buffer(uint64_t n_bytes, DeviceBuffer *out) noexcept override;
  Status wrap_memory(const void *base, uint64_t n_bytes, DeviceBuffer *out) noexcept override;
  void free_buffer(uint32_t number) noexcept override;
  Status new_library(const char *name, const char *source, uint32_t *library) noexcept override;
  Status new_pipeline(
      uint32_t library,
      const char *kernel,
      const Constant *constants,
      uint64_t n_constants,
      uint32_t *pipeline,
      uint32_t *max_threads) noexcept override;
  Status encode(const CommandList &list, uint64_t *command_buffer) noexcept override;
  Status commit(uint64_t command_buffer) noexcept override;
  Status wait(uint64_t command_buffer, uint64_t timeout_ms) noexcept override;
  void discard(uint64_t command_buffer) noexcept override;

 private:
  struct Command {
    id<MTLCommandBuffer> buffer;
    uint64_t signal = 0;            // value of done_ once it has run; 0: not committed
    std::vector<uint32_t> buffers;  // ids of those it uses, ascending
  };
  struct Retired {
    id<MTLBuffer> buffer;
    uint32_t number;
  };
  class Bindings;

  void add_buffer(id<MTLBuffer> buffer, DeviceBuffer *out);
  void release_buffer(id<MTLBuffer> buffer);
  bool is_used(uint32_t number) const;
  void forget(uint64_t command_buffer);
  bool new_queue();
  Status encode_dispatches(const CommandList &list, id<MTLComputeCommandEncoder> encoder);

  DeviceInfo info_;
  id<MTLDevice> device_;
  id<MTLCommandQueue> queue_;
  id<MTLFence> fence_;
  id<MTLSharedEvent> done_;
  // Keeps every buffer resident; null before macOS 15, where lists name what they reach indirectly.
  id<MTLResidencySet> residency_ API_AVAILABLE(macos(15.0));
  bool residency_changed_ = false;

  std::mutex mutex_;  // guards what follows; never held while compiling or waiting
  std::vector<id<MTLBuffer>> buffers_;                  // by id - 1; nil: freed
  std::vector<id<MTLLibrary>> libraries_;               // by id - 1
  std::vector<id<MTLComputePipelineState>> pipelines_;  // by id - 1
  std::map<uint64_t, Command> commands_;                // in order of encoding
  std::vector<Retired> retired_;
  uint64_t n_encoded_ = 0, n_committed_ = 0;
};

// ---- the device

MetalDevice::MetalDevice(Status *status) noexcept {
  @autoreleasepool {
    *status = Status{};
    if (@available(macOS 14.0, *)) {
    } else {
      *status = failure(Status::kUnavailable, "metal needs macOS 14 or later");
      return;
    }
    device_ = MTLCreateSystemDefaultDevice();
    if (!device_) {
      *status = failure(Status::kUnavailable, "this Mac has no Metal device");
      return;
    }
    std::snprintf(info_.name, sizeof(info_.name), "%s", device_.name.UTF8String);
    // Virtual machines show a device that claims less than it can do; tests try it all the same.
    const bool any_family = std::getenv("GREBE_TEST_METAL_ANY_FAMILY") != nullptr;
    if (!device_.hasUnifiedMemory ||
        (!any_family && ![device_ supportsFamily:MTLGPUFamilyApple7])) {
      *status = failure(
          Status::kUnavailable,
          "metal needs Apple silicon (GPU family Apple7, M1 or later); '%s' is not",
          info_.name);
      return;
    }
    info_.max_buffer_bytes = device_.maxBufferLength;
    info_.working_set_bytes = device_.recommendedMaxWorkingSetSize;
    info_.page_bytes = kPageBytes;
    if (@available(macOS 15.0, *)) {
      MTLResidencySetDescriptor *descriptor = [[MTLResidencySetDescriptor alloc] init];
      descriptor.label = @"grebe buffers";
      residency_ = [device_ newResidencySetWithDescriptor:descriptor error:nil];
      info_.has_residency_sets = residency_ != nil;
    }
    done_ = [device_ newSharedEvent];
    if (!new_queue() || !done_) {
      *status = failure(Status::kUnavailable, "'%s' gives no command queue", info_.name);
    }
  }
}

// At the start, and after a fault: Metal refuses what a queue is given after too many of them.
bool MetalDevice::new_queue() {
  id<MTLCommandQueue> queue = [device_ newCommandQueue];
  id<MTLFence> fence = [device_ newFence];
  if (!queue || !fence) return false;
  queue.label = @"grebe";
  if (@available(macOS 15.0, *)) {
    if (residency_) [queue addResidencySet:residency_];
  }
  queue_ = queue;
  fence_ = fence;
  return true;
}

MetalDevice::~MetalDevice() {
  @autoreleasepool {
    for (auto &[number, command] : commands_) {
      if (command.signal) [command.buffer waitUntilCompleted];
    }
  }
}

// ---- buffers

void MetalDevice::add_buffer(id<MTLBuffer> buffer, DeviceBuffer *out) {
  const std::lock_guard lock(mutex_);
  // Ids are not used again: one that was freed stays unknown.
  buffers_.push_back(buffer);
  out->id = static_cast<uint32_t>(buffers_.size());
  out->contents = buffer.contents;
  out->gpu_address = buffer.gpuAddress;
  out->n_bytes = buffer.length;
  if (@available(macOS 15.0, *)) {
    [residency_ addAllocation:buffer];
    residency_changed_ = true;
  }
}

Status MetalDevice::new_buffer(uint64_t n_bytes, DeviceBuffer *out) noexcept {
  @autoreleasepool {
    const uint64_t size = std::max<uint64_t>(n_bytes, 16);
    if (size > info_.max_buffer_bytes) {
      return failure(
          Status::kOutOfMemory,
          "a buffer of %llu bytes; the device allows %llu",
          static_cast<unsigned long long>(size),
          static_cast<unsigned long long>(info_.max_buffer_bytes));
    }
    id<MTLBuffer> buffer = [device_ newBufferWithLength:size options:kBufferOptions];
    if (!buffer) {
      return failure(
          Status::kOutOfMemory,
          "the device has no %llu bytes left",
          static_cast<unsigned long long>(size));
    }
    add_buffer(buffer, out);
    return {};
  }
}

Status MetalDevice::wrap_memory(const void *base, uint64_t n_bytes, DeviceBuffer *out) noexcept {
  @autoreleasepool {
    id<MTLBuffer> buffer = [device_ newBufferWithBytesNoCopy:const_cast<void *>(base)
                                                      length:n_bytes
                                                     options:kBufferOptions
                                                 deallocator:nil];
    if (!buffer) {
      return failure(
          Status::kOutOfMemory,
          "the device cannot map %llu bytes",
          static_cast<unsigned long long>(n_bytes));
    }
    add_buffer(buffer, out);
    return {};
  }
}

void MetalDevice::release_buffer(id<MTLBuffer> buffer) {
  if (@available(macOS 15.0, *)) {
    [residency_ removeAllocation:buffer];
    residency_changed_ = true;
  }
}

void MetalDevice::free_buffer(uint32_t number) noexcept {
  @autoreleasepool {
    const std::lock_guard lock(mutex_);
    if (number == 0 || number > buffers_.size()) return;
    id<MTLBuffer> buffer = std::exchange(buffers_[number - 1], nil);
    if (!buffer) return;
    if (!is_used(number)) {
      release_buffer(buffer);
      return;
    }
    try {
      retired_.push_back({buffer, number});
    } catch (...) {  // no memory to remember it: the device keeps it
      buffers_[number - 1] = buffer;
    }
  }
}

bool MetalDevice::is_used(uint32_t number) const {
  return std::any_of(commands_.begin(), commands_.end(), [&](const auto &entry) {
    const std::vector<uint32_t> &used = entry.second.buffers;
    return std::binary_search(used.begin(), used.end(), number);
  });
}

// ---- libraries and pipelines

Status MetalDevice::new_library(const char *name, const char *source, uint32_t *library) noexcept {
  @autoreleasepool {
    MTLCompileOptions *options = [[MTLCompileOptions alloc] init];
    options.languageVersion = MTLLanguageVersion3_1;
    // IEEE arithmetic: NaN and infinity mean something to the kernels, and results are compared
    // with those of the CPU.
    if (@available(macOS 15.0, *)) {
      options.mathMode = MTLMathModeSafe;
      options.mathFloatingPointFunctions = MTLMathFloatingPointFunctionsPrecise;
    } else {
      options.fastMathEnabled = NO;
    }
    NSError *error = nil;
    id<MTLLibrary> made = [device_ newLibraryWithSource:text(source) options:options error:&error];
    if (!made) return failure(Status::kCompile, "%s: %s", name, describe(error));
    made.label = text(name);
    const std::lock_guard lock(mutex_);
    libraries_.push_back(made);
    *library = static_cast<uint32_t>(libraries_.size());
    return {};
  }
}

Status MetalDevice::new_pipeline(
    uint32_t library,
    const char *kernel,
    const Constant *constants,
    uint64_t n_constants,
    uint32_t *pipeline,
    uint32_t *max_threads) noexcept {
  @autoreleasepool {
    id<MTLLibrary> from = nil;
    {
      const std::lock_guard lock(mutex_);
      if (library > 0 && library <= libraries_.size()) from = libraries_[library - 1];
    }
    if (!from) return failure(Status::kCompile, "%s: no library %u", kernel, library);
    MTLFunctionConstantValues *values = [[MTLFunctionConstantValues alloc] init];
    for (uint64_t i = 0; i < n_constants; i++) {
      [values setConstantValue:&constants[i].value type:MTLDataTypeUInt atIndex:constants[i].index];
    }
    NSError *error = nil;
    id<MTLFunction> function = [from newFunctionWithName:text(kernel)
                                          constantValues:values
                                                   error:&error];
    if (!function) return failure(Status::kCompile, "%s: %s", kernel, describe(error));
    // With a descriptor, for the label in captures and error messages.
    MTLComputePipelineDescriptor *descriptor = [[MTLComputePipelineDescriptor alloc] init];
    descriptor.label = text(kernel);
    descriptor.computeFunction = function;
    id<MTLComputePipelineState> made =
        [device_ newComputePipelineStateWithDescriptor:descriptor
                                               options:MTLPipelineOptionNone
                                            reflection:nil
                                                 error:&error];
    if (!made) return failure(Status::kCompile, "%s: %s", kernel, describe(error));
    *max_threads = static_cast<uint32_t>(made.maxTotalThreadsPerThreadgroup);
    const std::lock_guard lock(mutex_);
    pipelines_.push_back(made);
    *pipeline = static_cast<uint32_t>(pipelines_.size());
    return {};
  }
}

// ---- command buffers

Status MetalDevice::encode_dispatches(
    const CommandList &list, id<MTLComputeCommandEncoder> encoder) {
  // What the encoder has at the moment. Neighbours share most of it, and every call costs.
  struct {
    uint32_t buffer = 0;
    uint64_t offset = 0;
  } bound[kMaxBindings];
  uint32_t pipeline = 0, threadgroup_bytes = 0;
  const Dispatch *args = nullptr;

  for (uint64_t i = 0; i < list.n_indirect; i++) {
    const IndirectUse &use = list.indirect[i];
    if (info_.has_residency_sets) break;  // every buffer is resident
    if (use.buffer == 0 || use.buffer > buffers_.size() || !buffers_[use.buffer - 1]) {
      return failure(Status::kFault, "%s reaches unknown buffer %u", list.label, use.buffer);
    }
    const NSUInteger usage = MTLResourceUsageRead | (use.writable ? MTLResourceUsageWrite : 0);
    [encoder useResource:buffers_[use.buffer - 1] usage:static_cast<MTLResourceUsage>(usage)];
  }
  for (uint64_t i = 0; i < list.n_dispatches; i++) {
    const Dispatch &d = list.dispatches[i];
    if (d.pipeline == 0 || d.pipeline > pipelines_.size() || d.args_bytes > kMaxArgsBytes) {
      return failure(
          Status::kFault, "%s: bad dispatch %llu", list.label, static_cast<unsigned long long>(i));
    }
    if (d.barrier) [encoder memoryBarrierWithScope:MTLBarrierScopeBuffers];
    if (d.pipeline != pipeline) {
      pipeline = d.pipeline;
      [encoder setComputePipelineState:pipelines_[pipeline - 1]];
    }
    if (d.args_bytes > 0 &&
        (!args || args->args_bytes != d.args_bytes ||
         std::memcmp(list.bytes + args->args_offset, list.bytes + d.args_offset, d.args_bytes) !=
             0)) {
      args = &d;
      [encoder setBytes:list.bytes + d.args_offset length:d.args_bytes atIndex:0];
    }
    for (uint32_t b = 0; b < d.n_bindings; b++) {
      const Binding &binding = list.bindings[d.first_binding + b];
      if (binding.index == 0 || binding.index >= kMaxBindings || binding.buffer == 0 ||
          binding.buffer > buffers_.size() || !buffers_[binding.buffer - 1]) {
        return failure(
            Status::kFault,
            "%s: dispatch %llu binds buffer %u at %u",
            list.label,
            static_cast<unsigned long long>(i),
            binding.buffer,
            binding.index);
      }
      auto &now = bound[binding.index];
      if (now.buffer != binding.buffer) {
        [encoder setBuffer:buffers_[binding.buffer - 1]
                    offset:binding.offset
                   atIndex:binding.index];
      } else if (now.offset != binding.offset) {
        [encoder setBufferOffset:binding.offset atIndex:binding.index];
      }
      now = {binding.buffer, binding.offset};
    }
    // The length outlasts a change of pipeline, and would count against one that needs none.
    const uint32_t wanted = std::max(d.threadgroup_bytes, kLeastThreadgroupBytes);
    if (wanted != threadgroup_bytes && (d.threadgroup_bytes > 0 || threadgroup_bytes > 0)) {
      threadgroup_bytes = wanted;
      [encoder setThreadgroupMemoryLength:threadgroup_bytes atIndex:0];
    }
    [encoder dispatchThreadgroups:MTLSizeMake(d.groups[0], d.groups[1], d.groups[2])
            threadsPerThreadgroup:MTLSizeMake(d.threads[0], d.threads[1], d.threads[2])];
  }
  return {};
}

Status MetalDevice::encode(const CommandList &list, uint64_t *command_buffer) noexcept {
  @autoreleasepool {
    Command command;
    try {
      for (uint64_t i = 0; i < list.n_dispatches; i++) {
        const Dispatch &d = list.dispatches[i];
        for (uint32_t b = 0; b < d.n_bindings; b++) {
          command.buffers.push_back(list.bindings[d.first_binding + b].buffer);
        }
      }
      for (uint64_t i = 0; i < list.n_indirect; i++) {
        command.buffers.push_back(list.indirect[i].buffer);
      }
      std::sort(command.buffers.begin(), command.buffers.end());
      command.buffers.erase(
          std::unique(command.buffers.begin(), command.buffers.end()), command.buffers.end());
    } catch (...) {
      return failure(Status::kOutOfMemory, "%s: no memory to encode it", list.label);
    }
    const std::lock_guard lock(mutex_);
    command.buffer = [queue_ commandBufferWithUnretainedReferences];
    id<MTLComputeCommandEncoder> encoder =
        [command.buffer computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
    if (!encoder) return failure(Status::kFault, "%s: the queue gives no encoder", list.label);
    command.buffer.label = text(list.label);
    [encoder waitForFence:fence_];
    const Status status = encode_dispatches(list, encoder);
    [encoder updateFence:fence_];
    [encoder endEncoding];
    if (!status.ok()) return status;
    try {
      commands_.emplace(n_encoded_ + 1, std::move(command));
    } catch (...) {
      return failure(Status::kOutOfMemory, "%s: no memory to keep it", list.label);
    }
    *command_buffer = ++n_encoded_;
    return {};
  }
}

Status MetalDevice::commit(uint64_t command_buffer) noexcept {
  @autoreleasepool {
    const std::lock_guard lock(mutex_);
    const auto at = commands_.find(command_buffer);
    if (at == commands_.end() || at->second.signal) {
      return failure(Status::kFault, "a command buffer that cannot be committed");
    }
    if (@available(macOS 15.0, *)) {
      if (residency_ && residency_changed_) {
        [residency_ commit];
        [residency_ requestResidency];
        residency_changed_ = false;
      }
    }
    // Here, not in encode(): values must rise in the order of the commits.
    at->second.signal = ++n_committed_;
    [at->second.buffer encodeSignalEvent:done_ value:n_committed_];
    [at->second.buffer commit];
    return {};
  }
}

Status MetalDevice::wait(uint64_t command_buffer, uint64_t timeout_ms) noexcept {
  @autoreleasepool {
    Command command;
    {
      const std::lock_guard lock(mutex_);
      const auto at = commands_.find(command_buffer);
      if (at != commands_.end()) command = at->second;
    }
    if (!command.signal) return failure(Status::kFault, "a command buffer that was not committed");
    using Clock = std::chrono::steady_clock;
    const Clock::time_point begin = Clock::now();
    for (;;) {
      const MTLCommandBufferStatus now = command.buffer.status;
      if (now == MTLCommandBufferStatusCompleted || now == MTLCommandBufferStatusError) break;
      const uint64_t waited_ms = static_cast<uint64_t>(
          std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - begin).count());
      if (waited_ms >= timeout_ms) return failure(Status::kInterrupted, "still running");
      const uint64_t slice = std::min(timeout_ms - waited_ms, kPollMs);
      if ([done_ waitUntilSignaledValue:command.signal timeoutMS:slice]) {
        [command.buffer waitUntilCompleted];  // the signal comes a moment before the final status
        break;
      }
    }
    Status status;
    if (command.buffer.status == MTLCommandBufferStatusError) {
      NSError *error = command.buffer.error;
      status = failure(
          error.code == MTLCommandBufferErrorOutOfMemory ? Status::kOutOfMemory : Status::kFault,
          "%s: %s (Metal's code %ld)",
          command.buffer.label.UTF8String,
          describe(error),
          static_cast<long>(error.code));
    }
    forget(command_buffer);
    if (!status.ok()) {
      const std::lock_guard lock(mutex_);
      new_queue();  // without one the old queue has to do
    }
    return status;
  }
}

void MetalDevice::discard(uint64_t command_buffer) noexcept {
  @autoreleasepool {
    forget(command_buffer);
  }
}

void MetalDevice::forget(uint64_t command_buffer) {
  const std::lock_guard lock(mutex_);
  commands_.erase(command_buffer);
  const auto keep = std::partition(
      retired_.begin(), retired_.end(), [&](const Retired &r) { return is_used(r.number); });
  for (auto at = keep; at != retired_.end(); ++at) release_buffer(at->buffer);
  retired_.erase(keep, retired_.end());
}

}  // namespace

extern "C" __attribute__((visibility("default"))) Device *grebe_new_metal_device(Status *status) {
  MetalDevice *device = new MetalDevice(status);
  if (status->ok()) return device;
  delete device;
  return nullptr;
}

Device *new_device(Status *status) { return grebe_new_metal_device(status); }

}  // namespace grebe::metal
