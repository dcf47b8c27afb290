// Eight elements of a float type that is known at run time, as vectors: the branch on the type is
// the same for all threads of a warp. Loads are apart from conversions, so that several can be
// under way before the first is waited for.
#pragma once

#include "cuda/device/convert.h"
#include "cuda/device/memory.h"
#include "cuda/device/target.h"
#include "cuda/kernels/tensor.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

inline constexpr int kChunk = kVectorElements;
inline constexpr int kWarpChunks = 32;  // of a tile

struct RawChunk {
  Packed<16> first, second;  // second: of f32 only
};
struct Chunk {
  float x[kChunk];
};

// Where the elements of a chunk lie in their row: eight together, or two fours.
struct ChunkPlace {
  int64_t first, second;
  __device__ bool together() const { return second == first + 4; }
};

// A row is shared out in tiles of 256 elements, one chunk to each lane of a warp. 16-bit types take
// eight elements together: a warp then reads or writes 512 bytes at once. With f32 that would write
// every other half of a 32-byte sector, and then the others; two fours, 128 elements apart, fill
// sectors. `fours`: an operand is f32. The last tile, if it is not whole, has eights.
__device__ inline ChunkPlace PlaceOf(int64_t chunk, int64_t columns, bool fours) {
  const int64_t tile = chunk / kWarpChunks * kWarpChunks * kChunk;
  if (!fours || tile + kWarpChunks * kChunk > columns) {
    return {chunk * kChunk, chunk * kChunk + 4};
  }
  const int64_t first = tile + chunk % kWarpChunks * 4;
  return {first, first + kWarpChunks * 4};
}

// The vectors of a chunk of a row that begins `row` elements into the tensor, on 16 bytes.
template <CacheHint kHint = CacheHint::kNone>
__device__ inline RawChunk LoadRawF32(const DeviceTensor& tensor, int64_t row, ChunkPlace place) {
  const float* from = tensor.As<const float>() + row;
  return {LoadPacked<16, kHint>(from + place.first), LoadPacked<16, kHint>(from + place.second)};
}
template <CacheHint kHint = CacheHint::kNone>
__device__ inline Packed<16> LoadRaw16(const DeviceTensor& tensor, int64_t row, ChunkPlace place) {
  const uint16_t* from = tensor.As<const uint16_t>() + row;
  if (place.together()) return LoadPacked<16, kHint>(from + place.first);
  const Packed<8> a = LoadPacked<8, kHint>(from + place.first);
  const Packed<8> b = LoadPacked<8, kHint>(from + place.second);
  return {{a.words[0], a.words[1], b.words[0], b.words[1]}};
}
template <CacheHint kHint = CacheHint::kNone>
__device__ inline RawChunk LoadRawChunk(const DeviceTensor& tensor, int64_t row, ChunkPlace place) {
  if (tensor.dtype == DType::kF32) return LoadRawF32<kHint>(tensor, row, place);
  return {LoadRaw16<kHint>(tensor, row, place), {}};
}

__device__ inline Chunk ToFloats(const RawChunk& raw, DType dtype) {
  Chunk chunk;
  if (dtype == DType::kF32) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      chunk.x[i] = std::bit_cast<float>(raw.first.words[i]);
      chunk.x[i + 4] = std::bit_cast<float>(raw.second.words[i]);
    }
    return chunk;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t word = raw.first.words[i];
    const FloatPair pair = dtype == DType::kF16 ? UnpackF16(word) : UnpackBF16(word);
    chunk.x[2 * i] = pair.low;
    chunk.x[2 * i + 1] = pair.high;
  }
  return chunk;
}

template <CacheHint kHint = CacheHint::kNone>
__device__ inline Chunk LoadChunk(const DeviceTensor& tensor, int64_t row, ChunkPlace place) {
  return ToFloats(LoadRawChunk<kHint>(tensor, row, place), tensor.dtype);
}

// Two elements as the words of a 16-bit type.
__device__ inline uint32_t PackPair(DType dtype, float low, float high) {
  return dtype == DType::kF16 ? PackF16(low, high) : PackBF16(low, high);
}

__device__ inline void StoreChunk(const DeviceTensor& tensor, int64_t row, ChunkPlace place,
                                  const Chunk& chunk) {
  Packed<16> word;
  if (tensor.dtype == DType::kF32) {
    float* to = tensor.As<float>() + row;
#pragma unroll
    for (int i = 0; i < 4; ++i) word.words[i] = std::bit_cast<uint32_t>(chunk.x[i]);
    StorePacked(to + place.first, word);
#pragma unroll
    for (int i = 0; i < 4; ++i) word.words[i] = std::bit_cast<uint32_t>(chunk.x[4 + i]);
    StorePacked(to + place.second, word);
    return;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    word.words[i] = PackPair(tensor.dtype, chunk.x[2 * i], chunk.x[2 * i + 1]);
  }
  uint16_t* to = tensor.As<uint16_t>() + row;
  if (place.together()) {
    StorePacked(to + place.first, word);
  } else {
    StorePacked(to + place.first, Packed<8>{{word.words[0], word.words[1]}});
    StorePacked(to + place.second, Packed<8>{{word.words[2], word.words[3]}});
  }
}

// What a store as `dtype` leaves to be loaded.
__device__ inline Chunk RoundChunkTo(DType dtype, const Chunk& chunk) {
  if (dtype == DType::kF32) return chunk;
  RawChunk raw = {};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    raw.first.words[i] = PackPair(dtype, chunk.x[2 * i], chunk.x[2 * i + 1]);
  }
  return ToFloats(raw, dtype);
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
