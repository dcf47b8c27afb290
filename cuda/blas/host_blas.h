// The emulated device's BLAS: a stand-in that computes on the host, in the stream's order, so that
// everything around the library (plans, workspace, layouts, epilogues, faults) is tested without a
// GPU. It says nothing about the library's results or speed.
//
// Sums in f32, k ascending. It refuses what cuBLASLt is documented to refuse, checks that operands
// are the device's memory as launches do, needs the workspace that it asks for, and counts its
// calls for injected faults: BlasCreate, BlasPlan, BlasMatMul, BlasDestroy.
#pragma once

#include <memory>

#include "absl/status/statusor.h"
#include "cuda/blas/blas.h"

namespace tandem::cuda {

class EmulatedRuntime;

// The runtime outlives it.
absl::StatusOr<std::unique_ptr<Blas>> MakeHostBlas(EmulatedRuntime& runtime);

}  // namespace tandem::cuda
