// What grebe imatrix collects of one weight.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace grebe {

/// What the columns of one weight were multiplied with.
struct InputStats {
  std::string name;  ///< of the weight
  int64_t n_in = 0;
  std::vector<double> sums;     ///< [n_matrices, n_in]: sums of squares
  std::vector<int64_t> counts;  ///< [n_matrices]: rows that were added
};

}  // namespace grebe
