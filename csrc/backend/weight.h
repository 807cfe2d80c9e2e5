// A weight: what a backend must know of a tensor to multiply with it.
//
// The bytes stay in the format of the file. A weight is a handle: dense weights are resident, the
// experts of a mixture may not be (paging from SSD), so a backend asks for each expert's rows
// through expert_data() at the time of use.
#pragma once

#include <cstdint>
#include <string>

#include "core/dtype.h"

namespace grebe {

struct Weight {
  std::string name;
  DType dtype = DType::kF32;
  int64_t n_in = 0;       ///< row length: columns of the matrix, contiguous
  int64_t n_out = 0;      ///< rows of the matrix (of one expert)
  int64_t n_experts = 1;  ///< matrices stacked in the tensor
  const uint8_t* data = nullptr;
  /// kF8E4M3 only: E8M0 scales u8[n_experts, ceil(n_out/128), ceil(n_in/128)].
  const uint8_t* scale = nullptr;

  explicit operator bool() const { return data != nullptr; }

  uint64_t row_bytes() const {
    const DTypeInfo info = dtype_info(dtype);
    return static_cast<uint64_t>(n_in) / info.block_size * info.block_bytes;
  }
  uint64_t expert_bytes() const { return row_bytes() * static_cast<uint64_t>(n_out); }
  uint64_t n_bytes() const { return expert_bytes() * static_cast<uint64_t>(n_experts); }

  /// Rows of one expert, u8[n_out, row_bytes()].
  const uint8_t* expert_data(int64_t i_expert) const { return data + expert_bytes() * i_expert; }
  const uint8_t* expert_scale(int64_t i_expert) const {
    return scale ? scale + ((n_out + 127) / 128) * ((n_in + 127) / 128) * i_expert : nullptr;
  }
};

}  // namespace grebe
