// Placement of a chain of ops over the devices: which op runs where, so that the whole takes least
// time, copies of what flows between them included, and what stays in a device's memory fits there.
//
//   minimise   sum_i seconds[i][d_i] + sum_i copy(d_i -> d_i+1, output_bytes[i])
//   such that  sum of resident_bytes[i][d] over the ops i on d <= limit[d]      for every device d
//
// Without limits this is a shortest path over (op x device): a dynamic programme, exact. With them
// it is a knapsack as well, and so NP-hard in general. The dynamic programme then keeps for every
// (op, device) all labels (bytes used, seconds) of which none is better in both: still exact, and
// with the few sizes of ops that a decoder has there are few of them (equal layers: one label per
// number of layers placed). Chains of many different sizes could have exponentially many; beyond
// `max_labels` per op and device they are thinned to the fastest one per slice of memory, and the
// answer becomes a heuristic one: `optimal` says which it is, and `bound_seconds`, by Lagrangian
// relaxation of the limits, how far the best could still be.
//
// Pure: numbers in, devices out. model/placement.h makes the chain of a decoder.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "core/device.h"
#include "dispatch/per_device.h"

namespace tandem {

inline constexpr double kNever = std::numeric_limits<double>::infinity();
inline constexpr int64_t kNoLimit = std::numeric_limits<int64_t>::max();

// One op, or several that belong together (a cache is written and read on one device).
struct ChainOp {
  // Of one run on each device, its operands being there; kNever: it cannot run there, or nobody
  // knows how long that takes.
  PerDevice<double> seconds;
  // Weights and caches it needs in the memory of the device it runs on, for as long as the
  // placement holds.
  PerDevice<int64_t> resident_bytes;
  // Operands that stay where they are and are copied in every run, if it is elsewhere.
  PerDevice<int64_t> operand_bytes;
  // What flows to the next op.
  int64_t output_bytes = 0;
};

struct Chain {
  std::vector<ChainOp> ops;
  // Where the first op's input is, and where the last one's output shall be.
  DeviceKind input_at = DeviceKind::kCpu;
  int64_t input_bytes = 0;
  DeviceKind output_at = DeviceKind::kCpu;
};

// Seconds to copy so many bytes (> 0) between two different devices; kNever: impossible. What is of
// 0 bytes needs no copy.
using CopyCost = absl::FunctionRef<double(DeviceKind from, DeviceKind to, int64_t bytes)>;

struct PlacementLimits {
  PerDevice<int64_t> bytes = {{kNoLimit, kNoLimit}};
  int64_t max_labels = 4096;  // per op and device; >= 1
};

struct ChainPlacement {
  std::vector<DeviceKind> devices;  // of every op
  double seconds = 0.0;             // predicted, copies included
  double copy_seconds = 0.0;
  int64_t copies = 0;  // along edges
  PerDevice<int64_t> resident_bytes;
  bool optimal = true;
  double bound_seconds = 0.0;  // no placement is faster
};

// InvalidArgument: negative or NaN numbers. Unimplemented: an op can run nowhere, or what flows
// between two cannot be copied. ResourceExhausted: no placement that fits was found (with one
// limited device: there is none).
absl::StatusOr<ChainPlacement> PlaceChain(const Chain& chain, CopyCost copy,
                                          const PlacementLimits& limits = {});

// What a given placement takes; limits are not looked at. InvalidArgument as above, or another
// number of devices than of ops.
absl::StatusOr<ChainPlacement> EvaluatePlacement(const Chain& chain, CopyCost copy,
                                                 std::vector<DeviceKind> devices);

}  // namespace tandem
