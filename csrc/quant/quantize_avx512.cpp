#define GREBE_ISA avx512
#include "quant/quantize_impl.h"
