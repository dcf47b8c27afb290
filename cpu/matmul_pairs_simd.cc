// Product of few rows (M <= 8) with bf16 weights packed in pairs (matmul_pairs.h), as decoding
// does: limited by reading the weights once.
//
// Algorithm: the two bf16 of a 32-bit pair are its upper half and its lower half shifted up, as
// f32;
//   each is multiplied by the activation of its element of K, in every lane alike. A lane is an
//   output feature, so sums need no reduction, and nothing is rounded.
// Mapping: one task per panel of 64 output features, whatever the thread count. Few rows have the
//   sums of the whole panel in registers; more take some of its columns at a time, over a chunk of
//   K that stays in L1.
// Memory: a panel is one stream, walked in order and requested ahead. Activations [K][rows] stay in
//   L1 or L2. Products that share a (grouped_matmul) are one list of panels; a panel of a gate is
//   done together with that of its up.
// Range: b_packed made by PackWeights from a bf16 matrix; rank 2; any a, bias, addend, out.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul_pairs_simd.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on
#include <algorithm>
#include <cstdint>

#include "core/kernel.h"
#include "core/status.h"
#include "cpu/matmul_group.h"
#include "cpu/matmul_kernels.h"
#include "cpu/matmul_pairs.h"
#include "cpu/matmul_panels.h"
#include "cpu/matmul_simd-inl.h"
#include "cpu/stream.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

constexpr int64_t kMaxPairRows = 8;
constexpr int64_t kPairsAheadBytes = 8192;  // from a request to its use
constexpr int64_t kPairChunk = 64;          // pairs per pass: 16 KiB of a panel

// Vectors of columns whose sums, of kM rows, are in registers together with their weights.
template <int kM>
constexpr int64_t kColumnVectors = kLanes >= 16  ? (kM <= 6 ? 4 : 2)
                                   : kLanes >= 8 ? (kM == 1 ? 8 : (kM == 2 ? 4 : (kM <= 6 ? 2 : 1)))
                                                 : (kM <= 2 ? 4 : 1);

// One number in all lanes. One load for all that it is multiplied by: GCC would repeat it.
HWY_INLINE FloatVector Spread(const float* from) {
  FloatVector x = hn::Set(FloatTag(), *from);
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  asm("" : "+v"(x.raw));
#endif
  return x;
}

// The even (first) or the odd elements of kLanes pairs.
template <bool kOdd>
HWY_INLINE FloatVector LoadHalves(const BF16* pairs) {
  const hn::Repartition<uint32_t, FloatTag> du;
  const auto bits = hn::LoadU(du, reinterpret_cast<const uint32_t*>(pairs));
  return hn::BitCast(FloatTag(),
                     kOdd ? hn::And(bits, hn::Set(du, 0xFFFF0000u)) : hn::ShiftLeft<16>(bits));
}

// to[m][v] += the weights of one element of K of each pair, times x[m].
template <int kM, int kV, bool kOdd>
HWY_INLINE void AddHalves(const BF16* pairs, const float* x, FloatVector (&to)[kM][kV]) {
  FloatVector weights[kV];
#pragma GCC unroll 8
  for (int v = 0; v < kV; ++v) weights[v] = LoadHalves<kOdd>(pairs + v * kLanes * 2);
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
    const FloatVector activation = Spread(x + m);
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) to[m][v] = hn::MulAdd(weights[v], activation, to[m][v]);
  }
}

// tile[m][0 .. kV * kLanes) = or += x times `pairs` rows of pairs from `panel` on (a panel or
// columns of it). x: [2 * pairs][kM]. As many bytes as are read are requested, from `ahead` on.
template <int kM, int kV>
HWY_INLINE void MultiplyColumns(const BF16* panel, const char* ahead, const float* x, int64_t pairs,
                                bool accumulate, float* tile) {
  const FloatTag d;
  // Independent sums, so that two multiply-add units of 4 cycles' latency stay busy.
  constexpr bool kApart = kM * kV <= 8 && kLanes >= 16;
  FloatVector sums[kM][kV], odd_sums[kM][kV];
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      sums[m][v] = accumulate ? LoadFloats(tile + m * kMaxTileColumns + v * kLanes) : hn::Zero(d);
      if constexpr (kApart) odd_sums[m][v] = hn::Zero(d);
    }
  }
  for (int64_t p = 0; p < pairs; ++p) {
    const BF16* row = panel + p * kPanel * 2;
    constexpr int64_t kBytes = kV * kLanes * 4;
#pragma GCC unroll 4
    for (int64_t byte = 0; byte < kBytes; byte += 64) {
      __builtin_prefetch(ahead + p * kBytes + byte, 0, 2);
    }
    AddHalves<kM, kV, false>(row, x + 2 * p * kM, sums);
    if constexpr (kApart) {
      AddHalves<kM, kV, true>(row, x + (2 * p + 1) * kM, odd_sums);
    } else {
      AddHalves<kM, kV, true>(row, x + (2 * p + 1) * kM, sums);
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kM; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kV; ++v) {
      if constexpr (kApart) sums[m][v] = hn::Add(sums[m][v], odd_sums[m][v]);
      StoreFloats(sums[m][v], tile + m * kMaxTileColumns + v * kLanes);
    }
  }
}

// tile[m][kMaxTileColumns] = x times a panel.
template <int kM>
HWY_NOINLINE void MultiplyPanel(const BF16* panel, const float* x, int64_t pairs, float* tile) {
  constexpr int kV = static_cast<int>(kColumnVectors<kM>);
  constexpr int64_t kColumns = kV * kLanes;
  const int64_t chunk = kColumns == kPanel ? std::max<int64_t>(1, pairs) : kPairChunk;
  for (int64_t p = 0; p == 0 || p < pairs; p += chunk) {
    const int64_t count = std::min(chunk, pairs - p);
    const auto* begin = reinterpret_cast<const char*>(panel + p * kPanel * 2);
    // The passes over a chunk share out what is requested, which is the next chunk.
    const char* ahead = begin + (kColumns == kPanel ? kPairsAheadBytes : count * kPanel * 4);
    for (int64_t j = 0; j < kPanel; j += kColumns) {
      MultiplyColumns<kM, kV>(panel + (p * kPanel + j) * 2, ahead + j * count * 4, x + 2 * p * kM,
                              count, p > 0, tile + j);
    }
  }
}

// M rounded up to what MultiplyPanel is compiled for; the rows in between are zeros.
inline int64_t PaddedPairRows(int64_t m) {
  return m <= 1 ? 1 : (m <= 4 ? m : (m <= 6 ? 6 : kMaxPairRows));
}

inline void MultiplyPanelBy(int64_t rows, const BF16* panel, const float* x, int64_t pairs,
                            float* tile) {
  switch (PaddedPairRows(rows)) {
    case 1:
      return MultiplyPanel<1>(panel, x, pairs, tile);
    case 2:
      return MultiplyPanel<2>(panel, x, pairs, tile);
    case 3:
      return MultiplyPanel<3>(panel, x, pairs, tile);
    case 4:
      return MultiplyPanel<4>(panel, x, pairs, tile);
    case 6:
      return MultiplyPanel<6>(panel, x, pairs, tile);
    default:
      return MultiplyPanel<kMaxPairRows>(panel, x, pairs, tile);
  }
}

// One f32 row of whole pairs is used where it lies.
inline bool UsesPairRowInPlace(const MatMulArgs& args) {
  return args.m() <= 1 && args.a.dtype == DType::kF32 && args.a.stride(-1) == 1 &&
         args.k() % 2 == 0;
}

struct PairScratch {
  float* x = nullptr;    // [K, even][rows]
  float* row = nullptr;  // [K]
};
inline PairScratch CarvePairs(Workspace& workspace, const MatMulArgs& args) {
  if (UsesPairRowInPlace(args)) return {};
  return {workspace.Take<float>((args.k() + 1) * PaddedPairRows(args.m())),
          workspace.Take<float>(args.k())};
}

// Activations in the order that panels are walked in. Rows and elements that do not exist are
// zeros.
inline const float* SpreadRows(const MatMulArgs& args, const PairScratch& scratch) {
  if (UsesPairRowInPlace(args)) return args.a.As<float>();
  const int64_t k = args.k(), m = args.m(), padded = PaddedPairRows(m);
  if (m != padded || k % 2 != 0) std::fill_n(scratch.x, (k + 1) * padded, 0.0f);
  for (int64_t i = 0; i < m; ++i) {
    float* to = scratch.x + i;
    WidenViewRow(args.a, args.a.stride(-2) * i, args.a.stride(-1), k, scratch.row);
    for (int64_t j = 0; j < k; ++j) to[j * padded] = scratch.row[j];
  }
  return scratch.x;
}

absl::Status RunPairs(const KernelContext& context, const MatMulGroup& group) {
  const int64_t m = group.first().m(), pairs = (group.first().k() + 1) / 2;
  const PairScratch scratch = CarvePairs(*context.workspace, group.first());
  if (!context.workspace->ok()) return absl::InternalError("pairs: workspace too small");
  const float* x = SpreadRows(group.first(), scratch);
  const GroupTasks tasks(group,
                         [](const MatMulArgs& args) { return (args.n() + kPanel - 1) / kPanel; });
  int64_t weight_bytes = 0;
  for (const MatMulArgs& args : group.products) weight_bytes += args.b_packed->bytes();
  CpuStream::Of(context).pool().ParallelFor(
      tasks.total(),
      [&](int64_t task, int) HWY_ATTR {
        const GroupTasks::Place place = tasks.At(task);
        const MatMulArgs& args = group.products[place.product];
        const int64_t n0 = place.task * kPanel, columns = std::min(kPanel, args.n() - n0);
        HWY_ALIGN float tiles[2][kMaxPairRows * kMaxTileColumns];
        MultiplyPanelBy(m, PairsOf(args)->panel(n0), x, pairs, tiles[0]);
        if (!group.gated) {
          FinishTile(args, MatMulOperands(args), 0, 0, m, n0, columns, tiles[0], kMaxTileColumns);
          return;
        }
        const MatMulArgs& up = group.products[1];
        MultiplyPanelBy(m, PairsOf(up)->panel(n0), x, pairs, tiles[1]);
        FinishGatedTile(args, up, 0, m, n0, columns, tiles[0], tiles[1], kMaxTileColumns);
      },
      weight_bytes);
  return absl::OkStatus();
}

absl::Status PairsRun(const KernelContext& context, const MatMulArgs& args) {
  if (args.out.empty()) return absl::OkStatus();
  return RunPairs(context, GroupOf(args));
}

absl::Status GroupedPairsRun(const KernelContext& context, const GroupedMatMulArgs& args) {
  if (args.m() == 0) return absl::OkStatus();
  return RunPairs(context, GroupedProducts(args).group());
}

int64_t PairsWorkspace(const KernelContext&, const MatMulArgs& args) {
  Workspace counting = Workspace::Counting();
  CarvePairs(counting, args);
  return counting.bytes_used();
}

int64_t GroupedPairsWorkspace(const KernelContext& context, const GroupedMatMulArgs& args) {
  return PairsWorkspace(context, args.ProductArgs(0));  // the activations: the same for all
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace tandem::cpu {
namespace {

constexpr int64_t kMostRows = TANDEM_N_SCALAR::kMaxPairRows;

bool Applies(const MatMulArgs& args) { return args.m() <= kMostRows && PairsOf(args) != nullptr; }

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const MatMulArgs& args) {
  if (PairsOf(args) == nullptr) {
    // The usual answer: copying it allocates nothing.
    static const absl::Status kNeedsPairs = Unimplemented("needs bf16 weights packed in pairs");
    return kNeedsPairs;
  }
  if (args.m() > kMostRows) {
    return Unimplemented("takes up to ", kMostRows, " rows, got ", args.m());
  }
  return CheckIsa(context, kIsa);
}

template <typename Args>
struct Functions {
  int64_t (*workspace)(const KernelContext&, const Args&);
  absl::Status (*run)(const KernelContext&, const Args&);
};

template <Isa kIsa>
Kernel<MatMulArgs> Single(std::string_view name, Functions<MatMulArgs> functions) {
  return {name, DeviceKind::kCpu, Supports<kIsa>, functions.workspace, functions.run, Applies};
}
template <Isa kIsa>
Kernel<GroupedMatMulArgs> Grouped(std::string_view name, Functions<GroupedMatMulArgs> functions) {
  return {name,          DeviceKind::kCpu,       SupportsGroup<Supports<kIsa>>, functions.workspace,
          functions.run, AppliesToGroup<Applies>};
}

}  // namespace

Kernel<MatMulArgs> PairsMatMul(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return Single<Isa::kAvx512>("pairs_avx512", {N_AVX3::PairsWorkspace, N_AVX3::PairsRun});
    case Isa::kAvx2:
      return Single<Isa::kAvx2>("pairs_avx2", {N_AVX2::PairsWorkspace, N_AVX2::PairsRun});
    default:
      return Single<Isa::kScalar>("pairs_scalar",
                                  {TANDEM_N_SCALAR::PairsWorkspace, TANDEM_N_SCALAR::PairsRun});
  }
}

Kernel<GroupedMatMulArgs> GroupedPairsMatMul(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return Grouped<Isa::kAvx512>("pairs_avx512",
                                   {N_AVX3::GroupedPairsWorkspace, N_AVX3::GroupedPairsRun});
    case Isa::kAvx2:
      return Grouped<Isa::kAvx2>("pairs_avx2",
                                 {N_AVX2::GroupedPairsWorkspace, N_AVX2::GroupedPairsRun});
    default:
      return Grouped<Isa::kScalar>("pairs_scalar", {TANDEM_N_SCALAR::GroupedPairsWorkspace,
                                                    TANDEM_N_SCALAR::GroupedPairsRun});
  }
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
