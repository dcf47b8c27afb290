// Measuring a machine's cost profile (dispatch/cost_profile.h).
//
// Calibration sees a machine through TimedMachine: "how long did this call take on that device,
// just now?" The devices of a Context are one (MakeTimedMachine), the simulated machines of the
// tests are others, so that what is proven on these is proven of the code that measures real ones.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "dispatch/call_shape.h"
#include "dispatch/cost_profile.h"

namespace tandem {

class Context;

// A call whose operands have been made, on the device that it shall run on.
class TimedCall {
 public:
  virtual ~TimedCall() = default;
  // Runs it once. Seconds from asking until it is known to be finished.
  virtual absl::StatusOr<double> Run() = 0;
  // Asks for it once: on a GPU, without waiting for it.
  virtual absl::Status Queue() = 0;
};

class TimedMachine {
 public:
  virtual ~TimedMachine() = default;
  virtual std::string key() const = 0;
  // What a person calls the device; empty: there is none.
  virtual std::string device_name(DeviceKind device) const = 0;
  // Unimplemented: the device has no kernel for such calls.
  virtual absl::StatusOr<std::unique_ptr<TimedCall>> Prepare(const CallShape& shape,
                                                             DeviceKind device) = 0;
  // Runs, at the same time, `on_cpu` and `on_gpu` so many times each (0: not at all); seconds until
  // all is finished.
  virtual absl::StatusOr<double> RunBoth(TimedCall& on_cpu, int cpu_times, TimedCall& on_gpu,
                                         int gpu_times) = 0;
  // Copies `bytes` once between host and GPU memory; seconds until they have arrived.
  virtual absl::StatusOr<double> TimeCopy(DeviceKind to, int64_t bytes, bool pinned) = 0;
  // Of the machine's clock, which calibration must not exceed.
  virtual double Now() = 0;
};

// The devices of the context, with the kernels that it would choose. Weights, keys and values are
// read from memory, not from caches: in a model others are used in between.
std::unique_ptr<TimedMachine> MakeTimedMachine(Context& context);

// What is measured of a class: every pair of a number of rows and an amount of work.
struct CostGrid {
  CostClass cost_class;
  std::vector<double> rows;
  std::vector<CallShape> shapes;  // [rows][work]
};
// All classes, the most used ones first.
std::vector<CostGrid> CostGrids();

struct CostCalibrationOptions {
  // Measuring stops after so long. Most machines take half of it. One that is busy with something
  // else gets coarser tables, every 2nd or 4th point of each axis, as soon as it shows that there
  // will not be time for all; what is still left out then is unknown to the model.
  double seconds = 28.0;
  // A call that would take longer is not run: its time is extrapolated.
  double longest_call = 0.05;
  std::function<bool(const CostClass&)> only;  // only the classes for which this says yes
  std::function<void(int done, int total, const std::string& what)> progress;
};

struct CostCalibration {
  CostProfile profile;
  std::vector<std::string> notes;  // classes that were left out, or have fewer points, and why
};
absl::StatusOr<CostCalibration> CalibrateCosts(TimedMachine& machine,
                                               const CostCalibrationOptions& options = {});

}  // namespace tandem
