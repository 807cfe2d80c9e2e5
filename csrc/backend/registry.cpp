#include "backend/backend.h"
#include "backend/cpu/cpu_backend.h"
#include "core/error.h"

namespace grebe {

std::unique_ptr<Backend> make_backend(const std::string& name, const BackendOptions& options) {
  if (name == "auto" || name == "cpu") return cpu::make_cpu_backend(options);
  if (name == "metal" || name == "cuda") {
    throw BackendUnavailable("backend '" + name + "' is not in this build; available: cpu", name);
  }
  throw BackendUnavailable("there is no backend '" + name + "'; expected auto or cpu", name);
}

}  // namespace grebe
