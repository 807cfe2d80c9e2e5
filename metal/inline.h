// Functions that take or return arrays or structs of a thread, or that a hot loop consists of:
// unless they become part of the kernel, what they are given lives in memory, not in registers.
#pragma once

#define GREBE_INLINE_METHOD inline __attribute__((always_inline))
#define GREBE_INLINE static GREBE_INLINE_METHOD
