// Cache of attention masks: a decoder asks for the same few masks in every layer and for every
// prompt of a length.
//
// Least recently used entries go first. A hit returns the tensor itself, shared and immutable: no
// copy, one lock, one hash lookup. Thread-safe; the contexts that callers pass are not, so each
// thread brings its own.
#pragma once

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "core/buffer.h"
#include "core/ops/mask_rule.h"
#include "core/tensor.h"
#include "dispatch/context.h"

namespace tandem {

struct MaskCacheOptions {
  int64_t max_entries = 100;
  int64_t max_bytes = int64_t{256} << 20;  // of all entries together
  int64_t max_length = 2048;               // longer masks (q_len or kv_len) are made, not kept
};

struct MaskCacheStats {
  int64_t hits = 0;
  int64_t misses = 0;     // masks made, kept or not
  int64_t evictions = 0;  // entries dropped to make room
  int64_t entries = 0;
  int64_t bytes = 0;

  double HitRate() const {
    return hits + misses == 0 ? 0.0
                              : static_cast<double>(hits) / static_cast<double>(hits + misses);
  }
};

class MaskCache {
 public:
  explicit MaskCache(const MaskCacheOptions& options = {});

  // The mask of `rule` in `dtype` (see core/ops/mask.h), in the memory of `device`. On a miss it is
  // made by MaskInto(context, ...), outside the lock. InvalidArgument: a bad rule or dtype, or a
  // device that the context lacks. Masks in host memory may outlive the cache and the context;
  // others must not outlive the context that made them.
  absl::StatusOr<std::shared_ptr<const Tensor>> Get(Context& context, const MaskRule& rule,
                                                    DType dtype, Device device = {});

  MaskCacheStats stats() const;
  // Drops all entries (tensors in use live on); the counters of hits and misses stay.
  void Clear();

 private:
  struct Key {
    MaskRule rule;
    DType dtype;
    Device device;

    auto Fields() const {
      return std::make_tuple(rule.q_len, rule.kv_len, rule.causal, rule.window_left,
                             rule.window_right, rule.chunk, rule.prefix_len, rule.kv_begin,
                             rule.keys_before, rule.keys_after, dtype, device.kind, device.index);
    }
    friend bool operator==(const Key& a, const Key& b) { return a.Fields() == b.Fields(); }
    template <typename H>
    friend H AbslHashValue(H state, const Key& key) {
      return H::combine(std::move(state), key.Fields());
    }
  };
  struct Entry {
    Key key;
    std::shared_ptr<const Tensor> mask;
    int64_t bytes;
  };
  using Entries = std::list<Entry>;

  absl::StatusOr<std::shared_ptr<const Tensor>> Make(Context& context, const Key& key);
  // The kept mask of that key: `mask`, or the one that another thread kept meanwhile.
  std::shared_ptr<const Tensor> Keep(const Key& key, std::shared_ptr<const Tensor> mask);

  const MaskCacheOptions options_;
  const std::shared_ptr<Allocator> host_allocator_;
  mutable std::mutex mutex_;  // of what follows
  Entries entries_;           // most recently used first
  absl::flat_hash_map<Key, Entries::iterator> by_key_;
  MaskCacheStats stats_;
};

}  // namespace tandem
