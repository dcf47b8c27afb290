#include "tests/simulated_machine.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace tandem::simulated {
namespace {

constexpr double kKilo = 1e3, kGiga = 1e9, kTera = 1e12, kMicro = 1e-6;
constexpr double kOddRuns = 0.03;  // part of the runs that something else disturbs

double RoundUp(double value, int64_t step) {
  return std::ceil(value / static_cast<double>(step)) * static_cast<double>(step);
}

double Rate(const DeviceSpec& device, const OpFacts& facts) {
  if (!IsFloat(facts.weights)) return device.quantized;
  return facts.weights == DType::kF32 ? device.f32 : device.f16;
}

// Operations of a product of `rows` and a matrix of `columns` rows, at the device's rate.
double TiledSeconds(const DeviceSpec& device, double flops, double rows, double columns,
                    double rate) {
  if (rows <= static_cast<double>(device.vector_rows)) return flops / device.plain;
  const double padded_rows = RoundUp(rows, device.tile_rows);
  const double padded_columns = RoundUp(columns, device.tile_columns);
  const double tiles = padded_rows / static_cast<double>(device.tile_rows) * padded_columns /
                       static_cast<double>(device.tile_columns);
  const double filled = tiles / RoundUp(tiles, device.units);  // of the last wave
  const double tiled = flops * (padded_rows / rows) * (padded_columns / columns) /
                       (rate * std::max(0.5, filled));  // few tiles are cut along K
  return std::min(tiled, flops / device.plain);
}

class SimulatedCall : public TimedCall {
 public:
  SimulatedCall(Machine& machine, double seconds, double bytes)
      : machine_(machine), seconds_(seconds), bytes_(bytes) {}
  absl::StatusOr<double> Run() override { return machine_.Elapse(seconds_); }
  absl::Status Queue() override { return Run().status(); }
  double seconds() const { return seconds_; }
  double bytes() const { return bytes_; }

 private:
  Machine& machine_;
  double seconds_, bytes_;
};

}  // namespace

std::vector<MachineSpec> Machines() {
  std::vector<MachineSpec> machines(4);
  machines[0] = {.name = "laptop, GPU over slow PCIe",
                 .cpu = {.name = "laptop CPU, 8 threads",
                         .launch_seconds = 2 * kMicro,
                         .bytes_per_second = 60 * kGiga,
                         .cache_bytes = 16e6,
                         .cache_bytes_per_second = 300 * kGiga,
                         .ramp_bytes = 60 * kKilo,
                         .f32 = 0.5 * kTera,
                         .f16 = 0.45 * kTera,
                         .quantized = 0.9 * kTera,
                         .plain = 0.35 * kTera,
                         .tile_rows = 6,
                         .tile_columns = 32,
                         .units = 8,
                         .vector_rows = 1},
                 .gpu = {.name = "laptop GPU",
                         .launch_seconds = 12 * kMicro,
                         .bytes_per_second = 190 * kGiga,
                         .cache_bytes = 24e6,
                         .cache_bytes_per_second = 900 * kGiga,
                         .ramp_bytes = 400 * kKilo,
                         .f32 = 8 * kTera,
                         .f16 = 30 * kTera,
                         .quantized = 20 * kTera,
                         .plain = 3 * kTera,
                         .tile_rows = 64,
                         .tile_columns = 64,
                         .units = 20,
                         .vector_rows = 4},
                 .pageable = {.latency_seconds = 18 * kMicro, .bytes_per_second = 3 * kGiga},
                 .pinned = {.latency_seconds = 12 * kMicro, .bytes_per_second = 6 * kGiga},
                 .gpu_bytes = int64_t{6} << 30};
  machines[1] = {.name = "server, data-centre GPU",
                 .cpu = {.name = "server CPU, 32 threads",
                         .launch_seconds = 4 * kMicro,
                         .bytes_per_second = 240 * kGiga,
                         .cache_bytes = 100e6,
                         .cache_bytes_per_second = 1200 * kGiga,
                         .ramp_bytes = 500 * kKilo,
                         .f32 = 3 * kTera,
                         .f16 = 4 * kTera,
                         .quantized = 6 * kTera,
                         .plain = 2 * kTera,
                         .tile_rows = 12,
                         .tile_columns = 64,
                         .units = 32,
                         .vector_rows = 1},
                 .gpu = {.name = "data-centre GPU",
                         .launch_seconds = 9 * kMicro,
                         .bytes_per_second = 3900 * kGiga,
                         .cache_bytes = 50e6,
                         .cache_bytes_per_second = 7000 * kGiga,
                         .ramp_bytes = 8000 * kKilo,
                         .f32 = 45 * kTera,
                         .f16 = 550 * kTera,
                         .quantized = 300 * kTera,
                         .plain = 25 * kTera,
                         .tile_rows = 128,
                         .tile_columns = 128,
                         .units = 132,
                         .vector_rows = 8},
                 .pageable = {.latency_seconds = 11 * kMicro, .bytes_per_second = 12 * kGiga},
                 .pinned = {.latency_seconds = 8 * kMicro, .bytes_per_second = 50 * kGiga},
                 .gpu_bytes = int64_t{141} << 30};
  machines[2] = {.name = "integrated GPU, shared memory",
                 .cpu = {.name = "mobile CPU, 8 threads",
                         .launch_seconds = 2 * kMicro,
                         .bytes_per_second = 75 * kGiga,
                         .cache_bytes = 16e6,
                         .cache_bytes_per_second = 350 * kGiga,
                         .ramp_bytes = 60 * kKilo,
                         .f32 = 0.6 * kTera,
                         .f16 = 0.55 * kTera,
                         .quantized = 1.2 * kTera,
                         .plain = 0.4 * kTera,
                         .tile_rows = 6,
                         .tile_columns = 32,
                         .units = 8,
                         .vector_rows = 1},
                 .gpu = {.name = "integrated GPU",
                         .launch_seconds = 25 * kMicro,
                         .bytes_per_second = 85 * kGiga,
                         .cache_bytes = 4e6,
                         .cache_bytes_per_second = 300 * kGiga,
                         .ramp_bytes = 200 * kKilo,
                         .f32 = 1.8 * kTera,
                         .f16 = 3.5 * kTera,
                         .quantized = 2.5 * kTera,
                         .plain = 1.2 * kTera,
                         .tile_rows = 32,
                         .tile_columns = 32,
                         .units = 12,
                         .vector_rows = 4},
                 .pageable = {.latency_seconds = 1.5 * kMicro, .bytes_per_second = 35 * kGiga},
                 .pinned = {.latency_seconds = 1 * kMicro, .bytes_per_second = 40 * kGiga},
                 .gpu_bytes = int64_t{8} << 30,
                 .shared_bytes_per_second = 98 * kGiga};
  machines[3] = {.name = "workstation, old GPU",
                 .cpu = {.name = "workstation CPU, 16 threads",
                         .launch_seconds = 3 * kMicro,
                         .bytes_per_second = 85 * kGiga,
                         .cache_bytes = 64e6,
                         .cache_bytes_per_second = 700 * kGiga,
                         .ramp_bytes = 150 * kKilo,
                         .f32 = 1.8 * kTera,
                         .f16 = 2.2 * kTera,
                         .quantized = 4 * kTera,
                         .plain = 1.2 * kTera,
                         .tile_rows = 12,
                         .tile_columns = 48,
                         .units = 16,
                         .vector_rows = 1},
                 .gpu = {.name = "old GPU",
                         .launch_seconds = 15 * kMicro,
                         .bytes_per_second = 180 * kGiga,
                         .cache_bytes = 1.5e6,
                         .cache_bytes_per_second = 500 * kGiga,
                         .ramp_bytes = 500 * kKilo,
                         .f32 = 3.8 * kTera,
                         .f16 = 3.6 * kTera,
                         .quantized = 3.2 * kTera,
                         .plain = 2 * kTera,
                         .tile_rows = 32,
                         .tile_columns = 64,
                         .units = 10,
                         .vector_rows = 4},
                 .pageable = {.latency_seconds = 14 * kMicro, .bytes_per_second = 6 * kGiga},
                 .pinned = {.latency_seconds = 10 * kMicro, .bytes_per_second = 12 * kGiga},
                 .gpu_bytes = int64_t{6} << 30};
  return machines;
}

Machine::Machine(MachineSpec spec, uint32_t seed, double noise)
    : spec_(std::move(spec)), noise_(noise), random_(seed) {}

std::string Machine::device_name(DeviceKind device) const {
  return device == DeviceKind::kCpu ? spec_.cpu.name : spec_.gpu.name;
}

double Machine::CallSeconds(const OpFacts& facts, DeviceKind kind) const {
  const DeviceSpec& device = kind == DeviceKind::kCpu ? spec_.cpu : spec_.gpu;
  const double bytes = static_cast<double>(facts.bytes);
  double bandwidth = device.bytes_per_second, arithmetic = facts.flops / device.plain;
  if (facts.op == OpKind::kMatMul || facts.op == OpKind::kGroupedMatMul) {
    const double batch =
        facts.flops / (2.0 * static_cast<double>(facts.m) * static_cast<double>(facts.n) *
                       static_cast<double>(facts.k));
    arithmetic =
        TiledSeconds(device, facts.flops, static_cast<double>(facts.m),
                     static_cast<double>(facts.n) * std::max(1.0, batch), Rate(device, facts));
  } else if (facts.op == OpKind::kAttention) {
    const CostPoint point = CostPointOf(facts);
    const double columns = static_cast<double>(facts.kv_len * std::max<int64_t>(1, facts.kv_heads));
    // Softmax beside the products: two thirds of their rate.
    arithmetic = TiledSeconds(device, facts.flops, point.rows, columns, Rate(device, facts)) * 1.5;
  } else if (bytes < device.cache_bytes) {
    bandwidth = device.cache_bytes_per_second;
  }
  const double memory = (bytes + device.ramp_bytes) / bandwidth;
  const double work = std::pow(std::pow(memory, 4.0) + std::pow(arithmetic, 4.0), 0.25);
  // What no unit has begun with yet costs nothing either: tiny calls are all launch.
  const double started = bytes / (bytes + 0.1 * device.ramp_bytes);
  return (device.launch_seconds + started * work) * slowdown_[kind];
}

double Machine::CopySeconds(DeviceKind from, DeviceKind to, int64_t bytes, bool pinned) const {
  if (from == to || bytes <= 0) return 0.0;
  const CopySpec& copy = pinned ? spec_.pinned : spec_.pageable;
  // Pageable memory goes through the driver's buffers: small copies are quicker than the rest.
  const double size = static_cast<double>(bytes);
  const double latency =
      copy.latency_seconds * (pinned ? 1.0 : 1.0 - 0.25 * std::exp(-size / 64e3));
  return latency + size / copy.bytes_per_second;
}

double Machine::TotalSeconds(const OpFacts& facts, DeviceKind device) const {
  const DeviceKind other = Other(device);
  const OperandBytes& there = facts.at[other];
  double seconds = CallSeconds(facts, device);
  // Operand by operand, of equal sizes.
  for (int32_t i = 0; i < there.reads; ++i) {
    seconds += CopySeconds(other, device, there.read / there.reads);
  }
  for (int32_t i = 0; i < there.writes; ++i) {
    seconds += CopySeconds(device, other, there.written / there.writes);
  }
  return seconds;
}

double Machine::Elapse(double seconds) {
  std::normal_distribution<double> normal;  // scaled here: its own deviation must not be 0
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  double taken = seconds * std::exp(noise_ * normal(random_));
  if (noise_ > 0.0 && uniform(random_) < kOddRuns) taken *= 1.0 + 4.0 * uniform(random_);
  now_ += taken;
  return taken;
}

double Machine::Run(const OpFacts& facts, DeviceKind device) {
  return Elapse(TotalSeconds(facts, device));
}

CostModel Machine::Calibrate() {
  return CostModel::FromProfile(CalibrateCosts(*this).value().profile).value();
}

absl::StatusOr<std::unique_ptr<TimedCall>> Machine::Prepare(const CallShape& shape,
                                                            DeviceKind device) {
  if (shape.packed && device == DeviceKind::kCuda) {
    return absl::UnimplementedError("weights are packed for the CPU only");
  }
  absl::StatusOr<OpFacts> facts = FactsOf(shape);
  if (!facts.ok()) return facts.status();
  return std::make_unique<SimulatedCall>(*this, CallSeconds(*facts, device),
                                         static_cast<double>(facts->bytes));
}

absl::StatusOr<double> Machine::RunBoth(TimedCall& on_cpu, int cpu_times, TimedCall& on_gpu,
                                        int gpu_times) {
  const auto& cpu = static_cast<const SimulatedCall&>(on_cpu);
  const auto& gpu = static_cast<const SimulatedCall&>(on_gpu);
  double seconds = cpu_times * cpu.seconds();
  if (gpu_times > 0) {  // launched behind each other
    const double launch = spec_.gpu.launch_seconds * slowdown_[DeviceKind::kCuda];
    seconds = std::max(seconds, launch + gpu_times * (gpu.seconds() - launch));
  }
  if (spec_.shared_bytes_per_second > 0.0 && cpu_times > 0 && gpu_times > 0) {
    seconds = std::max(seconds, (cpu_times * cpu.bytes() + gpu_times * gpu.bytes()) /
                                    spec_.shared_bytes_per_second);
  }
  return Elapse(seconds);
}

absl::StatusOr<double> Machine::TimeCopy(DeviceKind to, int64_t bytes, bool pinned) {
  return Elapse(CopySeconds(Other(to), to, bytes, pinned));
}

}  // namespace tandem::simulated
