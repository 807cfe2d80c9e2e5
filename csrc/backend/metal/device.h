// What the Metal backend asks of the system: buffers, libraries, pipelines, command buffers.
//
// The only implementation is device.mm. Everything that decides lies above this line in plain C++,
// so Linux compiles and tests it, and the tests execute the same command lists on a simulated
// device. The interface carries plain data and no exceptions: the implementation may live in a
// library built with another C++ runtime.
#pragma once

#include <cstdint>

namespace grebe::metal {

struct Status {
  enum Code : int32_t {
    kOk = 0,
    kUnavailable = 1,  ///< no such device, or one that lacks what the kernels need
    kOutOfMemory = 2,
    kCompile = 3,      ///< a library or pipeline was refused; the message is the compiler's
    kFault = 4,        ///< the device stopped a command buffer
    kInterrupted = 5,  ///< the wait was cut short; the command buffer is still running
  };
  int32_t code = kOk;
  char message[2044] = {};

  bool ok() const { return code == kOk; }
};

struct DeviceInfo {
  char name[128] = {};
  uint64_t max_buffer_bytes = 0;
  uint64_t working_set_bytes = 0;  ///< recommendedMaxWorkingSetSize
  uint64_t page_bytes = 0;         ///< no-copy buffers start and end at multiples of it
  bool has_residency_sets = false;
};

/// A buffer that the host and the device address alike.
struct DeviceBuffer {
  uint32_t id = 0;  ///< 0: none
  void* contents = nullptr;
  uint64_t gpu_address = 0;
  uint64_t n_bytes = 0;
};

/// Value of a function constant. All of ours are declared as uint.
struct Constant {
  uint32_t index = 0;
  uint32_t value = 0;
};

/// A range of a buffer bound at an index of a kernel.
struct Binding {
  uint32_t buffer = 0;
  uint32_t index = 0;
  uint64_t offset = 0;
};

/// One dispatch: ranges of CommandList::bindings and ::bytes.
struct Dispatch {
  uint32_t pipeline = 0;
  uint32_t barrier = 0;  ///< 1: earlier dispatches finish first and their writes are visible
  uint32_t first_binding = 0, n_bindings = 0;
  uint32_t args_offset = 0, args_bytes = 0;  ///< bound at index 0; at most 4,096 bytes
  uint32_t threadgroup_bytes = 0;            ///< threadgroup(0); a multiple of 16
  uint32_t groups[3] = {1, 1, 1};
  uint32_t threads[3] = {1, 1, 1};  ///< per threadgroup
};

/// A buffer that kernels reach through an address in another one.
struct IndirectUse {
  uint32_t buffer = 0;
  uint32_t writable = 0;
};

struct CommandList {
  const Dispatch* dispatches = nullptr;
  uint64_t n_dispatches = 0;
  const Binding* bindings = nullptr;
  const uint8_t* bytes = nullptr;
  const IndirectUse* indirect = nullptr;
  uint64_t n_indirect = 0;
  const char* label = "";
};

/// A Metal device. Command buffers are encoded, committed and waited for by one thread at a time;
/// buffers, libraries and pipelines may be made and freed by any thread meanwhile.
class Device {
 public:
  virtual ~Device() = default;
  virtual const DeviceInfo& info() const = 0;

  /// Zeroed shared memory.
  virtual Status new_buffer(uint64_t n_bytes, DeviceBuffer* out) = 0;
  /// A view of memory that outlives it, e.g. a mapped file. Base and length are multiples of
  /// page_bytes; kernels only read it.
  virtual Status wrap_memory(const void* base, uint64_t n_bytes, DeviceBuffer* out) = 0;
  virtual void free_buffer(uint32_t id) = 0;

  virtual Status new_library(const char* name, const char* source, uint32_t* library) = 0;
  virtual Status new_pipeline(
      uint32_t library,
      const char* kernel,
      const Constant* constants,
      uint64_t n_constants,
      uint32_t* pipeline,
      uint32_t* max_threads) = 0;

  /// Encodes into a new command buffer; nothing runs yet.
  virtual Status encode(const CommandList& list, uint64_t* command_buffer) = 0;
  /// Command buffers run in the order of their commits.
  virtual Status commit(uint64_t command_buffer) = 0;
  /// Waits at most timeout_ms (kInterrupted when it is not done by then). Any other result frees
  /// the command buffer.
  virtual Status wait(uint64_t command_buffer, uint64_t timeout_ms) = 0;
  /// Frees a command buffer that was not committed.
  virtual void discard(uint64_t command_buffer) = 0;
};

/// The system's default device. Null with the reason in `status`.
extern "C" Device* grebe_new_metal_device(Status* status);

}  // namespace grebe::metal
