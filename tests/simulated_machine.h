// Machines that do not exist: a CPU, a GPU and the bus between them as formulas, with noise and a
// clock of their own. They stand for real ones where the scheduler's decisions are judged: the
// truth about every call is known, calibration measures them as it measures a real machine
// (dispatch/cost_calibration.h), errors included, and nothing depends on the machine the tests run
// on. Numbers are of the size of published ones for such machines; none was measured.
//
// What a call takes, its operands being there:
//   launch + (memory^4 + arithmetic^4)^(1/4)
//   memory      (bytes + ramp) / bandwidth; ops by rows whose operands fit in the cache: its
//   bandwidth arithmetic  operations, with rows and columns padded to tiles and tiles to whole
//   waves over the
//               units, over the rate of the types
// Both at once, where they have one memory: at least what they read together over what that gives.
// That is none of the forms that the cost model interpolates with: padding, waves and the shape of
// a matrix are not in its coordinates at all.
#pragma once

#include <cstdint>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "dispatch/cost_calibration.h"
#include "dispatch/cost_model.h"
#include "dispatch/scheduler.h"

namespace tandem::simulated {

struct DeviceSpec {
  std::string name;
  double launch_seconds = 0.0;
  double bytes_per_second = 0.0;
  double cache_bytes = 0.0, cache_bytes_per_second = 0.0;
  double ramp_bytes = 0.0;  // that could have been read while all units were getting going
  // Operations per second: products of f32, of 16-bit floats, of quantised weights; the rest.
  double f32 = 0.0, f16 = 0.0, quantized = 0.0, plain = 0.0;
  int64_t tile_rows = 1, tile_columns = 1, units = 1;
  // Up to so many rows a product is done without tiles, at the rate `plain`.
  int64_t vector_rows = 0;
};

struct CopySpec {
  double latency_seconds = 0.0;
  double bytes_per_second = 0.0;
};

struct MachineSpec {
  std::string name;
  DeviceSpec cpu, gpu;
  CopySpec pageable, pinned;  // both ways
  int64_t gpu_bytes = 0;      // of memory
  // What both devices read together at most, if they have one memory; 0: each its own.
  double shared_bytes_per_second = 0.0;
};

// Laptop GPU over slow PCIe, data-centre GPU, integrated GPU that shares the memory, old GPU beside
// a strong CPU.
std::vector<MachineSpec> Machines();

class Machine : public TimedMachine {
 public:
  // `noise`: standard deviation of the logarithm of what one run takes over the truth.
  explicit Machine(MachineSpec spec, uint32_t seed = 1, double noise = 0.04);

  const MachineSpec& spec() const { return spec_; }
  // The truth: seconds of a call whose operands are on the device.
  double CallSeconds(const OpFacts& facts, DeviceKind device) const;
  double CopySeconds(DeviceKind from, DeviceKind to, int64_t bytes, bool pinned = false) const;
  // Moves included, from where the operands are.
  double TotalSeconds(const OpFacts& facts, DeviceKind device) const;

  // One run, moves included: what it took, with noise. The clock goes on by that.
  double Run(const OpFacts& facts, DeviceKind device);
  // From now on the device takes `factor` times as long.
  void Slow(DeviceKind device, double factor) { slowdown_[device] = factor; }

  // What calibration makes of it.
  CostModel Calibrate();

  std::string key() const override { return "simulated: " + spec_.name; }
  std::string device_name(DeviceKind device) const override;
  absl::StatusOr<std::unique_ptr<TimedCall>> Prepare(const CallShape& shape,
                                                     DeviceKind device) override;
  absl::StatusOr<double> RunBoth(TimedCall& on_cpu, int cpu_times, TimedCall& on_gpu,
                                 int gpu_times) override;
  absl::StatusOr<double> TimeCopy(DeviceKind to, int64_t bytes, bool pinned) override;
  double Now() override { return now_; }

  // Takes `seconds`, give or take the noise.
  double Elapse(double seconds);

 private:
  MachineSpec spec_;
  double noise_;
  std::mt19937 random_;
  PerDevice<double> slowdown_ = {{1.0, 1.0}};
  double now_ = 0.0;
};

}  // namespace tandem::simulated
