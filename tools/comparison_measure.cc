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
#include <random>
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
#include "tools/comparison_grid.h"
#include "tools/comparison_plot.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

// Beyond the last-level cache of most machines (and the L2 cache of an H200), copies taken
// together.
constexpr int64_t kColdBytes = int64_t{96} << 20;
constexpr int64_t kMostCopies = 64;
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

// Memory full of plausible numbers of one dtype, on one device, that views are cut from.
class Pool {
 public:
  static absl::StatusOr<Pool> Make(Context& context, DeviceKind where, DType dtype, int64_t bytes) {
    constexpr int64_t kRows = 64, kColumns = 4096;  // of the numbers that repeat
    const int64_t period = ByteOffset(dtype, kRows * kColumns);
    Allocator& host = context.host_allocator();
    TANDEM_ASSIGN_OR_RETURN(Tensor memory, Tensor::Allocate(host, DType::kI8, {bytes}));
    char* data = memory.As<char>();
    std::mt19937 random(1);
    if (IsFloat(dtype) || IsBlockQuantized(dtype)) {
      TANDEM_ASSIGN_OR_RETURN(const Tensor numbers,
                              Tensor::Allocate(host, DType::kF32, {kRows, kColumns}));
      std::normal_distribution<float> normal;
      for (int64_t i = 0; i < kRows * kColumns; ++i) numbers.As<float>()[i] = normal(random);
      TANDEM_ASSIGN_OR_RETURN(const Tensor pattern,
                              Tensor::Allocate(host, dtype, {kRows, kColumns}));
      ContextOptions cpu = context.options();
      cpu.device = DeviceKind::kCpu;
      cpu.cuda = cpu.cuda_emulated = false;
      TANDEM_ASSIGN_OR_RETURN(const auto converter, Context::Create(cpu));
      TANDEM_RETURN_IF_ERROR(CastInto(*converter, {.x = numbers, .out = pattern}));
      std::copy_n(pattern.As<char>(), std::min(period, bytes), data);
    } else {
      for (int64_t i = 0; i < std::min(period, bytes); ++i) {
        data[i] = static_cast<char>(static_cast<int>(random() % 255) - 127);
      }
    }
    for (int64_t done = period; done < bytes; done += period) {
      std::copy_n(data, std::min(period, bytes - done), data + done);
    }
    Pool pool;
    pool.dtype_ = dtype;
    pool.memory_ = memory;
    if (where != DeviceKind::kCpu) {
      TANDEM_ASSIGN_OR_RETURN(pool.memory_, CopyTo(context, where, memory));
      TANDEM_RETURN_IF_ERROR(Synchronize(context, where));
    }
    return pool;
  }

  // The copy-th tensor of this shape; the same again when there is no room for more.
  TensorView View(const Shape& shape, int64_t copy) const {
    const int64_t each = ByteOffset(dtype_, NumElements(shape).value());
    const int64_t room =
        std::max<int64_t>(memory_.view().num_elements() / std::max<int64_t>(each, 1), 1);
    return MakeView(memory_.As<char>() + (copy % room) * each, dtype_, shape,
                    memory_.view().device);
  }

 private:
  DType dtype_ = DType::kF32;
  Tensor memory_;
};

// The operands of a series on one device, enough for its longest call.
struct Operands {
  Pool small, small_out, stored, stored_v, scales;
};

int64_t StoredBytes(const GridSeries& s, int64_t x) {
  switch (s.op) {
    case OpKind::kAttention:
      return ByteOffset(s.stored, kGridKvHeads * x * kGridHeadDim);
    case OpKind::kMatMul:
      return ByteOffset(s.stored, s.n * s.k);
    default:
      return ByteOffset(s.stored, x * MaskColumns(s.stored, x));
  }
}
// Rotation would change nothing where computing takes the time.
bool Rotates(const GridSeries& s) { return s.op != OpKind::kMask && !s.prefill; }

int64_t CopiesOf(const GridSeries& s, int64_t x) {
  if (!Rotates(s)) return 1;
  const int64_t both = (s.op == OpKind::kAttention ? 2 : 1) * StoredBytes(s, x);
  return std::clamp<int64_t>(kColdBytes / both + 1, 1, kMostCopies);
}

absl::StatusOr<Operands> MakeOperands(Context& context, DeviceKind where, const GridSeries& s,
                                      int64_t longest) {
  Operands made;
  const auto make = [&](Pool& pool, DType dtype, int64_t bytes) {
    absl::StatusOr<Pool> result = Pool::Make(context, where, dtype, std::max<int64_t>(bytes, 64));
    if (result.ok()) pool = *std::move(result);
    return result.status();
  };
  const int64_t one = StoredBytes(s, longest);
  if (s.op == OpKind::kMask) {
    TANDEM_RETURN_IF_ERROR(make(made.stored, s.stored, one));
    return made;
  }
  int64_t bytes = one;  // of the copies of any length
  for (const int64_t x : s.x) {
    if (x <= longest) bytes = std::max(bytes, CopiesOf(s, x) * StoredBytes(s, x));
  }
  TANDEM_RETURN_IF_ERROR(make(made.stored, s.stored, bytes));
  if (s.op == OpKind::kMatMul) {
    TANDEM_RETURN_IF_ERROR(
        make(made.small, s.activations, ByteOffset(s.activations, longest * s.k)));
    TANDEM_RETURN_IF_ERROR(
        make(made.small_out, s.activations, ByteOffset(s.activations, longest * s.n)));
    return made;
  }
  TANDEM_RETURN_IF_ERROR(make(made.stored_v, s.stored, bytes));
  const int64_t queries =
      ByteOffset(s.activations, kGridHeads * (s.prefill ? longest : 1) * kGridHeadDim);
  TANDEM_RETURN_IF_ERROR(make(made.small, s.activations, queries));
  TANDEM_RETURN_IF_ERROR(make(made.small_out, s.activations, queries));
  if (s.stored == DType::kI8) {
    TANDEM_RETURN_IF_ERROR(make(made.scales, DType::kF32, kGridKvHeads * longest * 4));
  }
  return made;
}

// Calls visit(args) with the arguments of one call at x.
template <typename Visit>
auto WithArgs(const GridSeries& s, const Operands& operands, int64_t x, int64_t copy,
              const Visit& visit) {
  if (s.op == OpKind::kMask) {
    MaskArgs args;
    args.rule.q_len = args.rule.kv_len = x;
    args.out = operands.stored.View({x, MaskColumns(s.stored, x)}, 0);
    return visit(args);
  }
  if (s.op == OpKind::kMatMul) {
    MatMulArgs args;
    args.a = operands.small.View({x, s.k}, 0);
    args.b = operands.stored.View({s.n, s.k}, copy);
    args.out = operands.small_out.View({x, s.n}, 0);
    return visit(args);
  }
  AttentionArgs args;
  const Shape queries = {1, kGridHeads, s.prefill ? x : 1, kGridHeadDim};
  const Shape keys = {1, kGridKvHeads, x, kGridHeadDim};
  args.q = operands.small.View(queries, 0);
  args.out = operands.small_out.View(queries, 0);
  args.k = operands.stored.View(keys, copy);
  args.v = operands.stored_v.View(keys, copy);
  if (s.stored == DType::kI8) {
    args.k_scale = operands.scales.View({1, kGridKvHeads, x}, 0);
    args.v_scale = args.k_scale;
  }
  return visit(args);
}

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
    TANDEM_ASSIGN_OR_RETURN(free_, Context::Create(free));
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
      TANDEM_RETURN_IF_ERROR(MeasureLimits(run));
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
      const absl::StatusOr<Operands> operands =
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

  ComparedTime MeasurePoint(const GridSeries& grid, Context& context, const Operands& operands,
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
  void Decide(const GridSeries& grid, const Operands& operands, ComparedPoint& point) {
    if (!point.choice.empty()) return;
    WithArgs(grid, operands, point.x, 0, [&]<typename Args>(const Args& args) {
      DecisionInputs inputs;
      inputs.facts = FactsOf(args);
      inputs.cuda_present = free_->device(DeviceKind::kCuda) != nullptr;
      point.bytes = static_cast<double>(inputs.facts.bytes);
      point.flops = inputs.facts.flops;
      point.constants = IdOf(Choose(inputs, Policy{}).device);
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

  absl::Status MeasureLimits(DeviceRun& run) {
    ComparedDevice device;
    device.id = run.id;
    device.emulated = run.id == "cuda:emulated";
    const Backend& backend = *run.context->device(run.kind)->backend;
    device.name = backend.description();
    using Kind = MachineLimit::Kind;
    if (run.kind == DeviceKind::kCpu) {
      const cpu::CpuInfo info = cpu::DescribeCpu();
      const int threads =
          run.context->options().threads > 0 ? run.context->options().threads : info.cores;
      const cpu::Isa isa = cpu::ParseIsa(run.context->options().isa).value_or(info.features.isa);
      device.name =
          absl::StrCat(info.model, ", ", threads, threads == 1 ? " thread, " : " threads, ",
                       std::string(cpu::Name(isa)));
      device.limits = {
          {Kind::kBandwidth, "reads DRAM at",
           cpu::MeasureReadBandwidth(threads, int64_t{options_.quick ? 256 : 1024} << 20)},
          {Kind::kCompute, "f32 multiply-adds", cpu::MeasureFmaRate(threads, isa)}};
      if (!info.caches.empty()) {
        device.limits.push_back({Kind::kBandwidth, "reads its last cache at",
                                 cpu::MeasureReadBandwidth(threads, info.caches.back().bytes / 4)});
      }
      TANDEM_RETURN_IF_ERROR(AddGemm(run, DType::kF32, options_.quick ? 1024 : 2048, device));
    } else if (!device.emulated) {  // an emulator has no limits to compare with
      TANDEM_RETURN_IF_ERROR(AddCopies(run, device));
      TANDEM_RETURN_IF_ERROR(AddGemm(run, DType::kBF16, 4096, device));
      TANDEM_RETURN_IF_ERROR(AddGemm(run, DType::kF32, 4096, device));
    }
    result_.devices.push_back(std::move(device));
    return absl::OkStatus();
  }

  // Least seconds of `run`, on the device's stream and waited for.
  template <typename Call>
  absl::StatusOr<double> Least(DeviceRun& run, int calls, const Call& call) {
    double least = 1e30;
    for (int i = 0; i < calls; ++i) {
      const double begin = Now();
      TANDEM_RETURN_IF_ERROR(call());
      TANDEM_RETURN_IF_ERROR(Synchronize(*run.context, run.kind));
      if (i > 0) least = std::min(least, Now() - begin);
    }
    return least;
  }

  absl::Status AddCopies(DeviceRun& run, ComparedDevice& device) {
    using Kind = MachineLimit::Kind;
    const int64_t bytes = int64_t{256} << 20;
    TANDEM_ASSIGN_OR_RETURN(const Tensor host,
                            Tensor::Allocate(run.context->host_allocator(), DType::kI8, {bytes}));
    std::fill_n(host.As<char>(), bytes, '\1');
    TANDEM_ASSIGN_OR_RETURN(const Tensor a, CopyTo(*run.context, run.kind, host));
    TANDEM_ASSIGN_OR_RETURN(const Tensor b, CopyTo(*run.context, run.kind, host));
    struct Way {
      Kind kind;
      const char* what;
      const Tensor* from;
      const Tensor* to;
      double bytes;
    };
    const double n = static_cast<double>(bytes);
    for (const Way& way : {Way{Kind::kBandwidth, "copies its memory at", &a, &b, 2 * n},
                           {Kind::kTransfer, "receives at", &host, &a, n},
                           {Kind::kTransfer, "sends at", &a, &host, n}}) {
      TANDEM_ASSIGN_OR_RETURN(const double seconds, Least(run, 6, [&] {
                                return Copy(*run.context, *way.from, *way.to);
                              }));
      device.limits.push_back({way.kind, way.what, way.bytes / seconds * 1e-9});
    }
    return absl::OkStatus();
  }

  absl::Status AddGemm(DeviceRun& run, DType dtype, int64_t size, ComparedDevice& device) {
    TANDEM_ASSIGN_OR_RETURN(
        const Pool pool, Pool::Make(*run.context, run.kind, dtype, ByteOffset(dtype, size * size)));
    TANDEM_ASSIGN_OR_RETURN(const Tensor out,
                            AllocateOn(*run.context, run.kind, dtype, {size, size}));
    MatMulArgs args;
    args.a = args.b = pool.View({size, size}, 0);
    args.out = out;
    TANDEM_ASSIGN_OR_RETURN(const double seconds,
                            Least(run, 4, [&] { return MatMulInto(*run.context, args); }));
    const double n = static_cast<double>(size);
    device.limits.push_back({MachineLimit::Kind::kCompute,
                             absl::StrCat(std::string(Name(dtype)), " product of ", size, "³"),
                             2 * n * n * n / seconds * 1e-9});
    return absl::OkStatus();
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
