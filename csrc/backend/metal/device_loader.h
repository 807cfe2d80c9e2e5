// Where the Metal device comes from. On macOS it is device.mm, linked in; elsewhere there is none,
// save the simulated one of the tests.
#pragma once

#include "backend/metal/device.h"

namespace grebe::metal {

/// The system's default device, or null with the reason in `status`. The caller owns it.
Device* new_device(Status* status);

}  // namespace grebe::metal
