#include "tests/reference/attention.h"

#include <cmath>
#include <limits>

#include "tests/reference/elements.h"
#include "tests/reference/visible.h"

namespace tandem::reference {
namespace {

// K or V of one sequence and head, the cache followed by the new keys: [kv_len, D].
template <typename Real>
std::vector<Real> Gather(const TensorView& cache, const TensorView& fresh, int64_t b, int64_t g,
                         DType storage) {
  std::vector<Real> rows;
  for (const TensorView* part : {&cache, &fresh}) {
    if (!part->present()) continue;
    for (double x : ReadAll(Select(Select(*part, 0, b), 0, g))) {
      rows.push_back(static_cast<Real>(std::is_same_v<Real, float> ? RoundTo(storage, x) : x));
    }
  }
  return rows;
}

template <typename Real>
AttentionResult Compute(const AttentionArgs& args, DType storage) {
  constexpr bool kNaive = std::is_same_v<Real, float>;
  const auto stored = [&](Real x) { return kNaive ? static_cast<Real>(RoundTo(storage, x)) : x; };
  const MaskRule rule = args.Rule();
  const int64_t d = args.head_dim(), dv = args.v_head_dim(), kv_len = args.kv_len();
  const auto scale = static_cast<Real>(args.scale ? static_cast<double>(*args.scale)
                                                  : 1.0 / std::sqrt(static_cast<double>(d)));

  AttentionResult result;
  std::vector<Real> scores(static_cast<size_t>(kv_len)), acc(static_cast<size_t>(dv));
  std::vector<Real> exact_scores(static_cast<size_t>(kv_len));
  for (int64_t b = 0; b < args.batch(); ++b) {
    for (int64_t g = 0; g < args.kv_heads(); ++g) {
      const auto keys = Gather<Real>(args.k, args.k_new, b, g, storage);
      const auto values = Gather<Real>(args.v, args.v_new, b, g, storage);
      for (int64_t h = g * args.group(); h < (g + 1) * args.group(); ++h) {
        const auto queries = Gather<Real>(args.q, {}, b, h, storage);
        for (int64_t i = 0; i < args.q_len(); ++i) {
          Real largest = -std::numeric_limits<Real>::infinity();
          bool any = false, nan = false;
          for (int64_t j = 0; j < kv_len; ++j) {
            if (!Visible(rule, i, j)) continue;
            Real dot = 0;
            for (int64_t c = 0; c < d; ++c) dot += queries[i * d + c] * keys[j * d + c];
            exact_scores[j] = dot * scale;
            scores[j] = stored(dot * scale);
            nan = nan || std::isnan(scores[j]);
            any = true;
            largest = std::max(largest, scores[j]);
          }
          Real sum = 0, exact_sum = 0;
          for (int64_t j = 0; j < kv_len; ++j) {
            if (!Visible(rule, i, j)) continue;
            exact_sum += std::exp(exact_scores[j] - largest);
            scores[j] = std::exp(scores[j] - largest);
            sum += scores[j];
          }
          std::fill(acc.begin(), acc.end(), Real{0});
          for (int64_t j = 0; j < kv_len; ++j) {
            if (!Visible(rule, i, j)) continue;
            const Real p = stored(scores[j] / sum);
            for (int64_t c = 0; c < dv; ++c) acc[c] += p * values[j * dv + c];
          }
          for (int64_t c = 0; c < dv; ++c) {
            const double x = nan ? std::numeric_limits<double>::quiet_NaN() : acc[c];
            result.out.push_back(kNaive ? RoundTo(args.out.dtype, x) : x);
          }
          result.lse.push_back(any ? static_cast<double>(largest + std::log(exact_sum))
                                   : -std::numeric_limits<double>::infinity());
          result.masked.push_back(!any);
        }
      }
    }
  }
  return result;
}

}  // namespace

AttentionResult Attention(const AttentionArgs& args) { return Compute<double>(args, DType::kF32); }

AttentionResult NaiveAttention(const AttentionArgs& args, DType storage) {
  return Compute<float>(args, storage);
}

}  // namespace tandem::reference
