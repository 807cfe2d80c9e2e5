#define GREBE_ISA neon
#define GREBE_ISA_NEON
#include "backend/cpu/ops_impl.h"
