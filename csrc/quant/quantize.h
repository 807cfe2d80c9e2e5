// Floats to quantized blocks, with the least weighted squared error that a search of reasonable
// cost finds.
//
// For a row x and importances w (mean squared activations of the row's input columns) the
// quantizers minimise sum of w (x - x')^2, which to second order is the expected square of the
// error of the row's dot products. No format has a closed form; every family alternates between
// codes for given scales and least-squares scales for given codes, from several starts, and counts
// the error of what will be stored: scales already rounded to f16 and to their small integers.
//
// The bytes depend on the input alone: not on the number of threads, and not on the instruction
// set (quant/lanes.h).
#pragma once

#include <cstdint>

#include "core/cpu_features.h"
#include "core/dtype.h"
#include "core/thread_pool.h"

namespace grebe {

/// Whether quantize() makes blocks of this type: Q8_0, Q2_K, Q4_K, Q5_K, Q6_K, IQ2_XXS, IQ2_S,
/// IQ3_XXS, MXFP4.
bool can_quantize(DType dtype);

/// n_rows rows of n_in floats to blocks. `importance`: n_in weights >= 0 of the columns, or null
/// for equal ones. Only their ratios count; a column of weight 0 is kept as well as is free.
/// Throws InvalidArgument for a type without quantizer, for rows that do not divide into blocks,
/// and for a value that is not finite, naming its row and column.
void quantize(
    ThreadPool& pool,
    Isa isa,
    DType dtype,
    const float* x,
    int64_t n_rows,
    int64_t n_in,
    const float* importance,
    uint8_t* out);

}  // namespace grebe
