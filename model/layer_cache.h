// The keys and values of one layer of a session: on the device of its attention, or, where they do
// not fit in the GPU's memory, their first rows there and the others in host memory
// (dispatch/split_cache.h).
#pragma once

#include <cstdint>
#include <optional>

#include "absl/status/statusor.h"
#include "core/kv_cache.h"
#include "dispatch/context.h"
#include "dispatch/split_cache.h"

namespace tandem {

class LayerCache {
 public:
  // `gpu_rows`: only so many of its rows on the GPU; not given: all of them on `device`.
  static absl::StatusOr<LayerCache> Create(Context& context, const KvCacheShape& shape,
                                           DeviceKind device, std::optional<int64_t> gpu_rows);

  // One of them is not nullptr.
  KvCache* whole() { return whole_ ? &*whole_ : nullptr; }
  SplitKvCache* split() { return split_ ? &*split_ : nullptr; }

  int64_t length() const { return whole_ ? whole_->length() : split_->length(); }
  int64_t bytes() const;
  absl::Status Truncate(int64_t length) {
    return whole_ ? whole_->Truncate(length) : split_->Truncate(length);
  }
  // Copies the rows of another cache of the same layer; this one is empty and whole. If either is
  // on the GPU, in the order of its stream.
  absl::Status CopyFrom(Context& context, const LayerCache& from);

 private:
  std::optional<KvCache> whole_;
  std::optional<SplitKvCache> split_;
};

}  // namespace tandem
