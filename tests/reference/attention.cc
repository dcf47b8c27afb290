#include "tests/reference/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/reference/elements.h"
#include "tests/reference/visible.h"

namespace tandem::reference {
namespace {

int64_t Entry(const TensorView& list, int64_t i) {
  return static_cast<int64_t>(ReadAt(list, i * list.stride(0)));
}

// K or V of one sequence and head, the cache followed by the new keys: [kv_len, columns].
template <typename Real>
std::vector<Real> Gather(const AttentionArgs& args, const AttentionExtent& extent,
                         const TensorView& cache, const TensorView& fresh, const TensorView& scale,
                         int64_t b, int64_t g, DType storage) {
  std::vector<Real> rows;
  for (int64_t j = 0; j < extent.rule.kv_len; ++j) {
    const KeyPlace place = PlaceOf(args, extent, cache, fresh, b, g, j);
    double factor = 1.0;
    if (scale.present() && j < extent.cache_len) {
      factor = ReadAt(scale, PlaceOf(args, extent, scale, {}, b, g, j).offset);
    }
    for (int64_t c = 0; c < cache.dim(3); ++c) {
      const double x = factor * ReadAt(*place.view, place.offset + c * place.view->stride(3));
      rows.push_back(static_cast<Real>(std::is_same_v<Real, float> ? RoundTo(storage, x) : x));
    }
  }
  return rows;
}

template <typename Real>
AttentionResult Compute(const AttentionArgs& args, DType storage) {
  constexpr bool kNaive = std::is_same_v<Real, float>;
  constexpr double kNegInf = -std::numeric_limits<double>::infinity();
  const auto stored = [&](Real x) { return kNaive ? static_cast<Real>(RoundTo(storage, x)) : x; };
  const int64_t d = args.head_dim(), dv = args.v_head_dim();
  const int64_t heads = args.q_heads(), rows = args.q.dim(2);
  const auto scale = static_cast<Real>(args.scale ? static_cast<double>(*args.scale)
                                                  : 1.0 / std::sqrt(static_cast<double>(d)));
  const Real cap = args.softcap;

  AttentionResult result;
  const auto total = static_cast<size_t>(args.q.dim(0) * heads * rows);
  result.out.assign(total * static_cast<size_t>(dv), 0.0);
  result.lse.assign(total, kNegInf);
  result.masked.assign(total, true);

  std::vector<Real> query(static_cast<size_t>(d)), acc(static_cast<size_t>(dv));
  std::vector<Real> scores, exact_scores;
  std::vector<Real> keys, values;  // of one sequence and kv head
  for (int64_t b = 0; b < args.batch(); ++b) {
    const AttentionExtent extent = ExtentOf(args, b);
    for (int64_t h = 0; h < heads; ++h) {
      const int64_t group = heads / args.k.dim(1);
      if (h % group == 0) {
        const int64_t g = h / group;
        keys = Gather<Real>(args, extent, args.k, args.k_new, args.k_scale, b, g, storage);
        values = Gather<Real>(args, extent, args.v, args.v_new, args.v_scale, b, g, storage);
      }
      for (int64_t i = 0; i < extent.rule.q_len; ++i) {
        const int64_t row = extent.first_row + i;
        const TensorView q_row = Select(Select(Select(args.q, 0, extent.plane), 0, h), 0, row);
        for (int64_t c = 0; c < d; ++c) {
          query[c] = static_cast<Real>(ReadAt(q_row, c * q_row.stride(0)));
          if (kNaive) query[c] = static_cast<Real>(RoundTo(storage, query[c]));
        }
        const std::vector<int64_t> visible = VisibleKeys(args, extent, b, h, i);
        scores.clear();
        exact_scores.clear();
        bool nan = false;
        Real largest = -std::numeric_limits<Real>::infinity();
        for (int64_t j : visible) {
          Real s = 0;
          for (int64_t c = 0; c < d; ++c) s += query[c] * keys[j * d + c];
          s *= scale;
          if (cap > 0) s = cap * std::tanh(s / cap);
          if (args.alibi_slopes.present()) {
            const auto slope =
                static_cast<Real>(ReadAt(args.alibi_slopes, h * args.alibi_slopes.stride(0)));
            const int64_t position = args.causal == Causal::kTopLeft
                                         ? i
                                         : extent.rule.keys_before + extent.rule.kv_len +
                                               extent.rule.keys_after - extent.rule.q_len + i;
            const int64_t key = extent.rule.keys_before + j;
            s -= slope * static_cast<Real>(position > key ? position - key : key - position);
          }
          if (args.bias.present()) {
            s += static_cast<Real>(ReadAt(args.bias, BroadcastOffset(args.bias, b, h, row, j)));
          }
          exact_scores.push_back(s);
          scores.push_back(stored(s));
          nan = nan || std::isnan(s);
          largest = std::max(largest, scores.back());
        }
        Real sum = 0, exact_sum = 0;
        if (args.sinks.present()) {
          const auto sink = static_cast<Real>(ReadAt(args.sinks, h * args.sinks.stride(0)));
          largest = std::max(largest, sink);
          sum = exact_sum = sink == largest ? Real{1} : std::exp(sink - largest);
          if (sink == -std::numeric_limits<Real>::infinity()) sum = exact_sum = 0;
        }
        for (size_t n = 0; n < visible.size(); ++n) {
          exact_sum += std::exp(exact_scores[n] - largest);
          scores[n] = std::exp(scores[n] - largest);
          sum += scores[n];
        }
        std::fill(acc.begin(), acc.end(), Real{0});
        for (size_t n = 0; n < visible.size(); ++n) {
          const Real p = stored(scores[n] / sum);
          for (int64_t c = 0; c < dv; ++c) acc[c] += p * values[visible[n] * dv + c];
        }
        const auto at = static_cast<size_t>((extent.plane * heads + h) * rows + row);
        for (int64_t c = 0; c < dv; ++c) {
          const double x = nan ? std::numeric_limits<double>::quiet_NaN() : acc[c];
          result.out[at * static_cast<size_t>(dv) + static_cast<size_t>(c)] =
              kNaive ? RoundTo(args.out.dtype, x) : x;
        }
        if (exact_sum != 0) result.lse[at] = static_cast<double>(largest + std::log(exact_sum));
        result.masked[at] = visible.empty();
      }
    }
  }
  return result;
}

}  // namespace

AttentionExtent ExtentOf(const AttentionArgs& args, int64_t b) {
  AttentionExtent extent;
  extent.plane = b;
  int64_t queries = args.q.dim(2);
  if (args.q_offsets.present()) {
    extent.plane = 0;
    extent.first_row = Entry(args.q_offsets, b);
    queries = Entry(args.q_offsets, b + 1) - extent.first_row;
  }
  if (args.q_lens.present()) queries = Entry(args.q_lens, b);
  const int64_t rows =
      args.page_table.present() ? args.page_table.dim(1) * args.k.dim(2) : args.k.dim(2);
  // The whole sequence's keys in its cache, and those of them that the call has.
  int64_t length = args.keys_before + rows + args.keys_after;
  if (args.kv_lens.present()) length = Entry(args.kv_lens, b);
  const int64_t first = std::min(args.keys_before, length);
  const int64_t last = std::min(args.keys_before + rows, length);
  extent.cache_len = last - first;
  extent.rule = {.q_len = queries,
                 .kv_len = extent.cache_len + (args.k_new.present() ? args.k_new.dim(2) : 0),
                 .causal = args.causal,
                 .window_left = args.window_left,
                 .window_right = args.window_right,
                 .chunk = args.chunk,
                 .prefix_len = args.prefix_len,
                 .kv_begin = args.kv_starts.present() ? Entry(args.kv_starts, b) : 0,
                 .keys_before = first,
                 .keys_after = length - last + args.new_after};
  return extent;
}

int64_t BroadcastOffset(const TensorView& view, int64_t b, int64_t h, int64_t row, int64_t column) {
  return (view.dim(0) == 1 ? 0 : b) * view.stride(0) + (view.dim(1) == 1 ? 0 : h) * view.stride(1) +
         (view.dim(2) == 1 ? 0 : row) * view.stride(2) +
         (view.dim(3) == 1 ? 0 : column) * view.stride(3);
}

std::vector<int64_t> VisibleKeys(const AttentionArgs& args, const AttentionExtent& extent,
                                 int64_t b, int64_t h, int64_t i) {
  const int64_t row = extent.first_row + i;
  std::vector<int64_t> keys;
  for (int64_t j = 0; j < extent.rule.kv_len; ++j) {
    if (!Visible(extent.rule, i, j)) continue;
    if (args.mask.present()) {
      const bool packed = args.mask.dtype == DType::kU32;
      const double read =
          ReadAt(args.mask, BroadcastOffset(args.mask, b, h, row, packed ? j / 32 : j));
      const auto bits = static_cast<uint32_t>(read);
      if (packed ? (bits & (uint32_t{1} << (j % 32))) == 0 : bits == 0) continue;
    }
    if (args.bias.present()) {
      const double bias = ReadAt(args.bias, BroadcastOffset(args.bias, b, h, row, j));
      if (std::isinf(bias) && bias < 0) continue;
    }
    keys.push_back(j);
  }
  return keys;
}

KeyPlace PlaceOf(const AttentionArgs& args, const AttentionExtent& extent, const TensorView& cache,
                 const TensorView& fresh, int64_t b, int64_t g, int64_t j) {
  const bool is_new = j >= extent.cache_len;
  const TensorView& view = is_new ? fresh : cache;
  int64_t plane = b, row = is_new ? j - extent.cache_len : j;
  if (!is_new && args.page_table.present()) {
    const int64_t page_size = args.k.dim(2);
    const TensorView& table = args.page_table;
    plane = static_cast<int64_t>(
        ReadAt(table, b * table.stride(0) + row / page_size * table.stride(1)));
    row %= page_size;
  }
  return {&view, plane * view.stride(0) + g * view.stride(1) + row * view.stride(2)};
}

AttentionResult Attention(const AttentionArgs& args) { return Compute<double>(args, DType::kF32); }

AttentionResult NaiveAttention(const AttentionArgs& args, DType storage) {
  return Compute<float>(args, storage);
}

}  // namespace tandem::reference
