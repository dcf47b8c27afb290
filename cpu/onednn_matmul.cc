// Tiled matrix product (matmul_tiled.cc) multiplied by oneDNN.
//
//   onednn_packed  f32 panels made beforehand by PackWeights: nothing to expand
//   onednn_pairs   bf16 panels made beforehand by PackWeights (matmul_pairs.h), for the processor's
//                  bf16 dot products; f32 and f16 rows of a are rounded to bf16
//   onednn_bf16    the same, panels of a bf16 b rearranged on the fly
//   onednn_expand  f32 panels of b, stored in any dtype or packed in pairs, made on the fly by each
//                  worker
//
// Algorithm: oneDNN's matmul (brgemm) on one block of rows and one panel at a time. A panel of 64
//   columns with K whole is what brgemm would pack the weights into itself, so nothing is repacked.
//   Measured on one Zen 5 core: 250-270 GFLOP/s for M = 16..512, K = 2048 and 5632 (peak 272),
//   where one oneDNN call for all of N = 2048 reaches 150-250. bf16 dot products have exact
//   products and f32 sums, and reach 500-540 GFLOP/s on the same core; there are processors on
//   which they are slower than f32 (`tandem calibrate kernels`). Rounding an activation to bf16
//   costs as much accuracy as the weights' own type has; nothing is rounded if float_activations is
//   set.
// Mapping and memory: as matmul_tiled.cc; each call is single-threaded (onednn_cache.h).
// Range: a stream that is not limited to less than the processor's instruction set (oneDNN's limit
//   is global to the process, so it cannot be told per call).
#include <atomic>

#include "core/status.h"
#include "cpu/matmul_kernels.h"
#include "cpu/matmul_pairs.h"
#include "cpu/matmul_tiled.h"
#include "cpu/onednn_cache.h"
#include "cpu/onednn_pack.h"
#include "cpu/stream.h"

namespace tandem::cpu {
namespace {

// The products a plan needs: whole blocks and the tail.
struct Products {
  std::shared_ptr<const OneDnnTileProduct> block, tail;
  int64_t scratch_bytes = 0;
};

enum class Panels : uint8_t { kPacked, kPairs, kBF16, kExpand };

constexpr bool AreBF16(Panels panels) {
  return panels == Panels::kPairs || panels == Panels::kBF16;
}
constexpr bool AreMade(Panels panels) {  // on the fly
  return panels == Panels::kBF16 || panels == Panels::kExpand;
}

template <Panels kPanels>
TiledPlan Plan(const MatMulArgs& args) {
  return TiledPlan(args, AreBF16(kPanels));
}

absl::StatusOr<Products> Prepare(const KernelContext& context, const MatMulArgs& args,
                                 const TiledPlan& plan) {
  Products products;
  if (plan.blocks == 0 || args.k() == 0) return products;
  const CpuStream& stream = CpuStream::Of(context);
  const int workers = stream.pool().size();
  const DType dtype = plan.pairs ? DType::kBF16 : DType::kF32;
  TANDEM_ASSIGN_OR_RETURN(products.tail,
                          stream.onednn().Get(plan.tail_rows, args.k(), dtype, workers));
  products.block = products.tail;
  if (plan.blocks > 1) {
    TANDEM_ASSIGN_OR_RETURN(products.block,
                            stream.onednn().Get(plan.block, args.k(), dtype, workers));
  }
  products.scratch_bytes =
      std::max(products.block->scratch_bytes(), products.tail->scratch_bytes());
  return products;
}

template <Panels kPanels>
absl::Status SupportsShape(const KernelContext& context, const MatMulArgs& args) {
  const CpuStream& stream = CpuStream::Of(context);
  if (stream.features().isa != stream.onednn().isa()) {
    return Unimplemented("oneDNN uses ", std::string(Name(stream.onednn().isa())),
                         ", but the stream is limited to ",
                         std::string(Name(stream.features().isa)));
  }
  return Prepare(context, args, Plan<kPanels>(args)).status();
}

absl::Status SupportsExpand(const KernelContext& context, const MatMulArgs& args) {
  if (!args.b.present() && PairsOf(args) == nullptr) {
    return Unimplemented("reads b itself, or pairs; b_packed has another format");
  }
  return SupportsShape<Panels::kExpand>(context, args);
}

// Below, rearranging panels takes longer than the dot products save (`rows_*` are faster).
constexpr int64_t kMinBF16Rows = 25;

// Below, `pairs_*` wait for the weights alone and round nothing.
constexpr int64_t kMinPairsRows = 9;

// What both products of bf16 need.
template <Panels kPanels>
absl::Status SupportsRows(const KernelContext& context, const MatMulArgs& args, int64_t least) {
  if (args.m() < least) return Unimplemented("takes from ", least, " rows, got ", args.m());
  if (args.float_activations && args.a.dtype != DType::kBF16) {
    return Unimplemented("rounds activations to bf16, but float_activations is set");
  }
  if (!CpuStream::Of(context).features().avx512_bf16) {
    return Unimplemented("needs AVX-512 BF16");
  }
  return SupportsShape<kPanels>(context, args);
}

absl::Status SupportsBF16(const KernelContext& context, const MatMulArgs& args) {
  if (args.b.dtype != DType::kBF16 || !args.b.present()) {
    return Unimplemented("needs bf16 weights in b");
  }
  if (args.b.stride(-1) != 1 && args.k() > 1) {
    return Unimplemented("needs b with contiguous rows, got stride ", args.b.stride(-1));
  }
  return SupportsRows<Panels::kBF16>(context, args, kMinBF16Rows);
}

bool AppliesBF16(const MatMulArgs& args) {
  return args.b.dtype == DType::kBF16 && (args.a.dtype == DType::kBF16 || !args.float_activations);
}

absl::Status SupportsPairs(const KernelContext& context, const MatMulArgs& args) {
  if (PairsOf(args) == nullptr) return Unimplemented("needs bf16 weights packed in pairs");
  return SupportsRows<Panels::kPairs>(context, args, kMinPairsRows);
}

bool AppliesPairs(const MatMulArgs& args) {
  return args.m() >= kMinPairsRows && PairsOf(args) != nullptr &&
         (args.a.dtype == DType::kBF16 || !args.float_activations);
}

absl::Status SupportsPacked(const KernelContext& context, const MatMulArgs& args) {
  if (args.b_packed == nullptr) return Unimplemented("needs b_packed");
  if (args.b_packed->format() != PanelWeights::kFormat) {
    return Unimplemented("b_packed has format '", std::string(args.b_packed->format()),
                         "', expected '", std::string(PanelWeights::kFormat), "'");
  }
  return SupportsShape<Panels::kPacked>(context, args);
}

template <Panels kPanels>
int64_t WorkspaceBytes(const KernelContext& context, const MatMulArgs& args) {
  const TiledPlan plan = Plan<kPanels>(args);
  const absl::StatusOr<Products> products = Prepare(context, args, plan);
  Workspace counting = Workspace::Counting();
  CarveTiled(counting, args, plan, CpuStream::Of(context).pool().size(), AreMade(kPanels),
             products.ok() ? products->scratch_bytes : 0);
  return counting.bytes_used();
}

template <Panels kPanels>
absl::Status Run(const KernelContext& context, const MatMulArgs& args) {
  const TiledPlan plan = Plan<kPanels>(args);
  TANDEM_ASSIGN_OR_RETURN(const Products products, Prepare(context, args, plan));
  std::atomic<bool> failed{false};
  const auto multiply = [&](const void* a, const void* panel, int64_t rows, float* tile, int worker,
                            char* extra) {
    const OneDnnTileProduct& product = rows == plan.tail_rows ? *products.tail : *products.block;
    if (!product.Execute(a, panel, tile, extra, worker).ok()) failed = true;
  };
  const void* packed = nullptr;
  if constexpr (kPanels == Panels::kPacked) {
    packed = static_cast<const PanelWeights*>(args.b_packed)->panels();
  } else if constexpr (kPanels == Panels::kPairs) {
    packed = PairsOf(args)->panels();
  }
  TANDEM_RETURN_IF_ERROR(RunTiled(context, args, plan,
                                  PanelOpsFor(CpuStream::Of(context).features().isa), packed,
                                  products.scratch_bytes, multiply));
  if (failed) return absl::InternalError("oneDNN: executing a matmul primitive failed");
  return absl::OkStatus();
}

}  // namespace

Kernel<MatMulArgs> OneDnnPackedMatMul() {
  return {"onednn_packed", DeviceKind::kCpu, SupportsPacked, WorkspaceBytes<Panels::kPacked>,
          Run<Panels::kPacked>};
}
Kernel<MatMulArgs> OneDnnPairsMatMul() {
  return {"onednn_pairs",      DeviceKind::kCpu, SupportsPairs, WorkspaceBytes<Panels::kPairs>,
          Run<Panels::kPairs>, AppliesPairs};
}
Kernel<MatMulArgs> OneDnnBF16MatMul() {
  return {"onednn_bf16",      DeviceKind::kCpu, SupportsBF16, WorkspaceBytes<Panels::kBF16>,
          Run<Panels::kBF16>, AppliesBF16};
}
Kernel<MatMulArgs> OneDnnExpandMatMul() {
  return {"onednn_expand", DeviceKind::kCpu, SupportsExpand, WorkspaceBytes<Panels::kExpand>,
          Run<Panels::kExpand>};
}

}  // namespace tandem::cpu
