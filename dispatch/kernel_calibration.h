// Measuring which kernel is fastest for each class of calls (see dispatch/kernel_choice.h).
#pragma once

#include <functional>
#include <string>

#include "absl/status/statusor.h"
#include "dispatch/context.h"
#include "dispatch/kernel_choice.h"

namespace tandem {

struct KernelCalibrationOptions {
  // Time given to one kernel for one class of calls, once it has run at all.
  double seconds_per_kernel = 0.006;
  // Only the classes for which this says yes.
  std::function<bool(const KernelClass&)> only;
  std::function<void(int done, int total, const std::string& what)> progress;
};

// Times every kernel of the devices of `context` that may be fastest for some call: matrix products
// and attention, over types and shapes, about a call per class. A few tens of seconds. The machine
// should be idle. Kernels without vector instructions and the reference are left out where others
// can.
absl::StatusOr<KernelProfile> CalibrateKernels(Context& context,
                                               const KernelCalibrationOptions& options = {});

}  // namespace tandem
