// device.h as C functions, for driver.py. Built with device_loader.cpp and apart from the simulated
// device, as the engine is.
#include <cstring>

#include "backend/metal/device_loader.h"

using grebe::metal::Binding;
using grebe::metal::CommandList;
using grebe::metal::Constant;
using grebe::metal::Device;
using grebe::metal::DeviceBuffer;
using grebe::metal::DeviceInfo;
using grebe::metal::Dispatch;
using grebe::metal::IndirectUse;
using grebe::metal::Status;

#define DRIVER extern "C" __attribute__((visibility("default")))

DRIVER Device* driver_new(Status* status) { return grebe::metal::new_device(status); }
DRIVER void driver_delete(Device* d) { delete d; }
DRIVER void driver_info(Device* d, DeviceInfo* out) { *out = d->info(); }
DRIVER void driver_new_buffer(Device* d, uint64_t n_bytes, DeviceBuffer* out, Status* status) {
  *status = d->new_buffer(n_bytes, out);
}
DRIVER void driver_wrap(
    Device* d, const void* base, uint64_t n_bytes, DeviceBuffer* out, Status* status) {
  *status = d->wrap_memory(base, n_bytes, out);
}
DRIVER void driver_free(Device* d, uint32_t id) { d->free_buffer(id); }
DRIVER void driver_library(
    Device* d, const char* name, const char* source, uint32_t* out, Status* status) {
  *status = d->new_library(name, source, out);
}
DRIVER void driver_pipeline(
    Device* d,
    uint32_t library,
    const char* kernel,
    const Constant* constants,
    uint64_t n_constants,
    uint32_t* out,
    uint32_t* max_threads,
    Status* status) {
  *status = d->new_pipeline(library, kernel, constants, n_constants, out, max_threads);
}
DRIVER void driver_encode(
    Device* d,
    const Dispatch* dispatches,
    uint64_t n_dispatches,
    const Binding* bindings,
    const uint8_t* bytes,
    const IndirectUse* indirect,
    uint64_t n_indirect,
    const char* label,
    uint64_t* out,
    Status* status) {
  CommandList list;
  list.dispatches = dispatches;
  list.n_dispatches = n_dispatches;
  list.bindings = bindings;
  list.bytes = bytes;
  list.indirect = indirect;
  list.n_indirect = n_indirect;
  list.label = label;
  *status = d->encode(list, out);
}
DRIVER void driver_commit(Device* d, uint64_t id, Status* status) { *status = d->commit(id); }
DRIVER void driver_wait(Device* d, uint64_t id, uint64_t timeout_ms, Status* status) {
  *status = d->wait(id, timeout_ms);
}
DRIVER void driver_discard(Device* d, uint64_t id) { d->discard(id); }
