// The Metal backend: records the ops of a step, joins neighbours that run better together, and
// hands command lists to the device.
#pragma once

#include <memory>

#include "backend/backend.h"

namespace grebe::metal {

/// Throws BackendUnavailable with the reason when there is no usable device.
std::unique_ptr<Backend> make_metal_backend(const BackendOptions& options);

/// Whether this machine has a usable device ("auto" prefers it).
bool is_available();

}  // namespace grebe::metal
