#include "dispatch/cost_model.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

namespace tandem {
namespace {

// Of the time of a call at the end of a table.
constexpr double kMostOverhead = 0.9;

// Products that are grouped are one product, as far as their times go.
OpKind Kin(OpKind op) { return op == OpKind::kGroupedMatMul ? OpKind::kMatMul : op; }

bool HasProducts(OpKind op) { return Kin(op) == OpKind::kMatMul || op == OpKind::kAttention; }

uint32_t Key(const CostClass& c, DeviceKind device) {
  return (((static_cast<uint32_t>(c.op) * 32 + static_cast<uint32_t>(c.input)) * 32 +
           static_cast<uint32_t>(c.weights)) *
              2 +
          (c.packed ? 1u : 0u)) *
             kNumDeviceKinds +
         static_cast<uint32_t>(device);
}

// The interval of an ascending axis that x, which is within it, lies in, and where.
struct Place {
  size_t low, high;
  double fraction;
};
Place Find(const std::vector<double>& axis, double x) {
  const auto above = std::upper_bound(axis.begin(), axis.end(), x);
  if (above == axis.begin()) return {0, 0, 0.0};
  const size_t low = static_cast<size_t>(above - axis.begin()) - 1;
  if (above == axis.end()) return {low, low, 0.0};
  return {low, low + 1, (x - axis[low]) / (*above - axis[low])};
}

double Between(double low, double high, double fraction) { return low + (high - low) * fraction; }

}  // namespace

CostPoint CostPointOf(const OpFacts& facts) {
  if (Kin(facts.op) == OpKind::kMatMul) {
    const double rows = std::max(1.0, static_cast<double>(facts.m));
    if (facts.flops > 0.0) return {rows, facts.flops / (2.0 * rows)};  // batches included
    return {rows, static_cast<double>(facts.n) * static_cast<double>(facts.k)};
  }
  if (facts.op == OpKind::kAttention) {
    const double group = facts.kv_heads > 0
                             ? static_cast<double>(facts.n) / static_cast<double>(facts.kv_heads)
                             : 1.0;
    const double rows = std::max(1.0, static_cast<double>(facts.m) * group);
    return {rows, facts.flops / (2.0 * rows)};
  }
  return {1.0, static_cast<double>(facts.bytes)};
}

CostClass CostClassOf(const OpFacts& facts) {
  CostClass c;
  c.op = Kin(facts.op);
  if (HasProducts(facts.op)) {
    c.input = facts.input;
    c.weights = facts.weights;
    c.packed = facts.packed;
  } else if (facts.op == OpKind::kMask) {
    c.input = facts.input;
  }
  return c;
}

absl::StatusOr<CostModel> CostModel::FromProfile(CostProfile profile) {
  if (absl::Status status = Validate(profile); !status.ok()) return status;
  CostModel model;
  for (size_t i = 0; i < profile.tables.size(); ++i) {
    const CostTable& table = profile.tables[i];
    model.tables_.emplace(Key(table.cost_class, table.device), static_cast<int>(i));
  }
  model.profile_ = std::move(profile);
  return model;
}

int CostModel::TableOf(const OpFacts& facts, DeviceKind device) const {
  CostClass c = CostClassOf(facts);
  auto found = tables_.find(Key(c, device));
  if (found != tables_.end()) return found->second;
  if (c.op == OpKind::kMatMul) {
    c.packed = !c.packed;
  } else if (c.op == OpKind::kAttention && c.weights == DType::kI8) {
    c.weights = DType::kF16;
  } else if (!HasProducts(c.op)) {
    c = CostClass{.op = OpKind::kAdd};
  }
  found = tables_.find(Key(c, device));
  return found == tables_.end() ? -1 : found->second;
}

double CostModel::SecondsFrom(int index, const CostPoint& point) const {
  const CostTable& table = profile_.tables[static_cast<size_t>(index)];
  const double launch = profile_.devices[table.device].launch_seconds;
  const double last_rows = table.rows.back(), last_work = table.work.back();
  const Place row = Find(table.rows, std::min(point.rows, last_rows));
  const auto at = [&](size_t work) {
    const size_t columns = table.work.size();
    return Between(table.seconds[row.low * columns + work],
                   table.seconds[row.high * columns + work], row.fraction);
  };
  const double work = std::min(point.work, last_work);
  double seconds;
  if (work < table.work.front()) {
    const double least = at(0);
    seconds = Between(std::min(launch, least), least, std::max(0.0, work / table.work.front()));
  } else {
    const Place column = Find(table.work, work);
    seconds = Between(at(column.low), at(column.high), column.fraction);
  }
  double beyond = 1.0;
  if (point.rows > last_rows) beyond *= point.rows / last_rows;
  if (point.work > last_work) beyond *= point.work / last_work;
  if (beyond == 1.0) return seconds;
  // However much of it was overhead, some of it was work.
  const double fixed = std::min(launch, kMostOverhead * seconds);
  return fixed + (seconds - fixed) * beyond;
}

std::optional<double> CostModel::CallSeconds(const OpFacts& facts, DeviceKind device) const {
  const int table = TableOf(facts, device);
  if (table < 0) return std::nullopt;
  return SecondsFrom(table, CostPointOf(facts));
}

double CostModel::CopySeconds(DeviceKind from, DeviceKind to, int64_t bytes, bool pinned) const {
  if (from == to || bytes <= 0) return 0.0;
  const CopyCosts& costs = profile_.copies_to[to][pinned ? 1 : 0];
  if (costs.bytes_per_second <= 0.0) return std::numeric_limits<double>::infinity();
  return costs.latency_seconds + static_cast<double>(bytes) / costs.bytes_per_second;
}

double CostModel::MoveSeconds(const OpFacts& facts, DeviceKind device) const {
  const DeviceKind other = Other(device);
  const OperandBytes& there = facts.at[other];
  const auto seconds = [this](DeviceKind from, DeviceKind to, int64_t bytes, int32_t copies) {
    if (bytes <= 0) return 0.0;
    return CopySeconds(from, to, bytes) +
           std::max(0, copies - 1) * profile_.copies_to[to][0].latency_seconds;
  };
  return seconds(other, device, there.read, there.reads) +
         seconds(device, other, there.written, there.writes);
}

}  // namespace tandem
