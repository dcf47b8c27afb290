// The figure that benchmarks report of many repetitions: noise on a shared machine has a long tail,
// the median does not.
#pragma once

#include <algorithm>
#include <vector>

namespace tandem {

// Median of `values` (reordered); 0 if there are none.
inline double Median(std::vector<double>& values) {
  if (values.empty()) return 0.0;
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace tandem
