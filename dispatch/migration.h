// When to move something large, a key/value cache, to the device that would now be faster.
//
// Moving costs M seconds; a step with it there takes less (or more) than with it here. Moving
// whenever the other device looks better lets a cache go to and fro with every wavering of the
// predictions, each time for M seconds. So it moves only for a saving that exceeds (1 + epsilon) M:
//   steps to come known (a generation's token limit)   predicted saving over them
//   unknown                                            what staying has cost so far: rent until the
//                                                      rent paid is the price (ski rental)
// The second, with t = 1 + epsilon, costs at most (1 + t) / min(t, 1) times the best choice in
// hindsight if the advantage never turns around, and 2 (1 + t) / min(t, 2) times where it may turn
// around again and again (plus one step's difference per move: steps are not divided). For epsilon
// = 0.1 these are 2.1 and 3.8; no deterministic rule has less than 2 and 3.
//
// Pure: whoever decides tells it times, and does the moving.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace tandem {

struct MigrationOptions {
  double epsilon = 0.1;  // >= 0
};

// Predicted, seconds.
struct MigrationStep {
  double here = 0.0;   // the next step with the state where it is
  double there = 0.0;  // with it on the other device
  double move = 0.0;   // moving it now
  std::optional<int64_t> steps_left;
};

struct MigrationDecision {
  bool migrate = false;
  double saving = 0.0;     // what is weighed: to come, or missed so far
  double threshold = 0.0;  // what it must exceed
  bool horizon_known = false;
};

// "saves 0.8 ms over 200 steps, moving costs 1.2 ms: stays"
std::string Explain(const MigrationDecision& decision);

class CacheHysteresis {
 public:
  explicit CacheHysteresis(const MigrationOptions& options = {}) : options_(options) {}

  // Called before every step. NaN or negative times: it stays, and nothing is counted.
  MigrationDecision Decide(const MigrationStep& step);
  // What staying has cost so far; begins anew after a move, and never goes below 0.
  double missed_seconds() const { return missed_; }

 private:
  MigrationOptions options_;
  double missed_ = 0.0;
};

}  // namespace tandem
