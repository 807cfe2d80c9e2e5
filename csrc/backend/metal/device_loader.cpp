// The device of systems without Metal. Tests name a library with the simulated one (device.mm built
// against tests/metal_emu) in GREBE_TEST_METAL_DEVICE. It brings a C++ runtime of its own, hence
// the plain-data interface of device.h.
#include "backend/metal/device_loader.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace grebe::metal {

Device* new_device(Status* status) {
  status->code = Status::kUnavailable;
  const char* path = std::getenv("GREBE_TEST_METAL_DEVICE");
  if (!path || !*path) {
    std::snprintf(status->message, sizeof(status->message), "metal needs macOS on Apple silicon");
    return nullptr;
  }
  // Never closed: its threads and classes live as long as the process.
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  void* create = library ? dlsym(library, "grebe_new_metal_device") : nullptr;
  if (!create) {
    const char* why = dlerror();
    std::snprintf(
        status->message,
        sizeof(status->message),
        "GREBE_TEST_METAL_DEVICE: %s",
        why ? why : "no grebe_new_metal_device in it");
    return nullptr;
  }
  return reinterpret_cast<decltype(&grebe_new_metal_device)>(create)(status);
}

}  // namespace grebe::metal
