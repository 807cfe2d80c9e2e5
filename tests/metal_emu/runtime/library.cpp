#include "library.h"

#include <dlfcn.h>
#include <link.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace msl {
namespace {

struct Libraries {
  std::mutex mutex;
  std::vector<Library*> all;
};

Libraries& libraries() {
  static Libraries* loaded = new Libraries;
  return *loaded;
}

std::vector<unsigned> constants_set;

int find_segments(dl_phdr_info* info, size_t, void* data) {
  Library& library = *static_cast<Library*>(data);
  if (info->dlpi_addr != library.base) return 0;
  library.begin = ~uintptr_t{0};
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& segment = info->dlpi_phdr[i];
    if (segment.p_type != PT_LOAD) continue;
    const uintptr_t begin = library.base + segment.p_vaddr;
    library.begin = std::min(library.begin, begin);
    library.end = std::max(library.end, begin + segment.p_memsz);
  }
  return 1;
}

}  // namespace

Library* open_library(const char* path, const msl_runtime* runtime) {
  void* handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle) throw std::runtime_error(dlerror());
  Libraries& loaded = libraries();
  std::lock_guard lock(loaded.mutex);
  auto* abi = static_cast<msl_library*>(dlsym(handle, "__msl_library"));
  for (Library* library : loaded.all) {
    if (library->abi == abi) return library;  // opened before
  }
  if (!abi || abi->version != kMslAbiVersion) {
    throw std::runtime_error(std::string(path) + " is not a kernel library of this version");
  }
  auto library = std::make_unique<Library>();
  library->path = path;
  library->abi = abi;
  link_map* map = nullptr;
  dlinfo(handle, RTLD_DI_LINKMAP, &map);
  library->base = static_cast<uintptr_t>(map->l_addr);
  dl_iterate_phdr(find_segments, library.get());
  abi->runtime = runtime;
  loaded.all.push_back(library.get());
  return library.release();
}

std::string location_of(const void* site) {
  const auto address = reinterpret_cast<uintptr_t>(site);
  Libraries& loaded = libraries();
  std::lock_guard lock(loaded.mutex);
  for (Library* library : loaded.all) {
    if (address < library->begin || address >= library->end) continue;
    if (!library->lines) library->lines = std::make_unique<LineTable>(library->path);
    // The call is before its return address.
    return library->lines->find(address - library->base - 1);
  }
  return "";
}

void set_constants(Library& library, const msl_constant* constants, uint64_t n) {
  constants_set.clear();
  for (unsigned i = 0; i < library.abi->n_constants; ++i) {
    const msl_function_constant& declared = library.abi->constants[i];
    memset(declared.storage, 0, declared.size);
    for (uint64_t k = 0; k < n; ++k) {
      if (constants[k].index != declared.index) continue;
      if (constants[k].size && constants[k].size != declared.size) {
        throw std::runtime_error(
            std::string("function constant ") + declared.name + " has another size");
      }
      memcpy(declared.storage, &constants[k].value, declared.size);  // little-endian
      constants_set.push_back(declared.index);
    }
  }
  for (unsigned i = 0; i < library.abi->n_initialisers; ++i) library.abi->initialisers[i]();
}

bool constant_is_set(unsigned index) {
  return std::find(constants_set.begin(), constants_set.end(), index) != constants_set.end();
}

}  // namespace msl
