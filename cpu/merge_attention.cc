// Merging attention over parts of the keys (core/ops/merge_attention.h; the merge of
// flash-decoding, Dao et al. 2023).
//
// simd: a task is a block of rows, one vector lane per row for their weights: the largest lse, then
// exp(lse - largest) and its sum, part by part; then every row adds its parts in order, eight
// vectors of columns in registers at a time. Parts are read once and out is written once. Needs
// parts of one dtype with contiguous rows.
//
// reference: one row at a time in f64; any strides and dtypes.
#include "core/ops/merge_attention.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/merge_attention.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/float_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// Weight of a part that saw no key: it is not read.
inline constexpr float kEmptyPart = -1.0f;

// What a task knows of its rows; one lane each. Per worker.
struct Block {
  int64_t count;  // rows
  int64_t batch[kLanes], head[kLanes], query[kLanes];
  float* HWY_RESTRICT weights;    // [P][kLanes] exp(lse - lse of the whole), or kEmptyPart
  int64_t* HWY_RESTRICT offsets;  // [P][kLanes] of the row in each part's out
};

// Rows [first, first + count), counted row-major: batch, head, query.
void SplitRows(const TensorView& out, int64_t first, int64_t count, Block& block) {
  const int64_t queries = out.dim(2), heads = out.dim(1);
  int64_t query = first % queries, head = first / queries % heads, batch = first / queries / heads;
  block.count = count;
  for (int64_t r = 0; r < count; ++r) {
    block.batch[r] = batch;
    block.head[r] = head;
    block.query[r] = query;
    if (++query < queries) continue;
    query = 0;
    if (++head < heads) continue;
    head = 0;
    ++batch;
  }
}

HWY_INLINE int64_t OffsetOf(const TensorView& view, const Block& block, int64_t r) {
  return block.batch[r] * view.stride(0) + block.head[r] * view.stride(1) +
         block.query[r] * view.stride(2);
}

void MakeWeights(const MergeAttentionArgs& args, Block& block) {
  const FloatTag d;
  const FloatVec neg_inf = hn::Set(d, -std::numeric_limits<float>::infinity());
  float* HWY_RESTRICT weights = block.weights;
  FloatVec largest = neg_inf;
  for (int64_t p = 0; p < args.parts(); ++p) {
    const TensorView& lse = args.lse_parts[static_cast<size_t>(p)];
    const TensorView& out = args.out_parts[static_cast<size_t>(p)];
    float* HWY_RESTRICT own = weights + p * kLanes;
    for (int64_t r = 0; r < block.count; ++r) {
      own[r] = *lse.At<float>(OffsetOf(lse, block, r));
      block.offsets[p * kLanes + r] = OffsetOf(out, block, r);
    }
    for (int64_t r = block.count; r < kLanes; ++r) {
      own[r] = -std::numeric_limits<float>::infinity();
    }
    largest = hn::Max(largest, hn::Load(d, own));
  }
  // No part saw a key: exp(-inf - 0) = 0, and no -inf - -inf.
  const FloatVec shift = hn::IfThenZeroElse(hn::Eq(largest, neg_inf), largest);
  FloatVec sum = hn::Zero(d);
  for (int64_t p = 0; p < args.parts(); ++p) {
    float* HWY_RESTRICT own = weights + p * kLanes;
    const FloatVec lse = hn::Load(d, own);
    const FloatVec weight = ExpFloats(hn::Sub(lse, shift));
    sum = hn::Add(sum, weight);
    hn::Store(hn::IfThenElse(hn::Eq(lse, neg_inf), hn::Set(d, kEmptyPart), weight), d, own);
  }
  const FloatVec zero = hn::Zero(d);
  const FloatVec factor = hn::IfThenZeroElse(hn::Eq(sum, zero), hn::Div(hn::Set(d, 1.0f), sum));
  for (int64_t p = 0; p < args.parts(); ++p) {
    float* HWY_RESTRICT own = weights + p * kLanes;
    const FloatVec weight = hn::Load(d, own);
    // A NaN is not below 0: it stays.
    hn::Store(hn::IfThenElse(hn::Lt(weight, zero), weight, hn::Mul(weight, factor)), d, own);
  }
  if (!args.lse.present()) return;
  HWY_ALIGN float sums[kLanes], shifts[kLanes];
  hn::Store(sum, d, sums);
  hn::Store(shift, d, shifts);
  for (int64_t r = 0; r < block.count; ++r) {
    *args.lse.At<float>(OffsetOf(args.lse, block, r)) =
        sums[r] == 0.0f ? -std::numeric_limits<float>::infinity() : shifts[r] + std::log(sums[r]);
  }
}

// Row r of the block: out = sum of the parts times their weights.
template <typename X, typename Out>
void AddParts(const MergeAttentionArgs& args, const Block& block, int64_t r) {
  constexpr int64_t kVectors = 8;
  const FloatTag d;
  const int64_t columns = args.out.dim(3), parts = args.parts();
  const float* HWY_RESTRICT weights = block.weights + r;
  const int64_t* HWY_RESTRICT offsets = block.offsets + r;
  Out* out = args.out.At<Out>(OffsetOf(args.out, block, r));
  const auto part = [&](int64_t p) {
    return args.out_parts[static_cast<size_t>(p)].At<X>(offsets[p * kLanes]);
  };
  int64_t n = 0;
  for (; n + kVectors * kLanes <= columns; n += kVectors * kLanes) {
    FloatVec sum0 = hn::Zero(d), sum1 = sum0, sum2 = sum0, sum3 = sum0;
    FloatVec sum4 = sum0, sum5 = sum0, sum6 = sum0, sum7 = sum0;
    for (int64_t p = 0; p < parts; ++p) {
      if (weights[p * kLanes] < 0.0f) continue;
      const FloatVec weight = hn::Set(d, weights[p * kLanes]);
      const X* x = part(p) + n;
      sum0 = hn::MulAdd(weight, LoadFloats(x), sum0);
      sum1 = hn::MulAdd(weight, LoadFloats(x + kLanes), sum1);
      sum2 = hn::MulAdd(weight, LoadFloats(x + 2 * kLanes), sum2);
      sum3 = hn::MulAdd(weight, LoadFloats(x + 3 * kLanes), sum3);
      sum4 = hn::MulAdd(weight, LoadFloats(x + 4 * kLanes), sum4);
      sum5 = hn::MulAdd(weight, LoadFloats(x + 5 * kLanes), sum5);
      sum6 = hn::MulAdd(weight, LoadFloats(x + 6 * kLanes), sum6);
      sum7 = hn::MulAdd(weight, LoadFloats(x + 7 * kLanes), sum7);
    }
    StoreFloats(sum0, out + n);
    StoreFloats(sum1, out + n + kLanes);
    StoreFloats(sum2, out + n + 2 * kLanes);
    StoreFloats(sum3, out + n + 3 * kLanes);
    StoreFloats(sum4, out + n + 4 * kLanes);
    StoreFloats(sum5, out + n + 5 * kLanes);
    StoreFloats(sum6, out + n + 6 * kLanes);
    StoreFloats(sum7, out + n + 7 * kLanes);
  }
  for (int64_t count; n < columns; n += count) {
    count = std::min(kLanes, columns - n);
    FloatVec sum = hn::Zero(d);
    for (int64_t p = 0; p < parts; ++p) {
      if (weights[p * kLanes] < 0.0f) continue;
      const X* x = part(p) + n;
      sum = hn::MulAdd(hn::Set(d, weights[p * kLanes]),
                       count == kLanes ? LoadFloats(x) : LoadTail(x, count), sum);
    }
    if (count == kLanes) {
      StoreFloats(sum, out + n);
    } else {
      StoreTail(sum, out + n, count);
    }
  }
}

absl::Status MergeAttention(const KernelContext& context, const MergeAttentionArgs& args) {
  ThreadPool& pool = CpuStream::Of(context).pool();
  float* weights = context.workspace->Take<float>(pool.size() * args.parts() * kLanes);
  auto* offsets = context.workspace->Take<int64_t>(pool.size() * args.parts() * kLanes);
  if (!context.workspace->ok()) return absl::InternalError("merge_attention: workspace too small");
  const int64_t rows = NumRows(args.out);
  const int64_t columns = args.out.dim(3);
  // Blocks that are one vector of rows, so that short problems still have a task for every thread.
  const int64_t blocks = (rows + kLanes - 1) / kLanes;
  const int64_t bytes = rows * (args.parts() * ByteOffset(args.out_parts[0].dtype, columns) +
                                ByteOffset(args.out.dtype, columns));
  DispatchFloat(args.out_parts[0].dtype, [&]<typename X>() {
    DispatchFloat(args.out.dtype, [&]<typename Out>() {
      pool.ParallelFor(
          blocks,
          [&](int64_t task, int worker) {
            Block block;
            block.weights = weights + worker * args.parts() * kLanes;
            block.offsets = offsets + worker * args.parts() * kLanes;
            SplitRows(args.out, task * kLanes, std::min(kLanes, rows - task * kLanes), block);
            MakeWeights(args, block);
            for (int64_t r = 0; r < block.count; ++r) AddParts<X, Out>(args, block, r);
          },
          bytes);
    });
  });
  return absl::OkStatus();
}

int64_t MergeWorkspace(const KernelContext& context, const MergeAttentionArgs& args) {
  Workspace workspace = Workspace::Counting();
  const int64_t entries = CpuStream::Of(context).pool().size() * args.parts() * kLanes;
  workspace.Take<float>(entries);
  workspace.Take<int64_t>(entries);
  return workspace.bytes_used();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace {

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const MergeAttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  for (const TensorView& part : args.out_parts) {
    TANDEM_RETURN_IF_ERROR(CheckUnitStride("out_parts", part));
    TANDEM_RETURN_IF_ERROR(CheckSameDType("out_parts[0]", args.out_parts[0], "out_parts", part));
  }
  return CheckUnitStride("out", args.out);
}

absl::Status RunReference(const KernelContext&, const MergeAttentionArgs& args) {
  constexpr double kNegInf = -std::numeric_limits<double>::infinity();
  const size_t parts = args.out_parts.size();
  for (int64_t row = 0; row < NumRows(args.out); ++row) {
    const int64_t query = row % args.out.dim(2);
    const int64_t head = row / args.out.dim(2) % args.out.dim(1);
    const int64_t batch = row / args.out.dim(2) / args.out.dim(1);
    const auto offset = [&](const TensorView& view) {
      return batch * view.stride(0) + head * view.stride(1) + query * view.stride(2);
    };
    const auto lse_of = [&](size_t p) {
      return static_cast<double>(*args.lse_parts[p].At<float>(offset(args.lse_parts[p])));
    };
    double largest = kNegInf;
    for (size_t p = 0; p < parts; ++p) largest = std::fmax(largest, lse_of(p));
    double sum = 0.0;
    for (size_t p = 0; p < parts; ++p) {
      if (lse_of(p) != kNegInf) sum += std::exp(lse_of(p) - largest);
    }
    for (int64_t n = 0; n < args.out.dim(3); ++n) {
      double value = 0.0;
      for (size_t p = 0; p < parts; ++p) {
        if (lse_of(p) == kNegInf) continue;  // whatever its out holds
        const TensorView& part = args.out_parts[p];
        value += std::exp(lse_of(p) - largest) / sum *
                 static_cast<double>(LoadElement(part, offset(part) + n * part.stride(3)));
      }
      StoreElement(args.out, offset(args.out) + n * args.out.stride(3), static_cast<float>(value));
    }
    // Last: it may be one of lse_parts.
    if (args.lse.present()) {
      *args.lse.At<float>(offset(args.lse)) =
          static_cast<float>(sum == 0.0 ? kNegInf : largest + std::log(sum));
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<MergeAttentionArgs> Kernels<MergeAttentionArgs>() {
  static constexpr std::array<Kernel<MergeAttentionArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, N_AVX3::MergeWorkspace,
       N_AVX3::MergeAttention},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, N_AVX2::MergeWorkspace,
       N_AVX2::MergeAttention},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, TANDEM_N_SCALAR::MergeWorkspace,
       TANDEM_N_SCALAR::MergeAttention},
      {"reference", DeviceKind::kCpu, SupportsAll<MergeAttentionArgs>,
       NoWorkspace<MergeAttentionArgs>, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
