#include "dispatch/adaptive_attention.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/backend.h"
#include "core/status.h"
#include "dispatch/memory_need.h"

namespace tandem {
namespace {

constexpr DeviceKind kCpu = DeviceKind::kCpu, kCuda = DeviceKind::kCuda;
// Predictions are made anew when the cache has grown by a 32nd, or by this many rows, and after so
// many calls: they are corrected by what calls take.
constexpr int64_t kPredictionRows = 32, kPredictionCalls = 32;

}  // namespace

absl::StatusOr<std::unique_ptr<AdaptiveAttention>> AdaptiveAttention::Create(
    Context& context, const KvCacheShape& shape, const AdaptiveOptions& options) {
  if (options.gpu_bytes < 0) {
    return InvalidArgument("gpu_bytes: expected >= 0, got ", options.gpu_bytes);
  }
  AdaptiveOptions chosen = options;
  if (!chosen.costs) chosen.costs = CostsOf(context);
  const int64_t gpu_rows = context.options().device == kCuda ? shape.capacity : 0;
  TANDEM_ASSIGN_OR_RETURN(SplitKvCache cache, SplitKvCache::Create(context, shape, gpu_rows));
  return std::unique_ptr<AdaptiveAttention>(
      new AdaptiveAttention(context, std::move(cache), chosen));
}

int64_t AdaptiveAttention::GpuMost() const {
  const int64_t bytes = options_.gpu_bytes > 0 ? options_.gpu_bytes : FreeGpuBytes(context_);
  const int64_t rows = std::clamp<int64_t>(bytes / cache_.row_bytes(), 0, cache_.capacity());
  if (rows == cache_.capacity()) return rows;
  return options_.allow_split ? rows - rows % SplitKvCache::kRowStep : 0;
}

int64_t AdaptiveAttention::DecideByThreshold(const AttentionArgs& args) {
  decision_.rule = AdaptiveDecision::Rule::kThreshold;
  const int64_t threshold = context_.options().policy.attention_min_kv_len;
  decision_.threshold = threshold;
  const bool there = cache_.gpu_rows() > 0;
  if (decision_.length >= threshold || args.q.device.kind == kCuda) {
    return there ? cache_.gpu_rows() : GpuMost();
  }
  return there && decision_.length >= threshold / 2 ? cache_.gpu_rows() : 0;
}

int64_t AdaptiveAttention::DecideByCosts(const AttentionArgs& args,
                                         std::optional<int64_t> steps_left) {
  decision_.rule = AdaptiveDecision::Rule::kCosts;
  const int64_t length = cache_.length();
  if (length == 0) return cache_.gpu_rows();
  Prediction& p = prediction_;
  if (p.length < 0 || length < p.length ||
      length >= p.length + std::max(kPredictionRows, p.length / 32) || p.q_len != args.q.dim(2) ||
      p.home != args.q.device.kind || p.gpu_rows != cache_.gpu_rows() ||
      ++p.calls >= kPredictionCalls) {
    CacheCall call;
    call.cache = cache_.shape();
    call.length = length;
    call.q_heads = args.q.dim(1);
    call.q_len = args.q.dim(2);
    call.new_len = args.new_len();
    call.q_dtype = args.q.dtype;
    call.causal = args.causal;
    call.window_left = args.window_left;
    p = {.length = length,
         .q_len = call.q_len,
         .gpu_rows = cache_.gpu_rows(),
         .home = args.q.device.kind,
         .target = cache_.gpu_rows()};
    const int64_t most = std::max(GpuMost(), cache_.gpu_rows());
    const SplitCosts& costs = *options_.costs;
    auto choice = ChooseAttentionSplit(costs, call, p.home, std::min(most, length));
    if (choice.ok() && !options_.allow_split && choice->gpu > 0 && choice->gpu < length) {
      const bool cpu = choice->cpu_alone <= choice->gpu_alone;
      choice->gpu = cpu ? 0 : length;
      choice->seconds = cpu ? choice->cpu_alone : choice->gpu_alone;
    }
    p.known = choice.ok() && std::isfinite(AttentionSeconds(costs, call, p.home, 0)) &&
              std::isfinite(AttentionSeconds(costs, call, p.home, length));
    if (p.known) {
      // What wants to be on the GPU as a whole takes its room there at once.
      p.target = choice->gpu == length ? most : choice->gpu;
      p.here = AttentionSeconds(costs, call, p.home, cache_.gpu_rows());
      p.there = choice->seconds;
      const DeviceKind to = p.target > cache_.gpu_rows() ? kCuda : kCpu;
      const int64_t bytes = cache_.MovedBytes(p.target);
      p.move = bytes == 0 ? 0.0 : costs.copy(to == kCuda ? kCpu : kCuda, to, bytes);
      decision_.choice = *choice;
    }
  }
  if (!p.known) return DecideByThreshold(args);
  if (p.target == cache_.gpu_rows()) return p.target;
  decision_.migration = hysteresis_.Decide({p.here, p.there, p.move, steps_left});
  return decision_.migration->migrate ? p.target : cache_.gpu_rows();
}

int64_t AdaptiveAttention::Decide(const AttentionArgs& args, std::optional<int64_t> steps_left) {
  using Rule = AdaptiveDecision::Rule;
  decision_.length = cache_.length() + args.new_len();
  decision_.moved = false;
  decision_.migration.reset();
  if (context_.device(kCuda) == nullptr) {
    decision_.rule = Rule::kOnlyCpu;
    return 0;
  }
  if (context_.options().device) {
    decision_.rule = Rule::kForced;
    return cache_.gpu_rows();
  }
  if (fallbacks() > 0 || Avoided(args)) {
    decision_.rule = Rule::kFailed;
    return cache_.gpu_rows();
  }
  if (options_.costs) return DecideByCosts(args, steps_left);
  decision_.policy = context_.options().policy.kind;
  if (decision_.policy != PolicyKind::kCpu && decision_.policy != PolicyKind::kCuda) {
    return DecideByThreshold(args);
  }
  decision_.rule = Rule::kPolicy;
  if (decision_.policy == PolicyKind::kCpu) return 0;
  return cache_.gpu_rows() > 0 ? cache_.gpu_rows() : GpuMost();
}

bool AdaptiveAttention::Avoided(const AttentionArgs& args) {
  DeviceHealth& health = context_.health();
  if (health.calm() || cache_.gpu_rows() > 0) return false;
  const int64_t bytes = ByteOffset(cache_.shape().dtype, args.q.num_elements()) +
                        cache_.length() * cache_.row_bytes();
  if (health.StateFor(OpKind::kAttention, bytes) == GpuState::kReady) return false;
  health.Avoided(OpKind::kAttention, bytes);
  return true;
}

void AdaptiveAttention::MoveTo(int64_t target) {
  const int64_t before = cache_.gpu_rows();
  const absl::Status status = cache_.Move(target);
  if (status.ok()) {
    decision_.moved = cache_.gpu_rows() != before;
    moves_ += decision_.moved;
    no_move_below_ = 0;
    return;
  }
  no_move_below_ = std::max<int64_t>(2 * cache_.length(), 1);
  const std::optional<FaultCause> cause = CauseOf(status);
  if (!cause) return;
  DeviceHealth& health = context_.health();
  if (*cause == FaultCause::kDeviceLost) health.Lose(Message(status));
  context_.ReportFault({"move of a cache", context_.device(kCuda)->backend->device(), *cause,
                        target > before ? FaultRemedy::kRanOnCpu : FaultRemedy::kFailed,
                        Message(status)});
}

absl::Status AdaptiveAttention::AttendInto(const AttentionArgs& args,
                                           std::optional<int64_t> steps_left) {
  TANDEM_RETURN_IF_ERROR(ValidateView("q", args.q, 4));
  if (args.k_new.present()) TANDEM_RETURN_IF_ERROR(ValidateView("k_new", args.k_new, 4));
  const int64_t target = Decide(args, steps_left);
  if (target != cache_.gpu_rows() && cache_.length() >= no_move_below_) MoveTo(target);
  absl::Status status = attention_.Run(cache_, args);
  decision_.gpu_rows = cache_.gpu_rows();
  return status;
}

std::string Explain(const AdaptiveDecision& decision) {
  using Rule = AdaptiveDecision::Rule;
  std::string why;
  switch (decision.rule) {
    case Rule::kNone:
      return "nothing was asked for yet";
    case Rule::kOnlyCpu:
      why = "the CPU is the only device present";
      break;
    case Rule::kForced:
      why = "the device is forced";
      break;
    case Rule::kFailed:
      why = "the GPU failed, and the CPU took over";
      break;
    case Rule::kPolicy:
      why = absl::StrCat("policy ", std::string(Name(decision.policy)));
      break;
    case Rule::kThreshold:
      why = absl::StrCat(decision.length, " keys ",
                         decision.length >= decision.threshold ? ">=" : "<",
                         " attention_min_kv_len ", decision.threshold);
      break;
    case Rule::kCosts:
      why = decision.choice ? absl::StrCat("best: ", Explain(*decision.choice, "rows"))
                            : "no keys yet";
      if (decision.migration) absl::StrAppend(&why, "; ", Explain(*decision.migration));
      break;
  }
  if (decision.gpu_rows == 0) return absl::StrCat(why, ": in host memory");
  return absl::StrCat(why, ": its first ", decision.gpu_rows, " rows on the GPU");
}

}  // namespace tandem
