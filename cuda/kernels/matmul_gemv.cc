#include "cuda/kernels/matmul_gemv.h"

#include <algorithm>

#include "core/status.h"
#include "cuda/kernels/matmul_setup.h"
#include "cuda/kernels/vector_rows.h"
#include "cuda/stream.h"

namespace tandem::cuda {

bool GemvVectorApplies(const MatMulArgs& args) {
  return args.b.present() && IsFloat(args.b.dtype) && args.m() <= kGemvVectorMaxRows &&
         args.k() % kVectorElements == 0;
}

absl::Status GemvVectorSupports(const KernelContext&, const MatMulArgs& args) {
  if (!args.b.present()) return Unimplemented("needs b itself, not only packed");
  if (!IsFloat(args.b.dtype)) {
    return Unimplemented("needs b in f32, f16 or bf16, got ", std::string(Name(args.b.dtype)));
  }
  if (args.m() > kGemvVectorMaxRows) {
    return Unimplemented("at most ", kGemvVectorMaxRows, " rows");
  }
  TANDEM_RETURN_IF_ERROR(CheckWholeVectors("K", args.k()));
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("a", args.a));
  return CheckVectorRows("b", args.b);
}

absl::Status RunGemvVector(const KernelContext& context, const MatMulArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const MatMulParams params = ToMatMulParams(args);
  if (params.m == 0) return absl::OkStatus();
  const int rows = GemvVectorRows(params.m);
  const int64_t per_block = int64_t{kGemvVectorWarps} * GemvVectorTogether(rows);
  LaunchConfig config;
  config.grid.x = std::min<int64_t>((params.n + per_block - 1) / per_block,
                                    int64_t{4} * stream.info().multiprocessors);
  config.grid.y = std::min<int64_t>(params.batch, 65535);
  config.block.x = kGemvVectorWarps * 32;
  return stream.Launch(GemvVectorFunction(stream, args.b.dtype, rows), config, params);
}

}  // namespace tandem::cuda
