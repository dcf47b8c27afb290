#include "dispatch/cache_attention.h"

#include <array>
#include <string>
#include <utility>

#include "core/backend.h"
#include "core/ops/mask.h"
#include "core/ops/merge_attention.h"
#include "core/ops/split_attention.h"
#include "core/status.h"
#include "dispatch/fallback.h"
#include "dispatch/split_costs.h"

namespace tandem {
namespace {

// Out of this many bytes of partial results, those of lse begin.
int64_t LseOffset(const AttentionArgs& whole, int64_t v_head_dim) {
  return Aligned(ByteOffset(DType::kF32, whole.q.dim(0) * whole.q.dim(1) * whole.q.dim(2)) *
                 v_head_dim);
}

}  // namespace

absl::Status CacheAttention::Check(const SplitKvCache& cache, const AttentionArgs& args) const {
  for (const auto& [name, view] :
       {std::pair("k", &args.k), std::pair("v", &args.v), std::pair("k_scale", &args.k_scale),
        std::pair("v_scale", &args.v_scale), std::pair("page_table", &args.page_table)}) {
    if (view->present()) return InvalidArgument(name, ": not with a cache, which has its own");
  }
  if (args.keys_before != 0 || args.keys_after != 0 || args.new_after != 0) {
    return InvalidArgument("keys_before, keys_after, new_after: expected 0 with a cache");
  }
  TANDEM_RETURN_IF_ERROR(ValidateView("q", args.q, 4));
  if (!context_.has(args.q.device)) {
    return InvalidArgument("q: lives on ", Name(args.q.device),
                           ", which this context does not have");
  }
  if (args.k_new.present()) TANDEM_RETURN_IF_ERROR(ValidateView("k_new", args.k_new, 4));
  // Each part takes its columns of these: they must be there.
  for (const auto& [name, view] : {std::pair("bias", &args.bias), std::pair("mask", &args.mask)}) {
    if (!view->present()) continue;
    TANDEM_RETURN_IF_ERROR(ValidateView(name, *view, 4));
    if (view->dim(3) == 1 && view->dtype != DType::kU32) continue;
    TANDEM_RETURN_IF_ERROR(CheckDim(name, *view, 3, "keys of the cache and new ones",
                                    MaskColumns(view->dtype, cache.length() + args.new_len())));
  }
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat("out", args.out));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("out", args.out, "q", args.q));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 3, "v head_dim", cache.shape().v_head_dim));
  for (int i = 0; i < 3; ++i) {
    TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, i, "shape of q", args.q.dim(i)));
  }
  if (args.lse.present()) {
    TANDEM_RETURN_IF_ERROR(ValidateOutput("lse", args.lse, 3));
    TANDEM_RETURN_IF_ERROR(CheckDType("lse", args.lse, DType::kF32));
    TANDEM_RETURN_IF_ERROR(CheckSameDevice("lse", args.lse, "q", args.q));
    for (int i = 0; i < 3; ++i) {
      TANDEM_RETURN_IF_ERROR(CheckDim("lse", args.lse, i, "shape of q", args.q.dim(i)));
    }
  }
  return absl::OkStatus();
}

void CacheAttention::MakeSide(const SplitKvCache& cache, DeviceKind kind, bool last) {
  const SplitKvCache::Part rows = cache.part(kind);
  AttentionArgs& part = side(kind).args;
  part = whole_;
  part.out = part.lse = {};
  part.k = rows.k;
  part.v = rows.v;
  part.k_scale = rows.k_scale;
  part.v_scale = rows.v_scale;
  part.keys_before = rows.rows == 0 ? 0 : rows.begin;
  part.keys_after = cache.length() - part.keys_before - rows.rows;
  if (!last) {
    part.new_after = whole_.new_len();
    part.k_new = part.v_new = part.sinks = {};
  }
  for (TensorView* columns : {&part.bias, &part.mask}) {
    TakeKeyColumns(*columns, part.keys_before, part.kv_len());
  }
}

absl::Status CacheAttention::SendOperands(DeviceKind to) {
  parcel_.Begin(to);
  AttentionArgs& part = side(to).args;
  ForEachOperand(part, [&](TensorView& view, Access access) {
    if (access == Access::kRead) parcel_.Add(view);
  });
  moved_bytes_ += parcel_.bytes();
  return parcel_.Send(context_);
}

absl::Status CacheAttention::ReservePartials() {
  if (side(away_).runs) TANDEM_RETURN_IF_ERROR(away_results_.Reserve(context_, result_bytes_));
  if (!both()) return absl::OkStatus();
  std::shared_ptr<Buffer>& results = home_results_[static_cast<size_t>(home_)];
  if (results != nullptr && results->bytes() >= result_bytes_) return absl::OkStatus();
  ContextDevice& device = *context_.device(home_);
  if (results != nullptr) TANDEM_RETURN_IF_ERROR(device.stream->Synchronize());
  TANDEM_ASSIGN_OR_RETURN(results, device.backend->allocator().Allocate(result_bytes_));
  return absl::OkStatus();
}

void CacheAttention::SetOutputs(Side& side, void* data, Device device) {
  const Shape& q = whole_.q.shape;
  const int64_t v_head_dim = whole_.out.dim(3);
  side.out = MakeView(data, DType::kF32, {q.dims[0], q.dims[1], q.dims[2], v_head_dim}, device);
  side.lse = MakeView(static_cast<char*>(data) + LseOffset(whole_, v_head_dim), DType::kF32,
                      {q.dims[0], q.dims[1], q.dims[2]}, device);
}

absl::Status CacheAttention::Queue(const SplitKvCache& cache, const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(Check(cache, args));
  whole_ = args;
  home_ = args.q.device.kind;
  away_ = home_ == DeviceKind::kCpu ? DeviceKind::kCuda : DeviceKind::kCpu;
  moved_bytes_ = 0;
  Side& gpu = side(DeviceKind::kCuda);
  Side& host = side(DeviceKind::kCpu);
  gpu.runs = cache.part(DeviceKind::kCuda).rows > 0;
  host.runs = cache.part(DeviceKind::kCpu).rows > 0;
  if (!gpu.runs && !host.runs) side(home_).runs = true;
  if (both() && args.kv_lens.present() && args.new_len() > 0) {
    for (const auto& [name, view] :
         {std::pair("bias", &args.bias), std::pair("mask", &args.mask)}) {
      if (!view->present() || view->dim(3) == 1) continue;
      return InvalidArgument(name,
                             ": expected one column for all keys with kv_lens, k_new and a "
                             "cache on two devices, got ",
                             view->dim(3));
    }
  }
  if (gpu.runs) MakeSide(cache, DeviceKind::kCuda, /*last=*/!host.runs);
  if (host.runs) MakeSide(cache, DeviceKind::kCpu, /*last=*/true);
  const int64_t lse_at = LseOffset(args, cache.shape().v_head_dim);
  result_bytes_ =
      lse_at + Aligned(ByteOffset(DType::kF32, args.q.dim(0) * args.q.dim(1) * args.q.dim(2)));
  TANDEM_RETURN_IF_ERROR(ReservePartials());
  for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    Side& own = side(kind);
    if (!own.runs) continue;
    const Device device = context_.device(kind)->backend->device();
    if (kind == away_) {
      SetOutputs(own, away_results_.data(kind), device);
    } else if (both()) {
      SetOutputs(own, home_results_[static_cast<size_t>(kind)]->data(), device);
    } else {
      own.out = args.out;
      own.lse = args.lse;
    }
    own.args.out = own.out;
    own.args.lse = own.lse;
  }
  shared_seconds_ = both() ? SharedSeconds(context_, host.args, gpu.args) : 0.0;
  queued_.record.kernel = {};
  queued_.clock.Take(context_);  // of the last call, if nobody waited for it
  if (host.runs && away_ == DeviceKind::kCpu) {
    TANDEM_RETURN_IF_ERROR(SendOperands(DeviceKind::kCpu));
    TANDEM_ASSIGN_OR_RETURN(sent_, context_.device(DeviceKind::kCuda)->stream->Record());
  }
  if (!gpu.runs) return absl::OkStatus();
  if (away_ == DeviceKind::kCuda) TANDEM_RETURN_IF_ERROR(SendOperands(DeviceKind::kCuda));
  TANDEM_RETURN_IF_ERROR(RunHere(context_, gpu.args, &queued_, shared_seconds_));
  if (away_ != DeviceKind::kCuda) return absl::OkStatus();
  moved_bytes_ += result_bytes_;
  return away_results_.Send(context_, DeviceKind::kCpu, result_bytes_);
}

absl::Status CacheAttention::RunHost() {
  Side& host = side(DeviceKind::kCpu);
  if (!host.runs) return absl::OkStatus();
  if (away_ == DeviceKind::kCpu) {
    const std::unique_ptr<Event> sent = std::move(sent_);
    TANDEM_RETURN_IF_ERROR(sent->Synchronize());
  }
  TANDEM_RETURN_IF_ERROR(RunHere(context_, host.args, nullptr, shared_seconds_));
  if (away_ != DeviceKind::kCpu) return absl::OkStatus();
  moved_bytes_ += result_bytes_;
  return away_results_.Send(context_, DeviceKind::kCuda, result_bytes_);
}

absl::Status CacheAttention::Finish() {
  const bool traced = context_.trace().enabled();
  if (side(DeviceKind::kCuda).runs && (home_ == DeviceKind::kCpu || traced)) {
    TANDEM_RETURN_IF_ERROR(context_.device(DeviceKind::kCuda)->stream->Synchronize());
    Finished(context_, queued_);
  }
  if (!side(away_).runs) return absl::OkStatus();
  // In the order of the keys.
  std::array<TensorView, 2> outs, lses;
  size_t parts = 0;
  for (const DeviceKind kind : {DeviceKind::kCuda, DeviceKind::kCpu}) {
    Side& own = side(kind);
    if (!own.runs) continue;
    if (kind == away_) {
      SetOutputs(own, away_results_.data(home_), context_.device(home_)->backend->device());
    }
    outs[parts] = own.out;
    lses[parts++] = own.lse;
  }
  MergeAttentionArgs merge;
  merge.out_parts = std::span<const TensorView>(outs.data(), parts);
  merge.lse_parts = std::span<const TensorView>(lses.data(), parts);
  merge.out = whole_.out;
  merge.lse = whole_.lse;
  return RunHere(context_, merge);
}

absl::Status CacheAttention::Steps(const SplitKvCache& cache, const AttentionArgs& args) {
  absl::Status status = Queue(cache, args);
  if (status.ok()) status = RunHost();
  if (status.ok()) status = Finish();
  // What a failed call left on the stream must not come up in the next one, and what it took says
  // nothing about others.
  if (!status.ok()) {
    queued_.clock.Forget();
    if (ContextDevice* gpu = context_.device(DeviceKind::kCuda)) {
      gpu->stream->Synchronize().IgnoreError();
    }
  }
  return status;
}

absl::Status CacheAttention::Run(SplitKvCache& cache, const AttentionArgs& args) {
  absl::Status status = Steps(cache, args);
  DeviceHealth& health = context_.health();
  if (status.ok() && health.calm()) return status;
  if (!status.ok() && !DeviceFailed(status)) return status;
  // Whose arguments are fine, or it would not have come so far.
  const bool home_on_gpu = home_ == DeviceKind::kCuda;
  OpFacts facts;
  facts.op = OpKind::kAttention;
  facts.bytes = ByteOffset(args.q.dtype, 2 * args.q.num_elements()) +
                cache.part(DeviceKind::kCuda).rows * cache.row_bytes();
  const bool resident = home_on_gpu || cache.part(DeviceKind::kCuda).rows > 0;
  if (status.ok()) {
    if (resident) health.Succeeded(facts.op, facts.bytes);
    return status;
  }
  if (!resident) return status;  // the CPU's alone
  facts.operands = context_.device(DeviceKind::kCuda)->backend->device();
  bool on_cpu = false;
  int64_t event = 0;
  status = FallBack(
      context_, facts, context_.options().device == DeviceKind::kCuda, std::move(status),
      [&] {
        parcel_.Release();
        away_results_.Release();
        return Steps(cache, args);
      },
      [&]() -> absl::Status {
        on_cpu = true;
        TANDEM_RETURN_IF_ERROR(cache.Move(0));
        parcel_.Release();
        away_results_.Release();
        return home_on_gpu ? RunFetched(context_, WithCache(cache, args)) : Steps(cache, args);
      },
      event);
  fallbacks_ += status.ok() && on_cpu;
  return status;
}

AttentionArgs CacheAttention::WithCache(const SplitKvCache& cache, const AttentionArgs& args) {
  whole_ = args;
  MakeSide(cache, DeviceKind::kCpu, /*last=*/true);
  AttentionArgs whole = side(DeviceKind::kCpu).args;
  whole.out = args.out;
  whole.lse = args.lse;
  return whole;
}

}  // namespace tandem
