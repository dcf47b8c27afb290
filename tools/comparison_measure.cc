// How a call is timed: by the clock, from the call until its results can be read (a GPU's stream is
// waited for), through the public ops of a context that is forced onto one device, so that operands
// elsewhere are copied as they would be. After two calls to warm up, calls in rotation over copies
// of the operands until the time for a point is over. A device whose call was too long is not asked
// for longer ones.
#include "tools/comparison_measure.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <memory>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/status.h"
#include "core/version.h"
#include "cpu/backend.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"
#include "dispatch/run.h"
#include "tools/command.h"
#include "tools/comparison_grid.h"
#include "tools/comparison_limits.h"
#include "tools/comparison_operands.h"
#include "tools/comparison_plot.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

constexpr int kMinRuns = 5;
constexpr int kMostRuns = 400;

struct Budget {
  double point_seconds;    // for the calls of one point
  double longest_seconds;  // of a call; longer lengths are left out then
};
Budget BudgetOf(bool quick) { return quick ? Budget{0.06, 0.6} : Budget{0.25, 4.0}; }

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Quantile(const std::vector<double>& sorted, double part) {
  return sorted[static_cast<size_t>(part * static_cast<double>(sorted.size() - 1) + 0.5)];
}

// One device, and a context in which every op runs on it.
struct DeviceRun {
  std::string id;
  DeviceKind kind = DeviceKind::kCpu;
  std::unique_ptr<Context> context;
};

absl::Status RunInto(Context& context, const AttentionArgs& args) {
  return AttentionInto(context, args);
}
absl::Status RunInto(Context& context, const MatMulArgs& args) { return MatMulInto(context, args); }
absl::Status RunInto(Context& context, const MaskArgs& args) { return MaskInto(context, args); }

class Measurement {
 public:
  Measurement(const ComparisonOptions& options, Comparison& result)
      : options_(options), result_(result), budget_(BudgetOf(options.quick)) {}

  absl::Status OpenDevices() {
    std::set<std::string> seen;
    for (const std::string& id : options_.devices) {
      ContextOptions context = options_.context;
      TANDEM_RETURN_IF_ERROR(context.SetDevice(id));
      if (!seen.insert(id).second) {
        return InvalidArgument("--compare: ", id, " stands there twice");
      }
      absl::StatusOr<std::unique_ptr<Context>> made = Context::Create(context);
      if (!made.ok()) {
        if (id == "cpu") return made.status();
        result_.absent.emplace_back(id, Message(made.status()));
        continue;
      }
      DeviceRun run = {id, *context.device, *std::move(made)};
      if (run.kind == DeviceKind::kCuda && run.context->device(run.kind) == nullptr) {
        result_.absent.emplace_back(id, "no such device");
        continue;
      }
      if (id == "cuda" && run.context->has({DeviceKind::kCuda, kEmulatedDevice})) {
        result_.absent.emplace_back(
            id,
            "TANDEM_CUDA_EMULATED puts the emulated device in its place; compare cuda:emulated");
        continue;
      }
      runs_.push_back(std::move(run));
    }
    if (seen.contains("cuda") && seen.contains("cuda:emulated")) {
      return InvalidArgument("--compare: cuda and cuda:emulated cannot be compared in one run");
    }
    if (runs_.empty()) {
      return absl::NotFoundError(absl::StrCat("--compare: none of the devices is present: ",
                                              result_.absent.front().second));
    }
    // What chooses freely.
    ContextOptions free = options_.context;
    free.device.reset();
    free.cuda = free.cuda_emulated = false;
    for (const DeviceRun& run : runs_) {
      free.cuda = free.cuda || run.id == "cuda";
      free.cuda_emulated = free.cuda_emulated || run.id == "cuda:emulated";
    }
    // The environment may name a device that is not compared.
    if (!free.cuda && !free.cuda_emulated) free.device = DeviceKind::kCpu;
    TANDEM_ASSIGN_OR_RETURN(free_, OpenContext(free));
    const PolicyKind kind = free_->options().policy.kind;
    result_.policy = std::string(Name(kind));
    if (kind == PolicyKind::kAuto) {
      result_.policy += free_->cost_model() != nullptr ? " (calibrated)" : " (fixed)";
    }
    return absl::OkStatus();
  }

  absl::Status Run() {
    std::vector<GridSeries> grid = ComparisonGrid(options_.quick);
    std::erase_if(grid, [&](const GridSeries& series) {
      return series.id.find(options_.only) == std::string::npos;
    });
    if (grid.empty())
      return InvalidArgument("--only: no series has '", options_.only, "' in its id");
    int64_t total = static_cast<int64_t>(runs_.size());
    std::vector<std::pair<const GridSeries*, const DeviceRun*>> work;
    for (GridSeries& series : grid) {
      if (options_.longest > 0) {
        std::erase_if(series.x, [&](int64_t x) { return x > options_.longest; });
      }
      if (series.x.empty()) continue;
      for (const DeviceRun& home : runs_) {
        work.emplace_back(&series, &home);
        total += static_cast<int64_t>(series.x.size() * runs_.size());
      }
    }
    const auto step = [&](const std::string& what) {
      if (options_.progress) options_.progress(done_, total, what);
      ++done_;
    };
    for (DeviceRun& run : runs_) {
      step(run.id + ": limits");
      TANDEM_ASSIGN_OR_RETURN(ComparedDevice device,
                              MeasureLimits(*run.context, run.kind, options_.quick));
      result_.devices.push_back(std::move(device));
    }
    for (const auto& [series, home] : work) {
      TANDEM_RETURN_IF_ERROR(MeasureSeries(*series, *home, step));
    }
    return absl::OkStatus();
  }

 private:
  template <typename Step>
  absl::Status MeasureSeries(const GridSeries& grid, const DeviceRun& home, const Step& step) {
    ComparedSeries series;
    series.id = absl::StrCat(grid.id, "/", home.id);
    series.op = grid.op_name;
    series.title = grid.title;
    series.shape = grid.shape;
    series.x_name = grid.x_name;
    series.operands = home.id;
    for (const int64_t x : grid.x) series.points.emplace_back().x = x;
    for (DeviceRun& run : runs_) {
      // Operands in a GPU's memory are made by a context that has the GPU, and so has every call.
      const bool reaches =
          home.kind == DeviceKind::kCpu || run.context->device(home.kind) != nullptr;
      std::unique_ptr<Context> other;  // the CPU, of a context that has the GPU
      Context* context = run.context.get();
      if (!reaches) {
        ContextOptions both = free_->options();
        both.device = run.kind;
        TANDEM_ASSIGN_OR_RETURN(other, Context::Create(both));
        context = other.get();
      }
      const absl::StatusOr<GridOperands> operands =
          MakeOperands(*context, home.kind, grid, grid.x.back());
      std::string too_long;
      for (ComparedPoint& point : series.points) {
        step(absl::StrCat(series.id, " on ", run.id, ", ", point.x));
        ComparedTime time;
        if (!operands.ok()) {
          time.why = Message(operands.status());
        } else if (!too_long.empty()) {
          time.why = too_long;
        } else {
          time = MeasurePoint(grid, *context, *operands, point.x);
          if (time.runs > 0 && time.median > budget_.longest_seconds) {
            too_long = absl::StrCat(point.x, " took ", FormatSeconds(time.median), " already");
          }
        }
        time.device = run.id;
        point.times.push_back(std::move(time));
        if (operands.ok()) Decide(grid, *operands, point);
      }
    }
    result_.series.push_back(std::move(series));
    return absl::OkStatus();
  }

  ComparedTime MeasurePoint(const GridSeries& grid, Context& context, const GridOperands& operands,
                            int64_t x) {
    ComparedTime time;
    const int64_t copies = CopiesOf(grid, x);
    const bool waits = context.device(DeviceKind::kCuda) != nullptr;
    const auto call = [&](int64_t i) -> absl::StatusOr<double> {
      const double begin = Now();
      TANDEM_RETURN_IF_ERROR(WithArgs(grid, operands, x, i % copies,
                                      [&](const auto& args) { return RunInto(context, args); }));
      if (waits) TANDEM_RETURN_IF_ERROR(Synchronize(context, DeviceKind::kCuda));
      return Now() - begin;
    };
    // The first call says which kernel runs.
    context.trace().Clear();
    context.trace().Enable(true);
    absl::StatusOr<double> first = call(0);
    context.trace().Enable(false);
    if (!context.trace().records().empty()) {
      time.kernel = std::string(context.trace().records().back().kernel);
    }
    if (first.ok() && *first < budget_.point_seconds) first = call(1);
    std::vector<double> seconds;
    double spent = 0.0;
    const bool slow = first.ok() && *first > budget_.longest_seconds;  // once is enough to know
    if (slow) seconds.push_back(*first);
    while (first.ok() && !slow && seconds.size() < kMostRuns &&
           (seconds.size() < kMinRuns || spent < budget_.point_seconds)) {
      if (seconds.size() >= 3 && spent > 2 * budget_.point_seconds) break;
      first = call(static_cast<int64_t>(seconds.size()) + 2);
      if (!first.ok()) break;
      seconds.push_back(std::max(*first, 1e-9));
      spent += *first;
    }
    if (!first.ok()) {
      time.why = Message(first.status());
      return time;
    }
    std::sort(seconds.begin(), seconds.end());
    time.runs = static_cast<int>(seconds.size());
    time.median = Quantile(seconds, 0.5);
    time.low = Quantile(seconds, 0.25);
    time.high = Quantile(seconds, 0.75);
    return time;
  }

  // What the scheduler would do with this call, and what the default thresholds would.
  void Decide(const GridSeries& grid, const GridOperands& operands, ComparedPoint& point) {
    if (!point.choice.empty()) return;
    WithArgs(grid, operands, point.x, 0, [&]<typename Args>(const Args& args) {
      const DecisionInputs inputs = free_->InputsOf(FactsOf(args));
      point.bytes = static_cast<double>(inputs.facts.bytes);
      point.flops = inputs.facts.flops;
      Policy constants;  // the default thresholds, whatever the context goes by
      constants.kind = PolicyKind::kFixed;
      point.constants = IdOf(Choose(inputs, constants, free_->cost_model()).device);
      const auto plan = MakePlan(*free_, args, inputs.facts);
      if (!plan.ok()) return;
      point.choice = IdOf(plan->decision.device);
      point.reason = Explain(plan->decision, inputs, free_->options().policy);
    });
  }
  std::string IdOf(DeviceKind kind) const {
    for (const DeviceRun& run : runs_) {
      if (run.kind == kind) return run.id;
    }
    return std::string(Name(kind));
  }

  const ComparisonOptions& options_;
  Comparison& result_;
  const Budget budget_;
  std::vector<DeviceRun> runs_;
  std::unique_ptr<Context> free_;  // not forced onto a device
  int64_t done_ = 0;
};

std::string UtcNow() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  gmtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
  return text;
}

}  // namespace

absl::StatusOr<Comparison> MeasureComparison(const ComparisonOptions& options) {
  Comparison result;
  result.tandem_version = std::string(kVersion);
  result.date = UtcNow();
  result.quick = options.quick;
  const cpu::CpuInfo info = cpu::DescribeCpu();
  result.machine = {{"processor", info.model},
                    {"cores", absl::StrCat(info.cores)},
                    {"instructions", std::string(cpu::Name(info.features.isa))},
                    {"memory", HumanBytes(static_cast<double>(info.memory_bytes))}};
  Measurement measurement(options, result);
  TANDEM_RETURN_IF_ERROR(measurement.OpenDevices());
  TANDEM_RETURN_IF_ERROR(measurement.Run());
  return result;
}

}  // namespace tandem::tools
