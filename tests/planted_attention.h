// Attention written out plainly, one query at a time, with at most one bug.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "core/kernel.h"
#include "core/ops/attention.h"
#include "tests/planted_bugs.h"
#include "tests/reference/elements.h"

namespace tandem::cases {

enum class Bug {
  kNone,
  // keys
  kCausalOffByOne,
  kTopLeftForBottomRight,
  kWindowOffByOne,
  kChunkIgnored,
  kPrefixIgnored,
  kHeadModulo,
  kIgnoresNewKeys,
  kNewKeysBehindCapacity,
  kKvLensIgnored,
  kKvStartsIgnored,
  kKeysBeforeIgnored,
  kKeysAfterIgnored,
  kPageOffByOne,
  // rows
  kPaddingRowsNotWritten,
  kPackedRowsOfTheFirst,
  kMaskedRowDividesByZero,
  kFiniteMinusInfinity,
  kMaskedNanLeaks,
  kHiddenByBiasLeaks,
  kNanSwallowed,
  // scores
  kScaleIgnored,
  kSoftcapAfterBias,
  kSoftcapBeforeScale,
  kAlibiSign,
  kAlibiFromTheFirstQuery,
  kBiasOfTheFirstHead,
  kMaskOfTheFirstRow,
  kMaskBitOrder,
  kSinkTwice,
  kSinkNotInMaximum,
  kInt8ScaleOfTheNextToken,
  kInt8ScaleOfK,
  // numbers
  kLseBase2,
  kLseWithoutSink,
  kF16Sum,
  kF16Scores,
  // memory
  kReadsThroughPadding,
  kWritesThroughPadding,
  kWritesPastTheEnd,
  kLastRowMissing,
  kAddsToOutput,
  kTakesMoreWorkspace,
  kWritesBeyondWorkspace,
  kTrustsZeroedWorkspace,
  kWritesInput,
};

template <Bug kBug>
class Planted {
 public:
  static absl::Status Run(const KernelContext& context, const AttentionArgs& args) {
    Planted planted(args);
    planted.scores_ = context.workspace->Take<float>(args.kv_len());
    if (kBug == Bug::kTakesMoreWorkspace) (void)context.workspace->Take<float>(1);
    if (kBug == Bug::kWritesBeyondWorkspace) {
      planted.scores_[(args.kv_len() + 15) / 16 * 16] = 0.0f;
    }
    for (int64_t b = 0; b < args.batch(); ++b) {
      for (int64_t h = 0; h < args.q_heads(); ++h) planted.Rows(b, h);
    }
    if (kBug == Bug::kWritesPastTheEnd && !args.out.empty()) {
      Store(args.out, ByteExtent(args.out) / BlockBytes(args.out.dtype), 0.0f);
    }
    if (kBug == Bug::kWritesInput && !args.q.empty()) Store(args.q, 0, 1.0f);
    return absl::OkStatus();
  }

 private:
  explicit Planted(const AttentionArgs& args) : args_(args), q_(args.q), out_(args.out) {
    // Strides as if rows had no gaps.
    if (kBug == Bug::kReadsThroughPadding) q_.strides = ContiguousStrides(q_.shape);
    if (kBug == Bug::kWritesThroughPadding) out_.strides = ContiguousStrides(out_.shape);
  }

  void Rows(int64_t b, int64_t h) {
    AttentionSequence sequence = args_.Sequence(b);
    if (kBug == Bug::kPackedRowsOfTheFirst && args_.q_offsets.present()) sequence.q_begin = 0;
    if (kBug == Bug::kKvLensIgnored && !args_.paged()) {
      sequence.cache_len = args_.cache_len();
      sequence.rule.kv_len = args_.kv_len();
    }
    if (kBug == Bug::kKvStartsIgnored) sequence.rule.kv_begin = 0;
    if (kBug == Bug::kKeysBeforeIgnored) sequence.rule.keys_before = 0;
    if (kBug == Bug::kKeysAfterIgnored) sequence.rule.keys_after = 0;
    if (kBug == Bug::kChunkIgnored) sequence.rule.chunk = 0;
    if (kBug == Bug::kPrefixIgnored) sequence.rule.prefix_len = 0;
    for (int64_t i = 0; i < sequence.rule.q_len; ++i) {
      if (kBug == Bug::kLastRowMissing && i > 0 && i + 1 == sequence.rule.q_len) continue;
      Row(sequence, b, h, i);
    }
    if (!args_.q_lens.present() || kBug == Bug::kPaddingRowsNotWritten) return;
    for (int64_t i = sequence.rule.q_len; i < args_.q_len(); ++i) {
      for (int64_t c = 0; c < args_.v_head_dim(); ++c) Store(out_, At(out_, b, h, i, c), 0.0f);
      if (args_.lse.present()) Store(args_.lse, At(args_.lse, b, h, i), -INFINITY);
    }
  }

  static int64_t At(const TensorView& v, int64_t b, int64_t h, int64_t i, int64_t c = 0) {
    return b * v.stride(0) + h * v.stride(1) + i * v.stride(2) +
           (v.rank() > 3 ? c * v.stride(3) : 0);
  }

  KeyRange Visible(MaskRule rule, int64_t i) const {
    if (kBug == Bug::kTopLeftForBottomRight && rule.causal == Causal::kBottomRight) {
      rule.causal = Causal::kTopLeft;
    }
    if (kBug == Bug::kWindowOffByOne && rule.window_left > 0) --rule.window_left;
    KeyRange range = rule.Range(i);
    if (kBug == Bug::kCausalOffByOne && rule.causal != Causal::kNone && range.end < rule.kv_len) {
      ++range.end;
    }
    if (kBug == Bug::kIgnoresNewKeys) {
      range.end = std::min(range.end, rule.kv_len - args_.new_len());
      range.begin = std::min(range.begin, range.end);
    }
    return range;
  }

  // Element c of key or value j of the cache followed by the new ones.
  float Load(const TensorView& cache, const TensorView& fresh, const TensorView& scale,
             int64_t cached, int64_t b, int64_t g, int64_t j, int64_t c) const {
    if (kBug == Bug::kNewKeysBehindCapacity && !args_.paged()) cached = args_.cache_len();
    if (j >= cached) {
      return static_cast<float>(reference::ReadAt(fresh, At(fresh, b, g, j - cached, c)));
    }
    const auto place = [&](const TensorView& view, int64_t key, int64_t column) {
      if (!args_.paged()) return At(view, b, g, key, column);
      const TensorView& table = args_.page_table;
      int64_t slot = key / args_.page_size();
      if (kBug == Bug::kPageOffByOne && slot > 0) --slot;
      const int32_t page = *table.At<int32_t>(b * table.stride(0) + slot * table.stride(1));
      return At(view, page, g, key % args_.page_size(), column);
    };
    const auto x = static_cast<float>(reference::ReadAt(cache, place(cache, j, c)));
    if (!scale.present()) return x;
    const bool next = kBug == Bug::kInt8ScaleOfTheNextToken && j + 1 < cached;
    return x * *scale.At<float>(place(scale, next ? j + 1 : j, 0));
  }

  bool MaskShows(int64_t b, int64_t h, int64_t row, int64_t j) const {
    const TensorView& mask = args_.mask;
    if (!mask.present()) return true;
    if (kBug == Bug::kMaskOfTheFirstRow) row = 0;
    if (mask.dtype == DType::kBool)
      return reference::ReadAt(mask, Broadcast(mask, b, h, row, j)) != 0;
    const uint32_t word = *mask.At<uint32_t>(Broadcast(mask, b, h, row, j / 32));
    return (word >> (kBug == Bug::kMaskBitOrder ? 31 - j % 32 : j % 32) & 1u) != 0;
  }

  static int64_t Broadcast(const TensorView& v, int64_t b, int64_t h, int64_t i, int64_t j) {
    return At(v, v.dim(0) == 1 ? 0 : b, v.dim(1) == 1 ? 0 : h, v.dim(2) == 1 ? 0 : i,
              v.dim(3) == 1 ? 0 : j);
  }

  static float Of(const TensorView& list, int64_t h) { return *list.At<float>(h * list.stride(0)); }

  float Score(const AttentionSequence& sequence, int64_t h, int64_t i, int64_t j, float dot,
              float bias) const {
    const float scale = kBug == Bug::kScaleIgnored
                            ? 1.0f / std::sqrt(static_cast<float>(args_.head_dim()))
                            : args_.Scale();
    const float cap = args_.softcap;
    const auto capped = [cap](float s) { return cap > 0.0f ? cap * std::tanh(s / cap) : s; };
    float s = dot;
    if (kBug == Bug::kSoftcapBeforeScale) s = capped(s);
    s *= scale;
    if (kBug != Bug::kSoftcapAfterBias && kBug != Bug::kSoftcapBeforeScale) s = capped(s);
    if (args_.alibi_slopes.present()) {
      const int64_t position = kBug == Bug::kAlibiFromTheFirstQuery ? i : sequence.rule.Position(i);
      const float distance =
          Of(args_.alibi_slopes, h) * std::fabs(static_cast<float>(position - j));
      s = kBug == Bug::kAlibiSign ? s + distance : s - distance;
    }
    s += bias;
    if (kBug == Bug::kSoftcapAfterBias) s = capped(s);
    if (kBug == Bug::kF16Scores) s = ToFloat(ToF16(s));
    if (kBug == Bug::kNanSwallowed && std::isnan(s)) s = -1e30f;
    return s;
  }

  void Row(const AttentionSequence& sequence, int64_t b, int64_t h, int64_t i) {
    const KeyRange range = Visible(sequence.rule, i);
    const int64_t row = sequence.q_begin + i;
    const int64_t g = kBug == Bug::kHeadModulo ? h % args_.kv_heads() : h / args_.group();
    const bool leaks = kBug == Bug::kMaskedNanLeaks || kBug == Bug::kFiniteMinusInfinity;
    const int64_t first = leaks ? 0 : range.begin;
    const int64_t last = leaks ? sequence.rule.kv_len : range.end;
    float largest = -INFINITY;
    for (int64_t j = first; j < last; ++j) {
      float dot = kBug == Bug::kTrustsZeroedWorkspace ? scores_[j] : 0.0f;
      for (int64_t c = 0; c < args_.head_dim(); ++c) {
        dot += static_cast<float>(reference::ReadAt(q_, At(q_, sequence.q_batch, h, row, c))) *
               Load(args_.k, args_.k_new, args_.k_scale, sequence.cache_len, b, g, j, c);
      }
      bool visible = j >= range.begin && j < range.end && MaskShows(b, h, row, j);
      float bias = 0.0f;
      if (args_.bias.present()) {
        const int64_t head = kBug == Bug::kBiasOfTheFirstHead ? 0 : h;
        bias = static_cast<float>(
            reference::ReadAt(args_.bias, Broadcast(args_.bias, b, head, row, j)));
        if (bias == -INFINITY && kBug != Bug::kHiddenByBiasLeaks) visible = false;
      }
      float s = Score(sequence, h, i, j, dot, bias);
      if (!visible) s = kBug == Bug::kFiniteMinusInfinity ? -1e30f : -INFINITY;
      scores_[j] = s;
      if (visible || kBug == Bug::kFiniteMinusInfinity) largest = std::max(largest, s);
    }
    Finish(sequence, b, h, row, g, first, last, largest);
  }

  // Softmax of scores [first, last) and the weighted values.
  void Finish(const AttentionSequence& sequence, int64_t b, int64_t h, int64_t row, int64_t g,
              int64_t first, int64_t last, float largest) {
    const bool has_sink = args_.sinks.present();
    const float sink = has_sink ? Of(args_.sinks, h) : -INFINITY;
    if (kBug != Bug::kSinkNotInMaximum || largest == -INFINITY) largest = std::max(largest, sink);
    float sum = 0.0f;
    for (int64_t j = first; j < last; ++j) {
      scores_[j] = scores_[j] == -INFINITY ? 0.0f : std::exp(scores_[j] - largest);
      sum += scores_[j];
    }
    const float keys_only = sum;
    if (sink > -INFINITY) {
      const float weight = std::exp(sink - largest);
      sum += kBug == Bug::kSinkTwice ? 2.0f * weight : weight;
    }
    const bool empty = sum == 0.0f;
    for (int64_t c = 0; c < args_.v_head_dim(); ++c) {
      float acc = 0.0f;
      for (int64_t j = first; j < last; ++j) {
        if (scores_[j] == 0.0f && !(kBug == Bug::kMaskedNanLeaks)) continue;
        acc += scores_[j] * Load(args_.v, args_.v_new,
                                 kBug == Bug::kInt8ScaleOfK ? args_.k_scale : args_.v_scale,
                                 sequence.cache_len, b, g, j, c);
        if (kBug == Bug::kF16Sum) acc = ToFloat(ToF16(acc));
      }
      const int64_t at = At(out_, sequence.q_batch, h, row, c);
      if (kBug == Bug::kAddsToOutput) acc += static_cast<float>(reference::ReadAt(out_, at)) * sum;
      Store(out_, at, empty && kBug != Bug::kMaskedRowDividesByZero ? 0.0f : acc / sum);
    }
    if (!args_.lse.present()) return;
    if (kBug == Bug::kLseWithoutSink) sum = keys_only;
    float lse = sum == 0.0f ? -INFINITY : largest + std::log(sum);
    if (kBug == Bug::kLseBase2) lse *= 1.4426950f;
    Store(args_.lse, At(args_.lse, sequence.q_batch, h, row), lse);
  }

  const AttentionArgs& args_;
  TensorView q_, out_;
  float* scores_ = nullptr;
};

template <Bug kBug>
Kernel<AttentionArgs> PlantedKernel() {
  return {.name = "planted",
          .device = DeviceKind::kCpu,
          .supports = SupportsAll<AttentionArgs>,
          .workspace_bytes =
              [](const KernelContext&, const AttentionArgs& args) {
                auto counter = Workspace::Counting();
                (void)counter.Take<float>(args.kv_len());
                return counter.bytes_used();
              },
          .run = Planted<kBug>::Run};
}

}  // namespace tandem::cases
