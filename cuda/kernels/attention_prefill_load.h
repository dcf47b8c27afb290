// What prefill attention brings into shared memory: the rows of q that a block works on, and tile
// after tile of keys and values. Source of the swizzle: any 8 rows of a matrix that ldmatrix reads
// must lie in different banks.
#pragma once

#include "cuda/device/chunk.h"
#include "cuda/device/convert.h"
#include "cuda/device/cp_async.h"
#include "cuda/device/elements.h"
#include "cuda/device/matrix.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/attention_prefill.h"
#include "cuda/kernels/attention_sequence.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// Where chunk `chunk` of row `row` lies among the chunks of its row. Rows of a multiple of 128
// bytes would all begin in the same bank, those of 64 more every other one.
template <int kDim>
__device__ inline int PrefillSwizzle(int row, int chunk) {
  static_assert(kDim % 32 == 0);
  if constexpr (kDim % 64 == 0) {
    return chunk ^ (row & 7);
  } else {
    return chunk ^ (row >> 1 & 3);
  }
}
template <int kDim, typename T>
__device__ inline T* PrefillChunk(T* tile, int row, int chunk) {
  return tile + row * kDim + PrefillSwizzle<kDim>(row, chunk) * 8;
}

// Eight elements, `columns` of which are there, as floats; zeros behind them.
__device__ inline Chunk LoadElements(const void* data, DType dtype, int64_t stride, int64_t first,
                                     int64_t columns, float factor) {
  Chunk chunk;
#pragma unroll
  for (int i = 0; i < kChunk; ++i) {
    float x = 0.0f;
    if (first + i < columns) {
      const int64_t at = (first + i) * stride;
      if (dtype == DType::kF16) {
        x = ToFloat(static_cast<const F16*>(data)[at]);
      } else if (dtype == DType::kBF16) {
        x = ToFloat(static_cast<const BF16*>(data)[at]);
      } else if (dtype == DType::kI8) {
        x = static_cast<float>(static_cast<const int8_t*>(data)[at]) * factor;
      } else {
        x = static_cast<const float*>(data)[at];
      }
    }
    chunk.x[i] = x;
  }
  return chunk;
}

template <typename T>
__device__ inline void StoreRounded(uint16_t* to, const Chunk& chunk) {
  Packed<16> words;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    words.words[i] = RoundPair<T>(chunk.x[2 * i], chunk.x[2 * i + 1]);
  }
  StorePacked(to, words);
}

__device__ inline const char* ElementAddress(const DeviceTensor& t, int64_t offset) {
  const int bytes = t.dtype == DType::kI8 ? 1 : t.dtype == DType::kF32 ? 4 : 2;
  return t.As<const char>() + offset * bytes;
}

// The keys of one sequence and head. kInt8: int8 elements become F16 as they are, and their scales
// are kept beside them; else they are multiplied with their scales and rounded to T.
template <typename T, int kDim, int kKeys, bool kInt8 = false>
class PrefillKeys {
 public:
  __device__ PrefillKeys(const AttentionPrefillParams& p, const PrefillBlock& block)
      : p_(p),
        batch_(block.batch),
        kv_head_(block.kv_head),
        cache_len_(block.cache_len),
        begin_(block.begin),
        end_(block.end) {}

  // Queues the copies of keys first .. first + kKeys - 1, those outside [begin, end) as zeros: what
  // nobody sees is not read. A warp copies a share of the keys. Of a paged cache `there` says which
  // of them the page table has; the others are zeros, too. `scales`: [K, V][kKeys], of kInt8.
  __device__ void Load(uint16_t* k, uint16_t* v, uint8_t* there, float* scales,
                       int32_t first) const {
    const AttentionParams& a = p_.a;
    const bool whole = first >= begin_ && first + kKeys <= end_;
    if (whole && !a.paged && p_.copy_k && p_.copy_v && first + kKeys <= cache_len_) {
      CopyWhole(k, a.k, first);
      CopyWhole(v, a.v, first);
      return;
    }
    // Every lane finds one key of the warp's share.
    const int lane = LaneId();
    const int32_t j = first + WarpId() * kShare + lane % kShare;
    const bool fresh = j >= cache_len_;
    uint64_t k_row = 0, v_row = 0;  // addresses; 0: zeros
    float k_factor = 1.0f, v_factor = 1.0f;
    if (j >= begin_ && j < end_) {
      if (fresh) {
        k_row = FreshAddress(a.k_new, j);
        v_row = FreshAddress(a.v_new, j);
      } else {
        int64_t plane = batch_, index = j;
        bool real = true;
        if (a.paged) {
          const Divisor::Result page = a.page_size.Divide(j);
          plane = a.page_table.At(batch_, page.quotient);
          index = page.remainder;
          real = plane >= 0 && plane < a.k.dims[0];
        }
        if (real) {
          k_row = CacheAddress(a.k, plane, index);
          v_row = CacheAddress(a.v, plane, index);
          if (a.k_scale.present()) {
            k_factor = Scale(a.k_scale, plane, index);
            v_factor = Scale(a.v_scale, plane, index);
          }
        }
      }
    }
    if (a.paged && lane < kShare) there[WarpId() * kShare + lane] = k_row != 0;
    if constexpr (kInt8) {
      if (lane < kShare) {
        scales[WarpId() * kShare + lane] = k_row != 0 ? k_factor : 0.0f;
        scales[kKeys + WarpId() * kShare + lane] = v_row != 0 ? v_factor : 0.0f;
      }
      ExpandShare(k, a.k, p_.vector_k, k_row);
      ExpandShare(v, a.v, p_.vector_v, v_row);
      return;
    }
    LoadShare(k, a.k, a.k_new, p_.copy_k, p_.copy_k_new, k_row, k_factor, fresh);
    LoadShare(v, a.v, a.v_new, p_.copy_v, p_.copy_v_new, v_row, v_factor, fresh);
  }

 private:
  static constexpr int kChunks = kDim / 8;
  static constexpr int kShare = kKeys / kPrefillWarps;  // keys of a warp
  static_assert(kShare <= 32 && kShare * kChunks % 32 == 0);

  __device__ uint64_t FreshAddress(const DeviceTensor& t, int32_t j) const {
    return reinterpret_cast<uint64_t>(
        ElementAddress(t, batch_ * t.strides[0] + kv_head_ * t.strides[1] +
                              static_cast<int64_t>(j - cache_len_) * t.strides[2]));
  }
  __device__ uint64_t CacheAddress(const DeviceTensor& t, int64_t plane, int64_t index) const {
    return reinterpret_cast<uint64_t>(
        ElementAddress(t, plane * t.strides[0] + kv_head_ * t.strides[1] + index * t.strides[2]));
  }
  __device__ float Scale(const DeviceTensor& t, int64_t plane, int64_t index) const {
    return t
        .As<const float>()[plane * t.strides[0] + kv_head_ * t.strides[1] + index * t.strides[2]];
  }

  __device__ void CopyWhole(uint16_t* tile, const DeviceTensor& t, int32_t first) const {
    const auto* from = t.As<const uint16_t>() + batch_ * t.strides[0] + kv_head_ * t.strides[1] +
                       (first + WarpId() * kShare) * t.strides[2];
    const int columns = static_cast<int>(t.dims[3]);
#pragma unroll
    for (int i = 0; i < kShare * kChunks / 32; ++i) {
      const int piece = i * 32 + LaneId(), row = piece / kChunks, chunk = piece % kChunks;
      const int valid = Valid(columns, chunk);
      CopyAsync<16>(PrefillChunk<kDim>(tile, WarpId() * kShare + row, chunk),
                    from + row * t.strides[2] + (valid > 0 ? chunk * 8 : 0), valid);
    }
  }

  // Bytes of a chunk that are there.
  __device__ static int Valid(int columns, int chunk) {
    const int rest = (columns - chunk * 8) * 2;
    return rest < 0 ? 0 : rest > 16 ? 16 : rest;
  }

  // row, factor, fresh: of the key that the lane has found.
  __device__ void LoadShare(uint16_t* tile, const DeviceTensor& cache, const DeviceTensor& added,
                            bool copy_cache, bool copy_added, uint64_t row, float factor,
                            bool fresh) const {
    const int columns = static_cast<int>(cache.dims[3]);
#pragma unroll 1
    for (int i = 0; i < kShare * kChunks / 32; ++i) {
      const int piece = i * 32 + LaneId(), source = piece / kChunks, chunk = piece % kChunks;
      const auto* from = reinterpret_cast<const uint16_t*>(Shuffle(row, source));
      const float times = Shuffle(factor, source);
      const bool is_fresh = Shuffle(static_cast<int>(fresh), source) != 0;
      uint16_t* to = PrefillChunk<kDim>(tile, WarpId() * kShare + source, chunk);
      const bool copy = is_fresh ? copy_added : copy_cache;
      const int valid = from == nullptr ? 0 : Valid(columns, chunk);
      if (copy || valid == 0) {
        // The address must be one even where nothing is read.
        const void* any = valid > 0 ? static_cast<const void*>(from + chunk * 8) : cache.data;
        CopyAsync<16>(to, any, valid);
      } else {
        const DeviceTensor& t = is_fresh ? added : cache;
        StoreRounded<T>(to, LoadElements(from, t.dtype, t.strides[3], chunk * 8, columns, times));
      }
    }
  }

  // The same of int8 elements, without their scales: every one is a number of f16.
  __device__ void ExpandShare(uint16_t* tile, const DeviceTensor& cache, bool vectors,
                              uint64_t row) const {
    const int columns = static_cast<int>(cache.dims[3]);
#pragma unroll 1
    for (int i = 0; i < kShare * kChunks / 32; ++i) {
      const int piece = i * 32 + LaneId(), source = piece / kChunks, chunk = piece % kChunks;
      const auto* from = reinterpret_cast<const int8_t*>(Shuffle(row, source));
      Packed<16> words = {};
      if (from != nullptr && vectors && columns - chunk * 8 >= 8) {
        const Packed<8> bytes = LoadPacked<8>(from + chunk * 8);
#pragma unroll
        for (int w = 0; w < 2; ++w) {
          words.words[2 * w] = BytesToF16<0, 1>(bytes.words[w], bytes.words[w]);
          words.words[2 * w + 1] = BytesToF16<2, 3>(bytes.words[w], bytes.words[w]);
        }
      } else if (from != nullptr) {
        const Chunk chunk_of =
            LoadElements(from, DType::kI8, cache.strides[3], chunk * 8, columns, 1.0f);
#pragma unroll
        for (int w = 0; w < 4; ++w) {
          words.words[w] = PackF16(chunk_of.x[2 * w], chunk_of.x[2 * w + 1]);
        }
      }
      StorePacked(PrefillChunk<kDim>(tile, WarpId() * kShare + source, chunk), words);
    }
  }

  const AttentionPrefillParams& p_;
  int64_t batch_, kv_head_;
  int32_t cache_len_, begin_, end_;
};

// A block's rows of q, divided by q_factor. To f16 every row is divided by the power of two that
// brings its largest finite magnitude to 2^14 or above, as matmul_round.cu does.
// kTerms = 2: what rounding leaves is a second number, kRows rows behind the first.
template <typename T, int kDim, int kRows, int kTerms>
__device__ inline void LoadQueries(const AttentionPrefillParams& p, const PrefillBlock& block,
                                   const PrefillShared& shared) {
  constexpr int kChunks = kDim / 8;
  constexpr int kLanes = kChunks <= 8 ? 8 : kChunks <= 16 ? 16 : 32;  // for a row
  constexpr int kAtOnce = 32 / kLanes;
  constexpr int kWarpRows = kRows / kPrefillWarps;
  const DeviceTensor& q = p.a.q;
  const int columns = static_cast<int>(q.dims[3]);
  const int chunk = LaneId() % kLanes;
  const int first = WarpId() * kWarpRows + LaneId() / kLanes;
#pragma unroll 1
  for (int row = first; row < first + kWarpRows; row += kAtOnce) {
    const PrefillRow info = shared.rows[row];
    const int64_t offset = block.q_batch * q.strides[0] + info.head * q.strides[1] +
                           (block.q_begin + info.query) * q.strides[2];
    uint16_t* to = PrefillChunk<kDim>(shared.memory, row, chunk < kChunks ? chunk : 0);
    const int rest = info.query < 0 ? 0 : columns - chunk * 8;
    if (kTerms == 1 && p.copy_q) {
      const int valid = rest < 0 ? 0 : rest > 8 ? 16 : rest * 2;
      if (chunk < kChunks) {
        CopyAsync<16>(to, q.As<const uint16_t>() + (valid > 0 ? offset + chunk * 8 : 0), valid);
      }
      if (chunk == 0) shared.q_factor[row] = 1.0f;
      continue;
    }
    Chunk x = {};
    if (p.vector_q && rest >= 8) {
      x = LoadChunk(q, offset, {chunk * 8, chunk * 8 + 4});
    } else if (rest > 0) {
      x = LoadElements(ElementAddress(q, offset), q.dtype, q.strides[3], chunk * 8, columns, 1.0f);
    }
    float factor = 1.0f;
    if constexpr (std::is_same_v<T, F16>) {
      float largest = 0.0f;
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {
        const float magnitude = Abs(x.x[i]);
        if (IsFinite(magnitude) && magnitude > largest) largest = magnitude;
      }
#pragma unroll
      for (int step = kLanes / 2; step > 0; step /= 2) {
        const float other = ShuffleXor(largest, step);
        if (other > largest) largest = other;
      }
      // 2^e <= largest < 2^(e+1): divided by 2^(e-14).
      int exponent = static_cast<int>(std::bit_cast<uint32_t>(largest) >> 23) - 127 - 14;
      if (exponent < -64) exponent = -64;  // what is as small counts for nothing in any score
      factor = std::bit_cast<float>(static_cast<uint32_t>(127 + exponent) << 23);
      const float inverse = std::bit_cast<float>(static_cast<uint32_t>(127 - exponent) << 23);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) x.x[i] *= inverse;
    }
    if (chunk < kChunks) StoreRounded<T>(to, x);
    if constexpr (kTerms == 2) {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) {  // what an infinity leaves is nothing
        x.x[i] = IsFinite(x.x[i]) ? x.x[i] - ToFloat(FromFloat<T>(x.x[i])) : 0.0f;
      }
      if (chunk < kChunks) StoreRounded<T>(to + kRows * kDim, x);
    }
    if (chunk == 0) shared.q_factor[row] = factor;
  }
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
