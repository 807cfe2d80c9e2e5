// The device and what it makes: buffers, libraries, pipelines, residency sets.
#include <sys/mman.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>

#include "control.h"
#include "executor.h"
#include "metal_objects.h"

namespace fake_metal {

Labelled::~Labelled() {
  for (Object* object : kept) release(object);
}
void Labelled::keep(Object* object) { kept.push_back(static_cast<Object*>(retain(object))); }

// ---- buffers

namespace {

// Memory between pages that nobody may touch, so that an access far out of bounds faults and one
// nearby does not hit another buffer.
bool allocate_guarded(Buffer* buffer, NSUInteger n_bytes) {
  const size_t inner = (n_bytes + kPageBytes - 1) / kPageBytes * kPageBytes;
  const size_t total = inner + 3 * kPageBytes;  // a guard on each side, and room to align
  void* base = mmap(nullptr, total, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) return false;
  const uintptr_t first =
      (reinterpret_cast<uintptr_t>(base) + 2 * kPageBytes - 1) / kPageBytes * kPageBytes;
  buffer->mapping = base;
  buffer->mapping_bytes = total;
  buffer->contents = reinterpret_cast<void*>(first);
  buffer->n_bytes = n_bytes;
  return mprotect(buffer->contents, inner, PROT_READ | PROT_WRITE) == 0;
}

/// Whether the process may write there, as the system has it.
bool is_writable(const void* memory) {
  FILE* maps = std::fopen("/proc/self/maps", "r");
  if (!maps) return true;
  const auto address = reinterpret_cast<uintptr_t>(memory);
  bool out = true;
  char line[512];
  while (std::fgets(line, sizeof(line), maps)) {
    uintptr_t begin = 0, end = 0;
    char rights[8] = {};
    if (std::sscanf(line, "%" SCNxPTR "-%" SCNxPTR " %7s", &begin, &end, rights) != 3) continue;
    if (address >= begin && address < end) out = rights[1] == 'w';
  }
  std::fclose(maps);
  return out;
}

Object* new_buffer(Device*, SEL, NSUInteger n_bytes, NSUInteger) {
  if (n_bytes == 0 || n_bytes > settings().max_buffer_bytes.value) {
    report("newBufferWithLength: %lu bytes", n_bytes);
    return nullptr;
  }
  if (fails_now(settings().fail_allocation)) return nullptr;
  Buffer* buffer = make<Buffer>();
  counters().buffers++;
  counters().buffer_bytes += n_bytes;
  if (allocate_guarded(buffer, n_bytes)) return buffer;
  buffer->n_bytes = n_bytes;
  release(buffer);
  return nullptr;
}

Object* wrap_memory(Device*, SEL, void* memory, NSUInteger n_bytes, NSUInteger, Object*) {
  if (reinterpret_cast<uintptr_t>(memory) % kPageBytes != 0 || n_bytes % kPageBytes != 0 ||
      n_bytes == 0) {
    report(
        "newBufferWithBytesNoCopy: pointer %p or length %lu is not a multiple of the page of %lu "
        "bytes",
        memory,
        n_bytes,
        kPageBytes);
    return nullptr;
  }
  if (n_bytes > settings().max_buffer_bytes.value) {
    report("newBufferWithBytesNoCopy: %lu bytes", n_bytes);
    return nullptr;
  }
  if (fails_now(settings().fail_allocation)) return nullptr;
  Buffer* buffer = make<Buffer>();
  buffer->contents = memory;
  buffer->n_bytes = n_bytes;
  buffer->access = is_writable(memory) ? MSL_WRITABLE : MSL_IMMUTABLE;
  counters().buffers++;
  counters().buffer_bytes += n_bytes;
  return buffer;
}

}  // namespace

Resource::~Resource() {
  if (*n_users > 0) {
    report(
        "%s '%s' freed while a command buffer that uses it is not done", isa->name, label.c_str());
  }
}

Buffer::~Buffer() {
  counters().buffers--;
  counters().buffer_bytes -= n_bytes;
  if (*n_users > 0) return;  // reported; its memory stays, so that the command buffer can end
  if (contents) msl_forget(contents, n_bytes);
  if (mapping) munmap(mapping, mapping_bytes);
}

ResidencySet::~ResidencySet() {
  for (Buffer* buffer : pending) release(buffer);
}

// ---- libraries

namespace {

Object* new_library(Device*, SEL, Object* source, CompileOptions* options, Object** error) {
  if (options && options->fast_math && options->math_mode != 0) {
    report("newLibraryWithSource: fast math is on");
  }
  if (fails_now(settings().fail_library)) {
    set_error(error, 3, "program_source:1:1: error: injected failure");
    return nullptr;
  }
  Executable made = compile(string_of(source), settings().race.value != 0);
  if (!made.handle) {
    set_error(error, 3, made.error);
    return nullptr;
  }
  Library* library = make<Library>();
  library->executable = made.handle;
  return library;
}

Object* new_function(Library* self, SEL, Object* name, ConstantValues* constants, Object** error) {
  const std::string kernel = string_of(name);
  const int number = msl_find(self->executable, kernel.c_str());
  if (number < 0) {
    set_error(error, 5, "no function " + kernel + " in the library");
    return nullptr;
  }
  Function* function = make<Function>();
  function->name = kernel;
  function->library = self;
  function->keep(self);
  function->kernel = number;
  for (const auto& [index, value] : constants->values) function->constants.push_back(value);
  return function;
}

void set_constant(ConstantValues* self, SEL, const void* value, NSUInteger type, NSUInteger index) {
  static const std::map<NSUInteger, uint32_t> sizes = {
      {3, 4}, {16, 2}, {29, 4}, {33, 4}, {37, 2}, {41, 2}, {45, 1}, {49, 1}, {53, 1}};
  const auto at = sizes.find(type);
  if (at == sizes.end()) {
    report("setConstantValue: type %lu", type);
    return;
  }
  msl_constant constant{static_cast<uint32_t>(index), at->second, 0};
  std::memcpy(&constant.value, value, at->second);
  self->values[constant.index] = constant;
}

Object* new_pipeline(
    Device*, SEL, PipelineDescriptor* descriptor, NSUInteger, Object**, Object** error) {
  if (fails_now(settings().fail_pipeline)) {
    set_error(error, 2, "injected failure");
    return nullptr;
  }
  if (!descriptor->function) {
    report("newComputePipelineStateWithDescriptor: no function");
    set_error(error, 3, "computeFunction is nil");
    return nullptr;
  }
  Pipeline* pipeline = make<Pipeline>();
  pipeline->function = descriptor->function;
  pipeline->keep(descriptor->function);
  pipeline->label = descriptor->label;
  return pipeline;
}

// ---- residency

Object* new_residency_set(Device*, SEL, Object*, Object** error) {
  if (!settings().residency_sets.value) {
    set_error(error, 1, "residency sets are not supported");
    return nullptr;
  }
  return make<ResidencySet>();
}

void add_allocation(ResidencySet* self, SEL, Buffer* buffer) {
  const std::lock_guard lock(self->mutex);
  self->pending.push_back(static_cast<Buffer*>(retain(buffer)));
  self->changed = true;
}

void remove_allocation(ResidencySet* self, SEL, Buffer* buffer) {
  const std::lock_guard lock(self->mutex);
  const auto at = std::find(self->pending.begin(), self->pending.end(), buffer);
  if (at == self->pending.end()) {
    report("removeAllocation: the buffer is not in the set");
    return;
  }
  self->pending.erase(at);
  self->live.erase(std::remove(self->live.begin(), self->live.end(), buffer), self->live.end());
  self->changed = true;
  release(buffer);
}

void commit_set(ResidencySet* self, SEL) {
  const std::lock_guard lock(self->mutex);
  self->live = self->pending;
  self->changed = false;
}

void request_residency(ResidencySet* self, SEL) {
  const std::lock_guard lock(self->mutex);
  if (self->changed) report("requestResidency with uncommitted allocations");
}

}  // namespace

void define_device_classes() {
  Class* root = root_class();
  Class* labelled = define<Labelled>("FakeLabelled", root);
  add_method(
      labelled, "label", +[](Labelled* self, SEL) -> Object* {
        return autoreleased(new_string(self->label));
      });
  add_method(
      labelled, "setLabel:", +[](Labelled* self, SEL, Object* text) {
        self->label = string_of(text);
      });

  Class* options = define<CompileOptions>("MTLCompileOptions", root);
  allow_alloc<CompileOptions>();
  add_method(
      options, "setFastMathEnabled:", +[](CompileOptions* self, SEL, bool on) {
        self->fast_math = on;
      });
  add_method(
      options, "setLanguageVersion:", +[](CompileOptions* self, SEL, NSUInteger version) {
        if (version != (3 << 16) + 1) report("setLanguageVersion: %lu is not 3.1", version);
        self->language = version;
      });
  add_method(
      options, "setMathMode:", +[](CompileOptions* self, SEL, NSInteger mode) {
        self->math_mode = mode;
      });
  add_method(
      options, "setMathFloatingPointFunctions:", +[](CompileOptions* self, SEL, NSInteger mode) {
        self->math_functions = mode;
      });

  Class* constants = define<ConstantValues>("MTLFunctionConstantValues", root);
  allow_alloc<ConstantValues>();
  add_method(constants, "setConstantValue:type:atIndex:", set_constant);

  Class* descriptor = define<PipelineDescriptor>("MTLComputePipelineDescriptor", labelled);
  allow_alloc<PipelineDescriptor>();
  add_method(
      descriptor, "setComputeFunction:", +[](PipelineDescriptor* self, SEL, Function* function) {
        self->function = function;
        self->keep(function);
      });

  define<ResidencyDescriptor>("MTLResidencySetDescriptor", labelled);
  allow_alloc<ResidencyDescriptor>();
  Class* set = define<ResidencySet>("FakeResidencySet", labelled);
  add_method(set, "addAllocation:", add_allocation);
  add_method(set, "removeAllocation:", remove_allocation);
  add_method(set, "commit", commit_set);
  add_method(set, "requestResidency", request_residency);

  Class* buffer = define<Buffer>("FakeBuffer", labelled);
  add_method(buffer, "contents", +[](Buffer* self, SEL) -> void* { return self->contents; });
  add_method(buffer, "length", +[](Buffer* self, SEL) -> NSUInteger { return self->n_bytes; });
  add_method(
      buffer, "gpuAddress", +[](Buffer* self, SEL) -> NSUInteger {
        return reinterpret_cast<NSUInteger>(self->contents);
      });

  Class* library = define<Library>("FakeLibrary", labelled);
  add_method(library, "newFunctionWithName:constantValues:error:", new_function);
  define<Function>("FakeFunction", labelled);
  Class* pipeline = define<Pipeline>("FakePipeline", labelled);
  add_method(
      pipeline, "maxTotalThreadsPerThreadgroup", +[](Pipeline*, SEL) -> NSUInteger {
        return settings().max_threads.value;
      });

  Class* device = define<Device>("FakeDevice", root);
  add_method(
      device, "name", +[](Device*, SEL) -> Object* {
        return autoreleased(new_string("simulated Metal device"));
      });
  add_method(
      device, "hasUnifiedMemory", +[](Device*, SEL) -> bool {
        return settings().unified_memory.value != 0;
      });
  add_method(
      device, "supportsFamily:", +[](Device*, SEL, NSInteger family) -> bool {
        return family <= (settings().apple7.value ? 1007 : 1005);
      });
  add_method(
      device, "maxBufferLength", +[](Device*, SEL) -> NSUInteger {
        return settings().max_buffer_bytes.value;
      });
  add_method(
      device, "recommendedMaxWorkingSetSize", +[](Device*, SEL) -> NSUInteger {
        return settings().working_set_bytes.value;
      });
  add_method(device, "newBufferWithLength:options:", new_buffer);
  add_method(device, "newBufferWithBytesNoCopy:length:options:deallocator:", wrap_memory);
  add_method(device, "newLibraryWithSource:options:error:", new_library);
  add_method(
      device, "newComputePipelineStateWithDescriptor:options:reflection:error:", new_pipeline);
  add_method(device, "newResidencySetWithDescriptor:error:", new_residency_set);
}

}  // namespace fake_metal

extern "C" void* MTLCreateSystemDefaultDevice() { return fake_metal::make<fake_metal::Device>(); }
