// Element-wise kernels for rows that begin on 16 bytes: eight elements per thread and step, loaded
// and stored 16 bytes at a time; types at run time, the branch costs a few instructions per eight
// elements. Operands without gaps are one row.
//
// Roofline: three streams of memory, 6 bytes per element of 16-bit types, nothing kept. 40
// registers: 1536 threads per multiprocessor, with two loads of 16 bytes each under way (four of
// f32): 48 KB. Bandwidth times latency asks for about 25 KB (an H200's 4.8 TB/s, taken to be 700 ns
// away).
#include "cuda/device/chunk.h"
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/target.h"
#include "cuda/kernels/elementwise.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

template <typename Combine>
__device__ void ForEachChunk(const BinaryParams& p, Combine combine) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t chunks = p.columns / kChunk;
  const bool fours =
      p.a.dtype == DType::kF32 || p.b.dtype == DType::kF32 || p.out.dtype == DType::kF32;
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const int64_t a = row * p.a.strides[0], b = row * p.b.strides[0], out = row * p.out.strides[0];
    for (int64_t i = first; i < chunks; i += step) {
      const ChunkPlace place = PlaceOf(i, p.columns, fours);
      const RawChunk raw_a = LoadRawChunk(p.a, a, place);
      const RawChunk raw_b = LoadRawChunk(p.b, b, place);
      Chunk x = ToFloats(raw_a, p.a.dtype);
      const Chunk y = ToFloats(raw_b, p.b.dtype);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) x.x[j] = combine(x.x[j], y.x[j]);
      StoreChunk(p.out, out, place, x);
    }
    const int64_t rest = chunks * kChunk + first;
    if (rest < p.columns && first < kChunk) {
      StoreElement(p.out, out + rest,
                   combine(LoadElement(p.a, a + rest), LoadElement(p.b, b + rest)));
    }
  }
}

__global__ void __launch_bounds__(kVectorThreads) AddVectorKernel(const BinaryParams p) {
  ForEachChunk(p, [](float a, float b) { return a + b; });
}

__global__ void __launch_bounds__(kVectorThreads) SiluMulVectorKernel(const BinaryParams p) {
  ForEachChunk(p, [](float gate, float up) { return Silu(gate) * up; });
}

}  // namespace

KernelFunction AddVectorFunction() { return MakeKernelFunction<&AddVectorKernel>("add_vector"); }
KernelFunction SiluMulVectorFunction() {
  return MakeKernelFunction<&SiluMulVectorKernel>("silu_mul_vector");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
