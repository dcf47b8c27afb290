// Cost of one public op call beyond its kernel: the smallest call of an op through the public
// function, and the same kernel called directly. Yardstick: an empty function through the same kind
// of pointer.
#include <benchmark/benchmark.h>

#include "dispatch/cost_correction.h"
#include "dispatch/cost_model.h"
#include "dispatch/facts.h"
#include "dispatch/ops.h"
#include "dispatch/registry.h"
#include "tests/simulated_machine.h"

namespace tandem {
namespace {

struct AddCall {
  std::unique_ptr<Context> context = [] {
    ContextOptions options;
    options.threads = 1;
    return Context::Create(options).value();
  }();
  float a[4] = {1, 2, 3, 4}, b[4] = {1, 1, 1, 1}, out[4];
  AddArgs args;
  AddCall() {
    args.a = MakeView(a, DType::kF32, {1, 4});
    args.b = MakeView(b, DType::kF32, {1, 4});
    args.out = MakeView(out, DType::kF32, {1, 4});
  }
};

void PublicAdd(benchmark::State& state) {
  AddCall call;
  call.context->trace().Enable(state.range(0) != 0);
  for (auto _ : state) {
    benchmark::DoNotOptimize(AddInto(*call.context, call.args));
    if (call.context->trace().records().size() > 100000) call.context->trace().Clear();
  }
}
BENCHMARK(PublicAdd)->ArgName("trace")->Arg(0)->Arg(1);

void KernelAdd(benchmark::State& state) {
  AddCall call;
  KernelContext context;
  context.stream = call.context->device(DeviceKind::kCpu)->stream.get();
  Workspace workspace;
  context.workspace = &workspace;
  const Kernel<AddArgs>* kernel = Select(context, DeviceKind::kCpu, call.args, "").value();
  for (auto _ : state) benchmark::DoNotOptimize(kernel->run(context, call.args));
}
BENCHMARK(KernelAdd);

void PublicAttention(benchmark::State& state) {
  AddCall call;
  float q[4] = {1, 0, 0, 0}, k[4] = {0, 1, 0, 0}, v[4] = {1, 2, 3, 4}, out[4];
  AttentionArgs args;
  for (auto& [view, data] : {std::pair(&args.q, q), std::pair(&args.k, k), std::pair(&args.v, v),
                             std::pair(&args.out, out)}) {
    *view = MakeView(data, DType::kF32, {1, 1, 1, 4});
  }
  for (auto _ : state) benchmark::DoNotOptimize(AttentionInto(*call.context, args));
}
BENCHMARK(PublicAttention);

// One decision by predicted times, of a call whose facts are known; with `facts`, gathering them
// too.
void Decide(benchmark::State& state) {
  simulated::Machine machine(simulated::Machines()[0]);
  const CostModel model = machine.Calibrate();
  const CostCorrection correction(model.num_tables());
  float memory[1];
  MatMulArgs args;
  args.a = MakeView(memory, DType::kF32, {7, 4096});
  args.b = MakeView(memory, DType::kQ8_0, {4096, 4096});
  args.out = MakeView(memory, DType::kF32, {7, 4096});
  DecisionInputs inputs;
  inputs.facts = FactsOf(args);
  inputs.cuda_present = true;
  for (auto _ : state) {
    if (state.range(0) != 0) inputs.facts = FactsOf(args);
    benchmark::DoNotOptimize(Choose(inputs, Policy(), &model, &correction));
  }
}
BENCHMARK(Decide)->ArgName("facts")->Arg(0)->Arg(1);

// The same as a call asks its context for it: the facts of the call and of the moment (free memory,
// the GPU's queue, its health), the decision, and what is learned from the call when it is done.
void DecideOnContext(benchmark::State& state) {
  ContextOptions options;
  options.threads = 1;
  options.cuda_emulated = true;  // only asked how much of its memory is in use
  simulated::Machine machine(simulated::Machines()[0]);
  options.cost_model = std::make_shared<const CostModel>(machine.Calibrate());
  const std::unique_ptr<Context> context = Context::Create(options).value();
  float memory[1];
  MatMulArgs args;
  args.a = MakeView(memory, DType::kF32, {7, 4096});
  args.b = MakeView(memory, DType::kQ8_0, {4096, 4096});
  args.out = MakeView(memory, DType::kF32, {7, 4096});
  for (auto _ : state) {
    const Decision decision = context->Decide(FactsOf(args));
    context->Finished(decision, 1e-3);
    benchmark::DoNotOptimize(decision);
  }
}
BENCHMARK(DecideOnContext);

absl::Status Empty(const KernelContext&, const AddArgs&) { return absl::OkStatus(); }

void EmptyKernel(benchmark::State& state) {
  AddCall call;
  absl::Status (*run)(const KernelContext&, const AddArgs&) = Empty;
  benchmark::DoNotOptimize(run);
  const KernelContext context;
  for (auto _ : state) benchmark::DoNotOptimize(run(context, call.args));
}
BENCHMARK(EmptyKernel);

}  // namespace
}  // namespace tandem

BENCHMARK_MAIN();
