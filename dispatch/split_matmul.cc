#include "dispatch/split_matmul.h"

#include <string>
#include <utility>

#include "core/backend.h"
#include "core/ops/cast.h"
#include "core/status.h"
#include "dispatch/copy.h"
#include "dispatch/dense.h"
#include "dispatch/ops.h"
#include "dispatch/run_here.h"

namespace tandem {
namespace {

constexpr DeviceKind kCpu = DeviceKind::kCpu, kCuda = DeviceKind::kCuda;

// Is it the device's fault, and not the caller's?
bool DeviceFailed(const absl::Status& status) {
  return absl::IsInternal(status) || absl::IsResourceExhausted(status) ||
         absl::IsUnavailable(status);
}

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

MatMulArgs SplitMatMul::Columns(int64_t begin, int64_t columns) const {
  MatMulArgs part = whole_;
  part.out = Slice(whole_.out, 1, begin, columns);
  if (part.bias.present()) part.bias = Slice(whole_.bias, 0, begin, columns);
  if (part.addend.present()) part.addend = Slice(whole_.addend, 1, begin, columns);
  return part;
}

absl::Status SplitMatMul::Queue(const SplitWeights& weights, const MatMulArgs& args) {
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
  host_done_ = false;
  queued_.kernel = {};
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
  TANDEM_RETURN_IF_ERROR(RunHere(context_, side(kCuda).args, &queued_));
  return away_ == kCuda ? results_.Send(context_, kCpu, result_bytes_) : absl::OkStatus();
}

absl::Status SplitMatMul::RunHost() {
  Side& host = side(kCpu);
  if (!host.runs) return absl::OkStatus();
  if (away_ == kCpu) {
    const std::unique_ptr<Event> sent = std::move(sent_);
    TANDEM_RETURN_IF_ERROR(sent->Synchronize());
  }
  TANDEM_RETURN_IF_ERROR(RunHere(context_, host.args));
  host_done_ = true;
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

absl::Status SplitMatMul::Run(const SplitWeights& weights, const MatMulArgs& args) {
  absl::Status status = Queue(weights, args);
  if (status.ok()) status = RunHost();
  if (status.ok()) status = Finish();
  if (status.ok()) return status;
  // What a failed call left on the stream must not come up in the next one.
  if (ContextDevice* gpu = context_.device(kCuda)) gpu->stream->Synchronize().IgnoreError();
  if (!DeviceFailed(status) || weights.gpu_columns() == 0 || home_ != kCpu ||
      context_.options().device == kCuda) {
    return status;
  }
  parcel_.Release();
  results_.Release();
  ++fallbacks_;
  // In place, the addend of the CPU's columns is there only until they are written.
  MatMulArgs part = Columns(0, weights.gpu_columns());
  part.b = Slice(weights.whole(), 0, 0, weights.gpu_columns());
  TANDEM_RETURN_IF_ERROR(RunHere(context_, part));
  if (host_done_ || weights.gpu_columns() == weights.n()) return absl::OkStatus();
  return RunHere(context_, side(kCpu).args);
}

}  // namespace tandem
