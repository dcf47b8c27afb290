#include "tools/comparison.h"

#include <algorithm>
#include <cmath>
#include <functional>

namespace tandem::tools {

const ComparedTime* TimeOf(const ComparedPoint& point, const std::string& device) {
  for (const ComparedTime& time : point.times) {
    if (time.device == device && time.runs > 0) return &time;
  }
  return nullptr;
}

const ComparedTime* Best(const ComparedPoint& point) {
  const ComparedTime* best = nullptr;
  for (const ComparedTime& time : point.times) {
    if (time.runs > 0 && (best == nullptr || time.median < best->median)) best = &time;
  }
  return best;
}

std::vector<Crossover> Crossovers(const ComparedSeries& series, const std::string& a,
                                  const std::string& b) {
  std::vector<Crossover> found;
  const ComparedPoint* before = nullptr;  // the last point with both times, and not equal ones
  double ratio_before = 0.0;              // log(a / b) there
  for (const ComparedPoint& point : series.points) {
    const ComparedTime* time_a = TimeOf(point, a);
    const ComparedTime* time_b = TimeOf(point, b);
    if (time_a == nullptr || time_b == nullptr) {
      before = nullptr;
      continue;
    }
    const double ratio = std::log(time_a->median / time_b->median);
    if (ratio == 0.0) continue;
    if (before != nullptr && (ratio < 0.0) != (ratio_before < 0.0)) {
      const double part = ratio_before / (ratio_before - ratio);
      const double low = std::log(static_cast<double>(before->x));
      const double high = std::log(static_cast<double>(point.x));
      found.push_back(
          {std::exp(low + part * (high - low)), ratio_before < 0.0 ? a : b, ratio < 0.0 ? a : b});
    }
    before = &point;
    ratio_before = ratio;
  }
  return found;
}

std::optional<double> Regret(const ComparedPoint& point, const std::string& device) {
  const ComparedTime* own = TimeOf(point, device);
  const auto measured = std::count_if(point.times.begin(), point.times.end(),
                                      [](const ComparedTime& time) { return time.runs > 0; });
  if (own == nullptr || measured < 2) return std::nullopt;
  return own->median / Best(point)->median - 1.0;
}

std::vector<RegretSummary> Regrets(const Comparison& comparison, const ComparedSeries* only) {
  using Chosen = std::function<std::string(const ComparedPoint&)>;
  std::vector<std::pair<std::string, Chosen>> strategies = {
      {"scheduler", [](const ComparedPoint& point) { return point.choice; }},
      {"fixed constants", [](const ComparedPoint& point) { return point.constants; }}};
  for (const ComparedDevice& device : comparison.devices) {
    strategies.emplace_back("always " + device.id,
                            [id = device.id](const ComparedPoint&) { return id; });
  }
  std::vector<RegretSummary> summaries;
  for (const auto& [name, chosen] : strategies) {
    RegretSummary summary;
    summary.strategy = name;
    for (const ComparedSeries& series : comparison.series) {
      if (only != nullptr && only != &series) continue;
      for (const ComparedPoint& point : series.points) {
        const std::optional<double> regret = Regret(point, chosen(point));
        if (!regret) continue;
        ++summary.points;
        summary.mean += *regret;
        if (summary.worst_series.empty() || *regret > summary.worst) {
          summary.worst = *regret;
          summary.worst_series = series.id;
          summary.worst_x = point.x;
        }
      }
    }
    if (summary.points == 0) continue;
    summary.mean /= summary.points;
    summaries.push_back(summary);
  }
  return summaries;
}

}  // namespace tandem::tools
