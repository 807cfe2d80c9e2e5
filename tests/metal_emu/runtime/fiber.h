// A fiber is a stack and what a function call must preserve.
#pragma once

#include <cstddef>

namespace msl {

/// Saves the running fiber's stack pointer in *save and continues the fiber that `load` was saved
/// from.
extern "C" void msl_fiber_switch(void** save, void* load);

/// Prepares a fiber on [stack, stack + n_bytes); switching to the result calls `entry`, which must
/// not return.
void* new_fiber(char* stack, size_t n_bytes, void (*entry)());

}  // namespace msl
