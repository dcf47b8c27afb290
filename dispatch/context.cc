#include "dispatch/context.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "core/status.h"
#include "core/version.h"
#include "cpu/backend.h"
#include "cuda/backend.h"
#include "dispatch/registry.h"

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;

// A call that is said to take longer is not believed to (seconds).
constexpr double kLongestQueue = 60.0;

// Value of TANDEM_<name>, or nullopt if unset or empty.
std::optional<std::string> Env(const std::string& name) {
  const char* value = std::getenv(("TANDEM_" + name).c_str());
  if (value == nullptr || *value == '\0') return std::nullopt;
  return std::string(value);
}

absl::StatusOr<bool> ParseBool(const std::string& name, const std::string& value) {
  if (value == "1" || value == "true") return true;
  if (value == "0" || value == "false") return false;
  return InvalidArgument("TANDEM_", name, ": expected 0 or 1, got '", value, "'");
}

absl::StatusOr<int64_t> ParseCount(const std::string& name, const std::string& value) {
  int64_t number = 0;
  if (!absl::SimpleAtoi(value, &number) || number < 0) {
    return InvalidArgument("TANDEM_", name, ": expected an integer >= 0, got '", value, "'");
  }
  return number;
}

std::string Upper(std::string_view text) {
  std::string upper(text);
  for (char& c : upper) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  return upper;
}

absl::StatusOr<Policy> PolicyFromEnvironment(Policy policy) {
  if (const auto path = Env("POLICY_FILE")) {
    std::ifstream file(*path);
    if (!file) return InvalidArgument("TANDEM_POLICY_FILE: cannot read '", *path, "'");
    std::stringstream text;
    text << file.rdbuf();
    absl::StatusOr<Policy> read = PolicyFromJson(text.str(), policy);
    if (!read.ok()) {
      return InvalidArgument("TANDEM_POLICY_FILE '", *path, "': ", Message(read.status()));
    }
    policy = *read;
  }
  if (const auto value = Env("POLICY")) {
    absl::StatusOr<PolicyKind> kind = ParsePolicyKind(*value);
    if (!kind.ok()) return InvalidArgument("TANDEM_POLICY: ", Message(kind.status()));
    policy.kind = *kind;
  }
  for (const PolicyField& field : kPolicyFields) {
    const std::string name = "POLICY_" + Upper(field.name);
    if (const auto value = Env(name)) {
      TANDEM_ASSIGN_OR_RETURN(policy.*field.value, ParseCount(name, *value));
    }
  }
  return policy;
}

// FailedPrecondition: there is none.
absl::StatusOr<ContextDevice> OpenCuda(const ContextOptions& options, const std::string& fault) {
  cuda::CudaOptions cuda_options;
  cuda_options.device = options.cuda_emulated ? kEmulatedDevice : 0;
  cuda_options.memory_limit = options.cuda_memory_limit;
  cuda_options.emulated_schedule = options.cuda_schedule;
  cuda_options.emulated_fault = fault;
  cuda_options.cublaslt_path = options.cublaslt_path;
  ContextDevice device;
  TANDEM_ASSIGN_OR_RETURN(device.backend, cuda::MakeCudaBackend(cuda_options));
  TANDEM_ASSIGN_OR_RETURN(device.stream, device.backend->CreateStream());
  return device;
}

std::optional<OpKind> ParseOp(const std::string& name) {
  const auto it = std::find(kOpNames.begin(), kOpNames.end(), name);
  if (it == kOpNames.end()) return std::nullopt;
  return static_cast<OpKind>(it - kOpNames.begin());
}

}  // namespace

absl::StatusOr<ContextOptions> ContextOptions::WithEnvironment() const {
  ContextOptions options = *this;
  if (const auto value = Env("THREADS")) {
    TANDEM_ASSIGN_OR_RETURN(const int64_t count, ParseCount("THREADS", *value));
    options.threads = static_cast<int>(std::min<int64_t>(count, INT32_MAX));
  }
  if (const auto value = Env("ISA")) options.isa = *value;
  if (const auto value = Env("KERNEL_PROFILE")) options.kernel_profile = *value;
  if (const auto value = Env("COST_PROFILE")) options.cost_profile = *value;
  if (const auto value = Env("PIN_THREADS")) {
    TANDEM_ASSIGN_OR_RETURN(options.pin_threads, ParseBool("PIN_THREADS", *value));
  }
  if (const auto value = Env("QUANTIZE_ACTIVATIONS")) {
    TANDEM_ASSIGN_OR_RETURN(options.quantize_activations,
                            ParseBool("QUANTIZE_ACTIVATIONS", *value));
  }
  if (const auto value = Env("TRACE")) {
    TANDEM_ASSIGN_OR_RETURN(options.trace, ParseBool("TRACE", *value));
  }
  if (const auto value = Env("CUDA")) {
    TANDEM_ASSIGN_OR_RETURN(options.cuda, ParseBool("CUDA", *value));
  }
  if (const auto value = Env("CUDA_EMULATED")) {
    TANDEM_ASSIGN_OR_RETURN(options.cuda_emulated, ParseBool("CUDA_EMULATED", *value));
  }
  if (const auto value = Env("CUDA_SCHEDULE")) options.cuda_schedule = *value;
  if (const auto value = Env("CUDA_MEMORY_LIMIT")) {
    TANDEM_ASSIGN_OR_RETURN(options.cuda_memory_limit, ParseCount("CUDA_MEMORY_LIMIT", *value));
  }
  if (const auto value = Env("CUDA_EMULATED_FAULT")) options.cuda_fault = *value;
  if (const auto value = Env("CUBLASLT_PATH")) options.cublaslt_path = *value;
  if (const auto value = Env("DEVICE")) {
    if (absl::Status status = options.SetDevice(*value); !status.ok()) {
      return InvalidArgument("TANDEM_DEVICE: ", Message(status));
    }
  }
  if (const auto value = Env("KERNEL")) {
    for (const auto part : absl::StrSplit(*value, ',')) {
      const std::pair<std::string, std::string> choice =
          absl::StrSplit(part, absl::MaxSplits('=', 1));
      if (choice.first.empty() || choice.second.empty()) {
        return InvalidArgument("TANDEM_KERNEL: expected op=kernel[,op=kernel...], got '", *value,
                               "'");
      }
      options.force_kernel[choice.first] = choice.second;
    }
  }
  TANDEM_ASSIGN_OR_RETURN(options.policy, PolicyFromEnvironment(options.policy));
  return options;
}

absl::Status ContextOptions::SetDevice(const std::string& name) {
  constexpr std::string_view kPrefer = "prefer:", kHybrid = "hybrid";
  const bool prefer = name.starts_with(kPrefer),
             both = name == "hybrid" || name == "hybrid:emulated";
  const std::string own = prefer ? name.substr(kPrefer.size())
                          : both ? "cuda" + name.substr(kHybrid.size())
                                 : name;
  if (own != "cuda" && own != "cuda:emulated" && (own != "cpu" || prefer)) {
    return InvalidArgument("expected cpu, cuda, cuda:emulated, prefer:cuda or hybrid, got '", name,
                           "'");
  }
  prefer_cuda = prefer;
  hybrid = both;
  device.reset();
  if (!prefer && !both) device = own == "cpu" ? DeviceKind::kCpu : DeviceKind::kCuda;
  cuda = cuda || own != "cpu";
  cuda_emulated = cuda_emulated || own == "cuda:emulated";
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Context>> Context::Create(const ContextOptions& options) {
  std::unique_ptr<Context> context(new Context());
  TANDEM_ASSIGN_OR_RETURN(context->options_, options.WithEnvironment());
  const ContextOptions& chosen = context->options_;

  cpu::CpuOptions cpu_options;
  cpu_options.threads = chosen.threads;
  cpu_options.pin_threads = chosen.pin_threads;
  if (!chosen.isa.empty()) {
    cpu_options.isa = cpu::ParseIsa(chosen.isa);
    if (!cpu_options.isa) {
      return InvalidArgument("isa: expected scalar, avx2 or avx512, got '", chosen.isa, "'");
    }
  }
  ContextDevice& cpu = context->devices_[static_cast<size_t>(DeviceKind::kCpu)];
  TANDEM_ASSIGN_OR_RETURN(cpu.backend, cpu::MakeCpuBackend(cpu_options));
  TANDEM_ASSIGN_OR_RETURN(cpu.stream, cpu.backend->CreateStream());
  context->present_.push_back(DeviceKind::kCpu);

  absl::Status no_cuda = absl::FailedPreconditionError("it was not asked for");
  if (chosen.cuda_emulated || chosen.cuda || chosen.device == DeviceKind::kCuda) {
    absl::StatusOr<ContextDevice> device = OpenCuda(chosen, chosen.cuda_fault);
    no_cuda = device.status();
    if (device.ok()) {
      context->devices_[static_cast<size_t>(DeviceKind::kCuda)] = *std::move(device);
      context->present_.push_back(DeviceKind::kCuda);
    } else if (chosen.cuda_emulated || !absl::IsFailedPrecondition(no_cuda)) {
      return no_cuda;
    }
  }
  if (!chosen.cuda_fault.empty() && !context->has({DeviceKind::kCuda, kEmulatedDevice})) {
    return InvalidArgument("TANDEM_CUDA_EMULATED_FAULT: expected the emulated device ",
                           "(TANDEM_CUDA_EMULATED=1, --device cuda:emulated), there is none here");
  }

  if (chosen.device && context->device(*chosen.device) == nullptr) {
    return InvalidArgument("device: ", std::string(Name(*chosen.device)),
                           " was asked for, but it cannot be used: ", Message(no_cuda));
  }
  context->no_cuda_ = Message(no_cuda);
  for (const auto& [op_name, kernel] : chosen.force_kernel) {
    const auto op = ParseOp(op_name);
    if (!op) {
      return InvalidArgument(
          "force_kernel: unknown op '", op_name, "'; known: ",
          absl::StrJoin(kOpNames, ", ", [](std::string* out, auto name) { out->append(name); }));
    }
    TANDEM_RETURN_IF_ERROR(context->ForceKernel(*op, kernel));
  }
  context->machine_key_ = absl::StrCat("tandem ", std::string(kVersion));
  for (const DeviceKind kind : context->present_) {
    absl::StrAppend(&context->machine_key_, "; ", context->device(kind)->backend->profile_key());
  }
  const std::string& profile = chosen.kernel_profile;
  if (profile == "off") {
    context->profile_note_ = "off";
  } else {
    TANDEM_ASSIGN_OR_RETURN(
        context->preferences_,
        LoadKernelPreferences(
            profile.empty() ? DefaultKernelProfilePath(context->machine_key_) : profile,
            context->machine_key_, /*required=*/!profile.empty(), &context->profile_note_));
  }
  TANDEM_RETURN_IF_ERROR(context->SetUpCosts());
  for (const std::string* note : {&context->profile_note_, &context->cost_profile_note_}) {
    if (!note->starts_with("ignored")) continue;
    context->warnings_.push_back(
        absl::StrCat(note == &context->profile_note_ ? "kernel" : "cost", " profile ", *note));
  }
  context->trace_.Enable(chosen.trace);
  return context;
}

absl::Status Context::SetUpCosts() {
  const std::string& path = options_.cost_profile;
  if (options_.cost_model != nullptr) {
    cost_model_ = options_.cost_model;
    cost_profile_note_ = "given";
  } else if (path == "off") {
    cost_profile_note_ = "off";
  } else {
    TANDEM_ASSIGN_OR_RETURN(
        std::optional<CostProfile> profile,
        LoadCostProfile(path.empty() ? DefaultCostProfilePath(machine_key_) : path, machine_key_,
                        /*required=*/!path.empty(), &cost_profile_note_));
    if (profile) {
      TANDEM_ASSIGN_OR_RETURN(CostModel model, CostModel::FromProfile(*std::move(profile)));
      cost_model_ = std::make_shared<const CostModel>(std::move(model));
    }
  }
  ContextDevice* cuda = device(DeviceKind::kCuda);
  if (cuda == nullptr) return absl::OkStatus();
  const PolicyKind kind = options_.policy.kind;
  if (kind == PolicyKind::kCalibrated && cost_model_ == nullptr) {
    return InvalidArgument("policy: calibrated was asked for, but there is no cost profile: ",
                           cost_profile_note_);
  }
  if (cost_model_ != nullptr && (kind == PolicyKind::kCalibrated || kind == PolicyKind::kAuto)) {
    correction_ = CostCorrection(cost_model_->num_tables());
    predicts_ = !options_.device;
    learns_ = options_.policy.correct_online != 0;
    const absl::StatusOr<MemoryInfo> memory = cuda->backend->memory();
    if (memory.ok()) {
      cuda_bytes_ = memory->free_bytes + cuda->backend->allocator().bytes_in_use();
    }
  }
  return absl::OkStatus();
}

DecisionInputs Context::InputsOf(const OpFacts& facts) {
  DecisionInputs inputs;
  inputs.facts = facts;
  inputs.forced_device = options_.device;
  inputs.placed = placed_;
  ContextDevice* cuda = device(DeviceKind::kCuda);
  inputs.cuda_present = cuda != nullptr;
  inputs.cuda_state = health_.StateFor(facts.op, facts.bytes);
  if (cuda == nullptr || cost_model_ == nullptr) return inputs;
  if (cuda_bytes_ != INT64_MAX) {
    inputs.free_bytes[DeviceKind::kCuda] =
        std::max<int64_t>(0, cuda_bytes_ - cuda->backend->allocator().bytes_in_use());
  }
  if (cuda_done_ != Clock::time_point()) {
    const double left = std::chrono::duration<double>(cuda_done_ - Clock::now()).count();
    if (left <= 0.0) cuda_done_ = {};
    inputs.queued_seconds[DeviceKind::kCuda] = std::max(0.0, left);
  }
  const int64_t period = options_.policy.explore_one_in;
  inputs.explore = period > 0 && decisions_ % period == period - 1;
  return inputs;
}

Decision Context::Decide(const OpFacts& facts) {
  const DecisionInputs inputs = InputsOf(facts);
  ++decisions_;
  Decision decision = Choose(inputs, options_.policy, cost_model_.get(), &correction_);
  if (decision.rule != Decision::Rule::kPlaced || !predicts_) return decision;
  // Nothing is decided by it, but what the call takes corrects what is predicted of others.
  Prediction& p = decision.predicted[decision.device];
  p = Predict(facts, decision.device, *cost_model_, &correction_);
  if (queued_work_ != nullptr && decision.device == DeviceKind::kCuda && !p.known()) {
    queued_work_->AddUnknown();
  }
  return decision;
}

Decision Context::StayWith(const OpFacts& facts) const {
  const DeviceKind kind = facts.operands.kind;
  Decision decision = {kind, Decision::Rule::kFollowsOperands};
  if (predicts_) decision.predicted[kind] = Predict(facts, kind, *cost_model_, &correction_);
  return decision;
}

void Context::Finished(const Decision& decision, double seconds) {
  const Prediction& p = decision.predicted[decision.device];
  // Who waited for others' work does not know what this took.
  if (Learns(decision) && p.wait_seconds <= 0.0) Learn(correction_, p, seconds);
}

void Context::Queued(const Decision& decision) {
  const Prediction& p = decision.predicted[decision.device];
  if (decision.device != DeviceKind::kCuda || !p.known()) return;
  const double launch = cost_model_->LaunchSeconds(DeviceKind::kCuda);
  const double work = p.call_seconds - launch;
  if (queued_work_ != nullptr) queued_work_->Add(p.slot, p.call_seconds, launch);
  cuda_done_ = std::max(cuda_done_, Clock::now()) +
               std::chrono::duration_cast<Clock::duration>(
                   std::chrono::duration<double>(std::clamp(work, 0.0, kLongestQueue)));
}

ContextDevice* Context::device(DeviceKind kind) {
  ContextDevice& device = devices_[static_cast<size_t>(kind)];
  return device.backend ? &device : nullptr;
}

DeviceKind Context::preferred_device() const {
  const bool gpu = options_.prefer_cuda && !health_.lost() &&
                   devices_[static_cast<size_t>(DeviceKind::kCuda)].backend != nullptr;
  return options_.device.value_or(gpu ? DeviceKind::kCuda : DeviceKind::kCpu);
}

bool Context::has(Device device) const {
  const ContextDevice& own = devices_[static_cast<size_t>(device.kind)];
  return own.backend && own.backend->device() == device;
}

absl::Status Context::ReserveWorkspace(DeviceKind kind, int64_t bytes) {
  ContextDevice* target = device(kind);
  if (target == nullptr) {
    return InvalidArgument("device: ", std::string(Name(kind)), " is not present");
  }
  if (bytes < 0) return InvalidArgument("bytes: expected >= 0, got ", bytes);
  if (target->scratch && target->scratch->bytes() >= bytes) return absl::OkStatus();
  // Work already queued may still use the old block.
  if (target->scratch) TANDEM_RETURN_IF_ERROR(target->stream->Synchronize());
  TANDEM_ASSIGN_OR_RETURN(target->scratch, target->backend->allocator().Allocate(bytes));
  return absl::OkStatus();
}

int64_t Context::ReportFault(FaultEvent event, bool resident) {
  const Device device = event.device;
  if (queued_work_ != nullptr) queued_work_->AddUnknown();
  std::string text = trace_.enabled() ? Describe(event) : "";
  const int64_t number = health_.Add(std::move(event), resident);
  if (trace_.enabled()) trace_.AddNote({trace_.Now(), device, number, std::move(text)});
  return number;
}

absl::Status Context::Revive(DeviceKind kind) {
  ContextDevice* lost = device(kind);
  if (lost == nullptr) {
    return InvalidArgument("device: ", std::string(Name(kind)), " is not present");
  }
  if (!lost->stream->Synchronize().ok()) {
    absl::StatusOr<ContextDevice> fresh = OpenCuda(options_, /*fault=*/"");
    absl::Status status = fresh.status();
    if (status.ok()) status = fresh->stream->Synchronize();
    if (!status.ok()) {
      return absl::UnavailableError(absl::StrCat(Name(lost->backend->device()),
                                                 " is still lost: ", Message(status),
                                                 "; start the process again to use it"));
    }
    // Buffers that are still alive need their allocator.
    retired_.push_back(std::exchange(*lost, *std::move(fresh)));
  }
  health_.Revive();
  return absl::OkStatus();
}

absl::Status Context::ForceKernel(OpKind op, const std::string& kernel) {
  if (!kernel.empty()) {
    std::vector<std::string> known;
    for (DeviceKind kind : present_) {
      for (std::string_view name : KernelNames(op, kind)) known.emplace_back(name);
    }
    if (std::find(known.begin(), known.end(), kernel) == known.end()) {
      return InvalidArgument("force_kernel: no ", std::string(Name(op)), " kernel named '", kernel,
                             "'; known: ", absl::StrJoin(known, ", "));
    }
  }
  forced_[static_cast<size_t>(op)] = kernel;
  return absl::OkStatus();
}

}  // namespace tandem
