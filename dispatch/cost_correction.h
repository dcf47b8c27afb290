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

// Calls that a GPU has run one behind the other, of which only the time of all is known. Where it
// is not what was predicted, every class of calls among them is corrected by the same ratio, once:
// which of them it was cannot be told. What is predicted of the whole then follows as that of a
// single call does.
class QueuedWork {
 public:
  void Clear();
  // A call: its slot, its predicted seconds, corrected, and how many of these are the launch, which
  // calls behind others do not wait for.
  void Add(int slot, double seconds, double launch_seconds);
  // A call of which nothing is known: nor is anything of the whole, then.
  void AddUnknown() { known_ = false; }
  // Is there enough that can be learned from? Where launches are most of what is predicted, what is
  // left of it is noise.
  bool known() const { return known_ && seconds_ > 0.5 * launches_; }
  void Teach(CostCorrection& correction, double actual) const;

 private:
  bool known_ = false;
  double seconds_ = 0.0, launches_ = 0.0;
  std::vector<int> slots_;  // each once
};

}  // namespace tandem
