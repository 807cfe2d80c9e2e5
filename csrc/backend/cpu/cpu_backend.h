#pragma once

#include <memory>

#include "backend/backend.h"

namespace grebe::cpu {

std::unique_ptr<Backend> make_cpu_backend(const BackendOptions& options);

}  // namespace grebe::cpu
