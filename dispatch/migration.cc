#include "dispatch/migration.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace tandem {
namespace {

std::string Milliseconds(double seconds) { return absl::StrFormat("%.3g ms", seconds * 1e3); }

}  // namespace

MigrationDecision CacheHysteresis::Decide(const MigrationStep& step) {
  MigrationDecision decision;
  decision.horizon_known = step.steps_left.has_value();
  if (!(step.here >= 0.0) || !(step.there >= 0.0) || !(step.move >= 0.0)) return decision;
  decision.threshold = (1.0 + options_.epsilon) * step.move;
  // An infinite time is one that cannot be: what is nowhere else stays.
  if (std::isinf(step.there) || std::isinf(step.move)) {
    missed_ = 0.0;
    return decision;
  }
  const double saving = step.here - step.there;
  if (decision.horizon_known) {
    const auto steps = static_cast<double>(std::max<int64_t>(*step.steps_left, 0));
    decision.saving = steps == 0.0 ? 0.0 : saving * steps;
  } else {
    missed_ = std::max(missed_ + saving, 0.0);
    decision.saving = missed_;
  }
  decision.migrate = decision.saving > decision.threshold;
  if (decision.migrate) missed_ = 0.0;
  return decision;
}

std::string Explain(const MigrationDecision& decision) {
  const std::string what =
      decision.horizon_known
          ? absl::StrCat("moving would save ", Milliseconds(decision.saving),
                         " in the steps to come")
          : absl::StrCat("staying has cost ", Milliseconds(decision.saving), " so far");
  return absl::StrCat(what, decision.migrate ? ", more than " : ", not more than ",
                      Milliseconds(decision.threshold), decision.migrate ? ": moves" : ": stays");
}

}  // namespace tandem
