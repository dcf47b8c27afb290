// Writes new keys and values into a cache, rotated and quantised on the way.
//
// simd: one loop over the rows of keys, values and queries; each is read once from memory and
// written once (a row that is rotated and then quantised, or rotated in one 16-bit type and stored
// in another, passes through one row of scratch in the core's cache). Cosines and sines of all
// positions are computed once per call, see rope_rows-inl.h. Quantisation: largest magnitude, then
// x / scale rounded to nearest even, two passes over a row in cache. Needs contiguous rows.
//
// reference: one element at a time; any strides.
#include "core/ops/kv_append.h"

#include <array>
#include <cmath>
#include <limits>
#include <type_traits>

#include "cpu/kernels.h"
#include "cpu/rope_reference.h"
#include "cpu/rope_table.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#ifndef TANDEM_CPU_KV_APPEND_ONCE  // this file is compiled once per target
#define TANDEM_CPU_KV_APPEND_ONCE
namespace tandem::cpu {
namespace {

// Row index r = (b * H + h) * S + s taken apart, and stepped.
struct RowIndex {
  RowIndex(const TensorView& x, int64_t row)
      : heads(x.dim(1)),
        tokens(x.dim(2)),
        s(row % tokens),
        h(row / tokens % heads),
        b(row / tokens / heads) {}
  void Next() {
    if (++s < tokens) return;
    s = 0;
    if (++h < heads) return;
    h = 0;
    ++b;
  }
  int64_t In(const TensorView& view) const {
    return b * view.stride(0) + h * view.stride(1) + s * view.stride(2);
  }

  int64_t heads, tokens, s, h, b;
};

// What happens to one tensor of keys or values. No rope for values.
struct Destination {
  const TensorView& x;
  const TensorView& cache;
  const TensorView& scale;  // i8 only
  bool rotated;

  int64_t rows() const { return x.dim(0) * x.dim(1) * x.dim(2); }
  // Offset in the cache, and in the scales, of a row's first element.
  std::pair<int64_t, int64_t> PlaceOf(const KvAppendArgs& args, const RowIndex& i) const {
    const KvAppendArgs::Place place = args.PlaceOf(i.b, args.FirstRow(i.b) + i.s);
    const auto in = [&](const TensorView& view) {
      return place.batch * view.stride(0) + i.h * view.stride(1) + place.row * view.stride(2);
    };
    return {in(cache), scale.present() ? in(scale) : 0};
  }
};

Destination Keys(const KvAppendArgs& args) {
  return {args.k, args.k_cache, args.k_scale, args.rope.present()};
}
Destination Values(const KvAppendArgs& args) { return {args.v, args.v_cache, args.v_scale, false}; }

// Row of the rotary table for token s of sequence b.
int64_t RopeEntry(const RopeRotation& rope, int64_t b, int64_t s) {
  return (rope.positions.rank() == 2 ? b * rope.positions.dim(1) : 0) + s;
}

}  // namespace
}  // namespace tandem::cpu
#endif  // TANDEM_CPU_KV_APPEND_ONCE

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/kv_append.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/rope_rows-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// out[i] = x[i] / scale, rounded; returns the scale.
template <typename X>
float QuantizeRow(const X* x, int8_t* out, int64_t count) {
  const FloatTag d;
  const hn::Rebind<int8_t, FloatTag> d8;
  const FloatVec zero = hn::Zero(d);
  FloatVec largest = zero, bad = zero;  // bad: 0 * x is NaN for a NaN or an infinity
  int64_t n = 0;
  for (; n + kLanes <= count; n += kLanes) {
    const FloatVec v = LoadFloats(x + n);
    largest = hn::Max(largest, hn::Abs(v));
    bad = hn::MulAdd(v, zero, bad);
  }
  if (n < count) {
    const FloatVec v = LoadTail(x + n, count - n);
    largest = hn::Max(largest, hn::Abs(v));
    bad = hn::MulAdd(v, zero, bad);
  }
  float scale = hn::GetLane(hn::MaxOfLanes(d, largest)) / 127.0f;
  if (!hn::AllTrue(d, hn::Eq(bad, bad))) scale = std::numeric_limits<float>::quiet_NaN();
  if (!(scale > 0.0f)) {
    std::fill_n(out, count, int8_t{0});
    return scale;
  }
  const FloatVec by = hn::Set(d, scale), top = hn::Set(d, 127.0f), bottom = hn::Set(d, -127.0f);
  const auto quantized = [&](FloatVec v) HWY_ATTR {
    // A subnormal scale is coarse: the quotient may exceed 127.
    const FloatVec q = hn::Max(hn::Min(hn::Div(v, by), top), bottom);
    return hn::DemoteTo(d8, hn::NearestInt(q));
  };
  for (n = 0; n + kLanes <= count; n += kLanes) {
    hn::StoreU(quantized(LoadFloats(x + n)), d8, out + n);
  }
  if (n < count) {
    HWY_ALIGN int8_t tail[kLanes];
    hn::StoreU(quantized(LoadTail(x + n, count - n)), d8, tail);
    std::copy_n(tail, count - n, out + n);
  }
  return scale;
}

// Rows [begin, end) of keys or values. scratch: one row.
template <typename X, typename Out>
void AppendRows(const KvAppendArgs& args, const RopeTable& table, const Destination& to,
                int64_t begin, int64_t end, X* scratch) {
  const int64_t columns = to.x.dim(3);
  RowIndex index(to.x, begin);
  for (int64_t r = begin; r < end; ++r, index.Next()) {
    const X* x = to.x.At<X>(index.In(to.x));
    const auto [cache_row, scale_row] = to.PlaceOf(args, index);
    Out* out = to.cache.At<Out>(cache_row);
    if (to.rotated) {
      const int64_t entry = RopeEntry(args.rope, index.b, index.s);
      // Rotated values are rounded to the keys' own type first, as Rope in place would.
      if constexpr (std::is_same_v<X, Out> ||
                    (std::is_same_v<X, float> && !std::is_same_v<Out, int8_t>)) {
        RotateRow(args.rope, table, entry, x, out, columns);
        continue;
      }
      RotateRow(args.rope, table, entry, x, scratch, columns);
      x = scratch;
    }
    if constexpr (std::is_same_v<Out, int8_t>) {
      *to.scale.At<float>(scale_row) = QuantizeRow(x, out, columns);
    } else {
      ConvertSpan(x, out, columns);
    }
  }
}

void AppendRange(const KvAppendArgs& args, const RopeTable& table, const Destination& to,
                 int64_t begin, int64_t end, void* scratch) {
  if (begin >= end) return;
  DispatchFloat(to.x.dtype, [&]<typename X>() {
    if (args.quantized()) {
      AppendRows<X, int8_t>(args, table, to, begin, end, static_cast<X*>(scratch));
      return;
    }
    DispatchFloat(to.cache.dtype, [&]<typename Out>() {
      AppendRows<X, Out>(args, table, to, begin, end, static_cast<X*>(scratch));
    });
  });
}

void RotateQueries(const KvAppendArgs& args, const RopeTable& table, int64_t begin, int64_t end) {
  if (begin >= end) return;
  const int64_t skipped = args.k.dim(2) - args.q.dim(2);
  DispatchFloat(args.q.dtype, [&]<typename X>() {
    DispatchFloat(args.q_out.dtype, [&]<typename Out>() {
      RowIndex index(args.q, begin);
      for (int64_t r = begin; r < end; ++r, index.Next()) {
        RotateRow(args.rope, table, RopeEntry(args.rope, index.b, skipped + index.s),
                  args.q.At<X>(index.In(args.q)), args.q_out.At<Out>(index.In(args.q_out)),
                  args.q.dim(3));
      }
    });
  });
}

absl::Status KvAppend(const KernelContext& context, const KvAppendArgs& args) {
  ThreadPool& pool = CpuStream::Of(context).pool();
  const Destination keys = Keys(args), values = Values(args);
  RopeTable table;
  if (args.rope.present()) {
    table = TakeRopeTable(*context.workspace, args.rope, pool.size());
  }
  float* scratch = context.workspace->Take<float>(pool.size() * args.k.dim(3));
  if (!context.workspace->ok()) return absl::InternalError("kv_append: workspace too small");
  if (args.rope.present()) FillRopeTable(pool, args.rope, table);

  // One loop over the rows of k, v and q.
  const auto rows_of = [&](const Destination& to) {
    return to.x.empty() && !args.quantized() ? 0 : to.rows();
  };
  const int64_t k_rows = rows_of(keys), v_rows = rows_of(values);
  const int64_t q_rows = args.q.present() && !args.q.empty() ? NumRows(args.q) : 0;
  const int64_t columns = std::max<int64_t>({args.k.dim(3), args.v.dim(3), 1});
  ParallelRows(
      pool, k_rows + v_rows + q_rows, columns, [&](int64_t begin, int64_t end, int worker) {
        const auto clip = [&](int64_t first, int64_t count) {
          return std::pair(std::clamp<int64_t>(begin - first, 0, count),
                           std::clamp<int64_t>(end - first, 0, count));
        };
        const auto k = clip(0, k_rows), v = clip(k_rows, v_rows), q = clip(k_rows + v_rows, q_rows);
        void* row = scratch + worker * args.k.dim(3);
        AppendRange(args, table, keys, k.first, k.second, row);
        AppendRange(args, table, values, v.first, v.second, row);
        RotateQueries(args, table, q.first, q.second);
      });
  return absl::OkStatus();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace {

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const KvAppendArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("v", args.v));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("k_cache", args.k_cache));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("v_cache", args.v_cache));
  if (!args.rope.present()) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("rope.inv_freq", args.rope.inv_freq));
  if (!args.q.present()) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("q", args.q));
  return CheckUnitStride("q_out", args.q_out);
}

int64_t SimdWorkspace(const KernelContext& context, const KvAppendArgs& args) {
  Workspace workspace = Workspace::Counting();
  const int threads = CpuStream::Of(context).pool().size();
  if (args.rope.present()) TakeRopeTable(workspace, args.rope, threads);
  workspace.Take<float>(threads * args.k.dim(3));
  return workspace.bytes_used();
}

int64_t ReferenceWorkspace(const KernelContext&, const KvAppendArgs& args) {
  Workspace workspace = Workspace::Counting();
  workspace.Take<float>(args.k.dim(3));
  return workspace.bytes_used();
}

// Row of `count` elements at `offset` of x to i8; returns the scale.
float QuantizeReference(const TensorView& x, int64_t offset, const TensorView& out,
                        int64_t out_offset) {
  float largest = 0.0f;
  bool finite = true;
  for (int64_t d = 0; d < x.dim(-1); ++d) {
    const float value = LoadElement(x, offset + d * x.stride(-1));
    finite = finite && std::isfinite(value);
    largest = std::max(largest, std::fabs(value));
  }
  const float scale = finite ? largest / 127.0f : std::numeric_limits<float>::quiet_NaN();
  for (int64_t d = 0; d < x.dim(-1); ++d) {
    float q = 0.0f;
    if (scale > 0.0f) q = std::nearbyint(LoadElement(x, offset + d * x.stride(-1)) / scale);
    *out.At<int8_t>(out_offset + d * out.stride(-1)) =
        static_cast<int8_t>(std::clamp(q, -127.0f, 127.0f));
  }
  return scale;
}

void AppendReference(const KvAppendArgs& args, const Destination& to, void* scratch) {
  const int64_t columns = to.x.dim(3);
  if (to.x.empty() && !args.quantized()) return;
  const int64_t rows = to.rows();
  if (rows == 0) return;
  const TensorView rotated = MakeView(scratch, to.x.dtype, {columns});
  RowIndex index(to.x, 0);
  for (int64_t r = 0; r < rows; ++r, index.Next()) {
    const auto [cache_row, scale_row] = to.PlaceOf(args, index);
    const TensorView* x = &to.x;
    int64_t x_row = index.In(to.x);
    if (to.rotated) {
      RotateRowReference(args.rope, index.b, index.s, to.x, x_row, rotated, 0);
      x = &rotated;
      x_row = 0;
    }
    if (args.quantized()) {
      *to.scale.At<float>(scale_row) = QuantizeReference(*x, x_row, to.cache, cache_row);
      continue;
    }
    for (int64_t d = 0; d < columns; ++d) {
      StoreElement(to.cache, cache_row + d * to.cache.stride(3),
                   LoadElement(*x, x_row + d * x->stride(-1)));
    }
  }
}

absl::Status RunReference(const KernelContext& context, const KvAppendArgs& args) {
  void* scratch = context.workspace->Take<float>(args.k.dim(3));
  if (!context.workspace->ok()) return absl::InternalError("kv_append: workspace too small");
  AppendReference(args, Keys(args), scratch);
  AppendReference(args, Values(args), scratch);
  if (!args.q.present() || args.q.empty()) return absl::OkStatus();
  const int64_t skipped = args.k.dim(2) - args.q.dim(2);
  RowIndex index(args.q, 0);
  for (int64_t r = 0; r < NumRows(args.q); ++r, index.Next()) {
    RotateRowReference(args.rope, index.b, skipped + index.s, args.q, index.In(args.q), args.q_out,
                       index.In(args.q_out));
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<KvAppendArgs> Kernels<KvAppendArgs>() {
  static constexpr std::array<Kernel<KvAppendArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, SimdWorkspace, N_AVX3::KvAppend},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, SimdWorkspace, N_AVX2::KvAppend},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, SimdWorkspace,
       TANDEM_N_SCALAR::KvAppend},
      {"reference", DeviceKind::kCpu, SupportsAll<KvAppendArgs>, ReferenceWorkspace, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
