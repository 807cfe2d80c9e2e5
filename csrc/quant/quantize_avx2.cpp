#define GREBE_ISA avx2
#include "quant/quantize_impl.h"
