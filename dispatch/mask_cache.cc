#include "dispatch/mask_cache.h"

#include <algorithm>
#include <string>

#include "core/ops/mask.h"
#include "core/status.h"
#include "dispatch/ops.h"

namespace tandem {

MaskCache::MaskCache(const MaskCacheOptions& options)
    : options_(options), host_allocator_(MakeHostAllocator()) {}

absl::StatusOr<std::shared_ptr<const Tensor>> MaskCache::Get(Context& context, const MaskRule& rule,
                                                             DType dtype, Device device) {
  const Key key = {rule, dtype, device};
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = by_key_.find(key);
    if (found != by_key_.end()) {
      ++stats_.hits;
      entries_.splice(entries_.begin(), entries_, found->second);
      return found->second->mask;
    }
    ++stats_.misses;
  }
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<const Tensor> mask, Make(context, key));
  if (std::max(rule.q_len, rule.kv_len) > options_.max_length) return mask;
  return Keep(key, std::move(mask));
}

absl::StatusOr<std::shared_ptr<const Tensor>> MaskCache::Make(Context& context, const Key& key) {
  ContextDevice* device = context.device(key.device.kind);
  if (device == nullptr || device->backend->device() != key.device) {
    return InvalidArgument("device: the context has no ", Name(key.device));
  }
  if (key.rule.q_len < 0 || key.rule.kv_len < 0) {
    return InvalidArgument("rule.q_len, rule.kv_len: expected >= 0, got ", key.rule.q_len, ", ",
                           key.rule.kv_len);
  }
  const bool host = key.device.kind == DeviceKind::kCpu;
  const Shape shape = {key.rule.q_len, MaskColumns(key.dtype, key.rule.kv_len)};
  TANDEM_ASSIGN_OR_RETURN(
      const Tensor tensor,
      Tensor::Allocate(host ? *host_allocator_ : device->backend->allocator(), key.dtype, shape));
  TANDEM_RETURN_IF_ERROR(MaskInto(context, {.rule = key.rule, .out = tensor.view()}));
  // Other threads will read it from streams of their own.
  TANDEM_RETURN_IF_ERROR(device->stream->Synchronize());
  struct Held {  // the tensor with the allocator that it must not outlive
    std::shared_ptr<Allocator> allocator;
    Tensor tensor;
  };
  auto held = std::make_shared<Held>(Held{host ? host_allocator_ : nullptr, tensor});
  const Tensor* mask = &held->tensor;
  return std::shared_ptr<const Tensor>(std::move(held), mask);
}

std::shared_ptr<const Tensor> MaskCache::Keep(const Key& key, std::shared_ptr<const Tensor> mask) {
  const int64_t bytes = mask->buffer()->bytes();
  if (bytes > options_.max_bytes || options_.max_entries < 1) return mask;
  Entries dropped;  // freed after the lock
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto found = by_key_.find(key);
  if (found != by_key_.end()) return found->second->mask;
  while (stats_.entries >= options_.max_entries || stats_.bytes + bytes > options_.max_bytes) {
    by_key_.erase(entries_.back().key);
    stats_.bytes -= entries_.back().bytes;
    --stats_.entries;
    ++stats_.evictions;
    dropped.splice(dropped.begin(), entries_, std::prev(entries_.end()));
  }
  entries_.push_front({key, mask, bytes});
  by_key_.emplace(key, entries_.begin());
  stats_.bytes += bytes;
  ++stats_.entries;
  return mask;
}

MaskCacheStats MaskCache::stats() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

void MaskCache::Clear() {
  Entries dropped;
  const std::lock_guard<std::mutex> lock(mutex_);
  by_key_.clear();
  dropped.swap(entries_);
  stats_.entries = 0;
  stats_.bytes = 0;
}

}  // namespace tandem
