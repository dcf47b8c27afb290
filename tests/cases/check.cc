#include "tests/cases/check.h"

#include <algorithm>
#include <chrono>
#include <set>
#include <tuple>

#include "absl/strings/str_join.h"
#include "dispatch/context.h"
#include "dispatch/ops.h"
#include "dispatch/registry.h"
#include "tests/cases/all_cases.h"
#include "tests/cases/renewable_context.h"

namespace tandem::cases {
namespace {

bool Contains(const std::vector<std::string>& names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

// One run of RunCheck.
class Checker {
 public:
  explicit Checker(const CheckOptions& options) : options_(options) {}

  absl::StatusOr<CheckReport> Run() {
    const auto begin = std::chrono::steady_clock::now();
    TANDEM_RETURN_IF_ERROR(CheckNames());
    std::vector<std::string> isas = options_.isas;
    if (isas.empty()) isas.emplace_back();
    std::vector<std::string> schedules = options_.schedules;
    if (schedules.empty()) schedules.emplace_back();
    const auto passes = static_cast<int64_t>(isas.size() * schedules.size());
    absl::Status status;
    ForEachCaseType([&]<typename Case>() {
      if (status.ok()) status = Count<Case>(passes);
    });
    TANDEM_RETURN_IF_ERROR(status);
    for (const std::string& isa : isas) {
      for (const std::string& schedule : schedules) {
        ContextOptions context_options;
        context_options.isa = isa;
        context_options.threads = options_.threads;
        context_options.cuda = Contains(options_.devices, "cuda");
        context_options.cuda_emulated = Contains(options_.devices, "cuda:emulated");
        if (!schedule.empty()) context_options.cuda_schedule = schedule;
        TANDEM_ASSIGN_OR_RETURN(RenewableContext context,
                                RenewableContext::Create(context_options));
        isa_ = isa.empty() ? "native" : isa;
        ForEachCaseType([&]<typename Case>() {
          if (status.ok()) status = CheckOp<Case>(context);
        });
        TANDEM_RETURN_IF_ERROR(status);
      }
    }
    for (const std::string& kernel : options_.kernels) {
      if (!kernels_seen_.contains(kernel)) {
        return InvalidArgument("kernel: none is named '", kernel, "'");
      }
    }
    report_.pairs = pairs_.Take();
    report_.cases = progress_.total / passes;
    report_.seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return std::move(report_);
  }

 private:
  absl::Status CheckNames() {
    std::vector<std::string> known;
    ForEachCaseType([&]<typename Case>() { known.push_back(OpNameOf<Case>()); });
    std::vector<std::string> asked = options_.ops;
    if (!options_.case_text.empty()) {
      const std::vector<std::string> words = SplitWords(options_.case_text);
      asked.push_back(words.empty() ? "" : words[0]);
    }
    for (const std::string& op : asked) {
      if (!Contains(known, op)) {
        return InvalidArgument("op: expected one of ", absl::StrJoin(known, ", "), "; got '", op,
                               "'");
      }
    }
    for (const std::string& device : options_.devices) {
      ContextOptions context_options;
      if (absl::Status status = context_options.SetDevice(device); !status.ok()) {
        return InvalidArgument("devices: ", Message(status));
      }
    }
    if (options_.parts < 1 || options_.part < 0 || options_.part >= options_.parts) {
      return InvalidArgument("part: expected 0..parts - 1, got ", options_.part, " of ",
                             options_.parts);
    }
    return absl::OkStatus();
  }

  template <typename Case>
  absl::StatusOr<std::vector<Case>> Cases() const {
    const std::string op = OpNameOf<Case>();
    if (!options_.ops.empty() && !Contains(options_.ops, op)) return std::vector<Case>();
    if (!options_.case_text.empty()) {
      if (SplitWords(options_.case_text)[0] != op) return std::vector<Case>();
      TANDEM_ASSIGN_OR_RETURN(Case c, ParseCase<Case>(options_.case_text));
      return std::vector<Case>{c};
    }
    std::vector<Case> all = Case::Grid(options_.grid);
    Rng rng(options_.random_seed);
    for (int64_t i = 0; i < options_.random_cases; ++i) all.push_back(Case::Random(rng));
    std::vector<Case> own;
    for (size_t i = static_cast<size_t>(options_.part); i < all.size();
         i += static_cast<size_t>(options_.parts)) {
      own.push_back(all[i]);
    }
    return own;
  }

  template <typename Case>
  absl::Status Count(int64_t passes) {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Case> cases, Cases<Case>());
    progress_.total += passes * static_cast<int64_t>(cases.size());
    return absl::OkStatus();
  }

  bool Chosen(const ContextDevice& device) const {
    const Device d = device.backend->device();
    return options_.devices.empty() || Contains(options_.devices, Name(d)) ||
           Contains(options_.devices, Name(d.kind));
  }

  template <typename Case>
  absl::Status CheckOp(RenewableContext& context) {
    TANDEM_ASSIGN_OR_RETURN(const std::vector<Case> cases, Cases<Case>());
    progress_.op = Name(Case::Args::kOp);
    std::vector<DeviceKind> kinds;
    int64_t devices = 0;  // that have kernels
    for (DeviceKind kind : context->devices_present()) {
      if (!Chosen(*context->device(kind))) continue;
      kinds.push_back(kind);
      devices += !KernelsOf<typename Case::Args>(kind).empty();
    }
    if (devices == 0) {
      progress_.done += static_cast<int64_t>(cases.size());
      return absl::OkStatus();
    }
    for (const Case& c : cases) {
      const absl::StatusOr<Prepared<Case>> prepared = Prepare(c);
      if (!prepared.ok()) {
        return InvalidArgument("case '", CaseText(c), "': ", Message(prepared.status()));
      }
      std::vector<DeviceRun> runs;
      for (DeviceKind kind : kinds) {
        const std::string device_name = Name(context->device(kind)->backend->device());
        const auto kernels = KernelsOf<typename Case::Args>(kind);
        bool ran = kernels.empty();
        for (const auto& kernel : kernels) {
          if (!options_.kernels.empty() && !Contains(options_.kernels, kernel.name)) continue;
          kernels_seen_.insert(std::string(kernel.name));
          const Target target = {
              .backend = context->device(kind)->backend.get(),
              .stream = context->device(kind)->stream.get(),
              .pack = [&](const TensorView& weights) { return PackWeights(*context, weights); },
              .keep_outputs = devices > 1};
          Outcome outcome = RunPrepared(*prepared, kernel, target);
          if (outcome.failed()) context.RenewIfLost(kind);
          ran = ran || outcome.kind != Outcome::Kind::kUnsupported;
          Record(Row(OpNameOf<Case>(), device_name, kernel.name, c.DTypeLabel()), outcome);
          if (devices > 1) {
            runs.push_back({device_name, std::string(kernel.name), std::move(outcome)});
          }
        }
        if (!ran && options_.kernels.empty()) report_.never_run.push_back(CaseText(c));
      }
      pairs_.Add(OpNameOf<Case>(), isa_, c.DTypeLabel(), CaseText(c), prepared->expectations, runs);
      ++progress_.done;
      if (options_.progress) options_.progress(progress_);
    }
    return absl::OkStatus();
  }

  CheckRow& Row(const std::string& op, const std::string& device, std::string_view kernel,
                const std::string& dtype) {
    for (CheckRow& row : report_.rows) {
      if (row.op == op && row.device == device && row.isa == isa_ && row.kernel == kernel &&
          row.dtype == dtype) {
        return row;
      }
    }
    CheckRow& row = report_.rows.emplace_back();
    row.op = op;
    row.device = device;
    row.isa = isa_;
    row.kernel = kernel;
    row.dtype = dtype;
    return row;
  }

  void Record(CheckRow& row, const Outcome& outcome) {
    ++row.cases;
    switch (outcome.kind) {
      case Outcome::Kind::kUnsupported:
        ++row.unsupported;
        if (row.first_unsupported.empty()) row.first_unsupported = outcome.message;
        return;
      case Outcome::Kind::kFailed:
        ++row.failed;
        ++progress_.failed;
        if (row.first_failure.empty()) row.first_failure = outcome.message;
        break;
      case Outcome::Kind::kPassed:
        ++row.passed;
        break;
    }
    row.worst_ratio = std::max(row.worst_ratio, outcome.worst_ratio);
    row.max_abs_error = std::max(row.max_abs_error, outcome.max_abs_error);
    row.relative_l2 = std::max(row.relative_l2, outcome.relative_l2);
  }

  const CheckOptions& options_;
  CheckReport report_;
  PairRows pairs_;
  CheckProgress progress_;
  std::string isa_;
  std::set<std::string> kernels_seen_;
};

}  // namespace

int64_t CheckReport::passed() const {
  int64_t count = 0;
  for (const CheckRow& row : rows) count += row.passed;
  return count;
}

int64_t CheckReport::failed() const {
  int64_t count = 0;
  for (const CheckRow& row : rows) count += row.failed;
  return count;
}

int64_t CheckReport::pairs_passed() const {
  int64_t count = 0;
  for (const PairRow& pair : pairs) count += pair.passed;
  return count;
}

int64_t CheckReport::pairs_failed() const {
  int64_t count = 0;
  for (const PairRow& pair : pairs) count += pair.failed;
  return count;
}

absl::StatusOr<CheckReport> RunCheck(const CheckOptions& options) { return Checker(options).Run(); }

}  // namespace tandem::cases
