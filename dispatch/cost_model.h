// Predicting how long a call takes on each device of a machine, from measurements
// (dispatch/cost_profile.h). Pure and immutable: facts in, seconds out.
//
// A call's time is looked up by two quantities whose product is its work:
//   op          rows                            work
//   matmul      m                               n * k, over all products of a batch or group
//   attention   queries per key/value head      elements of K and V that a query sees, over all
//                                               key/value heads and sequences
//   others      1                               bytes read and written
// For products and attention flops = 2 * rows * work: `rows` says how often what is read is used
// (1: bound by memory, many: by arithmetic; query heads that share a key/value head count, for they
// share its bytes), `work` how much there is.
//
// Between the points of a table: bilinear. Times are close to launch + work * (a + b * rows)
// between neighbouring points, which that reproduces exactly, and it is monotone where the table
// is. Below the least work: linear down to the launch overhead at none. Above the largest work or
// rows: proportional. So it is exact at every point, never below 0 and monotone everywhere.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "dispatch/cost_profile.h"
#include "dispatch/scheduler.h"

namespace tandem {

struct CostPoint {
  double rows = 1.0;
  double work = 0.0;
};
CostPoint CostPointOf(const OpFacts& facts);
CostClass CostClassOf(const OpFacts& facts);

class CostModel {
 public:
  // InvalidArgument: Validate(profile).
  static absl::StatusOr<CostModel> FromProfile(CostProfile profile);

  const CostProfile& profile() const { return profile_; }
  bool has(DeviceKind device) const { return !profile_.devices[device].name.empty(); }

  // Seconds of one call whose operands are on `device`, from asking for it until it is finished:
  // the launch overhead and, on a GPU, waiting for it are included. nullopt: nothing like it was
  // measured there. A class without a table of its own is predicted from its nearest kin: weights
  // packed or not, int8 caches from f16 ones (on either device they take less), and ops without
  // products from the addition of as many bytes.
  std::optional<double> CallSeconds(const OpFacts& facts, DeviceKind device) const;
  // The part of CallSeconds that is there however little there is to do. A GPU call that is queued
  // behind others takes about CallSeconds - LaunchSeconds longer than they do.
  double LaunchSeconds(DeviceKind device) const { return profile_.devices[device].launch_seconds; }
  // Seconds to copy between host and GPU memory; 0 for one device or no bytes. Infinite if copies
  // were not measured.
  double CopySeconds(DeviceKind from, DeviceKind to, int64_t bytes, bool pinned = false) const;
  // Seconds to copy to `device` the operands of the call that are elsewhere, and back what it
  // writes to them. 0 if all are there.
  double MoveSeconds(const OpFacts& facts, DeviceKind device) const;

  // The table that CallSeconds looks up, a number below num_tables(); -1: none.
  int TableOf(const OpFacts& facts, DeviceKind device) const;
  int num_tables() const { return static_cast<int>(profile_.tables.size()); }
  double SecondsFrom(int table, const CostPoint& point) const;

 private:
  CostProfile profile_;
  absl::flat_hash_map<uint32_t, int> tables_;
};

}  // namespace tandem
