// Appending to a key/value cache, for rows that begin on 16 bytes and are rotated as a whole or not
// at all: one block per token, which computes its cosines and sines once for all heads (f64, in
// shared memory); then a thread moves 16 elements of a row of K, V or Q: loaded as vectors, rotated
// and rounded, quantised to int8 where the cache is (the largest magnitude of a row by shuffles
// among the threads that share it), stored as vectors. Every row is read once and written once.
//
// The bits are those of kv_append.cu, and of rope and then append.
#include "cuda/device/math.h"
#include "cuda/device/rotation_vector.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/kv_append.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

// A row of heads x columns elements as items of 16 elements, in whole warps.
struct Items {
  int per_head, count, warps;
};
__device__ Items ItemsOf(int64_t heads, int64_t columns) {
  const int per_head = static_cast<int>(columns / (2 * kChunk));
  const int count = static_cast<int>(heads) * per_head;
  return {per_head, count, (count + kWarpSize - 1) / kWarpSize};
}

// Where a token goes in the cache.
struct CachePlace {
  int64_t batch, token;
  bool inside;
  __device__ int64_t In(const DeviceTensor& t, int head) const {
    return batch * t.strides[0] + head * t.strides[1] + token * t.strides[2];
  }
};
__device__ CachePlace PlaceOfToken(const KvAppendParams& p, int64_t batch, int64_t token) {
  // A length below 0 stays below: brought to 0, it would overwrite the first rows.
  const int64_t at = p.cache_lens.At(batch, INT32_MIN, p.capacity, p.position) + token;
  CachePlace place = {batch, at, at >= 0 && at < p.capacity};
  if (place.inside && p.page_table.data != nullptr) {
    const Divisor::Result page = p.page_size.Divide(at);
    place.batch = p.page_table.At(batch, page.quotient);
    place.token = page.remainder;
    place.inside = place.batch >= 0 && place.batch < p.k_cache.dims[0];
  }
  return place;
}

__device__ float LargerMagnitude(float a, float b) { return a > b || IsNaN(a) ? a : b; }

// NaN if there is a value that is not finite.
__device__ float LargestMagnitude(const Chunk& chunk) {
  float largest = 0.0f;
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    const float x = chunk.x[j];
    largest = LargerMagnitude(largest, IsFinite(x) ? Abs(x) : std::bit_cast<float>(0x7FC00000u));
  }
  return largest;
}

__device__ Packed<8> QuantizeChunk(const Chunk& chunk, float scale) {
  Packed<8> bytes = {};
#pragma unroll
  for (int j = 0; j < kChunk; ++j) {
    float q = scale > 0.0f ? RoundToEven(Divide(chunk.x[j], scale)) : 0.0f;
    q = q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q;
    bytes.words[j / 4] |= (static_cast<uint32_t>(static_cast<int>(q)) & 0xFFu) << (8 * (j % 4));
  }
  return bytes;
}

// Item `i` of the token's row of K or V into the cache. The lanes of a warp call it together.
__device__ void Append(const KvAppendParams& p, const DeviceTensor& x, const DeviceTensor& cache,
                       const DeviceTensor& scales, bool rotates, RotationTable table, int64_t from,
                       const CachePlace& place, const Items& items, int i) {
  const bool active = i < items.count;
  const int head = i / items.per_head, item = i % items.per_head;
  const int64_t columns = x.dims[3];
  ChunkPair pair = {};
  if (active) {
    const int64_t row = from + head * x.strides[1];
    pair = {LoadChunk(x, row, FirstPlace(item)), LoadChunk(x, row, SecondPlace(item, columns))};
    if (rotates) {
      RotateChunks(table, p.rotation.half, item, columns, pair);
      // Rounded as if it had been rotated in place.
      pair = {RoundChunkTo(x.dtype, pair.a), RoundChunkTo(x.dtype, pair.b)};
    }
  }
  if (cache.dtype != DType::kI8) {
    if (!active) return;
    StoreChunk(cache, place.In(cache, head), FirstPlace(item), pair.a);
    StoreChunk(cache, place.In(cache, head), SecondPlace(item, columns), pair.b);
    return;
  }
  float largest = LargerMagnitude(LargestMagnitude(pair.a), LargestMagnitude(pair.b));
  for (int step = items.per_head / 2; step > 0; step /= 2) {
    largest = LargerMagnitude(largest, ShuffleXor(largest, step));
  }
  if (!active) return;
  const float scale = Divide(largest, 127.0f);
  if (item == 0) scales.As<float>()[place.In(scales, head)] = scale;
  int8_t* to = cache.As<int8_t>() + place.In(cache, head);
  StorePacked(to + FirstPlace(item).first, QuantizeChunk(pair.a, scale));
  StorePacked(to + SecondPlace(item, columns).first, QuantizeChunk(pair.b, scale));
}

__global__ void __launch_bounds__(kVectorThreads) KvAppendVectorKernel(const KvAppendParams p) {
  SharedCarver shared;
  const RotationTable table = TakeRotationTable(shared, p.rotation.pairs);
  const bool rotates = p.rotation.positions != nullptr;
  const Items keys = ItemsOf(p.k.dims[1], p.k.dims[3]), values = ItemsOf(p.v.dims[1], p.v.dims[3]);
  const Items queries = p.q.present() ? ItemsOf(p.q.dims[1], p.q.dims[3]) : Items{1, 0, 0};
  const int64_t skipped = p.q.present() ? p.k.dims[2] - p.q.dims[2] : 0;
  for (int64_t i = blockIdx.x; i < p.k.dims[0] * p.k.dims[2]; i += gridDim.x) {
    const Divisor::Result at = p.tokens.Divide(i);
    const int64_t batch = at.quotient, token = at.remainder;
    if (rotates) FillRotationTable(table, p.rotation, batch, token);
    SyncThreads();
    const CachePlace place = PlaceOfToken(p, batch, token);
    const int last = keys.warps + values.warps + (token >= skipped ? queries.warps : 0);
    for (int warp = WarpId(); warp < last; warp += kVectorThreads / kWarpSize) {
      if (warp < keys.warps) {
        if (!place.inside) continue;
        Append(p, p.k, p.k_cache, p.k_scale, rotates, table,
               batch * p.k.strides[0] + token * p.k.strides[2], place, keys,
               warp * kWarpSize + LaneId());
      } else if (warp < keys.warps + values.warps) {
        if (!place.inside) continue;
        Append(p, p.v, p.v_cache, p.v_scale, false, table,
               batch * p.v.strides[0] + token * p.v.strides[2], place, values,
               (warp - keys.warps) * kWarpSize + LaneId());
      } else {
        const int n = (warp - keys.warps - values.warps) * kWarpSize + LaneId();
        if (n >= queries.count) continue;
        const int head = n / queries.per_head, item = n % queries.per_head;
        const int64_t columns = p.q.dims[3], query = token - skipped;
        const int64_t from =
            batch * p.q.strides[0] + head * p.q.strides[1] + query * p.q.strides[2];
        const int64_t to =
            batch * p.q_out.strides[0] + head * p.q_out.strides[1] + query * p.q_out.strides[2];
        ChunkPair pair = {LoadChunk(p.q, from, FirstPlace(item)),
                          LoadChunk(p.q, from, SecondPlace(item, columns))};
        RotateChunks(table, p.rotation.half, item, columns, pair);
        StoreChunk(p.q_out, to, FirstPlace(item), pair.a);
        StoreChunk(p.q_out, to, SecondPlace(item, columns), pair.b);
      }
    }
    SyncThreads();
  }
}

}  // namespace

KernelFunction KvAppendVectorFunction() {
  return MakeKernelFunction<&KvAppendVectorKernel>("kv_append_vector");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
