// cuBLASLt as a Blas (docs.nvidia.com/cuda/cublas, "Using the cuBLASLt API").
//
// The library is 500 MB and not needed by anybody who has no GPU: it is loaded when the first plan
// is asked for, and a program starts without it. Looked for, in this order:
//   path (if not empty: nothing else)    a file, or the folder it is in
//   libcublasLt.so.N                     where the dynamic linker looks (LD_LIBRARY_PATH, ...)
//   /usr/local/cuda/lib64                the toolkit's usual place
// with N the version of the headers that this was built with, then 13 and 12.
//
// Numerics: f32 sums (CUBLAS_COMPUTE_32F); f32 operands are not rounded to TF32, and sums that are
// split are added in f32 in a second step (CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE). Algorithms that
// do otherwise are not taken, whatever the heuristics say.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "cuda/blas/blas.h"

namespace tandem::cuda {

// Makes the device of a stream current for the calling thread; its cudaStream_t.
using NativeStream = std::function<absl::StatusOr<void*>(StreamHandle stream)>;

// For the current device. FailedPrecondition, with what was tried: there is no library, it cannot
// be used here, or this build has no headers of it.
absl::StatusOr<std::unique_ptr<Blas>> MakeCublasLt(NativeStream native, const std::string& path);

}  // namespace tandem::cuda
