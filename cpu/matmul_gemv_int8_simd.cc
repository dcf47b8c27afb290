// Matrix-vector product and its neighbours (M <= 8) with block-quantised weights in stored form, by
// integer dot products.
//
// Algorithm: activations are rounded to 8 bits (quantize_activations-inl.h) and laid out for the
//   inner loops once per call; weight rows are then multiplied by them as they lie
//   (matmul_gemv_int8.h, matmul_gemv_int8-inl.h). What the products of a block sum up to is exact;
//   across blocks sums are f32. The idea of 8-bit activations is ggml's.
// Mapping: one task per strip of kStrip output features, whatever the thread count. Products that
//   share a (grouped_matmul) are one list of strips, and share what activations become where their
//   formats take it alike.
// Memory: each byte of b is read once; the activations (2 to 2.3 bytes an element and row, scales
//   repeated) stay in L1.
// Range: M <= 8, block dtypes in stored form, unless float_activations is set.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul_gemv_int8_simd.cc"
// clang-format off
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "core/kernel.h"
#include "core/status.h"
#include "cpu/matmul_gemv_int8.h"
#include "cpu/matmul_group.h"
#include "cpu/matmul_kernels.h"
#include "cpu/matmul_packed.h"
#include "cpu/matmul_simd-inl.h"
#include "cpu/quantize_activations-inl.h"
#include "cpu/stream.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

constexpr int64_t kInt8Strip = 64;  // output features per task

// M rounded up to what there are inner loops for; the rows in between are zeros.
inline int64_t Int8PaddedRows(int64_t m) { return m <= 1 ? 1 : (m <= 2 ? 2 : (m <= 4 ? 4 : 8)); }

inline int64_t Int8Units(const MatMulArgs& args) {
  const int64_t length = UnitLength(args.b.dtype);
  return (args.k() + length - 1) / length;
}
inline int64_t Int8BatchBytes(const MatMulArgs& args) {
  return Int8Units(args) * Int8PaddedRows(args.m()) * UnitBytes(args.b.dtype);
}

// Formats whose activations are laid out alike.
inline bool SameUnits(DType x, DType y) {
  const auto representative = [](DType dtype) {
    return dtype == DType::kQ5_K ? DType::kQ4_K : dtype;
  };
  return representative(x) == representative(y);
}

struct Int8Scratch {
  // [batches of a][units][padded rows][unit bytes] of every product; products of formats that agree
  // share them.
  std::array<uint8_t*, GroupedMatMulArgs::kMaxProducts> units = {};
  std::array<bool, GroupedMatMulArgs::kMaxProducts> shared = {};  // those of an earlier product
  float* row = nullptr;                                           // [K]
};
inline Int8Scratch CarveInt8(Workspace& workspace, const MatMulGroup& group) {
  const MatMulArgs& first = group.first();
  const int64_t batches = first.a.rank() == 3 ? first.a.dim(0) : 1;
  Int8Scratch scratch;
  for (size_t i = 0; i < group.size(); ++i) {
    for (size_t j = 0; j < i && !scratch.shared[i]; ++j) {
      scratch.shared[i] = SameUnits(group.products[j].b.dtype, group.products[i].b.dtype);
      if (scratch.shared[i]) scratch.units[i] = scratch.units[j];
    }
    if (scratch.shared[i]) continue;
    scratch.units[i] = workspace.Take<uint8_t>(batches * Int8BatchBytes(group.products[i]));
  }
  scratch.row = workspace.Take<float>(first.k());
  return scratch;
}

// Where block `block` of a super-block lies: quads 0 2 4 6, 1 3 5 7 or 0 1 4 5, 2 3 6 7.
struct BlockPlace {
  int64_t quad, index;
};
inline BlockPlace PlaceInSuperBlock(DType dtype, int64_t block) {
  if (dtype == DType::kQ4_K || dtype == DType::kQ5_K) return {block % 2, block / 2};
  return {block / 2 % 2, block % 2 + block / 4 * 2};
}

// `blocks` blocks of one row from x on, into the row's share of a unit, which is zeros.
inline void PackUnit(DType dtype, const float* x, int64_t blocks, uint8_t* to) {
  const bool super = IsSuperBlock(dtype);
  for (int64_t i = 0; i < blocks; ++i) {
    const BlockPlace place = super ? PlaceInSuperBlock(dtype, i) : BlockPlace{0, i};
    uint8_t* quad = to + place.quad * kQuadBytes;
    HWY_ALIGN int8_t q[kActivationBlock];
    float scale;
    int32_t sums[2];
    QuantizeActivations(x + i * kActivationBlock, q, &scale, sums);
    std::memcpy(quad + place.index * 16, q, 16);
    std::memcpy(quad + 64 + place.index * 16, q + 16, 16);
    const float scales[4] = {scale, scale, scale, scale};
    std::memcpy(quad + 128 + place.index * 16, scales, sizeof(scales));
    if (!super) {
      const int32_t offset = dtype == DType::kQ8_0 ? 128 : 8;
      int32_t start[4];
      for (int j = 0; j < 4; ++j) {
        start[j] = 0;
        for (int byte = 4 * j; byte < 4 * j + 4; ++byte)
          start[j] -= offset * (q[byte] + q[16 + byte]);
      }
      std::memcpy(quad + kQuadBytes + place.index * 16, start, sizeof(start));
      continue;
    }
    float correction[2];
    float* corrections = reinterpret_cast<float*>(to + 2 * kQuadBytes);
    if (dtype == DType::kQ6_K) {
      for (int half = 0; half < 2; ++half) {
        correction[half] = -32.0f * scale * static_cast<float>(sums[half]);
      }
      std::memcpy(corrections + 2 * i, correction, sizeof(correction));
    } else {
      correction[0] = -scale * static_cast<float>(sums[0] + sums[1]);
      std::memcpy(corrections + 8 + i, correction, sizeof(float));
    }
  }
}

inline void PackActivations(const MatMulArgs& args, int64_t offset, float* row, uint8_t* units) {
  const DType dtype = args.b.dtype;
  const int64_t k = args.k(), m = args.m(), padded = Int8PaddedRows(m);
  const int64_t length = UnitLength(dtype), bytes = UnitBytes(dtype);
  if (m != padded || IsSuperBlock(dtype) || k % length != 0) {
    std::memset(units, 0, static_cast<size_t>(Int8BatchBytes(args)));
  }
  for (int64_t i = 0; i < m; ++i) {
    const float* x = row;
    if (args.a.dtype == DType::kF32 && args.a.stride(-1) == 1) {
      x = args.a.As<float>() + offset + args.a.stride(-2) * i;
    } else {
      WidenViewRow(args.a, offset + args.a.stride(-2) * i, args.a.stride(-1), k, row);
    }
    for (int64_t unit = 0; unit * length < k; ++unit) {
      PackUnit(dtype, x + unit * length, std::min(length, k - unit * length) / kActivationBlock,
               units + (unit * padded + i) * bytes);
    }
  }
}

absl::Status GemvInt8Run(const KernelContext& context, const MatMulGroup& group,
                         Int8Strip (*strip_of)(DType, int64_t)) {
  const MatMulArgs& first = group.first();
  const int64_t m = first.m(), k = first.k();
  const Int8Scratch scratch = CarveInt8(*context.workspace, group);
  if (!context.workspace->ok()) return absl::InternalError("gemv_int8: workspace too small");
  const int64_t a_batches = first.a.rank() == 3 ? first.a.dim(0) : 1;
  const int64_t a_batch = MatMulOperands(first).a_batch;
  int64_t weight_bytes = 0;
  for (size_t i = 0; i < group.size(); ++i) {
    const MatMulArgs& args = group.products[i];
    weight_bytes += args.batch() * ByteOffset(args.b.dtype, args.n() * k);
    for (int64_t z = 0; z < a_batches && !scratch.shared[i]; ++z) {
      PackActivations(args, a_batch * z, scratch.row, scratch.units[i] + z * Int8BatchBytes(args));
    }
  }
  const auto strips = [](const MatMulArgs& args) {
    return (args.n() + kInt8Strip - 1) / kInt8Strip;
  };
  const GroupTasks tasks(group,
                         [&](const MatMulArgs& args) { return args.batch() * strips(args); });
  const auto run = [&](int64_t task, int) HWY_ATTR {
    const GroupTasks::Place place = tasks.At(task);
    const MatMulArgs& args = group.products[place.product];
    const int64_t z = place.task / strips(args), n0 = place.task % strips(args) * kInt8Strip;
    const int64_t columns = std::min(kInt8Strip, args.n() - n0);
    HWY_ALIGN float tiles[2][8 * kMaxTileColumns];
    const auto multiply = [&](size_t product, float* tile) {
      const MatMulArgs& own = group.products[product];
      const int64_t block = BlockLength(own.b.dtype), block_bytes = BlockBytes(own.b.dtype);
      Int8StripArgs strip;
      strip.row_bytes = own.b.stride(-2) / block * block_bytes;
      strip.b = own.b.As<uint8_t>() + MatMulOperands(own).b_batch * z / block * block_bytes +
                n0 * strip.row_bytes;
      strip.columns = columns;
      strip.blocks = k / block;
      strip.units = scratch.units[product] + (a_batches > 1 ? z * Int8BatchBytes(own) : 0);
      strip.tile = tile;
      strip.tile_stride = kMaxTileColumns;
      strip_of(own.b.dtype, Int8PaddedRows(m))(strip);
    };
    multiply(place.product, tiles[0]);
    if (!group.gated) {
      FinishTile(args, MatMulOperands(args), z, 0, m, n0, columns, tiles[0], kMaxTileColumns);
      return;
    }
    multiply(1, tiles[1]);
    FinishGatedTile(args, group.products[1], 0, m, n0, columns, tiles[0], tiles[1],
                    kMaxTileColumns);
  };
  CpuStream::Of(context).pool().ParallelFor(tasks.total(), run, weight_bytes);
  return absl::OkStatus();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE

namespace tandem::cpu {
namespace {

absl::Status SupportsInt8(const MatMulArgs& args) {
  if (!IsBlockQuantized(args.b.dtype) || !args.b.present()) {
    return Unimplemented("needs block-quantised weights in b");
  }
  if (args.float_activations) return Unimplemented("rounds activations, which may not be rounded");
  if (args.m() > 8) return Unimplemented("takes up to 8 rows, got ", args.m());
  return absl::OkStatus();
}

template <DotIsa kDots>
absl::Status Supports(const KernelContext& context, const MatMulArgs& args) {
  TANDEM_RETURN_IF_ERROR(SupportsInt8(args));
  const CpuFeatures& features = CpuStream::Of(context).features();
  if (kDots == DotIsa::kAvx512Vnni && !features.avx512_vnni)
    return Unimplemented("needs AVX-512 VNNI");
  if (kDots == DotIsa::kAvxVnni && !features.avx_vnni) return Unimplemented("needs AVX-VNNI");
  return CheckIsa(context, kDots == DotIsa::kAvx512Vnni ? Isa::kAvx512
                           : kDots == DotIsa::kScalar   ? Isa::kScalar
                                                        : Isa::kAvx2);
}

int64_t Int8Workspace(const MatMulGroup& group) {
  Workspace counting = Workspace::Counting();
  N_AVX2::CarveInt8(counting, group);
  return counting.bytes_used();
}
int64_t WorkspaceOfOne(const KernelContext&, const MatMulArgs& args) {
  return Int8Workspace(GroupOf(args));
}
int64_t WorkspaceOfGroup(const KernelContext&, const GroupedMatMulArgs& args) {
  return Int8Workspace(GroupedProducts(args).group());
}

template <DotIsa kDots>
absl::Status RunGroup(const KernelContext& context, const MatMulGroup& group) {
  switch (kDots) {
    case DotIsa::kAvx512Vnni:
      return N_AVX3::GemvInt8Run(context, group, Int8StripAvx512Vnni);
    case DotIsa::kAvxVnni:
      return N_AVX2::GemvInt8Run(context, group, Int8StripAvxVnni);
    case DotIsa::kAvx2:
      return N_AVX2::GemvInt8Run(context, group, Int8StripAvx2);
    default:
      return TANDEM_N_SCALAR::GemvInt8Run(context, group, Int8StripScalar);
  }
}
template <DotIsa kDots>
absl::Status Run(const KernelContext& context, const MatMulArgs& args) {
  if (args.out.empty()) return absl::OkStatus();
  return RunGroup<kDots>(context, GroupOf(args));
}
template <DotIsa kDots>
absl::Status RunGrouped(const KernelContext& context, const GroupedMatMulArgs& args) {
  if (args.m() == 0) return absl::OkStatus();
  return RunGroup<kDots>(context, GroupedProducts(args).group());
}

bool Applies(const MatMulArgs& args) { return IsBlockQuantized(args.b.dtype) && args.m() <= 8; }

constexpr std::string_view NameOf(DotIsa isa) {
  switch (isa) {
    case DotIsa::kAvx512Vnni:
      return "gemv_int8_avx512vnni";
    case DotIsa::kAvxVnni:
      return "gemv_int8_avxvnni";
    case DotIsa::kAvx2:
      return "gemv_int8_avx2";
    default:
      return "gemv_int8_scalar";
  }
}

template <DotIsa kDots>
struct Entry {
  static Kernel<MatMulArgs> Single() {
    return {NameOf(kDots), DeviceKind::kCpu, Supports<kDots>, WorkspaceOfOne, Run<kDots>, Applies};
  }
  static Kernel<GroupedMatMulArgs> Grouped() {
    return {NameOf(kDots),    DeviceKind::kCpu,  SupportsGroup<Supports<kDots>>,
            WorkspaceOfGroup, RunGrouped<kDots>, AppliesToGroup<Applies>};
  }
};

}  // namespace

Kernel<MatMulArgs> GemvInt8MatMul(DotIsa isa) {
  switch (isa) {
    case DotIsa::kAvx512Vnni:
      return Entry<DotIsa::kAvx512Vnni>::Single();
    case DotIsa::kAvxVnni:
      return Entry<DotIsa::kAvxVnni>::Single();
    case DotIsa::kAvx2:
      return Entry<DotIsa::kAvx2>::Single();
    default:
      return Entry<DotIsa::kScalar>::Single();
  }
}

Kernel<GroupedMatMulArgs> GroupedGemvInt8MatMul(DotIsa isa) {
  switch (isa) {
    case DotIsa::kAvx512Vnni:
      return Entry<DotIsa::kAvx512Vnni>::Grouped();
    case DotIsa::kAvxVnni:
      return Entry<DotIsa::kAvxVnni>::Grouped();
    case DotIsa::kAvx2:
      return Entry<DotIsa::kAvx2>::Grouped();
    default:
      return Entry<DotIsa::kScalar>::Grouped();
  }
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
