// The smallest program around device.mm, for linking it as a Mac would.
#include <cstdio>

#include "backend/metal/device_loader.h"

int main() {
  grebe::metal::Status status;
  grebe::metal::Device* device = grebe::metal::new_device(&status);
  std::printf("%s\n", device ? device->info().name : status.message);
  delete device;
  return status.code;
}
