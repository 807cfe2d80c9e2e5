#define GREBE_ISA generic
#include "quant/quantize_impl.h"
