// tandem explain: which device and kernel would run an op of a given shape, and why; and what every
// other kernel says.
//
// The operands are allocated but never touched: planning reads shapes, not data.
#include <CLI/CLI.hpp>
#include <iostream>
#include <nlohmann/json.hpp>
#include <span>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "core/tensor.h"
#include "dispatch/run.h"
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
    list.push_back({{"device", std::string(Name(kind))},
                    {"name", model->profile().devices[kind].name},
                    {"call_seconds", *call},
                    {"move_seconds", move},
                    {"seconds", *call + move}});
  }
  return list;
}

template <typename Args>
int Print(Context& context, const Args& args, const Options& options) {
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
  const std::string reason = Explain(decision, inputs, policy);

  const ContextDevice* where = context.device(decision.device);
  const std::string device_name =
      where == nullptr ? std::string(Name(decision.device)) : Name(where->backend->device());

  nlohmann::json json = {{"op", options.op},
                         {"device", device_name},
                         {"reason", reason},
                         {"bytes", inputs.facts.bytes},
                         {"flops", inputs.facts.flops},
                         {"policy", std::string(Name(policy.kind))},
                         {"operands", std::string(Name(inputs.facts.operands.kind))},
                         {"cost_profile", context.cost_profile_note()},
                         {"kernel_profile", context.kernel_profile_note()},
                         {"predicted", Predictions(inputs.facts, model)},
                         {"kernels", nlohmann::json::array()}};
  Table table({"device", "kernel", "verdict"});
  bool chosen = false;
  const std::string& forced = context.forced_kernel(Args::kOp);
  for (const DeviceKind kind : context.devices_present()) {
    ContextDevice& device = *context.device(kind);
    const std::string own_name = Name(device.backend->device());
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
        forced.empty() ? context.kernel_preferences().Find(inputs.facts, kind) : nullptr;
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
      table.Row({own_name, std::string(kernel.name), verdict});
      json["kernels"].push_back(
          {{"device", own_name}, {"kernel", std::string(kernel.name)}, {"verdict", verdict}});
    }
  }
  if (options.json) {
    std::cout << json.dump(2) << "\n";
  } else {
    const bool color = UseColor(1);
    std::cout << options.op << " runs on " << Styled(device_name, Style::kBold, color) << ": "
              << reason << "\n"
              << absl::StrFormat("%s to move, %.3g operations\n",
                                 HumanBytes(static_cast<double>(inputs.facts.bytes)),
                                 inputs.facts.flops)
              << "times of calls: " << context.cost_profile_note() << "\n";
    if (!json["predicted"].empty()) {
      Table times({"device", "name", "call", "copies", "together"});
      for (const auto& item : json["predicted"]) {
        times.Row({item["device"].get<std::string>(), item["name"].get<std::string>(),
                   HumanSeconds(item["call_seconds"].get<double>()),
                   HumanSeconds(item["move_seconds"].get<double>()),
                   HumanSeconds(item["seconds"].get<double>())});
      }
      times.Print(std::cout, color);
    }
    std::cout << "kernel times: " << context.kernel_profile_note() << "\n";
    table.Print(std::cout, color);
  }
  return chosen || decision.device != DeviceKind::kCpu ? kExitOk : kExitFailed;
}

// Untouched memory of the shape; pages are never backed.
absl::StatusOr<Tensor> Reserve(Context& context, DType dtype, const Shape& shape) {
  return Tensor::Allocate(context.host_allocator(), dtype, shape);
}

absl::StatusOr<int> Run(const Options& o) {
  TANDEM_ASSIGN_OR_RETURN(ContextOptions context_options, ToContextOptions(o.compute));
  if (!o.profile.empty()) {  // of whichever machine
    TANDEM_ASSIGN_OR_RETURN(CostProfile profile, ReadCostProfile(o.profile));
    TANDEM_ASSIGN_OR_RETURN(CostModel model, CostModel::FromProfile(std::move(profile)));
    context_options.cost_model = std::make_shared<const CostModel>(std::move(model));
  }
  TANDEM_ASSIGN_OR_RETURN(auto context, OpenContext(context_options));
  TANDEM_ASSIGN_OR_RETURN(const DType dtype, Parse("--dtype", o.dtype));
  TANDEM_ASSIGN_OR_RETURN(const DType kv_dtype, Parse("--kv-dtype", o.kv_dtype));
  TANDEM_ASSIGN_OR_RETURN(const DType weights, Parse("--weights", o.weights));
  std::vector<Tensor> tensors;
  const auto reserve = [&](TensorView& view, DType type, const Shape& shape) -> absl::Status {
    TANDEM_ASSIGN_OR_RETURN(Tensor tensor, Reserve(*context, type, shape));
    view = tensor.view();
    tensors.push_back(std::move(tensor));
    return absl::OkStatus();
  };
  if (o.op == "attention") {
    AttentionArgs args;
    TANDEM_RETURN_IF_ERROR(reserve(args.q, dtype, {o.batch, o.q_heads, o.q_len, o.head_dim}));
    TANDEM_RETURN_IF_ERROR(reserve(args.k, kv_dtype, {o.batch, o.kv_heads, o.kv_len, o.head_dim}));
    TANDEM_RETURN_IF_ERROR(reserve(args.v, kv_dtype, {o.batch, o.kv_heads, o.kv_len, o.head_dim}));
    TANDEM_RETURN_IF_ERROR(reserve(args.out, dtype, {o.batch, o.q_heads, o.q_len, o.head_dim}));
    return Print(*context, args, o);
  }
  if (o.op == "matmul") {
    MatMulArgs args;
    args.float_activations = !context->options().quantize_activations;
    TANDEM_RETURN_IF_ERROR(reserve(args.a, dtype, {o.m, o.k}));
    TANDEM_RETURN_IF_ERROR(reserve(args.b, weights, {o.n, o.k}));
    TANDEM_RETURN_IF_ERROR(reserve(args.out, dtype, {o.m, o.n}));
    return Print(*context, args, o);
  }
  MaskArgs args;
  args.rule = {o.q_len, o.kv_len, Causal::kBottomRight, -1, -1};
  TANDEM_RETURN_IF_ERROR(reserve(args.out, dtype, {o.q_len, MaskColumns(dtype, o.kv_len)}));
  return Print(*context, args, o);
}

}  // namespace

void AddExplain(CLI::App& app, Action& action) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "explain", "Say which device and kernel would run an op of a given shape, and why");
  command->add_option("--op", o->op, "attention, matmul or mask")
      ->required()
      ->check(CLI::IsMember({"attention", "matmul", "mask"}));
  command->add_option("--batch", o->batch, "attention: sequences")->capture_default_str();
  command->add_option("--q-heads", o->q_heads, "attention: query heads")->capture_default_str();
  command->add_option("--kv-heads", o->kv_heads, "attention: key/value heads")
      ->capture_default_str();
  command->add_option("--q-len", o->q_len, "attention, mask: queries")->capture_default_str();
  command->add_option("--kv-len", o->kv_len, "attention, mask: keys")->capture_default_str();
  command->add_option("--head-dim", o->head_dim, "attention: head dimension")
      ->capture_default_str();
  command->add_option("-M", o->m, "matmul: rows")->capture_default_str();
  command->add_option("-N", o->n, "matmul: output features")->capture_default_str();
  command->add_option("-K", o->k, "matmul: input features")->capture_default_str();
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
