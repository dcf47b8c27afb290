// Predicted times of calls that are shared by both devices, and with them the best shares
// (dispatch/split_choice.h). Pure, apart from CostsOf a context.
//
// With q or a on the CPU ("home"), the GPU's share pays for the copies of what it reads and of its
// part of the result; with them on the GPU, the CPU's share does. Copies are of page-locked memory.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "absl/status/statusor.h"
#include "core/kv_cache.h"
#include "core/ops/attention.h"
#include "core/ops/matmul.h"
#include "dispatch/context.h"
#include "dispatch/scheduler.h"
#include "dispatch/split_choice.h"

namespace tandem {

// What calls and copies cost on a machine; see CostModel.
struct SplitCosts {
  // Seconds of a call whose operands are on the device, nullopt: unknown.
  std::function<std::optional<double>(const OpFacts& facts, DeviceKind device)> call;
  // Seconds to copy between two different devices, the host's side page-locked.
  std::function<double(DeviceKind from, DeviceKind to, int64_t bytes)> copy;
  // That the host is busy with giving the GPU a call.
  double queue_seconds = 0.0;
  double margin = 0.0;  // of SplitProblem
  // Of CostProfile: what both devices read together at most; 0: neither slows the other.
  double shared_bytes_per_second = 0.0;
};

// What a measured machine's model says, times `correction` for what calls took lately (of calls
// that were not moved; nullptr: none). Both must outlive the result. The host gives the GPU its
// work in at most the time of a launch, which is waited for as well: that is queue_seconds. Shared
// calls must be predicted to gain a tenth: tiles and waves are not in the model.
SplitCosts CostsOf(const CostModel& model, const CostCorrection* correction = nullptr);
// Those that the context decides by. nullopt if it does not go by predicted times: it has not been
// measured, has no GPU, forces a device or has another policy.
std::optional<SplitCosts> CostsOf(Context& context);

// Attention to a cache of `length` rows (whose capacity does not matter).
struct CacheCall {
  KvCacheShape cache;
  int64_t length = 0;
  int64_t q_heads = 1;
  int64_t q_len = 1;
  int64_t new_len = 0;  // keys beside the cache
  DType q_dtype = DType::kF32;
  Causal causal = Causal::kBottomRight;
  int64_t window_left = -1;
};

// The call that a device makes of it if the first `gpu_rows` are on the GPU.
OpFacts PartFacts(const CacheCall& call, DeviceKind device, int64_t gpu_rows);
// With the first `gpu_rows` on the GPU. Infinite: unknown.
double AttentionSeconds(const SplitCosts& costs, const CacheCall& call, DeviceKind home,
                        int64_t gpu_rows);
// That both parts take at least, for they read so many bytes of one memory at the same time. 0:
// neither slows the other, or nobody knows.
double SharedSeconds(const Context& context, const AttentionArgs& cpu_part,
                     const AttentionArgs& gpu_part);
double SharedSeconds(const Context& context, const MatMulArgs& cpu_part,
                     const MatMulArgs& gpu_part);

// The rows that the GPU should have, of which `gpu_most` fit. Errors: see ChooseSplit.
absl::StatusOr<SplitChoice> ChooseAttentionSplit(const SplitCosts& costs, const CacheCall& call,
                                                 DeviceKind home, int64_t gpu_most);

// Shares of products are whole numbers of so many columns: the tiles that every kernel works in at
// least.
inline constexpr int64_t kColumnStep = 16;

// A product of [m, k] and weights [n, k].
struct ProductCall {
  int64_t m = 1, n = 1, k = 1;
  DType input = DType::kF32;
  DType weights = DType::kF32;
  DType output = DType::kF32;
  bool packed = false;  // the CPU's part of the weights
};

OpFacts PartFacts(const ProductCall& call, DeviceKind device, int64_t gpu_columns);
double MatMulSeconds(const SplitCosts& costs, const ProductCall& call, DeviceKind home,
                     int64_t gpu_columns);
absl::StatusOr<SplitChoice> ChooseMatMulSplit(const SplitCosts& costs, const ProductCall& call,
                                              DeviceKind home, int64_t gpu_most);

}  // namespace tandem
