// Queues, command buffers, encoders, events and fences; and what Metal's validation refuses.
#include <chrono>
#include <cstring>

#include "control.h"
#include "metal_objects.h"

namespace fake_metal {
namespace {

uint64_t next_hazard() {
  static std::atomic<uint64_t> n{0};
  return ++n;
}

}  // namespace

// ---- queues

Queue::Queue() : shared(std::make_shared<Shared>()), hazard(next_hazard()) {
  thread = std::thread([shared = shared] {
    for (;;) {
      std::function<void()> work;
      {
        std::unique_lock lock(shared->mutex);
        shared->changed.wait(lock, [&] { return shared->stop || !shared->work.empty(); });
        if (shared->work.empty()) return;
        work = std::move(shared->work.front());
        shared->work.pop_front();
      }
      work();
    }
  });
}

Queue::~Queue() {
  {
    const std::lock_guard lock(shared->mutex);
    shared->stop = true;
  }
  shared->changed.notify_all();
  // The last command buffer may hold the last reference, on the queue's own thread.
  if (thread.get_id() == std::this_thread::get_id()) {
    thread.detach();
  } else {
    thread.join();
  }
  for (ResidencySet* set : residency) release(set);
}

void Queue::submit(std::function<void()> work) {
  {
    const std::lock_guard lock(shared->mutex);
    shared->work.push_back(std::move(work));
  }
  shared->changed.notify_all();
}

// ---- events

void SharedEvent::signal(uint64_t to) {
  {
    const std::lock_guard lock(mutex);
    value = to;
  }
  changed.notify_all();
}

bool SharedEvent::wait(uint64_t at_least, uint64_t milliseconds) {
  std::unique_lock lock(mutex);
  return changed.wait_for(
      lock, std::chrono::milliseconds(milliseconds), [&] { return value >= at_least; });
}

// ---- command buffers

CommandBuffer::~CommandBuffer() {
  if (encoding) report("command buffer '%s' released with an open encoder", label.c_str());
  done();
  release(error);
  release(queue);
}

void CommandBuffer::use(Resource* resource) {
  if (retains) {
    keep(resource);
  } else {
    ++*resource->n_users;
    users.push_back(resource->n_users);
  }
}

void CommandBuffer::done() {
  for (const auto& n : users) --*n;
  users.clear();
}

namespace {

Object* new_command_buffer(Queue* queue, bool retains) {
  CommandBuffer* buffer = make<CommandBuffer>();
  buffer->queue = static_cast<Queue*>(retain(queue));
  buffer->retains = retains;
  return autoreleased(buffer);
}

const char* describe_error(uint64_t code) {
  switch (code) {
    case 2:
      return "Caused GPU Timeout Error (00000002:kIOGPUCommandBufferCallbackErrorTimeout)";
    case 3:
      return "Caused GPU Address Fault Error (0000000b:kIOGPUCommandBufferCallbackErrorPageFault)";
    case 8:
      return "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)";
    default:
      return "Internal Error (0000000e:Internal Error)";
  }
}

void finish(CommandBuffer* self, CommandStatus status) {
  self->done();
  {
    const std::lock_guard lock(self->mutex);
    self->status = status;
  }
  self->changed.notify_all();
}

void run(CommandBuffer* self, uint64_t failure) {
  while (settings().hold.value) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  if (failure) {
    // Nothing of it happens; its event is not signalled.
    Error* error = make<Error>(static_cast<NSInteger>(failure), describe_error(failure));
    {
      const std::lock_guard lock(self->mutex);
      self->error = error;
    }
    finish(self, kFailed);
  } else {
    for (const auto& work : self->work) work(*self->queue);
    finish(self, kCompleted);
  }
  release(self);
}

void commit(CommandBuffer* self, SEL) {
  if (self->encoding) {
    report("commit of '%s' with an open encoder", self->label.c_str());
    return;
  }
  {
    const std::lock_guard lock(self->mutex);
    if (self->status != kNotEnqueued) {
      report("command buffer '%s' committed twice", self->label.c_str());
      return;
    }
    self->status = kCommitted;
  }
  for (ResidencySet* set : self->queue->residency) {
    const std::lock_guard lock(set->mutex);
    for (const Buffer* buffer : set->live) {
      self->resident.push_back({buffer->contents, buffer->n_bytes, buffer->access, 0});
    }
  }
  counters().command_buffers++;
  const uint64_t failure =
      fails_now(settings().fail_command) ? settings().fail_command_code.value.load() : 0;
  retain(self);
  self->queue->submit([self, failure] { run(self, failure); });
}

CommandStatus status_of(CommandBuffer* self) {
  const std::lock_guard lock(self->mutex);
  return self->status;
}

void wait_until_completed(CommandBuffer* self, SEL) {
  std::unique_lock lock(self->mutex);
  if (self->status == kNotEnqueued) {
    report("waitUntilCompleted before commit");
    return;
  }
  self->changed.wait(lock, [&] { return self->status >= kCompleted; });
}

void encode_signal(CommandBuffer* self, SEL, SharedEvent* event, NSUInteger value) {
  if (self->encoding) {
    report("encodeSignalEvent with an open encoder");
    return;
  }
  if (status_of(self) != kNotEnqueued) {
    report("encodeSignalEvent on a committed command buffer");
    return;
  }
  self->keep(event);
  self->work.push_back([event, value](Queue&) { event->signal(value); });
}

// ---- encoders

Object* new_encoder(CommandBuffer* self, SEL, NSUInteger type) {
  if (self->encoding) {
    report("a second encoder was opened before endEncoding");
    return nullptr;
  }
  if (status_of(self) != kNotEnqueued) {
    report("an encoder on a committed command buffer");
    return nullptr;
  }
  self->encoding = true;
  Encoder* encoder = make<Encoder>();
  encoder->commands = static_cast<CommandBuffer*>(retain(self));
  encoder->concurrent = type == 1;
  return autoreleased(encoder);
}

bool is_open(Encoder* self, const char* what) {
  if (!self->ended) return true;
  report("%s after endEncoding", what);
  return false;
}

void set_pipeline(Encoder* self, SEL, Pipeline* pipeline) {
  if (!is_open(self, "setComputePipelineState")) return;
  if (!pipeline) {
    report("setComputePipelineState: nil");
    return;
  }
  self->pipeline = pipeline;
}

bool check_range(const Buffer* buffer, NSUInteger offset, const char* what) {
  if (offset >= buffer->n_bytes) {
    report(
        "%s: offset %lu is past the end of a buffer of %lu bytes", what, offset, buffer->n_bytes);
    return false;
  }
  // Stricter than Metal, which asks for the alignment of the type that the kernel reads.
  if (offset % 4 != 0) {
    report("%s: offset %lu is not a multiple of 4", what, offset);
    return false;
  }
  return true;
}

void set_buffer(Encoder* self, SEL, Buffer* buffer, NSUInteger offset, NSUInteger index) {
  if (!is_open(self, "setBuffer")) return;
  if (index >= kBindings) {
    report("setBuffer: index %lu", index);
    return;
  }
  self->bindings[index] = {};
  if (!buffer || !check_range(buffer, offset, "setBuffer")) return;
  self->bindings[index].buffer = buffer;
  self->bindings[index].offset = offset;
}

void set_offset(Encoder* self, SEL, NSUInteger offset, NSUInteger index) {
  if (!is_open(self, "setBufferOffset")) return;
  if (index >= kBindings || !self->bindings[index].buffer) {
    report("setBufferOffset: no buffer at index %lu", index);
    return;
  }
  if (!check_range(self->bindings[index].buffer, offset, "setBufferOffset")) return;
  self->bindings[index].offset = offset;
}

void set_bytes(Encoder* self, SEL, const void* bytes, NSUInteger n_bytes, NSUInteger index) {
  if (!is_open(self, "setBytes")) return;
  if (index >= kBindings || n_bytes == 0 || n_bytes > kMaxSetBytes) {
    report("setBytes: %lu bytes at index %lu", n_bytes, index);
    return;
  }
  const char* begin = static_cast<const char*>(bytes);
  self->bindings[index] = {};
  self->bindings[index].bytes = std::make_shared<const std::vector<char>>(begin, begin + n_bytes);
}

void set_threadgroup_memory(Encoder* self, SEL, NSUInteger n_bytes, NSUInteger index) {
  if (!is_open(self, "setThreadgroupMemoryLength")) return;
  if (index >= kBindings || n_bytes == 0 || n_bytes % 16 != 0 || n_bytes > kMaxThreadgroupBytes) {
    report("setThreadgroupMemoryLength: %lu bytes at index %lu", n_bytes, index);
    return;
  }
  self->threadgroup_bytes[index] = static_cast<uint32_t>(n_bytes);
}

void use_resource(Encoder* self, SEL, Buffer* buffer, NSUInteger usage) {
  if (!is_open(self, "useResource")) return;
  const int access = usage & 2 ? buffer->access : std::max<int>(buffer->access, MSL_READ_ONLY);
  // Dispatches that were encoded before keep what they had.
  self->indirect = std::make_shared<std::vector<msl_range>>(*self->indirect);
  self->indirect->push_back({buffer->contents, buffer->n_bytes, access, 0});
  self->commands->use(buffer);
}

void dispatch(Encoder* self, SEL, Size groups, Size threads) {
  if (!is_open(self, "dispatchThreadgroups")) return;
  if (!self->pipeline) {
    report("dispatchThreadgroups without a pipeline");
    return;
  }
  if (groups.width * groups.height * groups.depth == 0) {
    report("dispatchThreadgroups: an empty grid");
    return;
  }
  const NSUInteger n_threads = threads.width * threads.height * threads.depth;
  if (n_threads == 0 || n_threads > std::min(kMaxThreads, settings().max_threads.value.load())) {
    report("dispatchThreadgroups: %lu threads in a threadgroup", n_threads);
    return;
  }
  struct Call {
    void* executable;
    int kernel;
    std::vector<msl_constant> constants;
    std::vector<msl_bind> binds;
    std::vector<std::shared_ptr<const std::vector<char>>> bytes;
    std::shared_ptr<const std::vector<msl_range>> indirect;
    uint32_t threadgroup_bytes[kBindings];
    uint32_t groups[3], threads[3];
  };
  auto call = std::make_shared<Call>();
  const Function* function = self->pipeline->function;
  call->executable = function->library->executable;
  call->kernel = function->kernel;
  call->constants = function->constants;
  for (NSUInteger i = 0; i < kBindings; i++) {
    const Binding& b = self->bindings[i];
    if (b.buffer) {
      self->commands->use(b.buffer);
      call->binds.push_back(
          {static_cast<char*>(b.buffer->contents) + b.offset,
           b.buffer->n_bytes - b.offset,
           static_cast<int32_t>(i),
           b.buffer->access});
    } else if (b.bytes) {
      call->bytes.push_back(b.bytes);
      call->binds.push_back(
          {const_cast<char*>(b.bytes->data()),
           b.bytes->size(),
           static_cast<int32_t>(i),
           MSL_IMMUTABLE});
    }
  }
  self->commands->use(self->pipeline);
  call->indirect = self->indirect;
  std::memcpy(call->threadgroup_bytes, self->threadgroup_bytes, sizeof(call->threadgroup_bytes));
  const NSUInteger sizes[2][3] = {
      {groups.width, groups.height, groups.depth}, {threads.width, threads.height, threads.depth}};
  for (int i = 0; i < 3; i++) {
    call->groups[i] = static_cast<uint32_t>(sizes[0][i]);
    call->threads[i] = static_cast<uint32_t>(sizes[1][i]);
  }
  counters().dispatches++;
  self->commands->work.push_back(
      [call, commands = self->commands, concurrent = self->concurrent](Queue& queue) {
        if (!settings().execute.value) return;
        if (!concurrent) queue.hazard = next_hazard();
        msl_run run{};
        run.kernel = call->kernel;
        std::memcpy(run.grid, call->groups, sizeof(run.grid));
        std::memcpy(run.threads, call->threads, sizeof(run.threads));
        run.binds = call->binds.data();
        run.n_binds = call->binds.size();
        const std::vector<msl_range>& indirect =
            commands->resident.empty() ? *call->indirect : commands->resident;
        run.indirect = indirect.data();
        run.n_indirect = indirect.size();
        run.constants = call->constants.data();
        run.n_constants = call->constants.size();
        run.threadgroup_bytes = call->threadgroup_bytes;
        run.seed = settings().seed.value;
        run.hazard = queue.hazard;
        run.n_workers = static_cast<int32_t>(settings().workers.value);
        msl_dispatch(call->executable, &run);  // failures are among its reports
      });
}

void barrier(Encoder* self, SEL, NSUInteger) {
  if (!is_open(self, "memoryBarrierWithScope")) return;
  counters().barriers++;
  if (settings().ignore_barriers.value) return;
  self->commands->work.push_back([](Queue& queue) { queue.hazard = next_hazard(); });
}

// Without a fence that an earlier encoder updated, what the two do is not ordered.
void wait_for_fence(Encoder* self, SEL, Fence* fence) {
  if (!is_open(self, "waitForFence")) return;
  if (self->updated == fence) report("waitForFence after updateFence in the same encoder");
  self->commands->keep(fence);
  self->commands->work.push_back([fence](Queue& queue) {
    if (fence->updated) queue.hazard = next_hazard();
  });
}

void update_fence(Encoder* self, SEL, Fence* fence) {
  if (!is_open(self, "updateFence")) return;
  self->updated = fence;
  self->commands->keep(fence);
  self->commands->work.push_back([fence](Queue&) { fence->updated = true; });
}

void end_encoding(Encoder* self, SEL) {
  if (self->ended) {
    report("endEncoding twice");
    return;
  }
  self->ended = true;
  self->commands->encoding = false;
}

}  // namespace

Encoder::~Encoder() {
  if (!ended) {
    report("a compute encoder was released before endEncoding");
    commands->encoding = false;
  }
  release(commands);
}

void define_command_classes() {
  Class* labelled = find_class("FakeLabelled");
  Class* root = root_class();

  Class* queue = define<Queue>("FakeCommandQueue", labelled);
  add_method(
      queue, "commandBuffer", +[](Queue* self, SEL) { return new_command_buffer(self, true); });
  add_method(
      queue, "commandBufferWithUnretainedReferences", +[](Queue* self, SEL) {
        return new_command_buffer(self, false);
      });
  add_method(
      queue, "addResidencySet:", +[](Queue* self, SEL, ResidencySet* set) {
        self->residency.push_back(static_cast<ResidencySet*>(retain(set)));
      });

  Class* event = define<SharedEvent>("FakeSharedEvent", root);
  add_method(
      event, "signaledValue", +[](SharedEvent* self, SEL) -> NSUInteger {
        const std::lock_guard lock(self->mutex);
        return self->value;
      });
  add_method(
      event,
      "waitUntilSignaledValue:timeoutMS:",
      +[](SharedEvent* self, SEL, NSUInteger value, NSUInteger ms) {
        return self->wait(value, ms);
      });
  define<Fence>("FakeFence", root);

  Class* commands = define<CommandBuffer>("FakeCommandBuffer", labelled);
  add_method(commands, "computeCommandEncoderWithDispatchType:", new_encoder);
  add_method(commands, "commit", commit);
  add_method(commands, "waitUntilCompleted", wait_until_completed);
  add_method(
      commands, "status", +[](CommandBuffer* self, SEL) -> NSUInteger { return status_of(self); });
  add_method(
      commands, "error", +[](CommandBuffer* self, SEL) -> Object* {
        const std::lock_guard lock(self->mutex);
        return self->error;
      });
  add_method(commands, "encodeSignalEvent:value:", encode_signal);

  Class* encoder = define<Encoder>("FakeComputeEncoder", labelled);
  add_method(encoder, "setComputePipelineState:", set_pipeline);
  add_method(encoder, "setBuffer:offset:atIndex:", set_buffer);
  add_method(encoder, "setBufferOffset:atIndex:", set_offset);
  add_method(encoder, "setBytes:length:atIndex:", set_bytes);
  add_method(encoder, "setThreadgroupMemoryLength:atIndex:", set_threadgroup_memory);
  add_method(encoder, "useResource:usage:", use_resource);
  add_method(encoder, "dispatchThreadgroups:threadsPerThreadgroup:", dispatch);
  add_method(encoder, "memoryBarrierWithScope:", barrier);
  add_method(encoder, "waitForFence:", wait_for_fence);
  add_method(encoder, "updateFence:", update_fence);
  add_method(encoder, "endEncoding", end_encoding);

  Class* device = find_class("FakeDevice");
  add_method(device, "newCommandQueue", +[](Device*, SEL) -> Object* { return make<Queue>(); });
  add_method(
      device, "newSharedEvent", +[](Device*, SEL) -> Object* { return make<SharedEvent>(); });
  add_method(device, "newFence", +[](Device*, SEL) -> Object* { return make<Fence>(); });
}

}  // namespace fake_metal
