#include "dispatch/placement.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <tuple>
#include <utility>

#include "core/status.h"

namespace tandem {
namespace {

// A way to place the ops so far.
struct Label {
  double seconds = 0.0;
  PerDevice<int64_t> used;  // of limited devices only
  DeviceKind from = DeviceKind::kCpu;
  size_t parent = 0;  // index of the label it continues, of the op before, on `from`
};
using Labels = std::vector<Label>;

bool GoodSeconds(double seconds) { return seconds >= 0.0; }  // not NaN; kNever is good

absl::Status Check(const Chain& chain) {
  if (chain.input_bytes < 0) {
    return InvalidArgument("input_bytes: expected >= 0, got ", chain.input_bytes);
  }
  for (size_t i = 0; i < chain.ops.size(); ++i) {
    const ChainOp& op = chain.ops[i];
    if (op.output_bytes < 0) {
      return InvalidArgument("ops[", i, "].output_bytes: expected >= 0, got ", op.output_bytes);
    }
    for (const DeviceKind d : kDeviceKinds) {
      if (!GoodSeconds(op.seconds[d])) {
        return InvalidArgument("ops[", i, "].seconds[", std::string(Name(d)),
                               "]: expected >= 0, got ", op.seconds[d]);
      }
      if (op.resident_bytes[d] < 0 || op.operand_bytes[d] < 0) {
        return InvalidArgument("ops[", i, "]: expected bytes >= 0 on ", std::string(Name(d)));
      }
    }
  }
  return absl::OkStatus();
}

// A chain, with the costs of copies looked up once.
class Costs {
 public:
  Costs(const Chain& chain, CopyCost copy) : chain_(chain), run_(chain.ops.size()) {
    edges_.reserve(chain.ops.size() + 1);
    edges_.push_back(Edge(copy, chain.input_bytes));
    for (size_t i = 0; i < chain.ops.size(); ++i) {
      const ChainOp& op = chain.ops[i];
      edges_.push_back(Edge(copy, op.output_bytes));
      for (const DeviceKind d : kDeviceKinds) {
        run_[i][d] = op.seconds[d];
        for (const DeviceKind e : kDeviceKinds) {
          if (e != d && op.operand_bytes[e] > 0) run_[i][d] += copy(e, d, op.operand_bytes[e]);
        }
      }
    }
  }

  size_t size() const { return run_.size(); }
  double run(size_t op, DeviceKind device) const { return run_[op][device]; }
  // In front of op `op`; op == size(): behind the last.
  double edge(size_t op, DeviceKind from, DeviceKind to) const { return edges_[op][from][to]; }
  const Chain& chain() const { return chain_; }

  absl::Status CheckCopies() const {
    for (const auto& edge : edges_) {
      for (const DeviceKind d : kDeviceKinds) {
        for (const DeviceKind e : kDeviceKinds) {
          if (!GoodSeconds(edge[d][e])) {
            return InvalidArgument("copy: expected seconds >= 0, got ", edge[d][e]);
          }
        }
      }
    }
    for (const auto& run : run_) {
      for (const DeviceKind d : kDeviceKinds) {
        if (!GoodSeconds(run[d])) return InvalidArgument("copy: expected seconds >= 0");
      }
    }
    return absl::OkStatus();
  }

 private:
  using EdgeCosts = PerDevice<PerDevice<double>>;
  static EdgeCosts Edge(CopyCost copy, int64_t bytes) {
    EdgeCosts edge;
    for (const DeviceKind from : kDeviceKinds) {
      for (const DeviceKind to : kDeviceKinds) {
        edge[from][to] = from == to || bytes == 0 ? 0.0 : copy(from, to, bytes);
      }
    }
    return edge;
  }

  const Chain& chain_;
  std::vector<PerDevice<double>> run_;
  std::vector<EdgeCosts> edges_;
};

// Removes every label that another one beats, or equals, in bytes of both devices and in seconds:
// sorted by the bytes of the first, each is compared with the front of (bytes of the second,
// seconds) so far.
void KeepFront(Labels& labels) {
  std::stable_sort(labels.begin(), labels.end(), [](const Label& a, const Label& b) {
    return std::tuple(a.used.values[0], a.used.values[1], a.seconds) <
           std::tuple(b.used.values[0], b.used.values[1], b.seconds);
  });
  std::map<int64_t, double> front;  // bytes -> seconds, falling
  const auto beaten = [&](const Label& label) {
    auto next = front.upper_bound(label.used.values[1]);
    if (next != front.begin() && std::prev(next)->second <= label.seconds) return true;
    while (next != front.end() && next->second >= label.seconds) next = front.erase(next);
    front.insert_or_assign(label.used.values[1], label.seconds);
    return false;
  };
  std::erase_if(labels, beaten);
}

// At most about `count` labels of a front: the fastest in each of `count` slices of the memory that
// is used most unevenly, and those that use least of either.
void Thin(Labels& labels, int64_t count) {
  const auto range = [&](size_t d) {
    const auto [low, high] = std::minmax_element(
        labels.begin(), labels.end(),
        [d](const Label& a, const Label& b) { return a.used.values[d] < b.used.values[d]; });
    return std::pair(low->used.values[d], high->used.values[d]);
  };
  const std::array<std::pair<int64_t, int64_t>, 2> ranges = {range(0), range(1)};
  const size_t d = ranges[0].second - ranges[0].first > ranges[1].second - ranges[1].first ? 0 : 1;
  const auto [low, high] = ranges[d];
  const double slice = static_cast<double>(high - low) / static_cast<double>(count) + 1.0;
  std::map<int64_t, Label> kept;
  Labels extremes;
  for (const Label& label : labels) {
    const auto key = static_cast<int64_t>(static_cast<double>(label.used.values[d] - low) / slice);
    const auto [it, added] = kept.try_emplace(key, label);
    if (!added && label.seconds < it->second.seconds) it->second = label;
  }
  for (size_t e = 0; e < kNumDeviceKinds; ++e) {
    extremes.push_back(
        *std::min_element(labels.begin(), labels.end(), [e](const Label& a, const Label& b) {
          return std::pair(a.used.values[e], a.seconds) < std::pair(b.used.values[e], b.seconds);
        }));
  }
  labels = std::move(extremes);
  for (auto& [key, label] : kept) labels.push_back(label);
  KeepFront(labels);
}

// The shortest path if memory costs `price` seconds per byte: with prices of 0 that without limits,
// else, less what the limits are worth, a bound for that with them.
double ShortestPath(const Costs& costs, const PerDevice<double>& price) {
  PerDevice<double> best = {{kNever, kNever}};
  best[costs.chain().input_at] = 0.0;
  for (size_t i = 0; i < costs.size(); ++i) {
    PerDevice<double> next = {{kNever, kNever}};
    for (const DeviceKind to : kDeviceKinds) {
      const double own = costs.run(i, to) +
                         price[to] * static_cast<double>(costs.chain().ops[i].resident_bytes[to]);
      for (const DeviceKind from : kDeviceKinds) {
        next[to] = std::min(next[to], best[from] + costs.edge(i, from, to) + own);
      }
    }
    best = next;
  }
  double seconds = kNever;
  for (const DeviceKind d : kDeviceKinds) {
    seconds = std::min(seconds, best[d] + costs.edge(costs.size(), d, costs.chain().output_at));
  }
  return seconds;
}

// The best lower bound that one price per limited device gives, all devices' found one after the
// other: the bound is concave in each price, so a search for its top by thirds.
double LowerBound(const Costs& costs, const PlacementLimits& limits, double upper) {
  PerDevice<double> price;
  const auto bound = [&](const PerDevice<double>& p) {
    double seconds = ShortestPath(costs, p);
    for (const DeviceKind d : kDeviceKinds) {
      if (p[d] > 0.0) seconds -= p[d] * static_cast<double>(limits.bytes[d]);
    }
    return seconds;
  };
  double best = bound(price);
  for (const DeviceKind d : kDeviceKinds) {
    if (limits.bytes[d] == kNoLimit) continue;
    double low = 0.0, high = upper;  // seconds per byte: one byte could not be worth more
    for (int i = 0; i < 200; ++i) {
      PerDevice<double> left = price, right = price;
      left[d] = low + (high - low) / 3.0;
      right[d] = high - (high - low) / 3.0;
      if (bound(left) < bound(right)) {
        low = left[d];
      } else {
        high = right[d];
      }
    }
    PerDevice<double> found = price;
    found[d] = (low + high) / 2.0;
    if (const double seconds = bound(found); seconds > best) {
      best = seconds;
      price = found;
    }
  }
  return best;
}

absl::Status CheckSomewhere(const Costs& costs) {
  for (size_t i = 0; i < costs.size(); ++i) {
    if (std::all_of(kDeviceKinds.begin(), kDeviceKinds.end(),
                    [&](DeviceKind d) { return std::isinf(costs.run(i, d)); })) {
      return Unimplemented("ops[", i,
                           "]: no device can run it, or it is not known how long it takes");
    }
  }
  if (std::isinf(ShortestPath(costs, {}))) {
    return Unimplemented("copy: no way to get from the devices of some ops to those of the next");
  }
  return absl::OkStatus();
}

ChainPlacement Evaluate(const Costs& costs, std::vector<DeviceKind> devices) {
  ChainPlacement placement;
  DeviceKind at = costs.chain().input_at;
  const auto go = [&](size_t op, DeviceKind to) {
    placement.copy_seconds += costs.edge(op, at, to);
    placement.copies += at != to ? 1 : 0;
    at = to;
  };
  for (size_t i = 0; i < devices.size(); ++i) {
    go(i, devices[i]);
    placement.seconds += costs.run(i, at);
    int64_t& bytes = placement.resident_bytes[at];
    if (__builtin_add_overflow(bytes, costs.chain().ops[i].resident_bytes[at], &bytes)) {
      bytes = kNoLimit;
    }
  }
  go(costs.size(), costs.chain().output_at);
  placement.seconds += placement.copy_seconds;
  placement.devices = std::move(devices);
  return placement;
}

}  // namespace

absl::StatusOr<ChainPlacement> EvaluatePlacement(const Chain& chain, CopyCost copy,
                                                 std::vector<DeviceKind> devices) {
  TANDEM_RETURN_IF_ERROR(Check(chain));
  if (devices.size() != chain.ops.size()) {
    return InvalidArgument("devices: expected ", chain.ops.size(), ", got ", devices.size());
  }
  const Costs costs(chain, copy);
  TANDEM_RETURN_IF_ERROR(costs.CheckCopies());
  ChainPlacement placement = Evaluate(costs, std::move(devices));
  placement.optimal = false;
  placement.bound_seconds = ShortestPath(costs, {});
  return placement;
}

absl::StatusOr<ChainPlacement> PlaceChain(const Chain& chain, CopyCost copy,
                                          const PlacementLimits& limits) {
  TANDEM_RETURN_IF_ERROR(Check(chain));
  for (const DeviceKind d : kDeviceKinds) {
    if (limits.bytes[d] < 0) {
      return InvalidArgument("limits.bytes[", std::string(Name(d)), "]: expected >= 0, got ",
                             limits.bytes[d]);
    }
  }
  if (limits.max_labels < 1) {
    return InvalidArgument("limits.max_labels: expected >= 1, got ", limits.max_labels);
  }
  const Costs costs(chain, copy);
  TANDEM_RETURN_IF_ERROR(costs.CheckCopies());
  TANDEM_RETURN_IF_ERROR(CheckSomewhere(costs));

  // labels[i][d]: with op i - 1 on device d.
  std::vector<PerDevice<Labels>> labels(chain.ops.size() + 1);
  labels[0][chain.input_at].emplace_back();
  bool thinned = false;
  for (size_t i = 0; i < chain.ops.size(); ++i) {
    for (const DeviceKind to : kDeviceKinds) {
      const double run = costs.run(i, to);
      if (std::isinf(run)) continue;
      const int64_t own = chain.ops[i].resident_bytes[to], limit = limits.bytes[to];
      Labels& here = labels[i + 1][to];
      for (const DeviceKind from : kDeviceKinds) {
        const double edge = costs.edge(i, from, to);
        if (std::isinf(edge)) continue;
        const Labels& before = labels[i][from];
        for (size_t p = 0; p < before.size(); ++p) {
          Label label = {before[p].seconds + edge + run, before[p].used, from, p};
          if (limit != kNoLimit) {
            if (own > limit - label.used[to]) continue;
            label.used[to] += own;
          }
          here.push_back(label);
        }
      }
      KeepFront(here);
      if (static_cast<int64_t>(here.size()) > limits.max_labels) {
        Thin(here, limits.max_labels);
        thinned = true;
      }
    }
  }

  const Label* best = nullptr;
  DeviceKind at = DeviceKind::kCpu;
  double seconds = kNever;
  for (const DeviceKind d : kDeviceKinds) {
    const double edge = costs.edge(chain.ops.size(), d, chain.output_at);
    for (const Label& label : labels.back()[d]) {
      if (label.seconds + edge < seconds) {
        seconds = label.seconds + edge;
        best = &label;
        at = d;
      }
    }
  }
  if (best == nullptr) {
    std::string given;
    for (const DeviceKind d : kDeviceKinds) {
      if (limits.bytes[d] == kNoLimit) continue;
      absl::StrAppend(&given, given.empty() ? "" : ", ", std::string(Name(d)), " ",
                      limits.bytes[d]);
    }
    return absl::ResourceExhaustedError(
        absl::StrCat("placement: no devices for ", chain.ops.size(),
                     " ops whose weights and caches fit the memory limits (bytes: ", given, ")"));
  }
  std::vector<DeviceKind> devices(chain.ops.size());
  for (size_t i = chain.ops.size(); i > 0; --i) {
    devices[i - 1] = at;
    at = best->from;
    best = &labels[i - 1][at][best->parent];
  }
  ChainPlacement placement = Evaluate(costs, std::move(devices));
  placement.optimal = !thinned;
  placement.bound_seconds =
      thinned ? std::min(placement.seconds, LowerBound(costs, limits, placement.seconds))
              : placement.seconds;
  return placement;
}

}  // namespace tandem
