#include "dispatch/split_matmul.h"

#include <algorithm>
#include <optional>
#include <string>
#include <utility>

#include "core/backend.h"
#include "core/ops/cast.h"
#include "core/status.h"
#include "dispatch/copy.h"
#include "dispatch/dense.h"
#include "dispatch/facts.h"
#include "dispatch/fallback.h"
#include "dispatch/memory_need.h"
#include "dispatch/ops.h"
#include "dispatch/split_costs.h"

namespace tandem {
namespace {

constexpr DeviceKind kCpu = DeviceKind::kCpu, kCuda = DeviceKind::kCuda;

}  // namespace

absl::StatusOr<SplitWeights> SplitWeights::Create(Context& context, const TensorView& weights,
                                                  int64_t gpu_columns, bool pack) {
  TANDEM_RETURN_IF_ERROR(ValidateView("weights", weights, 2));
  if (weights.device.kind != kCpu) {
    return InvalidArgument("weights: expected host memory, got ", Name(weights.device));
  }
  if (!IsContiguous(weights)) return InvalidArgument("weights: expected a contiguous matrix");
  const int64_t n = weights.dim(0);
  if (gpu_columns < 0 || gpu_columns > n) {
    return InvalidArgument("gpu_columns: expected 0..", n, ", got ", gpu_columns);
  }
  const std::optional<DeviceKind> forced = context.options().device;
  if (gpu_columns > 0 && (context.device(kCuda) == nullptr || forced == kCpu)) {
    return InvalidArgument(
        "gpu_columns: expected 0, for the context has no GPU or forces the CPU, "
        "got ",
        gpu_columns);
  }
  if (gpu_columns < n && forced == kCuda) {
    return InvalidArgument("gpu_columns: expected ", n, ", for the context forces the GPU, got ",
                           gpu_columns);
  }
  SplitWeights split;
  split.whole_ = weights;
  split.gpu_columns_ = gpu_columns;
  if (gpu_columns > 0) {
    TANDEM_ASSIGN_OR_RETURN(split.gpu_, CopyTo(context, kCuda, Slice(weights, 0, 0, gpu_columns)));
  }
  if (!pack || gpu_columns == n) return split;
  auto packed = PackWeights(context, split.on_host());
  if (packed.ok()) {
    split.packed_ = *std::move(packed);
  } else if (!absl::IsUnimplemented(packed.status())) {
    return packed.status();
  }
  return split;
}

absl::StatusOr<int64_t> BestGpuColumns(Context& context, const TensorView& weights,
                                       const ProductUse& use) {
  TANDEM_RETURN_IF_ERROR(ValidateView("weights", weights, 2));
  if (use.m < 1) return InvalidArgument("m: expected >= 1, got ", use.m);
  if (context.device(kCuda) == nullptr || weights.empty()) return 0;
  const int64_t n = weights.dim(0), k = weights.dim(1);
  const std::optional<DeviceKind> forced = context.options().device;
  if (forced) return *forced == kCuda ? n : 0;
  const int64_t bytes = use.gpu_bytes > 0 ? use.gpu_bytes : FreeGpuBytes(context);
  int64_t most = std::min(n, bytes / std::max<int64_t>(1, ByteOffset(weights.dtype, k)));
  if (most < n) most -= most % kColumnStep;
  if (const std::optional<SplitCosts> costs = CostsOf(context)) {
    const ProductCall call = {use.m, n, k, use.input, weights.dtype, use.output, use.packed};
    const auto choice = ChooseMatMulSplit(*costs, call, use.home, most);
    if (choice.ok()) return choice->gpu;
  }
  // Nothing like it was measured: what would become of the whole.
  const Device home = context.device(use.home)->backend->device();
  MatMulArgs args;
  args.a = MakeView(static_cast<void*>(nullptr), use.input, {use.m, k}, home);
  args.b = MakeView(static_cast<void*>(nullptr), weights.dtype, {n, k}, home);
  args.out = MakeView(static_cast<void*>(nullptr), use.output, {use.m, n}, home);
  return context.Decide(FactsOf(args)).device == kCuda ? most : 0;
}

MatMulArgs SplitMatMul::Columns(int64_t begin, int64_t columns) const {
  MatMulArgs part = whole_;
  part.out = Slice(whole_.out, 1, begin, columns);
  if (part.bias.present()) part.bias = Slice(whole_.bias, 0, begin, columns);
  if (part.addend.present()) part.addend = Slice(whole_.addend, 1, begin, columns);
  return part;
}

absl::Status SplitMatMul::Prepare(const SplitWeights& weights, const MatMulArgs& args) {
  if (args.b.present() || args.b_packed != nullptr) {
    return InvalidArgument("b, b_packed: not with weights in two memories");
  }
  TANDEM_RETURN_IF_ERROR(ValidateView("a", args.a, 2));
  if (!context_.has(args.a.device)) {
    return InvalidArgument("a: lives on ", Name(args.a.device),
                           ", which this context does not have");
  }
  // All but where the weights are.
  MatMulArgs whole = args;
  whole.b = weights.whole();
  whole.b.device = args.a.device;
  TANDEM_RETURN_IF_ERROR(Validate(whole));
  whole_ = args;
  if (!context_.options().quantize_activations) whole_.float_activations = true;
  home_ = args.a.device.kind;
  away_ = home_ == kCpu ? kCuda : kCpu;
  host_done_ = gpu_queued_ = false;
  queued_.record.kernel = {};
  queued_.clock.Take(context_);  // of the last call, if nobody waited for it
  const int64_t on_gpu = weights.gpu_columns(), on_host = weights.n() - on_gpu;
  for (const DeviceKind kind : {kCpu, kCuda}) {
    Side& own = side(kind);
    own.runs = (kind == kCuda ? on_gpu : on_host) > 0;
    if (!own.runs) continue;
    own.args = kind == kCuda ? Columns(0, on_gpu) : Columns(on_gpu, on_host);
    own.args.b = kind == kCuda ? weights.on_gpu() : weights.on_host();
    own.args.b_packed = kind == kCuda ? nullptr : weights.packed();
    own.columns = own.args.out;
  }
  shared_seconds_ =
      on_gpu > 0 && on_host > 0 ? SharedSeconds(context_, side(kCpu).args, side(kCuda).args) : 0.0;
  return absl::OkStatus();
}

absl::Status SplitMatMul::Queue(const SplitWeights& weights, const MatMulArgs& args) {
  TANDEM_RETURN_IF_ERROR(Prepare(weights, args));
  Side& away = side(away_);
  if (away.runs) {
    const Device device = context_.device(away_)->backend->device();
    result_bytes_ = Aligned(ByteOffset(args.out.dtype, away.columns.num_elements()));
    TANDEM_RETURN_IF_ERROR(results_.Reserve(context_, result_bytes_));
    away.args.out = MakeView(results_.data(away_), args.out.dtype, away.columns.shape, device);
    // In place there is no longer the same memory.
    parcel_.Begin(away_);
    for (TensorView* view : {&away.args.a, &away.args.bias, &away.args.addend}) {
      parcel_.Add(*view);
    }
    TANDEM_RETURN_IF_ERROR(parcel_.Send(context_));
    if (away_ == kCpu) {
      TANDEM_ASSIGN_OR_RETURN(sent_, context_.device(kCuda)->stream->Record());
    }
  }
  if (!side(kCuda).runs) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(RunHere(context_, side(kCuda).args, &queued_, shared_seconds_));
  gpu_queued_ = true;
  return away_ == kCuda ? results_.Send(context_, kCpu, result_bytes_) : absl::OkStatus();
}

absl::Status SplitMatMul::RunHost() {
  Side& host = side(kCpu);
  if (!host.runs) return absl::OkStatus();
  if (away_ == kCpu) {
    const std::unique_ptr<Event> sent = std::move(sent_);
    TANDEM_RETURN_IF_ERROR(sent->Synchronize());
  }
  TANDEM_RETURN_IF_ERROR(RunHere(context_, host.args, nullptr, shared_seconds_));
  host_done_ = away_ == kCuda;  // else they are not in out yet
  return away_ == kCpu ? results_.Send(context_, kCuda, result_bytes_) : absl::OkStatus();
}

absl::Status SplitMatMul::Finish() {
  if (side(kCuda).runs && (home_ == kCpu || context_.trace().enabled())) {
    TANDEM_RETURN_IF_ERROR(context_.device(kCuda)->stream->Synchronize());
    Finished(context_, queued_);
  }
  const Side& away = side(away_);
  if (!away.runs) return absl::OkStatus();
  const TensorView arrived =
      MakeView(results_.data(home_), whole_.out.dtype, away.columns.shape, whole_.out.device);
  if (home_ == kCuda) return RunHere(context_, CastArgs{arrived, away.columns});
  if (!away.columns.empty()) CopyElements(away.columns, arrived);
  return absl::OkStatus();
}

absl::Status SplitMatMul::Steps(const SplitWeights& weights, const MatMulArgs& args) {
  absl::Status status = Queue(weights, args);
  if (status.ok()) status = RunHost();
  if (status.ok()) status = Finish();
  if (status.ok()) return status;
  queued_.clock.Forget();  // says nothing about others
  // What a failed call left on the stream must not come up in the next one, and be finished before
  // anybody looks at what it wrote: one wait may be what fails.
  ContextDevice* gpu = context_.device(kCuda);
  if (gpu != nullptr && !gpu->stream->Synchronize().ok()) gpu->stream->Synchronize().IgnoreError();
  return status;
}

absl::Status SplitMatMul::RunRest(const SplitWeights& weights) {
  const int64_t on_gpu = weights.gpu_columns();
  const auto columns = [&](int64_t begin, int64_t count) -> absl::Status {
    if (count == 0) return absl::OkStatus();
    MatMulArgs part = Columns(begin, count);
    part.b = Slice(weights.whole(), 0, begin, count);
    return home_ == kCuda ? RunFetched(context_, part) : RunHere(context_, part);
  };
  // In place, the addend of columns that are there is gone.
  if (home_ == kCpu || !gpu_queued_) TANDEM_RETURN_IF_ERROR(columns(0, on_gpu));
  if (home_ == kCuda) return columns(on_gpu, weights.n() - on_gpu);
  if (host_done_ || on_gpu == weights.n()) return absl::OkStatus();
  return RunHere(context_, side(kCpu).args);
}

absl::Status SplitMatMul::Run(const SplitWeights& weights, const MatMulArgs& args) {
  DeviceHealth& health = context_.health();
  const bool uses_gpu = weights.gpu_columns() > 0 || args.a.device.kind == kCuda;
  const bool forced = context_.options().device == kCuda;
  if (health.calm() || !uses_gpu || forced) {
    absl::Status status = Steps(weights, args);
    if (status.ok() || !uses_gpu || !DeviceFailed(status)) return status;
    return Recover(weights, args, std::move(status));
  }
  const int64_t bytes = BytesOnGpu(weights, args);
  if (args.a.device.kind == kCpu && health.StateFor(OpKind::kMatMul, bytes) != GpuState::kReady) {
    TANDEM_RETURN_IF_ERROR(Prepare(weights, args));
    TANDEM_RETURN_IF_ERROR(RunRest(weights));
    health.Avoided(OpKind::kMatMul, bytes);
    return absl::OkStatus();
  }
  absl::Status status = Steps(weights, args);
  if (status.ok()) health.Succeeded(OpKind::kMatMul, bytes);
  return DeviceFailed(status) ? Recover(weights, args, std::move(status)) : status;
}

int64_t SplitMatMul::BytesOnGpu(const SplitWeights& weights, const MatMulArgs& args) {
  const int64_t m = args.a.rank() == 2 ? args.a.dim(0) : 0;
  return ByteOffset(weights.whole().dtype, weights.gpu_columns() * weights.k()) +
         ByteOffset(args.a.dtype, m * weights.k()) +
         ByteOffset(args.out.dtype, m * weights.gpu_columns());
}

absl::Status SplitMatMul::Recover(const SplitWeights& weights, const MatMulArgs& args,
                                  absl::Status status) {
  OpFacts facts;
  facts.op = OpKind::kMatMul;
  facts.bytes = BytesOnGpu(weights, args);
  facts.operands = args.a.device;
  bool on_cpu = false;
  int64_t event = 0;
  status = FallBack(
      context_, facts, context_.options().device == kCuda, status,
      [&]() -> absl::Status {
        if (host_done_ || (home_ == kCuda && gpu_queued_)) return status;  // not twice, see RunRest
        parcel_.Release();
        results_.Release();
        return Steps(weights, args);
      },
      [&] {
        on_cpu = true;
        parcel_.Release();
        results_.Release();
        return RunRest(weights);
      },
      event);
  fallbacks_ += status.ok() && on_cpu;
  return status;
}

}  // namespace tandem
