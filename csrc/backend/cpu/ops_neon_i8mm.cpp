#define GREBE_ISA neon_i8mm
#define GREBE_ISA_NEON_I8MM
#define GREBE_ISA_NEON
#include "backend/cpu/ops_impl.h"
