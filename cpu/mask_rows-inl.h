// One row of a mask, compiled once per target (see simd_targets.h).
//
// A row is hidden, visible, hidden: three runs of one value. It is written in chunks of a few cache
// lines. A chunk within one run is that value stored again and again; in the one or two chunks that
// hold an end of the visible range each vector is put together from two comparisons. Both loops
// have a length that does not depend on where the range ends, so that branches are predicted from
// row to row. Stores are whole aligned cache lines, but for the first and the last of a row.
#if defined(TANDEM_CPU_MASK_ROWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_MASK_ROWS_INL_H_
#undef TANDEM_CPU_MASK_ROWS_INL_H_
#else
#define TANDEM_CPU_MASK_ROWS_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "core/ops/mask_rule.h"
#include "cpu/mask_values.h"
#include "hwy/cache_control.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Writes elements of one row, of which `visible` are visible.
template <Stores kStores, typename Values>
class RowFiller {
 public:
  using Bits = typename Values::Bits;

  HWY_INLINE RowFiller(Bits* row, KeyRange visible) : row_(row), visible_(visible) {}

  // Elements [from, to).
  HWY_INLINE void Fill(int64_t from, int64_t to) const {
    if (HWY_UNLIKELY(to - from < kLine)) return FillShort(from, to);
    int64_t n = from;
    const auto misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(row_ + n) % 64);
    if (misaligned != 0) {
      FillEdge(n);
      n += kLine - misaligned / int64_t{sizeof(Bits)};
    }
    for (; n + kChunkLines * kLine <= to; n += kChunkLines * kLine) {
      FillLines<kStores, kChunkLines>(n);
    }
    for (; n + kLine <= to; n += kLine) FillLines<kStores, 1>(n);
    if (n < to) FillEdge(to - kLine);
  }

 private:
  using Tag = hn::ScalableTag<Bits>;
  using Vec = hn::Vec<Tag>;
  static constexpr int64_t kLength = static_cast<int64_t>(hn::MaxLanes(Tag()));
  static constexpr int64_t kLine = 64 / int64_t{sizeof(Bits)};  // elements
  // 2 KiB, in elements: best of 1, 2 and 4.
  static constexpr int64_t kPrefetchDistance = 32 * kLine;
  // 256 bytes: a position strictly within a chunk fits any element type.
  static constexpr int64_t kChunkLines = 4;

  // kLines cache lines from element n on.
  template <Stores kLineStores, int64_t kLines>
  HWY_INLINE void FillLines(int64_t n) const {
    const Tag d;
    constexpr int64_t kElements = kLines * kLine;
    Bits* to = row_ + n;
    const auto store = [&](Vec v, int64_t i) HWY_ATTR {
      if constexpr (kLineStores == Stores::kStreaming) {
        hn::Stream(v, d, to + i);
      } else {
        hn::StoreU(v, d, to + i);
      }
    };
    if constexpr (kLineStores == Stores::kPrefetched) {
      for (int64_t i = 0; i < kElements; i += kLine) hwy::Prefetch(to + i + kPrefetchDistance);
    }
    const int64_t begin = visible_.begin - n, end = visible_.end - n;
    const auto within = [](int64_t bound) {  // 0 < bound < kElements
      return static_cast<uint64_t>(bound - 1) < uint64_t{kElements - 1};
    };
    if (!within(begin) && !within(end)) {
      const Vec value = hn::Set(d, begin <= 0 && end > 0 ? Values::kVisible : Values::kHidden);
      for (int64_t i = 0; i < kElements; i += kLength) store(value, i);
      return;
    }
    const Vec hidden = hn::Set(d, Values::kHidden), visible = hn::Set(d, Values::kVisible);
    const Vec first = hn::Set(d, static_cast<Bits>(begin)),
              last = hn::Set(d, static_cast<Bits>(end));
    const auto position = [&](int64_t i) HWY_ATTR { return hn::Iota(d, static_cast<Bits>(i)); };
    if (begin <= 0) {
      for (int64_t i = 0; i < kElements; i += kLength) {
        store(hn::IfThenElse(hn::Lt(position(i), last), visible, hidden), i);
      }
    } else if (end >= kElements) {
      for (int64_t i = 0; i < kElements; i += kLength) {
        store(hn::IfThenElse(hn::Lt(position(i), first), hidden, visible), i);
      }
    } else {  // both ends, or none visible
      const Vec length = hn::Sub(last, first);
      for (int64_t i = 0; i < kElements; i += kLength) {
        const Vec from_first = hn::Sub(position(i), first);
        store(hn::IfThenElse(hn::Lt(from_first, length), visible, hidden), i);
      }
    }
  }

  // The bytes of one cache line, across two. Out of line, as is FillShort: most masks have none.
  HWY_NOINLINE void FillEdge(int64_t n) const { FillLines<Stores::kPlain, 1>(n); }

  // Less than a cache line.
  HWY_NOINLINE void FillShort(int64_t from, int64_t to) const {
    const auto value = [&](int64_t n) {
      return n >= visible_.begin && n < visible_.end ? Values::kVisible : Values::kHidden;
    };
    for (int64_t n = from; n < to; ++n) row_[n] = value(n);
  }

  Bits* row_;
  KeyRange visible_;
};

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_MASK_ROWS_INL_H_
