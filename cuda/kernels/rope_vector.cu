// Rotary embedding of rows that begin on 16 bytes: one block per token and group of heads. Cosines
// and sines are computed once for the heads of a block, in f64, into shared memory; then each
// thread rotates 16 elements of a head. One read and one write of memory, 4 bytes per element of
// 16-bit types, and D/2 pairs of f64 functions per block: with 8 heads of 128 or more, about 60 f64
// instructions per KB.
#include "cuda/device/rotation_vector.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/target.h"
#include "cuda/kernels/divisor.h"
#include "cuda/kernels/lookup.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

__global__ void __launch_bounds__(kVectorThreads) RopeVectorKernel(const RopeParams p) {
  SharedCarver shared;
  const RotationTable table = TakeRotationTable(shared, p.rotation.pairs);
  const int64_t columns = p.x.dims[3];
  const int items = static_cast<int>(columns / (2 * kChunk));  // per head
  const int64_t heads = p.x.dims[1];
  const int64_t group = (heads + gridDim.y - 1) / gridDim.y;
  const int64_t first_head = blockIdx.y * group;
  const int64_t last_head = first_head + group < heads ? first_head + group : heads;
  const int at_once = kVectorThreads / items;  // heads; what is left of the block is idle
  const int own_head = static_cast<int>(threadIdx.x) / items;
  const int item = static_cast<int>(threadIdx.x) % items;
  const Divisor tokens(p.x.dims[2]);
  for (int64_t i = blockIdx.x; i < p.x.dims[0] * p.x.dims[2]; i += gridDim.x) {
    const Divisor::Result at = tokens.Divide(i);
    FillRotationTable(table, p.rotation, at.quotient, at.remainder);
    SyncThreads();
    const int64_t x = at.quotient * p.x.strides[0] + at.remainder * p.x.strides[2];
    const int64_t out = at.quotient * p.out.strides[0] + at.remainder * p.out.strides[2];
    for (int64_t head = own_head < at_once ? first_head + own_head : last_head; head < last_head;
         head += at_once) {
      const int64_t from = x + head * p.x.strides[1], to = out + head * p.out.strides[1];
      ChunkPair pair = {LoadChunk(p.x, from, FirstPlace(item)),
                        LoadChunk(p.x, from, SecondPlace(item, columns))};
      RotateChunks(table, p.rotation.half, item, columns, pair);
      StoreChunk(p.out, to, FirstPlace(item), pair.a);
      StoreChunk(p.out, to, SecondPlace(item, columns), pair.b);
    }
    SyncThreads();
  }
}

}  // namespace

KernelFunction RopeVectorFunction() { return MakeKernelFunction<&RopeVectorKernel>("rope_vector"); }

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
