// Attention mask creation.
//
// simd: a row is at most three runs of one value: hidden, visible, hidden. Whole vectors inside a
// run are stored as they are; only the (at most two) vectors that a boundary crosses are blended.
// Packed rows are runs of whole words with two words patched. Rows are independent tasks. Outputs
// too large to stay in the last cache are written with non-temporal stores, which spare reading
// every line before it is overwritten. Memory: each output byte is written once, nothing is read.
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
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"
#include "hwy/cache_control.h"

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

// From this output size on, non-temporal stores are faster: measured between one and two times the
// last cache.
int64_t StreamingThreshold() {
  static const int64_t threshold = ReadLastCacheBytes() / 2 * 3;
  return threshold;
}

// The two values of a mask as bit patterns of its element type.
template <typename Bits>
struct MaskValues {
  Bits hidden;
  Bits visible;
};

// Calls fn(values) with the values of an element-wise (not packed) mask.
template <typename Fn>
void DispatchMask(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kF32:
      return fn(MaskValues<uint32_t>{0xFF800000u, 0});
    case DType::kF16:
      return fn(MaskValues<uint16_t>{0xFC00u, 0});
    case DType::kBF16:
      return fn(MaskValues<uint16_t>{0xFF80u, 0});
    default:
      return fn(MaskValues<uint8_t>{0, 1});
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
HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// One row of `columns` elements, of which [begin, end) are visible.
template <bool kStream, typename Bits>
class RowFiller {
 public:
  RowFiller(Bits* row, int64_t columns, KeyRange visible, MaskValues<Bits> values)
      : row_(row), columns_(columns), visible_(visible), values_(values) {}

  void Fill() const {
    if (columns_ < kLength) {
      for (int64_t n = 0; n < columns_; ++n) row_[n] = ValueAt(n);
      return;
    }
    int64_t n = 0;
    if constexpr (kStream) {  // up to the first whole cache line
      const auto address = reinterpret_cast<uintptr_t>(row_);
      const int64_t misaligned = static_cast<int64_t>(address % kLine / sizeof(Bits));
      const int64_t head = misaligned == 0 ? 0 : kLine / int64_t{sizeof(Bits)} - misaligned;
      for (; n < std::min(head, columns_); ++n) row_[n] = ValueAt(n);
    }
    n = FillRun(n, visible_.begin, values_.hidden);
    n = FillBoundary(n, visible_.begin);
    n = FillRun(n, visible_.end, values_.visible);
    n = FillBoundary(n, visible_.end);
    n = FillRun(n, columns_, values_.hidden);
    if (n < columns_) hn::StoreU(Blend(columns_ - kLength), Tag(), row_ + columns_ - kLength);
  }

 private:
  using Tag = hn::ScalableTag<Bits>;
  using Vec = hn::Vec<Tag>;
  static constexpr int64_t kLength = static_cast<int64_t>(hn::MaxLanes(Tag()));
  static constexpr int64_t kLine = 64;  // bytes

  Bits ValueAt(int64_t n) const {
    return n >= visible_.begin && n < visible_.end ? values_.visible : values_.hidden;
  }

  // Elements n .. n + kLength - 1.
  HWY_INLINE Vec Blend(int64_t n) const {
    const Tag d;
    const auto below = [&](int64_t bound) HWY_ATTR {
      return hn::FirstN(d, static_cast<size_t>(std::clamp<int64_t>(bound - n, 0, kLength)));
    };
    const Vec hidden = hn::Set(d, values_.hidden);
    const Vec visible = hn::Set(d, values_.visible);
    const Vec before_end = hn::IfThenElse(below(visible_.end), visible, hidden);
    if (visible_.begin <= n) return before_end;
    return hn::IfThenElse(below(visible_.begin), hidden, before_end);
  }

  HWY_INLINE void Store(Vec v, int64_t n) const {
    if constexpr (kStream) {
      hn::Stream(v, Tag(), row_ + n);
    } else {
      hn::StoreU(v, Tag(), row_ + n);
    }
  }

  // Whole vectors from n that end at or before `end`.
  HWY_INLINE int64_t FillRun(int64_t n, int64_t end, Bits value) const {
    const Vec v = hn::Set(Tag(), value);
    for (; n + 4 * kLength <= end; n += 4 * kLength) {
      Store(v, n);
      Store(v, n + kLength);
      Store(v, n + 2 * kLength);
      Store(v, n + 3 * kLength);
    }
    for (; n + kLength <= end; n += kLength) Store(v, n);
    return n;
  }

  // The vector at n, where a run ends inside it.
  HWY_INLINE int64_t FillBoundary(int64_t n, int64_t boundary) const {
    if (n >= boundary || n + kLength > columns_) return n;
    Store(Blend(n), n);
    return n + kLength;
  }

  Bits* row_;
  int64_t columns_;
  KeyRange visible_;
  MaskValues<Bits> values_;
};

template <bool kStream, typename Bits>
void FillRows(const MaskArgs& args, MaskValues<Bits> values, int64_t begin, int64_t end) {
  const TensorView& out = args.out;
  for (int64_t q = begin; q < end; ++q) {
    RowFiller<kStream, Bits>(out.At<Bits>(q * out.stride(0)), out.dim(1), args.rule.Range(q),
                             values)
        .Fill();
  }
  if constexpr (kStream) hwy::FlushStream();
}

void FillPackedRows(const MaskArgs& args, int64_t begin, int64_t end) {
  constexpr MaskValues<uint32_t> kWords = {0, ~uint32_t{0}};
  for (int64_t q = begin; q < end; ++q) {
    uint32_t* row = args.out.At<uint32_t>(q * args.out.stride(0));
    const KeyRange visible = args.rule.Range(q);
    const bool any = visible.begin < visible.end;
    const int64_t first = visible.begin / 32;
    const int64_t last = any ? (visible.end - 1) / 32 : first - 1;
    RowFiller<false, uint32_t>(row, args.out.dim(1), {first, last + 1}, kWords).Fill();
    if (!any) continue;
    row[first] &= ~uint32_t{0} << (visible.begin % 32);
    row[last] &= ~uint32_t{0} >> (31 - (visible.end - 1) % 32);
  }
}

absl::Status Mask(const KernelContext& context, const MaskArgs& args) {
  const TensorView& out = args.out;
  if (out.empty()) return absl::OkStatus();
  ThreadPool& pool = CpuStream::Of(context).pool();
  if (out.dtype == DType::kU32) {
    ParallelRows(
        pool, out.dim(0), out.dim(1),
        [&](int64_t begin, int64_t end, int) { FillPackedRows(args, begin, end); },
        kMaskTaskElements);
    return absl::OkStatus();
  }
  const bool stream = ByteExtent(out) >= StreamingThreshold();
  DispatchMask(out.dtype, [&]<typename Bits>(MaskValues<Bits> values) {
    ParallelRows(
        pool, out.dim(0), out.dim(1),
        [&](int64_t begin, int64_t end, int) {
          if (stream) {
            FillRows<true>(args, values, begin, end);
          } else {
            FillRows<false>(args, values, begin, end);
          }
        },
        kMaskTaskElements);
  });
  return absl::OkStatus();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace {

absl::Status RunReference(const KernelContext&, const MaskArgs& args) {
  const MaskRule& rule = args.rule;
  const TensorView& out = args.out;
  for (int64_t q = 0; q < rule.q_len; ++q) {
    const int64_t row = q * out.stride(0);
    if (out.dtype == DType::kU32) {
      for (int64_t word = 0; word < out.dim(1); ++word) {
        uint32_t bits = 0;
        for (int64_t bit = 0; bit < 32; ++bit) {
          if (rule.Visible(q, word * 32 + bit)) bits |= uint32_t{1} << bit;
        }
        *out.At<uint32_t>(row + word) = bits;
      }
    } else if (out.dtype == DType::kBool) {
      for (int64_t k = 0; k < rule.kv_len; ++k) {
        *out.At<uint8_t>(row + k) = rule.Visible(q, k) ? 1 : 0;
      }
    } else {
      for (int64_t k = 0; k < rule.kv_len; ++k) {
        StoreElement(out, row + k,
                     rule.Visible(q, k) ? 0.0f : -std::numeric_limits<float>::infinity());
      }
    }
  }
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
