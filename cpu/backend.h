// The CPU as a device: memory, streams, and what is known about the machine.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "core/ops/matmul.h"
#include "cpu/isa.h"

namespace tandem::cpu {

struct CpuOptions {
  int threads = 0;  // 0: one per core this process may run on
  std::optional<Isa> isa =
      std::nullopt;  // highest instruction set to use; default: all the processor has
  bool pin_threads = false;
};

// InvalidArgument: threads < 0 or > 4096, or an isa that the processor lacks.
absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options);

// Repacks weights [N, K]. Block-quantised types: into the layout of the integer dot products
// (matmul_packed.h), of the same size; Unimplemented where there is none. bf16 with contiguous
// rows, where the backend has bf16 dot products and float_activations does not forbid them: into
// pairs (matmul_pairs.h), of the same size. Other floats: into the layout oneDNN multiplies
// fastest, in f32; Unimplemented for a backend limited to less than the processor's instruction set
// (nothing would read the result). InvalidArgument for bad views.
absl::StatusOr<std::unique_ptr<PackedWeights>> PackWeights(Backend& backend,
                                                           const TensorView& weights,
                                                           bool float_activations = false);
// Does PackWeights make of rows of that type a form of about their size, for any number of rows of
// activations, which may take their place in memory?
bool PacksInPlace(Backend& backend, DType dtype, bool float_activations = false);

struct CacheLevel {
  int level = 0;
  int64_t bytes = 0;
  int shared_by = 0;  // cores
};

struct CpuInfo {
  std::string model;  // "AMD EPYC 9965"
  int cores = 0;      // that this process may run on
  int hardware_threads = 0;
  int numa_nodes = 0;
  CpuFeatures features;
  std::vector<CacheLevel> caches;  // data caches, L1 first
  int64_t memory_bytes = 0;
};
CpuInfo DescribeCpu();

// Yardsticks, measured now on `threads` threads.
//   read bandwidth  GB/s of a sum over `bytes` of memory (larger than the last cache for DRAM),
//   best of several passes FMA rate        GFLOP/s of independent f32 multiply-adds at the given
//   instruction set
double MeasureReadBandwidth(int threads, int64_t bytes);
double MeasureFmaRate(int threads, Isa isa);

}  // namespace tandem::cpu
