#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "backend/metal/metal_backend.h"
#include "core/error.h"

namespace grebe {

std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options) {
  if (name == "metal" || (name == "auto" && metal::is_available())) {
    return metal::make_metal_backend(options);
  }
  if (name == "auto" || name == "cpu") return cpu::make_cpu_backend(options);
  if (name == "cuda") {
    throw BackendUnavailable(
        "backend 'cuda' is not in this build; available: auto, cpu, metal", name);
  }
  throw BackendUnavailable("there is no backend '" + name + "'; expected auto, cpu or metal", name);
}

}  // namespace grebe
