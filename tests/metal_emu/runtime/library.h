// Loaded kernel libraries.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "../include/emu/abi.h"
#include "emu.h"
#include "line_table.h"

namespace msl {

struct Library {
  std::string path;
  msl_library* abi = nullptr;
  uintptr_t base = 0;                ///< what addresses in the file are relative to
  uintptr_t begin = 0, end = 0;      ///< the loaded segments
  std::unique_ptr<LineTable> lines;  ///< read when first asked for
};

/// Throws std::runtime_error.
Library* open_library(const char* path, const msl_runtime* runtime);

/// file:line of a return address in any library, or "".
std::string location_of(const void* site);

/// Sets the function constants for the next dispatch and recomputes what derives from them.
void set_constants(Library& library, const msl_constant* constants, uint64_t n);
/// Of the library that set_constants was last called for.
bool constant_is_set(unsigned index);

}  // namespace msl
