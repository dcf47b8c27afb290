// Attention mask creation and extension.
//
// simd: each row is filled in whole cache lines from a table of its three runs (mask_rows-inl.h);
// nothing is decided per element. Packed rows are runs of whole words, of which the two at the ends
// of the visible range are then set one by one; short ones are computed word by word. Extension
// fills the at most two ranges in which a row differs, and its new cells. Rows of all sequences are
// independent tasks. Outputs too large to stay in the last cache are written with non-temporal
// stores, which spare reading every line before it is overwritten. Memory: each output byte is
// written once, nothing is read but the table in the first-level cache.
//
// reference: asks the rule for every element.
#include "core/ops/mask.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/strip.h"
#include "cpu/kernels.h"
#include "cpu/mask_values.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#ifndef TANDEM_CPU_MASK_RUNS  // this file is compiled once per target
#define TANDEM_CPU_MASK_RUNS
namespace tandem::cpu {
namespace {

// Elements written per task, several microseconds of stores: smaller masks are not worth a second
// thread.
constexpr int64_t kMaskTaskElements = int64_t{1} << 18;

// Size of the last-level cache next to this processor, as the kernel of the system reports it (the
// C library's own figure adds up all of a socket). 32 MiB where it does not.
int64_t ReadLastCacheBytes() {
  int64_t bytes = int64_t{32} << 20;
  const int file = open("/sys/devices/system/cpu/cpu0/cache/index3/size", O_RDONLY | O_CLOEXEC);
  if (file < 0) return bytes;
  char text[32] = {};  // "32768K"
  int64_t kibibytes = 0;
  if (read(file, text, sizeof(text) - 1) > 1 &&
      absl::SimpleAtoi(absl::StripSuffix(absl::StripTrailingAsciiWhitespace(text), "K"),
                       &kibibytes)) {
    bytes = kibibytes << 10;
  }
  close(file);
  return bytes;
}

// Measured on the machine of docs/results/masks.md. Up to the second-level cache plain stores are
// best. What is larger than the last cache leaves it before it is read again: there plain stores
// fall from 105 to 57 GB/s and less, non-temporal ones make 45 to 60 at any size.
Stores StoresFor(int64_t bytes) {
  constexpr int64_t kCoreCache = int64_t{1} << 20;
  static const int64_t last_cache = ReadLastCacheBytes();
  if (bytes >= last_cache) return Stores::kStreaming;
  return bytes >= kCoreCache ? Stores::kPrefetched : Stores::kPlain;
}

// Rows that a call writes, of all its sequences.
struct MaskWork {
  explicit MaskWork(const MaskArgs& args)
      : rows(args.num_rows()),
        row_stride(args.out.stride(-2)),
        batch_stride(args.out.rank() == 4 ? args.out.stride(0) : 0),
        columns(args.out.dim(-1)) {}

  int64_t rows;
  int64_t row_stride;
  int64_t batch_stride;
  int64_t columns;
};

// Cells of a row that a call writes, on average: what tasks are cut by. Extension writes little in
// the rows that exist.
int64_t CellsPerRow(const MaskArgs& args, const MaskWork& work) {
  if (!args.previous) return work.columns;
  constexpr int64_t kOldCells = 16;  // a row visited costs about as much as these
  const int64_t old_columns = MaskColumns(args.out.dtype, args.previous->kv_len);
  const int64_t old_rows = std::clamp<int64_t>(args.previous->q_len - args.first_row, 0, work.rows);
  const int64_t per_old_row =
      std::min(work.columns, std::max<int64_t>(work.columns - old_columns, 0) + kOldCells);
  return work.columns - (work.columns - per_old_row) * old_rows / std::max<int64_t>(1, work.rows);
}

// Rows whose ranges are found together.
constexpr int64_t kRowBlock = 32;

// The visible keys of rows q .. q + count - 1. Asking the rule costs as much as filling a short
// row. But without chunks neither end of the range moves by more than one key from row to row:
// where the last row of a block has moved by nothing, or by one per row, so have those between.
class BlockRanges {
 public:
  BlockRanges(const MaskRule& rule, int64_t q, int64_t count) : first_(VisibleKeys(rule, q)) {
    const KeyRange last = VisibleKeys(rule, q + count - 1);
    const int64_t steps = count - 1;
    const int64_t begin_moved = last.begin - first_.begin, end_moved = last.end - first_.end;
    linear_ = rule.chunk == 0 && q + count <= rule.q_len &&
              (begin_moved == 0 || begin_moved == steps) && (end_moved == 0 || end_moved == steps);
    if (linear_) {
      begin_step_ = begin_moved != 0;
      end_step_ = end_moved != 0;
    } else {
      for (int64_t i = 0; i < count; ++i) ranges_[i] = VisibleKeys(rule, q + i);
    }
  }

  // Certainly the same ranges, row for row.
  bool SameAs(const BlockRanges& other) const {
    return linear_ && other.linear_ && first_.begin == other.first_.begin &&
           first_.end == other.first_.end && begin_step_ == other.begin_step_ &&
           end_step_ == other.end_step_;
  }

  KeyRange operator[](int64_t i) const {
    if (!linear_) return ranges_[i];
    return {first_.begin + i * begin_step_, first_.end + i * end_step_};
  }

 private:
  KeyRange first_;
  bool linear_;
  int64_t begin_step_ = 0, end_step_ = 0;
  KeyRange ranges_[kRowBlock];
};

// Calls fn(sequence, q, count, offset) for blocks of at most kRowBlock rows that make up rows
// [begin, end) of all sequences: the rule of the sequence, the first row of the block there and
// where it begins in `out`.
template <typename Fn>
void ForEachBlock(const MaskArgs& args, const MaskWork& work, int64_t begin, int64_t end, Fn&& fn) {
  int64_t b = begin / work.rows;
  int64_t row = begin % work.rows;
  for (int64_t left = end - begin; left > 0; ++b, row = 0) {
    const MaskRule sequence = args.Sequence(b);
    const int64_t last = std::min(work.rows, row + left);
    left -= last - row;
    while (row < last) {
      const int64_t count = std::min(kRowBlock, last - row);
      fn(sequence, args.first_row + row, count, b * work.batch_stride + row * work.row_stride);
      row += count;
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
#endif  // TANDEM_CPU_MASK_RUNS

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/mask.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
//
#include "cpu/mask_rows-inl.h"
HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// Bits of the word of keys 32 * word .. 32 * word + 31.
HWY_INLINE uint32_t VisibleBits(KeyRange visible, int64_t word) {
  const auto below = [&](int64_t bound) {
    return (uint64_t{1} << std::clamp<int64_t>(bound - 32 * word, 0, 32)) - 1;
  };
  return static_cast<uint32_t>(below(visible.end) & ~below(visible.begin));
}

// A mask of one element per key.
template <Stores kHow, typename Values>
struct ElementRows {
  using Bits = typename Values::Bits;
  static constexpr Stores kStores = kHow;
  static constexpr int64_t kKeys = 1;  // per element

  static HWY_INLINE void Fill(Bits* row, KeyRange visible, int64_t from, int64_t to) {
    RowFiller<kStores, Values>(row, visible).Fill(from, to);
  }
};

struct PackedRows {
  using Bits = uint32_t;
  static constexpr int64_t kKeys = 32;
  static constexpr Stores kStores = Stores::kPlain;

  static HWY_INLINE void Fill(uint32_t* row, KeyRange visible, int64_t from, int64_t to) {
    constexpr int64_t kShort = 8;  // words: up to here faster one by one
    if (to - from <= kShort) {
      for (int64_t word = from; word < to; ++word) row[word] = VisibleBits(visible, word);
      return;
    }
    const bool any = visible.begin < visible.end;
    const int64_t first = visible.begin / 32;
    const int64_t last = any ? (visible.end - 1) / 32 : first - 1;
    RowFiller<kStores, PackedMaskValues>(row, {first, last + 1}).Fill(from, to);
    if (!any) return;
    if (first >= from && first < to) row[first] = VisibleBits(visible, first);
    if (last >= from && last < to) row[last] = VisibleBits(visible, last);
  }
};

// Extends the first rows of a block from what they are by the previous rule. Returns their number.
template <typename Rows>
HWY_NOINLINE int64_t ExtendRows(typename Rows::Bits* block, const MaskWork& work,
                                const BlockRanges& visible, const MaskRule& previous, int64_t q,
                                int64_t count) {
  constexpr int64_t kKeys = Rows::kKeys;
  const int64_t rows = std::min(count, previous.q_len - q);
  if (rows <= 0) return 0;
  const int64_t old_columns = std::min(work.columns, (previous.kv_len + kKeys - 1) / kKeys);
  const BlockRanges old(previous, q, rows);
  // Decoding: rows that exist keep what they show, and get new columns at most.
  const bool same = visible.SameAs(old);
  if (same && old_columns == work.columns) return rows;
  for (int64_t i = 0; i < rows; ++i) {
    typename Rows::Bits* row = block + i * work.row_stride;
    if (!same) {
      const KeyRangePair differences = Differences(visible[i], old[i]);
      for (const KeyRange& keys : {differences.first, differences.second}) {
        if (keys.begin >= keys.end) continue;
        const int64_t end = (keys.end - 1) / kKeys + 1;
        Rows::Fill(row, visible[i], keys.begin / kKeys, std::min(end, old_columns));
      }
    }
    Rows::Fill(row, visible[i], old_columns, work.columns);
  }
  return rows;
}

template <typename Rows>
void FillRows(const MaskArgs& args, const MaskWork& work, int64_t begin, int64_t end) {
  using Bits = typename Rows::Bits;
  const int64_t stride = work.row_stride, columns = work.columns;
  ForEachBlock(args, work, begin, end,
               [&](const MaskRule& sequence, int64_t q, int64_t count, int64_t offset) HWY_ATTR {
                 Bits* block = args.out.At<Bits>(offset);
                 const BlockRanges visible(sequence, q, count);
                 int64_t i = 0;
                 if (args.previous) {
                   i = ExtendRows<Rows>(block, work, visible, *args.previous, q, count);
                 }
                 for (; i < count; ++i) Rows::Fill(block + i * stride, visible[i], 0, columns);
               });
  if constexpr (Rows::kStores == Stores::kStreaming) hwy::FlushStream();
}

absl::Status Mask(const KernelContext& context, const MaskArgs& args) {
  const TensorView& out = args.out;
  if (out.empty()) return absl::OkStatus();
  const MaskWork work(args);
  const auto parallel = [&](auto fill) {
    ParallelRows(
        CpuStream::Of(context).pool(), args.batch() * work.rows, CellsPerRow(args, work),
        [&](int64_t begin, int64_t end, int) { fill(args, work, begin, end); }, kMaskTaskElements);
  };
  if (out.dtype == DType::kU32) {
    parallel(FillRows<PackedRows>);
    return absl::OkStatus();
  }
  const Stores stores = args.previous ? Stores::kPlain : StoresFor(ByteExtent(out));
  DispatchMaskValues(out.dtype, [&]<typename Values>() {
    switch (stores) {
      case Stores::kPlain:
        return parallel(FillRows<ElementRows<Stores::kPlain, Values>>);
      case Stores::kPrefetched:
        return parallel(FillRows<ElementRows<Stores::kPrefetched, Values>>);
      case Stores::kStreaming:
        return parallel(FillRows<ElementRows<Stores::kStreaming, Values>>);
    }
  });
  return absl::OkStatus();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace {

// The element of column `column` in row q.
void WriteElement(const TensorView& out, int64_t offset, const MaskRule& sequence, int64_t q,
                  int64_t column) {
  const auto visible = [&](int64_t k) {
    const KeyRange keys = VisibleKeys(sequence, q);
    return k >= keys.begin && k < keys.end;
  };
  if (out.dtype == DType::kU32) {
    uint32_t bits = 0;
    for (int64_t bit = 0; bit < 32; ++bit) {
      if (visible(column * 32 + bit)) bits |= uint32_t{1} << bit;
    }
    *out.At<uint32_t>(offset) = bits;
  } else if (out.dtype == DType::kBool) {
    *out.At<uint8_t>(offset) = visible(column) ? 1 : 0;
  } else {
    StoreElement(out, offset, visible(column) ? 0.0f : -std::numeric_limits<float>::infinity());
  }
}

// Does the cell hold another value under the previous rule, or did that not have it?
bool Differs(const MaskArgs& args, int64_t q, int64_t column) {
  const MaskRule& previous = *args.previous;
  if (q >= previous.q_len || column >= MaskColumns(args.out.dtype, previous.kv_len)) return true;
  const int64_t keys = args.out.dtype == DType::kU32 ? 32 : 1;
  for (int64_t k = column * keys; k < (column + 1) * keys; ++k) {
    if (args.rule.Visible(q, k) != previous.Visible(q, k)) return true;
  }
  return false;
}

absl::Status RunReference(const KernelContext&, const MaskArgs& args) {
  const MaskWork work(args);
  if (args.out.empty()) return absl::OkStatus();
  ForEachBlock(args, work, 0, args.batch() * work.rows,
               [&](const MaskRule& sequence, int64_t q, int64_t count, int64_t offset) {
                 for (int64_t i = 0; i < count; ++i) {
                   for (int64_t column = 0; column < work.columns; ++column) {
                     if (args.previous && !Differs(args, q + i, column)) continue;
                     WriteElement(args.out, offset + i * work.row_stride + column, sequence, q + i,
                                  column);
                   }
                 }
               });
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<MaskArgs> Kernels<MaskArgs>() {
  static constexpr std::array<Kernel<MaskArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, SupportsIsa<Isa::kAvx512, MaskArgs>, NoWorkspace<MaskArgs>,
       N_AVX3::Mask},
      {"simd_avx2", DeviceKind::kCpu, SupportsIsa<Isa::kAvx2, MaskArgs>, NoWorkspace<MaskArgs>,
       N_AVX2::Mask},
      {"simd_scalar", DeviceKind::kCpu, SupportsIsa<Isa::kScalar, MaskArgs>, NoWorkspace<MaskArgs>,
       TANDEM_N_SCALAR::Mask},
      {"reference", DeviceKind::kCpu, SupportsAll<MaskArgs>, NoWorkspace<MaskArgs>, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
