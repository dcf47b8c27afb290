// Compiled instead of cublaslt.cc when the build has no CUDA toolkit, or a toolkit without cuBLAS.
#include "cuda/blas/cublaslt.h"

namespace tandem::cuda {

absl::StatusOr<std::unique_ptr<Blas>> MakeCublasLt(NativeStream, const std::string&) {
  return absl::FailedPreconditionError("cuBLASLt: this build has no cublasLt.h");
}

}  // namespace tandem::cuda
