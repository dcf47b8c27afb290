// Conversion and embedding lookup for rows that begin on 16 bytes; one read and one write of memory
// each.
//
// cast between float types: eight elements per thread and step.
//
// quantise to q8_0 and q4_0: a warp does 8 blocks at a time, four lanes per block; the blocks (of
// 34 or 18 bytes, which no vector store fits) are put together in shared memory, where 8 of them
// are whole vectors, and stored from there. Dequantise: the same backwards. The bytes are those of
// GGUF's reference quantisers (lookup.cu).
//
// embedding: one block of threads per row of out.
#include "core/block_elements.h"
#include "cuda/device/chunk.h"
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/quantize.h"
#include "cuda/device/shared.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/lookup.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

__global__ void __launch_bounds__(kVectorThreads) CastVectorKernel(const CastParams p) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t chunks = p.columns / kChunk;
  const bool fours = p.x.dtype == DType::kF32 || p.out.dtype == DType::kF32;
  for (int64_t row = blockIdx.y; row < p.rows; row += gridDim.y) {
    const int64_t x = row * p.x.strides[0], out = row * p.out.strides[0];
    for (int64_t i = first; i < chunks; i += step) {
      const ChunkPlace place = PlaceOf(i, p.columns, fours);
      StoreChunk(p.out, out, place, LoadChunk(p.x, x, place));
    }
    const int64_t rest = chunks * kChunk + first;
    if (rest < p.columns && first < kChunk) {
      StoreElement(p.out, out + rest, LoadElement(p.x, x + rest));
    }
  }
}

// Blocks that a warp does at a time; their bytes are whole vectors.
constexpr int kWarpBlocks = 8;

// Element of largest magnitude among the 32 of four lanes, with its sign, the first of equals; NaN
// counts as 0.
__device__ float ExtremeOfFour(const Chunk& chunk, int part) {
  float extreme = 0.0f;
  int index = 0;
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    if (Abs(chunk.x[j]) > Abs(extreme)) {
      extreme = chunk.x[j];
      index = part * kChunk + j;
    }
  }
  uint64_t key =
      uint64_t{std::bit_cast<uint32_t>(Abs(extreme))} << 32 | static_cast<uint32_t>(31 - index);
#pragma unroll
  for (int step = 1; step < 4; step *= 2) {
    const uint64_t other = ShuffleXor(key, step);
    key = other > key ? other : key;
  }
  const int owner = (31 - static_cast<int>(key & 31)) / kChunk;
  return Shuffle(extreme, LaneId() / 4 * 4 + owner);
}

// Packs eight bytes; `bytes` are their values.
struct EightBytes {
  uint32_t low = 0, high = 0;
  __device__ void Set(int j, uint32_t byte) { (j < 4 ? low : high) |= byte << (8 * (j % 4)); }
};
__device__ void StoreEight(uint8_t* to, const EightBytes& bytes) {
  auto* halves = reinterpret_cast<uint16_t*>(to);  // blocks are aligned to 2
  halves[0] = static_cast<uint16_t>(bytes.low);
  halves[1] = static_cast<uint16_t>(bytes.low >> 16);
  halves[2] = static_cast<uint16_t>(bytes.high);
  halves[3] = static_cast<uint16_t>(bytes.high >> 16);
}

// Quarter `part` of a block; the lanes of a warp call it together.
__device__ void QuantizeQuarter(const Chunk& chunk, int part, BlockQ8_0& block) {
  const float d = Divide(Abs(ExtremeOfFour(chunk, part)), 127.0f);
  const float inverse = d != 0.0f ? Divide(1.0f, d) : 0.0f;
  EightBytes bytes;
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    bytes.Set(j, static_cast<uint32_t>(QuantizeQ8_0(chunk.x[j], inverse)) & 0xFFu);
  }
  if (part == 0) block.d = ToF16(d);
  StoreEight(reinterpret_cast<uint8_t*>(block.q) + part * kChunk, bytes);
}

__device__ void QuantizeQuarter(const Chunk& chunk, int part, BlockQ4_0& block) {
  const float d = Divide(ExtremeOfFour(chunk, part), -8.0f);
  const float inverse = d != 0.0f ? Divide(1.0f, d) : 0.0f;
  EightBytes bytes;
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    bytes.Set(j, static_cast<uint32_t>(QuantizeQ4_0(chunk.x[j], inverse)));
  }
  // The nibbles of elements 16.. lie above those of elements 0..15.
  bytes.low |= ShuffleXor(bytes.low, 2) << 4;
  bytes.high |= ShuffleXor(bytes.high, 2) << 4;
  if (part == 0) block.d = ToF16(d);
  if (part < 2) StoreEight(block.q + part * kChunk, bytes);
}

// Blocks to or from global memory, by a warp; vectors where there are all.
template <typename Block>
__device__ void CopyBlocks(const Block* from, Block* to, int count) {
  constexpr int kAll = kWarpBlocks * static_cast<int>(sizeof(Block));
  static_assert(kAll % kVectorBytes == 0);
  const auto* source = reinterpret_cast<const unsigned char*>(from);
  auto* target = reinterpret_cast<unsigned char*>(to);
  if (count == kWarpBlocks) {
    const int at = LaneId() * kVectorBytes;
    static_assert(kAll <= kWarpSize * kVectorBytes);
    if (at < kAll) StorePacked(target + at, LoadPacked<16>(source + at));
    return;
  }
  for (int at = LaneId() * 2; at < count * static_cast<int>(sizeof(Block)); at += kWarpSize * 2) {
    *reinterpret_cast<uint16_t*>(target + at) = *reinterpret_cast<const uint16_t*>(source + at);
  }
}

// Calls work(first block, number of blocks, the warp's blocks in shared memory) for all blocks of a
// run, kWarpBlocks at a time.
template <typename Block, typename Work>
__device__ void ForEachGroup(const CastParams& p, Work work) {
  constexpr int kWarps = kVectorThreads / kWarpSize;
  SharedCarver shared;
  Block* staged = shared.Take<Block>(kWarps * kWarpBlocks) + WarpId() * kWarpBlocks;
  const int64_t blocks = p.columns / Block::kLength;
  for (int64_t first = (int64_t{blockIdx.x} * kWarps + WarpId()) * kWarpBlocks; first < blocks;
       first += int64_t{gridDim.x} * kWarps * kWarpBlocks) {
    const int64_t left = blocks - first;
    work(first, left < kWarpBlocks ? static_cast<int>(left) : kWarpBlocks, staged);
    SyncWarp();
  }
}

template <typename Block>
__global__ void __launch_bounds__(kVectorThreads) QuantizeVectorKernel(const CastParams p) {
  ForEachGroup<Block>(p, [&](int64_t first, int count, Block* staged) {
    const int block = LaneId() / 4, part = LaneId() % 4;
    const int64_t at = first * Block::kLength + LaneId() * kChunk;
    const Chunk chunk = block < count ? LoadChunk(p.x, 0, {at, at + 4}) : Chunk{};
    QuantizeQuarter(chunk, part, staged[block]);
    SyncWarp();
    CopyBlocks(staged, p.out.As<Block>() + first, count);
  });
}

template <typename Block>
__global__ void __launch_bounds__(kVectorThreads) DequantizeVectorKernel(const CastParams p) {
  ForEachGroup<Block>(p, [&](int64_t first, int count, Block* staged) {
    CopyBlocks(p.x.As<const Block>() + first, staged, count);
    SyncWarp();
    const int64_t row = first * Block::kLength;
    const ChunkPlace place = PlaceOf(LaneId(), int64_t{count} * Block::kLength, /*fours=*/true);
    if (place.first >= int64_t{count} * Block::kLength) return;
    Chunk chunk;
#pragma unroll
    for (int j = 0; j < kChunk; ++j) {
      const int at = static_cast<int>(j < 4 ? place.first + j : place.second + j - 4);
      chunk.x[j] = BlockElement(staged[at / Block::kLength], at % Block::kLength);
    }
    StoreChunk(p.out, row, place, chunk);
  });
}

__global__ void __launch_bounds__(kVectorThreads) EmbeddingVectorKernel(const EmbeddingParams p) {
  const int64_t columns = p.out.dims[1], chunks = columns / kChunk;
  const bool fours = p.table.dtype == DType::kF32 || p.out.dtype == DType::kF32;
  for (int64_t row = blockIdx.x; row < p.out.dims[0]; row += gridDim.x) {
    const int32_t id = p.ids.As<const int32_t>()[row * p.ids.strides[0]];
    const bool good = id >= 0 && id < p.table.dims[0];
    const int64_t from = id * p.table.strides[0], to = row * p.out.strides[0];
    for (int64_t i = threadIdx.x; i < chunks; i += blockDim.x) {
      const ChunkPlace place = PlaceOf(i, columns, fours);
      Chunk chunk;
      if (good) {
        chunk = LoadChunk<CacheHint::kReadOnly>(p.table, from, place);
      } else {  // nobody can be told of a bad id here: its row shows it
#pragma unroll
        for (int j = 0; j < kChunk; ++j) chunk.x[j] = std::bit_cast<float>(0x7FC00000u);  // NaN
      }
      StoreChunk(p.out, to, place, chunk);
    }
  }
}

}  // namespace

KernelFunction CastVectorFunction(DType x, DType out) {
  if (out == DType::kQ8_0) {
    return MakeKernelFunction<&QuantizeVectorKernel<BlockQ8_0>>("quantize_q8_0_vector");
  }
  if (out == DType::kQ4_0) {
    return MakeKernelFunction<&QuantizeVectorKernel<BlockQ4_0>>("quantize_q4_0_vector");
  }
  if (x == DType::kQ8_0) {
    return MakeKernelFunction<&DequantizeVectorKernel<BlockQ8_0>>("dequantize_q8_0_vector");
  }
  if (x == DType::kQ4_0) {
    return MakeKernelFunction<&DequantizeVectorKernel<BlockQ4_0>>("dequantize_q4_0_vector");
  }
  return MakeKernelFunction<&CastVectorKernel>("cast_vector");
}
KernelFunction EmbeddingVectorFunction() {
  return MakeKernelFunction<&EmbeddingVectorKernel>("embedding_vector");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
