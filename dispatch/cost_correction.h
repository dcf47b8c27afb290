// Online correction of predicted times: what calls take, over what was predicted, smoothed, per
// table of the cost model (class of calls and device) and apart for calls whose operands were moved
// and those whose were not.
//
//   f <- f + kRate * (actual / predicted - f), but f changes by at most a factor of kMaxStep, and
//   f stays in [1 / kMaxCorrection, kMaxCorrection]
//
// So a single odd call (another process, a page fault) moves a prediction by at most a quarter, a
// GPU that has become 3 times slower is followed within about ten calls, and nothing that is
// measured can move a prediction further than the bound.
#pragma once

#include <cstddef>
#include <vector>

namespace tandem {

class CostCorrection {
 public:
  static constexpr double kRate = 0.3;
  static constexpr double kMaxStep = 1.25;
  static constexpr double kMaxCorrection = 16.0;

  explicit CostCorrection(int tables) : factors_(2 * static_cast<size_t>(tables), 1.0) {}

  static int SlotOf(int table, bool moved) { return 2 * table + (moved ? 1 : 0); }
  // 1 for a slot that does not exist.
  double Factor(int slot) const;
  // `predicted` without correction. Not positive or not finite numbers are ignored.
  void Observe(int slot, double predicted, double actual);
  void Reset();

 private:
  std::vector<double> factors_;
};

}  // namespace tandem
