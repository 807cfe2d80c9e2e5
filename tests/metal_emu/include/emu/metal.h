// The stand-in for <metal_stdlib>, put before the rewritten text of a library.
#pragma once

#include "atomic.h"
#include "composite.h"
#include "simd_matrix.h"
