#include "dispatch/cost_correction.h"

#include <algorithm>
#include <cmath>

namespace tandem {

double CostCorrection::Factor(int slot) const {
  if (slot < 0 || static_cast<size_t>(slot) >= factors_.size()) return 1.0;
  return factors_[static_cast<size_t>(slot)];
}

void CostCorrection::Observe(int slot, double predicted, double actual) {
  if (slot < 0 || static_cast<size_t>(slot) >= factors_.size()) return;
  const double ratio = actual / predicted;
  if (!(predicted > 0.0) || !(actual > 0.0) || !std::isfinite(ratio)) return;
  double& factor = factors_[static_cast<size_t>(slot)];
  const double smoothed = factor + kRate * (ratio - factor);
  factor = std::clamp(std::clamp(smoothed, factor / kMaxStep, factor * kMaxStep),
                      1.0 / kMaxCorrection, kMaxCorrection);
}

void CostCorrection::Reset() { std::fill(factors_.begin(), factors_.end(), 1.0); }

}  // namespace tandem
