#define GREBE_ISA avx512
#define GREBE_ISA_AVX512
#include "backend/cpu/ops_impl.h"
