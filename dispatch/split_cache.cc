#include "dispatch/split_cache.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <utility>

#include "core/backend.h"
#include "core/ops/kv_append.h"
#include "core/status.h"
#include "dispatch/fallback.h"
#include "dispatch/run_here.h"

namespace tandem {
namespace {

constexpr std::array<DeviceKind, 2> kKinds = {DeviceKind::kCuda, DeviceKind::kCpu};

absl::StatusOr<int64_t> CheckGpuRows(Context& context, const KvCacheShape& shape,
                                     int64_t gpu_rows) {
  if (gpu_rows < 0 || gpu_rows > shape.capacity) {
    return InvalidArgument("gpu_rows: expected 0..capacity = ", shape.capacity, ", got ", gpu_rows);
  }
  if (gpu_rows < shape.capacity) gpu_rows -= gpu_rows % SplitKvCache::kRowStep;
  const std::optional<DeviceKind> forced = context.options().device;
  if (gpu_rows > 0 && context.device(DeviceKind::kCuda) == nullptr) {
    return InvalidArgument("gpu_rows: expected 0, for the context has no GPU, got ", gpu_rows);
  }
  if (gpu_rows > 0 && forced == DeviceKind::kCpu) {
    return InvalidArgument("gpu_rows: expected 0, for the context forces the CPU, got ", gpu_rows);
  }
  if (gpu_rows < shape.capacity && forced == DeviceKind::kCuda) {
    return InvalidArgument("gpu_rows: expected capacity = ", shape.capacity,
                           ", for the context forces the GPU, got ", gpu_rows);
  }
  return gpu_rows;
}

// A cache of `rows` rows on that device, or none if there are none.
absl::StatusOr<std::optional<KvCache>> MakePart(Context& context, KvCacheShape shape,
                                                DeviceKind kind, int64_t rows) {
  if (rows == 0) return std::optional<KvCache>();
  shape.capacity = rows;
  TANDEM_ASSIGN_OR_RETURN(KvCache cache,
                          KvCache::Create(context.device(kind)->backend->allocator(), shape));
  return std::optional<KvCache>(std::move(cache));
}

// Rows of a cache tensor [B, H, rows, ...] to another one, of the same type. Each head's rows are
// contiguous.
absl::Status CopyRows(Context& context, const TensorView& from, int64_t from_row,
                      const TensorView& to, int64_t to_row, int64_t rows) {
  if (!from.present() || rows == 0) return absl::OkStatus();
  const int64_t bytes = ByteOffset(from.dtype, rows * from.stride(2));
  const auto address = [](const TensorView& view, int64_t b, int64_t h, int64_t row) {
    return static_cast<char*>(view.data) +
           ByteOffset(view.dtype, b * view.stride(0) + h * view.stride(1) + row * view.stride(2));
  };
  ContextDevice* gpu = context.device(DeviceKind::kCuda);
  for (int64_t b = 0; b < from.dim(0); ++b) {
    for (int64_t h = 0; h < from.dim(1); ++h) {
      const char* source = address(from, b, h, from_row);
      char* target = address(to, b, h, to_row);
      if (from.device.kind == DeviceKind::kCpu && to.device.kind == DeviceKind::kCpu) {
        std::memcpy(target, source, static_cast<size_t>(bytes));
      } else {
        TANDEM_RETURN_IF_ERROR(gpu->backend->Copy(*gpu->stream, target, source, bytes));
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CopyRows(Context& context, const KvCache& from, int64_t from_row, const KvCache& to,
                      int64_t to_row, int64_t rows) {
  TANDEM_RETURN_IF_ERROR(CopyRows(context, from.k(), from_row, to.k(), to_row, rows));
  TANDEM_RETURN_IF_ERROR(CopyRows(context, from.v(), from_row, to.v(), to_row, rows));
  TANDEM_RETURN_IF_ERROR(CopyRows(context, from.k_scale(), from_row, to.k_scale(), to_row, rows));
  return CopyRows(context, from.v_scale(), from_row, to.v_scale(), to_row, rows);
}

TensorView Tokens(const TensorView& view, int axis, int64_t begin, int64_t tokens) {
  return view.present() ? Slice(view, axis, begin, tokens) : view;
}

}  // namespace

absl::StatusOr<SplitKvCache> SplitKvCache::Create(Context& context, const KvCacheShape& shape,
                                                  int64_t gpu_rows) {
  SplitKvCache cache(context);
  cache.shape_ = shape;
  if (cache.shape_.v_head_dim == 0) cache.shape_.v_head_dim = shape.head_dim;
  TANDEM_ASSIGN_OR_RETURN(cache.gpu_rows_, CheckGpuRows(context, shape, gpu_rows));
  for (const DeviceKind kind : kKinds) {
    const int64_t rows =
        kind == DeviceKind::kCuda ? cache.gpu_rows_ : shape.capacity - cache.gpu_rows_;
    // A capacity of 0 makes no part: let the host's say what is wrong with it.
    if (kind == DeviceKind::kCpu && shape.capacity < 1) {
      TANDEM_RETURN_IF_ERROR(KvCache::Create(context.host_allocator(), shape).status());
    }
    TANDEM_ASSIGN_OR_RETURN(cache.parts_[static_cast<size_t>(kind)],
                            MakePart(context, shape, kind, rows));
  }
  return cache;
}

int64_t SplitKvCache::bytes(DeviceKind kind) const {
  return cache(kind) == nullptr ? 0 : cache(kind)->bytes();
}

int64_t SplitKvCache::row_bytes() const {
  const int64_t scales = shape_.dtype == DType::kI8 ? 2 * BlockBytes(DType::kF32) : 0;
  return shape_.batch * shape_.kv_heads *
         (ByteOffset(shape_.dtype, shape_.head_dim + shape_.v_head_dim) + scales);
}

SplitKvCache::Part SplitKvCache::part(DeviceKind kind) const {
  Part part;
  part.begin = PartBegin(kind);
  if (const KvCache* own = cache(kind)) {
    part.rows = own->length();
    part.k = own->Keys();
    part.v = own->Values();
    part.k_scale = own->KeyScales();
    part.v_scale = own->ValueScales();
    return part;
  }
  const ContextDevice* device = context_->device(kind);
  const Device where = device == nullptr ? Device{kind, 0} : device->backend->device();
  const auto empty = [&](DType dtype, const Shape& shape) {
    return MakeView(static_cast<void*>(nullptr), dtype, shape, where);
  };
  part.k = empty(shape_.dtype, {shape_.batch, shape_.kv_heads, 0, shape_.head_dim});
  part.v = empty(shape_.dtype, {shape_.batch, shape_.kv_heads, 0, shape_.v_head_dim});
  if (shape_.dtype == DType::kI8) {
    part.k_scale = part.v_scale = empty(DType::kF32, {shape_.batch, shape_.kv_heads, 0});
  }
  return part;
}

absl::Status SplitKvCache::CheckAppend(const CacheAppendArgs& args) const {
  TANDEM_RETURN_IF_ERROR(ValidateView("k", args.k, 4));
  TANDEM_RETURN_IF_ERROR(ValidateView("v", args.v, 4));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("v", args.v, "k", args.k));
  if (!context_->has(args.k.device)) {
    return InvalidArgument("k: lives on ", Name(args.k.device),
                           ", which this context does not have");
  }
  const int64_t tokens = args.k.dim(2);
  TANDEM_RETURN_IF_ERROR(CheckDim("v", args.v, 2, "new tokens", tokens));
  if (tokens > capacity() - length_) {
    return InvalidArgument("k dimension 2 (new tokens): expected at most ", capacity() - length_,
                           " (free rows of the cache), got ", tokens);
  }
  if (args.rope.present()) {
    TANDEM_RETURN_IF_ERROR(ValidateRotation("rope.", args.rope, "k", args.k));
  }
  if (!args.q.present() && !args.q_out.present()) return absl::OkStatus();
  if (!args.rope.present()) return InvalidArgument("q: only with rope");
  if (args.q.present() != args.q_out.present()) {
    return InvalidArgument("q_out: expected to be given exactly when q is");
  }
  TANDEM_RETURN_IF_ERROR(ValidateView("q", args.q, 4));
  if (args.q.dim(2) > tokens) {
    return InvalidArgument("q dimension 2 (queries): expected at most the new tokens, ", tokens,
                           ", got ", args.q.dim(2));
  }
  return CheckSameDevice("q", args.q, "k", args.k);
}

absl::Status SplitKvCache::AppendPiece(const CacheAppendArgs& args, DeviceKind kind, int64_t begin,
                                       int64_t tokens, bool with_q) {
  KvAppendArgs piece;
  piece.k = Slice(args.k, 2, begin, tokens);
  piece.v = Slice(args.v, 2, begin, tokens);
  piece.rope = args.rope;
  piece.rope.positions = Tokens(args.rope.positions, args.rope.positions.rank() - 1, begin, tokens);
  if (with_q) {
    piece.q = args.q;
    piece.q_out = args.q_out;
  }
  const KvCache& own = *cache(kind);
  piece.k_cache = own.k();
  piece.v_cache = own.v();
  piece.k_scale = own.k_scale();
  piece.v_scale = own.v_scale();
  piece.position = length_ + begin - PartBegin(kind);
  if (args.k.device.kind != kind) {
    Stream& stream = *context_->device(DeviceKind::kCuda)->stream;
    if (parcel_pending_) TANDEM_RETURN_IF_ERROR(stream.Synchronize());
    parcel_pending_ = true;
    parcel_.Begin(kind);
    for (TensorView* view : {&piece.k, &piece.v, &piece.rope.positions, &piece.rope.inv_freq}) {
      parcel_.Add(*view);
    }
    TANDEM_RETURN_IF_ERROR(parcel_.Send(*context_));
    if (kind == DeviceKind::kCpu) TANDEM_RETURN_IF_ERROR(stream.Synchronize());
  }
  return RunHere(*context_, piece);
}

absl::Status SplitKvCache::AppendPieces(const CacheAppendArgs& args) {
  const int64_t tokens = args.k.dim(2);
  const int64_t on_gpu = std::clamp<int64_t>(gpu_rows_ - length_, 0, tokens);
  const DeviceKind home = args.k.device.kind;
  // The queries are rotated where they are, with the keys if those of the same tokens stay there.
  const int64_t at_home = home == DeviceKind::kCuda ? on_gpu : tokens - on_gpu;
  const bool home_is_last = home == DeviceKind::kCuda ? on_gpu == tokens : true;
  const bool fused = args.q.present() && home_is_last && at_home > 0 && args.q.dim(2) <= at_home;
  for (const DeviceKind kind : kKinds) {
    const bool gpu = kind == DeviceKind::kCuda;
    const int64_t piece = gpu ? on_gpu : tokens - on_gpu;
    if (piece == 0) continue;
    TANDEM_RETURN_IF_ERROR(AppendPiece(args, kind, gpu ? 0 : on_gpu, piece, fused && kind == home));
  }
  if (args.q.present() && !fused) {
    const RopeRotation& rope = args.rope;
    const int64_t queries = args.q.dim(2);
    TANDEM_RETURN_IF_ERROR(RunHere(
        *context_,
        RopeArgs{args.q,
                 Tokens(rope.positions, rope.positions.rank() - 1, tokens - queries, queries),
                 rope.inv_freq, args.q_out, rope.pairing, rope.magnitude}));
  }
  return Advance(tokens);
}

absl::Status SplitKvCache::Advance(int64_t tokens) {
  const int64_t on_gpu = std::clamp<int64_t>(gpu_rows_ - length_, 0, tokens);
  if (on_gpu > 0) TANDEM_RETURN_IF_ERROR(cache(DeviceKind::kCuda)->Advance(on_gpu));
  if (tokens > on_gpu) TANDEM_RETURN_IF_ERROR(cache(DeviceKind::kCpu)->Advance(tokens - on_gpu));
  length_ += tokens;
  return absl::OkStatus();
}

absl::Status SplitKvCache::AppendOnCpu(const CacheAppendArgs& args) {
  const int64_t tokens = args.k.dim(2), queries = args.q.present() ? args.q.dim(2) : 0;
  const KvCache& own = *cache(DeviceKind::kCpu);
  KvAppendArgs append;
  append.k = args.k;
  append.v = args.v;
  append.rope = args.rope;
  if (queries == tokens) {
    append.q = args.q;
    append.q_out = args.q_out;
  }
  append.k_cache = own.k();
  append.v_cache = own.v();
  append.k_scale = own.k_scale();
  append.v_scale = own.v_scale();
  append.position = length_;
  TANDEM_RETURN_IF_ERROR(RunFetched(*context_, append));
  if (queries > 0 && queries < tokens) {
    const RopeRotation& rope = args.rope;
    TANDEM_RETURN_IF_ERROR(RunFetched(
        *context_,
        RopeArgs{args.q,
                 Tokens(rope.positions, rope.positions.rank() - 1, tokens - queries, queries),
                 rope.inv_freq, args.q_out, rope.pairing, rope.magnitude}));
  }
  return Advance(tokens);
}

absl::Status SplitKvCache::Append(const CacheAppendArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckAppend(args));
  absl::Status status = AppendPieces(args);
  DeviceHealth& health = context_->health();
  if (status.ok() && health.calm()) return status;
  if (!status.ok() && !DeviceFailed(status)) return status;
  const bool on_gpu = args.k.device.kind == DeviceKind::kCuda;
  OpFacts facts;
  facts.op = OpKind::kKvAppend;
  facts.bytes = 2 * ByteOffset(args.k.dtype, args.k.num_elements() + args.v.num_elements());
  if (status.ok()) {
    if (on_gpu || length_ <= gpu_rows_) health.Succeeded(facts.op, facts.bytes);
    return status;
  }
  ContextDevice* gpu = context_->device(DeviceKind::kCuda);
  if (gpu == nullptr || (!on_gpu && length_ >= gpu_rows_)) return status;  // the CPU's alone
  // An empty cache can be made anew.
  const bool resident = on_gpu || part(DeviceKind::kCuda).rows > 0;
  facts.operands = resident ? gpu->backend->device() : Device{};
  bool on_cpu = false;
  int64_t event = 0;
  const auto after = [&] {  // what the failed call left on the stream reads the parcel
    gpu->stream->Synchronize().IgnoreError();
    parcel_pending_ = false;
  };
  status = FallBack(
      *context_, facts, context_->options().device == DeviceKind::kCuda, std::move(status),
      [&] {
        after();
        parcel_.Release();
        return AppendPieces(args);
      },
      [&]() -> absl::Status {
        on_cpu = true;
        after();
        TANDEM_RETURN_IF_ERROR(Move(0));
        parcel_.Release();
        return on_gpu ? AppendOnCpu(args) : AppendPieces(args);
      },
      event);
  fallbacks_ += status.ok() && on_cpu;
  return status;
}

absl::Status SplitKvCache::Truncate(int64_t length) {
  if (length < 0 || length > length_) {
    return InvalidArgument("length: expected 0..", length_, ", got ", length);
  }
  for (const DeviceKind kind : kKinds) {
    KvCache* own = cache(kind);
    if (own == nullptr) continue;
    const int64_t rows = std::max<int64_t>(length - PartBegin(kind), 0);
    TANDEM_RETURN_IF_ERROR(own->Truncate(std::min(rows, own->length())));
  }
  length_ = length;
  return absl::OkStatus();
}

int64_t SplitKvCache::MovedBytes(int64_t gpu_rows) const {
  const int64_t low = std::min(gpu_rows, gpu_rows_), high = std::max(gpu_rows, gpu_rows_);
  return std::max<int64_t>(std::min(high, length_) - low, 0) * row_bytes();
}

absl::Status SplitKvCache::Move(int64_t gpu_rows) {
  TANDEM_ASSIGN_OR_RETURN(gpu_rows, CheckGpuRows(*context_, shape_, gpu_rows));
  if (gpu_rows == gpu_rows_) return absl::OkStatus();
  SplitKvCache moved(*context_);
  moved.shape_ = shape_;
  moved.gpu_rows_ = gpu_rows;
  for (const DeviceKind kind : kKinds) {
    const int64_t rows = kind == DeviceKind::kCuda ? gpu_rows : capacity() - gpu_rows;
    TANDEM_ASSIGN_OR_RETURN(moved.parts_[static_cast<size_t>(kind)],
                            MakePart(*context_, shape_, kind, rows));
  }
  // Between these rows neither the old nor the new place changes.
  const std::array<int64_t, 4> bounds = {0, std::min(gpu_rows, gpu_rows_),
                                         std::max(gpu_rows, gpu_rows_), capacity()};
  bool copied = parcel_pending_;
  for (size_t i = 0; i + 1 < bounds.size(); ++i) {
    const int64_t begin = bounds[i], rows = std::min(bounds[i + 1], length_) - begin;
    if (rows <= 0) continue;
    const DeviceKind from = begin < gpu_rows_ ? DeviceKind::kCuda : DeviceKind::kCpu;
    const DeviceKind to = begin < gpu_rows ? DeviceKind::kCuda : DeviceKind::kCpu;
    KvCache& target = *moved.cache(to);
    copied = copied || from == DeviceKind::kCuda || to == DeviceKind::kCuda;
    TANDEM_RETURN_IF_ERROR(CopyRows(*context_, *cache(from), begin - PartBegin(from), target,
                                    begin - moved.PartBegin(to), rows));
    TANDEM_RETURN_IF_ERROR(target.Advance(rows));
  }
  ContextDevice* gpu = context_->device(DeviceKind::kCuda);
  if (gpu != nullptr && copied) TANDEM_RETURN_IF_ERROR(gpu->stream->Synchronize());
  parts_ = std::move(moved.parts_);
  gpu_rows_ = gpu_rows;
  parcel_pending_ = false;
  return absl::OkStatus();
}

}  // namespace tandem
