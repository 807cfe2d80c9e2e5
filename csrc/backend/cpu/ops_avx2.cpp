#define GREBE_ISA avx2
#define GREBE_ISA_AVX2
#include "backend/cpu/ops_impl.h"
