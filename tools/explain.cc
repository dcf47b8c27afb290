// tandem explain: which device and kernel would run an op of a given shape, and why; and what every
// other kernel says.
//
// The operands are allocated but never touched: planning reads shapes, not data.
#include <CLI/CLI.hpp>
#include <cmath>
#include <iostream>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/status.h"
#include "core/tensor.h"
#include "dispatch/call_shape.h"
#include "dispatch/run.h"
#include "dispatch/split_costs.h"
#include "tools/command.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

struct Options {
  ComputeOptions compute;
  bool json = false;
  bool assume_cuda = false;
  std::string on = "cpu";
  std::string profile;
  std::string op;
  int64_t batch = 1, q_heads = 32, kv_heads = 8, q_len = 1, kv_len = 4096, head_dim = 128;
  int64_t m = 1, n = 4096, k = 4096;
  std::string dtype = "f32", kv_dtype = "f16", weights = "f16";
};

absl::StatusOr<DType> Parse(const std::string& option, const std::string& name) {
  const auto dtype = ParseDType(name);
  if (!dtype) return InvalidArgument(option, ": unknown dtype '", name, "'");
  return *dtype;
}

// What the call is predicted to take on each device that the model knows.
nlohmann::json Predictions(const OpFacts& facts, const CostModel* model) {
  nlohmann::json list = nlohmann::json::array();
  if (model == nullptr) return list;
  for (const DeviceKind kind : kDeviceKinds) {
    if (!model->has(kind)) continue;
    const auto call = model->CallSeconds(facts, kind);
    if (!call) continue;
    const double move = model->MoveSeconds(facts, kind);
    const CostTable& table =
        model->profile().tables[static_cast<size_t>(model->TableOf(facts, kind))];
    list.push_back({{"device", std::string(Name(kind))},
                    {"name", model->profile().devices[kind].name},
                    {"call_seconds", *call},
                    {"move_seconds", move},
                    {"seconds", *call + move},
                    {"measured", Describe(table.cost_class)}});
  }
  return list;
}

// Both devices on one call, its keys or weights lying where that takes least: the best share, in
// words. Empty: not a call that can be shared, or nobody knows what it takes on both.
std::string Sharing(const CallShape& shape, const CostModel* model, DeviceKind home) {
  if (model == nullptr || !model->has(DeviceKind::kCuda)) return "";
  const SplitCosts costs = CostsOf(*model);
  if (shape.op == OpKind::kAttention) {
    CacheCall call;
    call.cache = {.batch = shape.batch,
                  .kv_heads = shape.kv_heads,
                  .capacity = shape.kv_len,
                  .head_dim = shape.head_dim,
                  .dtype = shape.weights};
    call.length = shape.kv_len;
    call.q_heads = shape.q_heads;
    call.q_len = shape.q_len;
    call.q_dtype = shape.input;
    const auto choice = ChooseAttentionSplit(costs, call, home, call.length);
    return choice.ok() && std::isfinite(choice->cpu_alone + choice->gpu_alone)
               ? Explain(*choice, "keys")
               : "";
  }
  if (shape.op != OpKind::kMatMul) return "";
  const ProductCall call = {.m = shape.m,
                            .n = shape.n,
                            .k = shape.k,
                            .input = shape.input,
                            .weights = shape.weights,
                            .output = shape.input};
  const auto choice = ChooseMatMulSplit(costs, call, home, call.n);
  return choice.ok() && std::isfinite(choice->cpu_alone + choice->gpu_alone)
             ? Explain(*choice, "columns")
             : "";
}

void PrintText(const nlohmann::json& json) {
  const bool color = UseColor(1);
  const auto text = [](const nlohmann::json& object, const char* name) {
    return object[name].get<std::string>();
  };
  const auto seconds = [](const nlohmann::json& object, const char* name) {
    return HumanSeconds(object[name].get<double>());
  };
  std::cout << text(json, "op") << (json["runs"].get<bool>() ? " runs on " : " cannot run on ")
            << Styled(text(json, "device"), Style::kBold, color) << ": " << text(json, "reason")
            << "\n"
            << absl::StrFormat(
                   "%s read and written, %.3g operations, operands on %s, policy %s%s\n",
                   HumanBytes(json["bytes"].get<double>()), json["flops"].get<double>(),
                   text(json, "operands"), text(json, "policy"),
                   text(json, "policy") != "auto" ? ""
                   : json["predicted"].size() > 1 ? " (calibrated)"
                                                  : " (fixed)")
            << "times of calls: " << text(json, "cost_profile") << "\n";
  if (!json["predicted"].empty()) {
    Table times({"predicted on", "name", "call", "copies", "together", "from times of"});
    for (const auto& item : json["predicted"]) {
      times.Row({text(item, "device"), text(item, "name"), seconds(item, "call_seconds"),
                 seconds(item, "move_seconds"), seconds(item, "seconds"), text(item, "measured")});
    }
    times.Print(std::cout, color);
  }
  if (json.contains("shared")) {
    std::cout << "if both share it, what they read lying in two memories: " << text(json, "shared")
              << "\n";
  }
  std::cout << "kernel times: " << text(json, "kernel_profile") << "\n";
  Table table({"device", "kernel", "verdict"});
  for (const auto& item : json["kernels"]) {
    table.Row({text(item, "device"), text(item, "kernel"), text(item, "verdict")});
  }
  table.Print(std::cout, color);
}

// Adds what every kernel says, and which one runs. Is there one?
template <typename Args>
bool AddKernels(Context& context, const Args& args, const OpFacts& facts, const Decision& decision,
                nlohmann::json& json) {
  bool chosen = false;
  const std::string& forced = context.forced_kernel(Args::kOp);
  for (const DeviceKind kind : context.devices_present()) {
    ContextDevice& device = *context.device(kind);
    KernelContext kernel_context;
    kernel_context.stream = device.stream.get();
    // As they would be there.
    OwnedArgs<Args> owned(args);
    Transfer transfer;
    if (kind != DeviceKind::kCpu) {
      owned.ForEach([&](TensorView& view, Access access) {
        transfer.Add(view, access, device.backend->device());
      });
    }
    const KernelPreference* preference =
        forced.empty() ? context.kernel_preferences().Find(facts, kind) : nullptr;
    const auto selected =
        Select(kernel_context, kind, owned.args, forced,
               preference == nullptr ? std::span<const uint8_t>() : preference->order);
    for (const Kernel<Args>& kernel : KernelsOf<Args>(kind)) {
      const absl::Status can = kernel.supports(kernel_context, owned.args);
      std::string verdict = can.ok() ? "can" : Message(can);
      if (!forced.empty() && kernel.name != forced) {
        verdict = "passed over: another kernel is forced";
      } else if (selected.ok() && *selected == &kernel && decision.device == kind) {
        chosen = true;
        verdict = "chosen: forced";
        if (forced.empty()) {
          const std::string why = ExplainKernel(preference, kernel.name);
          verdict = "chosen: " + (why == "list order" ? "first that can, in list order" : why);
        }
        json["kernel"] = std::string(kernel.name);
      }
      json["kernels"].push_back({{"device", Name(device.backend->device())},
                                 {"kernel", std::string(kernel.name)},
                                 {"verdict", verdict}});
    }
  }
  return chosen;
}

template <typename Args>
int Print(Context& context, const Args& args, const CallShape& shape, const Options& options) {
  if (absl::Status status = Validate(args); !status.ok()) return Report(status);
  const CostModel* model = context.cost_model();
  DecisionInputs inputs = context.InputsOf(FactsOf(args));
  // As if they were there.
  if (options.on == "cuda") {
    inputs.facts.operands = {DeviceKind::kCuda, 0};
    std::swap(inputs.facts.at[DeviceKind::kCpu], inputs.facts.at[DeviceKind::kCuda]);
  }
  inputs.cuda_present = options.assume_cuda || inputs.cuda_present ||
                        (!options.profile.empty() && model->has(DeviceKind::kCuda));
  const Policy& policy = context.options().policy;
  const Decision decision = Choose(inputs, policy, model);
  const ContextDevice* where = context.device(decision.device);
  nlohmann::json json = {
      {"op", options.op},
      {"device",
       where == nullptr ? std::string(Name(decision.device)) : Name(where->backend->device())},
      {"reason", Explain(decision, inputs, policy)},
      {"bytes", inputs.facts.bytes},
      {"flops", inputs.facts.flops},
      {"policy", std::string(Name(policy.kind))},
      {"operands", std::string(Name(inputs.facts.operands.kind))},
      {"cost_profile", options.profile.empty() ? context.cost_profile_note() : options.profile},
      {"kernel_profile", context.kernel_profile_note()},
      {"predicted", Predictions(inputs.facts, model)},
      {"kernels", nlohmann::json::array()}};
  const std::string sharing = Sharing(shape, model, inputs.facts.operands.kind);
  if (!sharing.empty()) json["shared"] = sharing;
  const bool chosen = AddKernels(context, args, inputs.facts, decision, json);
  // Of a device that is not here nobody knows its kernels.
  const bool runs = chosen || where == nullptr;
  json["runs"] = runs;
  if (!runs) {
    const std::string& forced = context.forced_kernel(Args::kOp);
    json["reason"] = forced.empty()
                         ? absl::StrCat(json["reason"].get<std::string>(), ", which has no kernel")
                         : absl::StrCat("kernel ", forced, " is forced, and cannot");
  }
  if (options.json) {
    std::cout << json.dump(2) << "\n";
  } else {
    PrintText(json);
  }
  return runs ? kExitOk : kExitFailed;
}

// Which ops are described by sizes, and by which.
constexpr OpKind kOps[] = {OpKind::kAttention, OpKind::kMatMul, OpKind::kMask,    OpKind::kSoftmax,
                           OpKind::kRmsNorm,   OpKind::kRope,   OpKind::kSiluMul, OpKind::kAdd,
                           OpKind::kCast,      OpKind::kArgMax};

std::vector<std::string> OpNames() {
  std::vector<std::string> names;
  for (const OpKind op : kOps) names.emplace_back(Name(op));
  return names;
}

absl::StatusOr<CallShape> ShapeOf(const Options& o) {
  CallShape shape;
  for (const OpKind op : kOps) {
    if (Name(op) == o.op) shape.op = op;
  }
  TANDEM_ASSIGN_OR_RETURN(shape.input, Parse("--dtype", o.dtype));
  TANDEM_ASSIGN_OR_RETURN(const DType kv_dtype, Parse("--kv-dtype", o.kv_dtype));
  TANDEM_ASSIGN_OR_RETURN(const DType weights, Parse("--weights", o.weights));
  shape.weights = shape.op == OpKind::kAttention ? kv_dtype : weights;
  shape.m = o.m;
  shape.n = o.n;
  shape.k = o.k;
  shape.batch = o.batch;
  shape.q_heads = o.q_heads;
  shape.kv_heads = o.kv_heads;
  shape.head_dim = o.head_dim;
  shape.q_len = o.q_len;
  shape.kv_len = o.kv_len;
  if (shape.op == OpKind::kRope && shape.n % kRopeHeadDim != 0) {
    return InvalidArgument("-N: expected a multiple of ", kRopeHeadDim, " for rope, got ", shape.n);
  }
  return shape;
}

absl::StatusOr<int> Run(const Options& o) {
  TANDEM_ASSIGN_OR_RETURN(ContextOptions context_options, ToContextOptions(o.compute));
  if (!o.profile.empty()) {  // of whichever machine
    absl::StatusOr<CostProfile> profile = ReadCostProfile(o.profile);
    if (!profile.ok()) {
      return InvalidArgument("--profile ", o.profile, ": ", Message(profile.status()));
    }
    TANDEM_ASSIGN_OR_RETURN(CostModel model, CostModel::FromProfile(*std::move(profile)));
    context_options.cost_model = std::make_shared<const CostModel>(std::move(model));
  }
  TANDEM_ASSIGN_OR_RETURN(auto context, OpenContext(context_options));
  TANDEM_ASSIGN_OR_RETURN(const CallShape shape, ShapeOf(o));
  std::vector<Tensor> tensors;
  // Untouched memory; pages are never backed.
  const auto reserve = [&](OperandRole, DType type,
                           const Shape& dims) -> absl::StatusOr<TensorView> {
    TANDEM_ASSIGN_OR_RETURN(Tensor tensor, Tensor::Allocate(context->host_allocator(), type, dims));
    tensors.push_back(tensor);
    return tensor.view();
  };
  int code = kExitFailed;
  const absl::Status status = WithArgs(shape, reserve, [&](auto& args) {
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(args)>, MatMulArgs>) {
      args.float_activations = !context->options().quantize_activations;
    }
    code = Print(*context, args, shape, o);
    return absl::OkStatus();
  });
  if (!status.ok()) return status;
  return code;
}

}  // namespace

void AddExplain(CLI::App& app, Action& action) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "explain", "Say which device and kernel would run an op of a given shape, and why");
  command->add_option("--op", o->op, absl::StrJoin(OpNames(), ", "))
      ->required()
      ->check(CLI::IsMember(OpNames()));
  const auto size = [&](const char* name, int64_t& value, const char* what) {
    command->add_option(name, value, what)
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 40))
        ->capture_default_str();
  };
  size("--batch", o->batch, "attention: sequences");
  size("--q-heads", o->q_heads, "attention: query heads");
  size("--kv-heads", o->kv_heads, "attention: key/value heads");
  size("--q-len", o->q_len, "attention, mask: queries");
  size("--kv-len", o->kv_len, "attention, mask: keys");
  size("--head-dim", o->head_dim, "attention: head dimension");
  size("-M", o->m, "matmul and the ops by rows: rows");
  size("-N", o->n, "matmul: output features; ops by rows: columns");
  size("-K", o->k, "matmul: input features");
  command->add_option("--dtype", o->dtype, "activations, mask")->capture_default_str();
  command->add_option("--kv-dtype", o->kv_dtype, "attention: keys and values")
      ->capture_default_str();
  command->add_option("--weights", o->weights, "matmul: weights")->capture_default_str();
  command->add_flag("--assume-cuda", o->assume_cuda,
                    "decide as if a GPU were present (the policy alone; nothing is run)");
  command->add_option("--on", o->on, "where the operands are: cpu, cuda")
      ->check(CLI::IsMember({"cpu", "cuda"}))
      ->capture_default_str();
  command->add_option("--profile", o->profile,
                      "predict by this cost profile, of this or another machine (tandem calibrate "
                      "--out FILE)");
  command->add_flag("--json", o->json, "machine-readable output");
  AddComputeOptions(*command, o->compute);
  command->callback([o, &action] {
    action = [o] {
      const auto code = Run(*o);
      return code.ok() ? *code : Report(code.status());
    };
  });
}

}  // namespace tandem::tools
