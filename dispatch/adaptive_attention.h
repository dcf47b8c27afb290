// Attention with a cache that lives where its attention is fastest: in host memory, in GPU memory,
// or in both with both devices at work.
//
//   auto layer = AdaptiveAttention::Create(context, shape, {})
//   each token:  layer->AttendInto(q, k_new = k, v_new = v, out)   k and v beside the cache, then
//                layer->Append(k, v)
//          or:   layer->Append(k, v, rope, q)                      appended first (and rotated),
//          then
//                layer->AttendInto(q, out)
// Both orders give the same result, up to the rounding of k and v to the cache's type.
//
// Where the cache lies is decided before each call, by the first rule that applies:
//   forced      the context forces a device: there. A context without a GPU: in host memory
//   failed      the GPU is lost, failed in an earlier call on this cache (the CPU then took it
//               over), or is left alone for a while (dispatch/device_health.h): host memory
//   policy      the context's policy is one device: there, the GPU as far as it fits
//   costs       with predicted times, the context's or given ones (AdaptiveOptions::costs): the
//               best share for the cache as long as it is now (ChooseAttentionSplit), but it moves
//               only when that saves more than moving costs (CacheHysteresis, dispatch/migration.h)
//   threshold   without, and if such calls were not measured: on the GPU, as far as it fits, from
//               attention_min_kv_len keys on (dispatch/scheduler.h), new ones included, and back
//               below half of that; where q comes in GPU memory, on the GPU from the first key on
// A move that fails (no memory) leaves the cache where it is, is an event of the context's health,
// and is not tried again until the cache is twice as long.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "core/ops/attention.h"
#include "dispatch/cache_attention.h"
#include "dispatch/context.h"
#include "dispatch/migration.h"
#include "dispatch/split_cache.h"
#include "dispatch/split_costs.h"

namespace tandem {

struct AdaptiveOptions {
  // Predicted times instead of the context's (CostsOf in dispatch/split_costs.h), whatever its
  // policy. Without either its policy decides.
  std::optional<SplitCosts> costs = {};
  MigrationOptions migration = {};
  // Most bytes of GPU memory that the cache may take; 0: what is free when it moves there.
  int64_t gpu_bytes = 0;
  bool allow_split = true;  // false: on one device or the other, as a whole
};

// Why the cache lies where it does.
struct AdaptiveDecision {
  enum class Rule : uint8_t { kNone, kOnlyCpu, kForced, kFailed, kPolicy, kThreshold, kCosts };
  Rule rule = Rule::kNone;
  int64_t length = 0;    // keys, new ones included
  int64_t gpu_rows = 0;  // where the cache is now, see SplitKvCache
  bool moved = false;    // for this call
  int64_t threshold = 0;
  PolicyKind policy = PolicyKind::kAuto;
  std::optional<SplitChoice> choice = {};           // by costs: what would be best
  std::optional<MigrationDecision> migration = {};  // by costs, if that is not where it is
};
// "64 keys >= attention_min_kv_len 64: on the GPU"
std::string Explain(const AdaptiveDecision& decision);

class AdaptiveAttention {
 public:
  // The cache begins empty, in host memory unless the context forces the GPU. The context must
  // outlive this. Errors: as SplitKvCache::Create's.
  static absl::StatusOr<std::unique_ptr<AdaptiveAttention>> Create(
      Context& context, const KvCacheShape& shape, const AdaptiveOptions& options = {});

  const SplitKvCache& cache() const { return cache_; }
  int64_t length() const { return cache_.length(); }

  // args.out (and lse) = attention of args.q [B, Hq, Sq, D] to the keys of the cache and, if given,
  // args.k_new [B, Hkv, Snew, D] and args.v_new, which are not appended. What args may have and the
  // errors: see CacheAttention::Run. Operands are on the GPU or in host memory, together.
  // `steps_left`: calls that will follow, if known; weighed against the cost of moving the cache.
  // Allocates nothing once memory has its size, unless the cache moves.
  absl::Status AttendInto(const AttentionArgs& args,
                          std::optional<int64_t> steps_left = std::nullopt);
  // Behind the last row. See SplitKvCache::Append.
  absl::Status Append(const CacheAppendArgs& args) { return cache_.Append(args); }
  absl::Status Truncate(int64_t length) { return cache_.Truncate(length); }

  // Of the last call.
  const AdaptiveDecision& decision() const { return decision_; }
  int64_t moves() const { return moves_; }
  // Calls whose GPU part failed and that the CPU did, with the cache.
  int64_t fallbacks() const { return attention_.fallbacks() + cache_.fallbacks(); }

 private:
  AdaptiveAttention(Context& context, SplitKvCache cache, const AdaptiveOptions& options)
      : context_(context),
        options_(options),
        cache_(std::move(cache)),
        attention_(context),
        hysteresis_(options.migration) {}

  // The rows that may be on the GPU: what fits, whole steps.
  int64_t GpuMost() const;
  // Moves the cache there; what fails is reported, and not tried again for a while.
  void MoveTo(int64_t target);
  // Is the GPU left alone for now?
  bool Avoided(const AttentionArgs& args);
  // Where the cache should be for this call.
  int64_t Decide(const AttentionArgs& args, std::optional<int64_t> steps_left);
  int64_t DecideByThreshold(const AttentionArgs& args);
  int64_t DecideByCosts(const AttentionArgs& args, std::optional<int64_t> steps_left);

  Context& context_;
  AdaptiveOptions options_;
  SplitKvCache cache_;
  CacheAttention attention_;
  CacheHysteresis hysteresis_;
  AdaptiveDecision decision_;
  // Predictions hold until the cache is longer by this much.
  struct Prediction {
    int64_t length = -1, q_len = 0, gpu_rows = 0;
    DeviceKind home = DeviceKind::kCpu;
    int64_t target = 0;
    double here = 0.0, there = 0.0, move = 0.0;
    bool known = false;  // false: no call like it was measured
    int64_t calls = 0;
  };
  Prediction prediction_;
  int64_t no_move_below_ = 0;  // length, after a move that failed
  int64_t moves_ = 0;
};

}  // namespace tandem
