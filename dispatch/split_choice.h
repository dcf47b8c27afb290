// How much of a call each device shall do, so that both finish together: rows of a cache in
// attention, columns of weights in a product.
//
//   seconds(g) = max(queue + cpu(total - g), gpu(g), least) + join   0 < g < total, both
//              = cpu(total)                                          g = 0, the CPU alone
//              = gpu(total)                                          g = total, the GPU alone
// g, the GPU's share, is a whole number of steps and at most what fits in the GPU's memory. The
// first term of max falls with g and the second rises, so the least of it is where they cross,
// found by bisection: exact for times that rise with the share. Times from measured tables may dip;
// some evenly spaced shares are looked at as well. Never slower, by these times, than the better
// device alone; that one it is unless sharing gains more than `margin`.
//
// Pure: times in, share out. What copies cost belongs to the share that needs them.
#pragma once

#include <cstdint>
#include <limits>
#include <string>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace tandem {

struct SplitProblem {
  int64_t total = 0;     // >= 1
  int64_t step = 1;      // >= 1; a share of everything need not be a whole number of steps
  int64_t gpu_most = 0;  // 0..total: what fits
  int64_t cpu_most = std::numeric_limits<int64_t>::max();
  double queue_seconds =
      0.0;                    // until the CPU has given the GPU its work and can begin with its own
  double join_seconds = 0.0;  // of what follows when both have finished
  // That both take at least, whoever does how much: they may slow each other.
  double least_seconds = 0.0;
  // Both devices must be faster than the better one alone by more than this part of its time: what
  // is predicted of part of a call is off by about as much.
  double margin = 0.0;
};

// Seconds that a share of 1..total takes; infinite: that device cannot do it.
using ShareSeconds = absl::FunctionRef<double(int64_t share)>;

struct SplitChoice {
  int64_t gpu = 0;  // the GPU's share; 0: the CPU alone; total: the GPU alone
  int64_t total = 0;
  double seconds = 0.0;      // predicted
  double cpu_seconds = 0.0;  // of each one's share, 0 without one
  double gpu_seconds = 0.0;
  double cpu_alone = 0.0;  // infinite: it cannot, or it does not fit
  double gpu_alone = 0.0;
  bool memory_bound = false;  // the GPU would have more if it fitted

  double gpu_fraction() const {
    return total == 0 ? 0.0 : static_cast<double>(gpu) / static_cast<double>(total);
  }
};

// InvalidArgument: a bad problem, NaN or negative times. Unimplemented: no share can be done.
absl::StatusOr<SplitChoice> ChooseSplit(const SplitProblem& problem, ShareSeconds cpu,
                                        ShareSeconds gpu);

// "5120 of 8192 rows on the GPU (0.41 ms), the others on the CPU (0.40 ms): 0.43 ms together; alone
// the CPU takes 1.02 ms, the GPU 0.62 ms". `what`: rows, columns.
std::string Explain(const SplitChoice& choice, const std::string& what);

}  // namespace tandem
