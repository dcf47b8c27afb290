// Tiled matrix product (matmul_tiled.cc) multiplied by oneDNN.
//
//   onednn_packed  panels made beforehand by PackWeights: nothing to expand
//   onednn_expand  panels of b, stored in any dtype, made on the fly by each worker
//
// Algorithm: oneDNN's matmul (brgemm) on one block of rows and one panel at a time. A panel of 64
//   columns with K whole is what brgemm would pack the weights into itself, so nothing is repacked.
//   Measured on one Zen 5 core: 250-270 GFLOP/s for M = 16..512, K = 2048 and 5632 (peak 272),
//   where one oneDNN call for all of N = 2048 reaches 150-250. bf16 times bf16 uses the processor's
//   bf16 dot products where there are any: exact products, f32 sums, 500-540 GFLOP/s on the same
//   core. Anything else is widened to f32: rounding it to bf16 would cost accuracy.
// Mapping and memory: as matmul_tiled.cc; each call is single-threaded (onednn_cache.h).
// Range: a stream that is not limited to less than the processor's instruction set (oneDNN's limit
//   is global to the process, so it cannot be told per call).
#include <atomic>

#include "core/status.h"
#include "cpu/matmul_kernels.h"
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

bool UsesPairs(const CpuStream& stream, const MatMulArgs& args) {
  return args.b.present() && args.a.dtype == DType::kBF16 && args.b.dtype == DType::kBF16 &&
         args.b.stride(-1) == 1 && stream.features().avx512_bf16;
}

template <bool kPacked>
TiledPlan Plan(const KernelContext& context, const MatMulArgs& args) {
  return TiledPlan(args, !kPacked && UsesPairs(CpuStream::Of(context), args));
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

template <bool kPacked>
absl::Status SupportsShape(const KernelContext& context, const MatMulArgs& args) {
  const CpuStream& stream = CpuStream::Of(context);
  if (stream.features().isa != stream.onednn().isa()) {
    return Unimplemented("oneDNN uses ", std::string(Name(stream.onednn().isa())),
                         ", but the stream is limited to ",
                         std::string(Name(stream.features().isa)));
  }
  return Prepare(context, args, Plan<kPacked>(context, args)).status();
}

absl::Status SupportsExpand(const KernelContext& context, const MatMulArgs& args) {
  if (!args.b.present()) return Unimplemented("reads b itself; only b_packed was given");
  return SupportsShape<false>(context, args);
}

absl::Status SupportsPacked(const KernelContext& context, const MatMulArgs& args) {
  if (args.b_packed == nullptr) return Unimplemented("needs b_packed");
  if (args.b_packed->format() != PanelWeights::kFormat) {
    return Unimplemented("b_packed has format '", std::string(args.b_packed->format()),
                         "', expected '", std::string(PanelWeights::kFormat), "'");
  }
  return SupportsShape<true>(context, args);
}

template <bool kPacked>
int64_t WorkspaceBytes(const KernelContext& context, const MatMulArgs& args) {
  const TiledPlan plan = Plan<kPacked>(context, args);
  const absl::StatusOr<Products> products = Prepare(context, args, plan);
  Workspace counting = Workspace::Counting();
  CarveTiled(counting, args, plan, CpuStream::Of(context).pool().size(), !kPacked,
             products.ok() ? products->scratch_bytes : 0);
  return counting.bytes_used();
}

template <bool kPacked>
absl::Status Run(const KernelContext& context, const MatMulArgs& args) {
  const TiledPlan plan = Plan<kPacked>(context, args);
  TANDEM_ASSIGN_OR_RETURN(const Products products, Prepare(context, args, plan));
  std::atomic<bool> failed{false};
  const auto multiply = [&](const void* a, const void* panel, int64_t rows, float* tile, int worker,
                            char* extra) {
    const OneDnnTileProduct& product = rows == plan.tail_rows ? *products.tail : *products.block;
    if (!product.Execute(a, panel, tile, extra, worker).ok()) failed = true;
  };
  const float* packed =
      kPacked ? static_cast<const PanelWeights*>(args.b_packed)->panels() : nullptr;
  TANDEM_RETURN_IF_ERROR(RunTiled(context, args, plan,
                                  PanelOpsFor(CpuStream::Of(context).features().isa), packed,
                                  products.scratch_bytes, multiply));
  if (failed) return absl::InternalError("oneDNN: executing a matmul primitive failed");
  return absl::OkStatus();
}

}  // namespace

Kernel<MatMulArgs> OneDnnPackedMatMul() {
  return {"onednn_packed", DeviceKind::kCpu, SupportsPacked, WorkspaceBytes<true>, Run<true>};
}
Kernel<MatMulArgs> OneDnnExpandMatMul() {
  return {"onednn_expand", DeviceKind::kCpu, SupportsExpand, WorkspaceBytes<false>, Run<false>};
}

}  // namespace tandem::cpu
