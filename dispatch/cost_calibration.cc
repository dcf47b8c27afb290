#include "dispatch/cost_calibration.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "core/status.h"
#include "dispatch/cost_model.h"

namespace tandem {
namespace {

// The axes of the tables. Between neighbours a call's time is close to affine in rows and work;
// beyond the last it is proportional to them.
constexpr int64_t kMatMulRows[] = {1, 2, 4, 8, 16, 64, 256, 1024};
constexpr int64_t kAttentionRows[] = {1, 2, 4, 8, 16, 64, 256, 1024};
constexpr int kMatMulWork[] = {12, 14, 16, 18, 20, 22, 24};     // log2 (n * k)
constexpr int kAttentionWork[] = {14, 16, 18, 20, 22, 24, 26};  // log2 of elements of K and V
constexpr int kElements[] = {8, 11, 14, 17, 20, 23};            // log2 of elements of other ops

// Samples per point, beside the first, which prepares.
constexpr size_t kFewest = 3, kMost = 15;
// After so many points it is known whether there is time for all.
constexpr size_t kPointsToJudge = 12;
constexpr double kOverrunRate = 0.02;  // of the average over points: some tables
// Both devices at once: products that together take each device about so long, so often; and what
// counts as one being slowed by the other.
constexpr double kSharedRun = 0.004;
constexpr size_t kSharedSamples = 5;
constexpr double kSharedSlowdown = 1.15;
constexpr int64_t kSmallCopy = int64_t{4} << 10, kLargeCopy = int64_t{16} << 20;  // bytes

struct TypePair {
  DType input, weights;
};
constexpr TypePair kMatMulTypes[] = {{DType::kF32, DType::kF16},  {DType::kF32, DType::kQ8_0},
                                     {DType::kF32, DType::kQ4_K}, {DType::kF32, DType::kQ6_K},
                                     {DType::kF32, DType::kF32},  {DType::kF32, DType::kBF16},
                                     {DType::kF32, DType::kQ4_0}, {DType::kF32, DType::kQ5_K},
                                     {DType::kF16, DType::kF16},  {DType::kBF16, DType::kBF16}};
constexpr TypePair kAttentionTypes[] = {{DType::kF32, DType::kF16}, {DType::kF32, DType::kI8},
                                        {DType::kF32, DType::kF32}, {DType::kF32, DType::kBF16},
                                        {DType::kF16, DType::kF16}, {DType::kBF16, DType::kBF16}};

CostGrid MatMulGrid(const TypePair& types, bool packed) {
  CostGrid grid = {{OpKind::kMatMul, types.input, types.weights, packed}, {}, {}};
  for (const int64_t m : kMatMulRows) {
    grid.rows.push_back(static_cast<double>(m));
    for (const int work : kMatMulWork) {
      const int64_t k = std::max<int64_t>(256, int64_t{1} << (work / 2));
      grid.shapes.push_back({.input = types.input,
                             .weights = types.weights,
                             .packed = packed,
                             .m = m,
                             .n = (int64_t{1} << work) / k,
                             .k = k});
    }
  }
  return grid;
}

// Up to 4 query heads for each key/value head, then more queries. Heads of the numbers and sizes
// that models with such caches have: queries and outputs count as well.
CostGrid AttentionGrid(const TypePair& types) {
  CostGrid grid = {{OpKind::kAttention, types.input, types.weights, false}, {}, {}};
  for (const int64_t rows : kAttentionRows) {
    grid.rows.push_back(static_cast<double>(rows));
    for (const int work : kAttentionWork) {
      CallShape shape;
      shape.op = OpKind::kAttention;
      shape.input = types.input;
      shape.weights = types.weights;
      shape.kv_heads = std::clamp<int64_t>(int64_t{1} << (work / 2 - 7), 1, 8);
      shape.head_dim = work < 20 ? 64 : 128;
      shape.q_heads = shape.kv_heads * std::min<int64_t>(rows, 4);
      shape.q_len = std::max<int64_t>(1, rows / 4);
      shape.kv_len = (int64_t{1} << work) / (shape.kv_heads * 2 * shape.head_dim);
      shape.causal = Causal::kNone;
      grid.shapes.push_back(shape);
    }
  }
  return grid;
}

CostGrid RowsGrid(OpKind op, DType dtype = DType::kF32) {
  CostGrid grid = {{.op = op}, {1.0}, {}};
  for (const int elements : kElements) {
    CallShape shape;
    shape.op = op;
    shape.input = dtype;
    shape.n = int64_t{1} << std::min(elements, 12);
    shape.m = (int64_t{1} << elements) / shape.n;
    if (op == OpKind::kMask) {
      grid.cost_class.input = dtype;
      shape.kv_len = int64_t{1} << ((elements + 1) / 2);
      shape.q_len = (int64_t{1} << elements) / shape.kv_len;
    }
    grid.shapes.push_back(shape);
  }
  return grid;
}

// Who ran beside it is not to count, and luck not either.
double LowerQuartile(std::vector<double>& samples) {
  const auto quartile = samples.begin() + static_cast<ptrdiff_t>(samples.size() / 4);
  std::nth_element(samples.begin(), quartile, samples.end());
  return *quartile;
}

class Calibration {
 public:
  Calibration(TimedMachine& machine, const CostCalibrationOptions& options)
      : machine_(machine), options_(options), begin_(machine.Now()) {}

  absl::StatusOr<CostCalibration> Run() {
    CostProfile& profile = result_.profile;
    profile.machine = machine_.key();
    std::vector<CostGrid> grids = CostGrids();
    if (options_.only) {
      std::erase_if(grids, [&](const CostGrid& grid) { return !options_.only(grid.cost_class); });
    }
    std::vector<DeviceKind> devices;
    for (const DeviceKind kind : kDeviceKinds) {
      profile.devices[kind].name = machine_.device_name(kind);
      if (!profile.devices[kind].name.empty()) devices.push_back(kind);
    }
    for (const CostGrid& grid : grids) total_ += grid.shapes.size() * devices.size();
    for (const DeviceKind device : devices) {
      TANDEM_ASSIGN_OR_RETURN(profile.devices[device].launch_seconds, Launch(device));
    }
    if (devices.size() == kNumDeviceKinds) {
      for (const DeviceKind to : devices) {
        for (const bool pinned : {false, true}) {
          TANDEM_ASSIGN_OR_RETURN(profile.copies_to[to][pinned ? 1 : 0], Copies(to, pinned));
        }
      }
    }
    for (const CostGrid& grid : grids) {
      for (const DeviceKind device : devices) TANDEM_RETURN_IF_ERROR(Measure(grid, device));
      if (grid.cost_class.op == OpKind::kMatMul && devices.size() == kNumDeviceKinds &&
          !std::exchange(shared_measured_, true)) {
        TANDEM_RETURN_IF_ERROR(MeasureShared(grid));
      }
    }
    return std::move(result_);
  }

 private:
  double Left() { return options_.seconds - (machine_.Now() - begin_); }

  absl::StatusOr<double> Time(TimedCall& call, double budget) {
    TANDEM_ASSIGN_OR_RETURN(const double first, call.Run());
    if (first > options_.longest_call) {
      TANDEM_ASSIGN_OR_RETURN(const double second, call.Run());
      return std::min(first, second);
    }
    std::vector<double> samples;
    double spent = first;
    while (samples.size() < kFewest || (samples.size() < kMost && spent < budget)) {
      TANDEM_ASSIGN_OR_RETURN(const double seconds, call.Run());
      samples.push_back(std::max(seconds, 1e-9));
      spent += seconds;
    }
    return LowerQuartile(samples);
  }

  absl::StatusOr<double> Launch(DeviceKind device) {
    TANDEM_ASSIGN_OR_RETURN(const std::unique_ptr<TimedCall> call,
                            machine_.Prepare({.op = OpKind::kAdd}, device));
    return Time(*call, /*budget=*/0.01);
  }

  absl::StatusOr<CopyCosts> Copies(DeviceKind to, bool pinned) {
    double seconds[2];
    for (const int large : {0, 1}) {
      std::vector<double> samples;
      for (size_t i = 0; i <= kMost; ++i) {
        TANDEM_ASSIGN_OR_RETURN(const double taken,
                                machine_.TimeCopy(to, large ? kLargeCopy : kSmallCopy, pinned));
        if (i > 0) samples.push_back(std::max(taken, 1e-9));
      }
      seconds[large] = LowerQuartile(samples);
    }
    CopyCosts costs;
    costs.bytes_per_second =
        static_cast<double>(kLargeCopy - kSmallCopy) / std::max(1e-9, seconds[1] - seconds[0]);
    costs.latency_seconds =
        std::max(0.0, seconds[0] - static_cast<double>(kSmallCopy) / costs.bytes_per_second);
    return costs;
  }

  // A call to be run on both devices at once, and what it takes on each.
  struct SharedCall {
    const CallShape* shape = nullptr;  // nullptr: none
    PerDevice<double> seconds;
    double bytes = 0.0;
  };

  // The product of one row with the largest matrix of the class that was measured on both devices
  // and takes much longer than to launch.
  absl::StatusOr<SharedCall> LargestOnBoth(const CostGrid& grid) const {
    PerDevice<const CostTable*> tables;
    for (const CostTable& table : result_.profile.tables) {
      if (table.cost_class == grid.cost_class) tables[table.device] = &table;
    }
    SharedCall largest;
    for (size_t i = 0; i < grid.shapes.size() / grid.rows.size(); ++i) {
      TANDEM_ASSIGN_OR_RETURN(const OpFacts facts, FactsOf(grid.shapes[i]));
      SharedCall call = {&grid.shapes[i], {}, static_cast<double>(facts.bytes)};
      for (const DeviceKind kind : kDeviceKinds) {
        if (tables[kind] == nullptr) return largest;
        const std::vector<double>& work = tables[kind]->work;
        const auto found = std::find(work.begin(), work.end(), CostPointOf(facts).work);
        if (found == work.end()) continue;  // 0 seconds
        call.seconds[kind] = tables[kind]->seconds[static_cast<size_t>(found - work.begin())];
      }
      const bool suits = std::all_of(kDeviceKinds.begin(), kDeviceKinds.end(), [&](auto kind) {
        return call.seconds[kind] <= options_.longest_call &&
               call.seconds[kind] > 3.0 * result_.profile.devices[kind].launch_seconds;
      });
      if (suits) largest = call;
    }
    return largest;
  }

  // What both devices read together when they read at once, if one is slower then than alone.
  absl::Status MeasureShared(const CostGrid& grid) {
    TANDEM_ASSIGN_OR_RETURN(const SharedCall call, LargestOnBoth(grid));
    if (call.shape == nullptr || Left() <= 0.0) return absl::OkStatus();
    PerDevice<std::unique_ptr<TimedCall>> calls;
    PerDevice<int> times;
    const double longest =
        std::max({kSharedRun, call.seconds[DeviceKind::kCpu], call.seconds[DeviceKind::kCuda]});
    for (const DeviceKind kind : kDeviceKinds) {
      TANDEM_ASSIGN_OR_RETURN(calls[kind], machine_.Prepare(*call.shape, kind));
      times[kind] = std::max(1, static_cast<int>(std::lround(longest / call.seconds[kind])));
    }
    const auto measure = [&](int on_cpu, int on_gpu) -> absl::StatusOr<double> {
      std::vector<double> samples;
      for (size_t i = 0; i <= kSharedSamples; ++i) {
        TANDEM_ASSIGN_OR_RETURN(
            const double taken,
            machine_.RunBoth(*calls[DeviceKind::kCpu], on_cpu, *calls[DeviceKind::kCuda], on_gpu));
        if (i > 0) samples.push_back(std::max(taken, 1e-9));
      }
      return LowerQuartile(samples);
    };
    const int on_cpu = times[DeviceKind::kCpu], on_gpu = times[DeviceKind::kCuda];
    TANDEM_ASSIGN_OR_RETURN(const double cpu, measure(on_cpu, 0));
    TANDEM_ASSIGN_OR_RETURN(const double gpu, measure(0, on_gpu));
    TANDEM_ASSIGN_OR_RETURN(const double both, measure(on_cpu, on_gpu));
    if (both >= kSharedSlowdown * std::max(cpu, gpu)) {
      result_.profile.shared_bytes_per_second = call.bytes * (on_cpu + on_gpu) / both;
    }
    return absl::OkStatus();
  }

  // How coarse the next table must be for all that is to come to be measured in time: every point,
  // every 2nd or every 4th of each axis, by what points took so far.
  size_t Stride() const {
    if (measured_ < kPointsToJudge) return 1;
    // A point takes what it must and then samples until its share of the time left is over: what it
    // must take is more than its share if both together are more than twice that.
    return overrun_ <= 2.0 ? 1 : overrun_ <= 5.0 ? 2 : 4;
  }

  // Every stride-th of 0 .. count - 1, the last in any case.
  static std::vector<size_t> Chosen(size_t count, size_t stride) {
    std::vector<size_t> chosen;
    for (size_t i = 0; i + 1 < count; i += stride) chosen.push_back(i);
    chosen.push_back(count - 1);
    return chosen;
  }

  absl::Status Measure(const CostGrid& grid, DeviceKind device) {
    const size_t columns = grid.shapes.size() / grid.rows.size(), stride = Stride();
    const std::vector<size_t> rows = Chosen(grid.rows.size(), stride);
    const std::string what =
        absl::StrCat(Describe(grid.cost_class), " on ", std::string(Name(device)));
    const size_t begin = done_;
    done_ += grid.shapes.size();
    CostTable table = {grid.cost_class, device, {}, {}, {}};
    for (const size_t row : rows) table.rows.push_back(grid.rows[row]);
    std::vector<std::vector<double>> seconds;  // [work][rows]
    bool in_time = true;
    // Matrix by matrix, with all numbers of rows: preparing one is what takes time.
    for (const size_t column : Chosen(columns, stride)) {
      std::vector<double> own;
      for (size_t r = 0; r < rows.size() && in_time; ++r) {
        const CallShape& shape = grid.shapes[rows[r] * columns + column];
        const size_t step = column * grid.rows.size() + rows[r];
        if (options_.progress) {
          options_.progress(static_cast<int>(begin + step), static_cast<int>(total_), what);
        }
        TANDEM_ASSIGN_OR_RETURN(const OpFacts facts, FactsOf(shape));
        if (r == 0) table.work.push_back(CostPointOf(facts).work);
        // At least as long as less work took.
        double taken = r > 0 ? own.back() : 0.0, scaled = 0.0;
        if (!seconds.empty()) {
          const double before = seconds.back()[r];
          taken = std::max(taken, before);
          scaled = before * table.work.back() / table.work[table.work.size() - 2];
        }
        if (scaled > options_.longest_call) {
          own.push_back(std::max(taken, scaled));
          continue;
        }
        const double left = Left();
        in_time = left > 0.0;
        if (!in_time) break;
        const double began = machine_.Now();
        const absl::StatusOr<std::unique_ptr<TimedCall>> call = machine_.Prepare(shape, device);
        if (absl::IsUnimplemented(call.status())) {
          result_.notes.push_back(what + " left out: there is no kernel");
          return absl::OkStatus();
        }
        TANDEM_RETURN_IF_ERROR(call.status());
        const double budget = left / static_cast<double>(total_ - begin - step);
        TANDEM_ASSIGN_OR_RETURN(const double measured, Time(**call, budget));
        ++measured_;
        overrun_ += kOverrunRate * ((machine_.Now() - began) / budget - overrun_);
        own.push_back(std::max(taken, measured));
      }
      if (!in_time) {
        // What there is of it is a smaller table, if it has an end to go on from.
        table.work.resize(seconds.size());
        break;
      }
      seconds.push_back(std::move(own));
    }
    if (seconds.size() < std::min<size_t>(2, columns)) {
      result_.notes.push_back(what + " left out: no time left");
      return absl::OkStatus();
    }
    const size_t points = seconds.size() * rows.size();
    if (points < grid.shapes.size()) {
      result_.notes.push_back(absl::StrCat(what, ": ", points, " of ", grid.shapes.size(),
                                           " points, for lack of time"));
    }
    for (size_t r = 0; r < rows.size(); ++r) {
      for (const std::vector<double>& own : seconds) table.seconds.push_back(own[r]);
    }
    if (grid.cost_class.op == OpKind::kMatMul) {  // one row, a large matrix
      TANDEM_ASSIGN_OR_RETURN(const OpFacts facts,
                              FactsOf(grid.shapes[Chosen(columns, stride)[seconds.size() - 1]]));
      double& bandwidth = result_.profile.devices[device].bytes_per_second;
      bandwidth = std::max(bandwidth, static_cast<double>(facts.bytes) / seconds.back()[0]);
    }
    result_.profile.tables.push_back(std::move(table));
    return absl::OkStatus();
  }

  TimedMachine& machine_;
  const CostCalibrationOptions& options_;
  double begin_;
  size_t done_ = 0, total_ = 0;  // points, all tables
  size_t measured_ = 0;
  bool shared_measured_ = false;
  double overrun_ = 1.0;  // time that points took lately over their shares of what was left
  CostCalibration result_;
};

}  // namespace

std::vector<CostGrid> CostGrids() {
  std::vector<CostGrid> grids;
  grids.push_back(RowsGrid(OpKind::kAdd));
  for (const TypePair& types : kMatMulTypes) grids.push_back(MatMulGrid(types, false));
  for (const TypePair& types : kAttentionTypes) grids.push_back(AttentionGrid(types));
  for (const OpKind op : {OpKind::kRmsNorm, OpKind::kSiluMul, OpKind::kRope, OpKind::kSoftmax,
                          OpKind::kCast, OpKind::kArgMax}) {
    grids.push_back(RowsGrid(op));
  }
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBool, DType::kU32}) {
    grids.push_back(RowsGrid(OpKind::kMask, dtype));
  }
  for (const TypePair& types : kMatMulTypes) grids.push_back(MatMulGrid(types, true));
  return grids;
}

absl::StatusOr<CostCalibration> CalibrateCosts(TimedMachine& machine,
                                               const CostCalibrationOptions& options) {
  return Calibration(machine, options).Run();
}

}  // namespace tandem
