// Kernel text -> executable library, through the emulator's compiler.
#pragma once

#include <string>

namespace fake_metal {

struct Executable {
  void* handle = nullptr;  ///< of runtime/emu.h; null: see `error`
  std::string error;       ///< the compiler's messages
};

/// Compiles with the command in METAL_EMU_COMPILER, to which `FILE -o LIBRARY [--race]` is added.
/// The same text is compiled once a process. Thread-safe; different texts compile in parallel.
///
/// Libraries are kept in METAL_EMU_CACHE (default: a folder beside this library). With
/// METAL_EMU_STAMP, a value that changes with the compiler, one that is there is not made again.
Executable compile(const std::string& source, bool race);

}  // namespace fake_metal
