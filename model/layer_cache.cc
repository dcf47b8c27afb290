#include "model/layer_cache.h"

#include <utility>

#include "core/backend.h"
#include "core/status.h"
#include "dispatch/copy.h"

namespace tandem {
namespace {

// Rows [0, rows) of `from` to those from `begin` on. Of each head the filled rows lie side by side.
absl::Status CopyRows(Context& context, const TensorView& from, const TensorView& to, int64_t begin,
                      int64_t rows) {
  if (!from.present() || rows == 0) return absl::OkStatus();
  for (int64_t head = 0; head < from.dim(1); ++head) {
    TANDEM_RETURN_IF_ERROR(Copy(context, Slice(Slice(from, 1, head, 1), 2, 0, rows),
                                Slice(Slice(to, 1, head, 1), 2, begin, rows)));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<LayerCache> LayerCache::Create(Context& context, const KvCacheShape& shape,
                                              DeviceKind device, std::optional<int64_t> gpu_rows) {
  LayerCache cache;
  if (gpu_rows && device == DeviceKind::kCuda) {
    TANDEM_ASSIGN_OR_RETURN(cache.split_, SplitKvCache::Create(context, shape, *gpu_rows));
  } else {
    TANDEM_ASSIGN_OR_RETURN(cache.whole_,
                            KvCache::Create(context.device(device)->backend->allocator(), shape));
  }
  return cache;
}

int64_t LayerCache::bytes() const {
  return whole_ ? whole_->bytes()
                : split_->bytes(DeviceKind::kCpu) + split_->bytes(DeviceKind::kCuda);
}

absl::Status LayerCache::CopyFrom(Context& context, const LayerCache& from) {
  if (!whole_ || length() != 0) return InvalidArgument("to: expected an empty cache in one place");
  const auto copy = [&](const SplitKvCache::Part& part) {
    TANDEM_RETURN_IF_ERROR(CopyRows(context, part.k, whole_->k(), part.begin, part.rows));
    TANDEM_RETURN_IF_ERROR(CopyRows(context, part.v, whole_->v(), part.begin, part.rows));
    TANDEM_RETURN_IF_ERROR(
        CopyRows(context, part.k_scale, whole_->k_scale(), part.begin, part.rows));
    return CopyRows(context, part.v_scale, whole_->v_scale(), part.begin, part.rows);
  };
  if (from.whole_) {
    TANDEM_RETURN_IF_ERROR(copy({0, from.length(), from.whole_->k(), from.whole_->v(),
                                 from.whole_->k_scale(), from.whole_->v_scale()}));
  } else {
    for (const DeviceKind kind : kDeviceKinds)
      TANDEM_RETURN_IF_ERROR(copy(from.split_->part(kind)));
  }
  return whole_->Advance(from.length());
}

}  // namespace tandem
