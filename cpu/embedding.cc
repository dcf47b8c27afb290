// Embedding lookup. All ids are checked before the first row is written.
//
// simd: rows are independent tasks; each is copied, converted or expanded in one pass. Needs
// contiguous rows.
//
// reference: one element, or one block of 32, at a time; any strides.
#include "core/ops/embedding.h"

#include <array>

#include "core/status.h"
#include "cpu/blocks.h"
#include "cpu/kernels.h"
#include "cpu/row_tasks.h"
#include "cpu/stream.h"
#include "cpu/strided.h"

#ifndef TANDEM_CPU_EMBEDDING_IDS  // this file is compiled once per target
#define TANDEM_CPU_EMBEDDING_IDS
namespace tandem::cpu {
namespace {

int64_t TokenId(const EmbeddingArgs& args, int64_t s) {
  return *args.ids.At<int32_t>(s * args.ids.stride(0));
}

absl::Status CheckIds(const EmbeddingArgs& args) {
  const int64_t vocabulary = args.table.dim(0);
  for (int64_t s = 0; s < args.ids.dim(0); ++s) {
    const int64_t id = TokenId(args, s);
    if (id < 0 || id >= vocabulary) {
      return InvalidArgument("ids[", s, "]: expected 0..", vocabulary - 1, ", got ", id);
    }
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace tandem::cpu
#endif  // TANDEM_CPU_EMBEDDING_IDS

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/embedding.cc"
#include "cpu/simd_targets.h"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// After highway.h.
#include "cpu/block_vectors-inl.h"
#include "cpu/float_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

template <typename Out>
void LookUpRow(const TensorView& table, int64_t id, Out* out) {
  if (IsBlockQuantized(table.dtype)) {
    DispatchBlock(table.dtype, [&]<typename Block>() {
      const Block* blocks = BlockRow<Block>(table, id);
      for (int64_t n = 0; n < table.dim(1); n += Block::kLength) {
        DequantizeBlockTo(blocks[n / Block::kLength], out + n);
      }
    });
  } else {
    DispatchFloat(table.dtype, [&]<typename X>() {
      ConvertSpan(table.At<X>(id * table.stride(0)), out, table.dim(1));
    });
  }
}

absl::Status Embedding(const KernelContext& context, const EmbeddingArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIds(args));
  DispatchFloat(args.out.dtype, [&]<typename Out>() {
    ParallelRows(CpuStream::Of(context).pool(), args.ids.dim(0), args.table.dim(1),
                 [&](int64_t begin, int64_t end, int) {
                   for (int64_t s = begin; s < end; ++s) {
                     LookUpRow(args.table, TokenId(args, s),
                               args.out.At<Out>(s * args.out.stride(0)));
                   }
                 });
  });
  return absl::OkStatus();
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tandem::cpu {
namespace {

template <Isa kIsa>
absl::Status Supports(const KernelContext& context, const EmbeddingArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIsa(context, kIsa));
  TANDEM_RETURN_IF_ERROR(CheckUnitStride("table", args.table));
  return CheckUnitStride("out", args.out);
}

absl::Status RunReference(const KernelContext&, const EmbeddingArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIds(args));
  const TensorView& table = args.table;
  const TensorView& out = args.out;
  for (int64_t s = 0; s < args.ids.dim(0); ++s) {
    const int64_t id = TokenId(args, s);
    const int64_t out_row = s * out.stride(0);
    if (IsBlockQuantized(table.dtype)) {
      DispatchBlock(table.dtype, [&]<typename Block>() {
        for (int64_t n = 0; n < table.dim(1); n += Block::kLength) {
          float values[Block::kLength];
          DequantizeBlock(BlockRow<Block>(table, id)[n / Block::kLength], values);
          for (int i = 0; i < Block::kLength; ++i) {
            StoreElement(out, out_row + (n + i) * out.stride(1), values[i]);
          }
        }
      });
    } else {
      for (int64_t n = 0; n < table.dim(1); ++n) {
        StoreElement(out, out_row + n * out.stride(1),
                     LoadElement(table, id * table.stride(0) + n * table.stride(1)));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<EmbeddingArgs> Kernels<EmbeddingArgs>() {
  static constexpr std::array<Kernel<EmbeddingArgs>, 4> kKernels = {{
      {"simd_avx512", DeviceKind::kCpu, Supports<Isa::kAvx512>, NoWorkspace<EmbeddingArgs>,
       N_AVX3::Embedding},
      {"simd_avx2", DeviceKind::kCpu, Supports<Isa::kAvx2>, NoWorkspace<EmbeddingArgs>,
       N_AVX2::Embedding},
      {"simd_scalar", DeviceKind::kCpu, Supports<Isa::kScalar>, NoWorkspace<EmbeddingArgs>,
       TANDEM_N_SCALAR::Embedding},
      {"reference", DeviceKind::kCpu, SupportsAll<EmbeddingArgs>, NoWorkspace<EmbeddingArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
#endif  // HWY_ONCE
