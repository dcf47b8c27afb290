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

void QueuedWork::Clear() {
  known_ = true;
  seconds_ = launches_ = 0.0;
  slots_.clear();
}

void QueuedWork::Add(int slot, double seconds, double launch_seconds) {
  seconds_ += std::max(0.0, seconds - launch_seconds);
  launches_ += launch_seconds;
  if (std::find(slots_.begin(), slots_.end(), slot) == slots_.end()) slots_.push_back(slot);
}

void QueuedWork::Teach(CostCorrection& correction, double actual) const {
  if (!known()) return;
  // Of one second without correction.
  for (const int slot : slots_) {
    correction.Observe(slot, 1.0, correction.Factor(slot) * actual / seconds_);
  }
}

void CostCorrection::Reset() { std::fill(factors_.begin(), factors_.end(), 1.0); }

}  // namespace tandem
