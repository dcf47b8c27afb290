// RMSNorm, softmax and argmax for rows that begin on 16 bytes.
//
// registers: a row is read once into the registers of its threads - a warp up to 1024 elements, a
// block of 256 or 512 threads up to 16384 - reduced, and written; a fused residual is added on the
// way. One stream in and one out (rms_norm with residual: two and two), which is all the memory
// traffic there is: 4 bytes per element of 16-bit types. All loads of a row are under way together.
// Chunks of 8 elements go to neighbouring threads, so that every access of a warp is 512 contiguous
// bytes.
//
// online (softmax): longer rows, by a block: maximum and sum in one pass (Milakov & Gimelshein
// 2018), the result in a second; the row is read twice, the second time from the L2 cache if it
// fits there.
//
// argmax in two levels: every row is cut into pieces, so that a few long rows (the logits of a
// decoding step) fill the device; a block finds the largest element of a piece, a warp the largest
// of a row's. One read of x.
//
// Sums: per thread in order, then a butterfly over the warp, then the warps in order. The same bits
// every time.
#include "core/ops/online_softmax.h"
#include "cuda/device/chunk.h"
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/shared.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/rows_vector.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

// Of a block: only rows that take all chunks have the larger one.
constexpr int MostThreads(int chunks) {
  return chunks == kMaxRowChunks ? kMaxRowThreads : kVectorThreads;
}

// Which row this thread works on, and which of the row's threads it is. A row belongs to one warp
// or to the whole block.
struct RowThread {
  int thread, threads;
  int64_t first, step;  // rows
};
__device__ RowThread RowThreadOf(int row_threads) {
  const int thread = static_cast<int>(threadIdx.x);
  const int rows = static_cast<int>(blockDim.x) / row_threads;
  return {thread % row_threads, row_threads, int64_t{blockIdx.x} * rows + thread / row_threads,
          int64_t{gridDim.x} * rows};
}

__device__ float RowSum(const RowThread& t, float value, float* scratch) {
  return t.threads == kWarpSize ? WarpSum(value) : BlockSum(value, scratch);
}
__device__ float RowMax(const RowThread& t, float value, float* scratch) {
  return t.threads == kWarpSize ? WarpMax(value) : BlockMax(value, scratch);
}

// Chunk c of a thread, counted over the row; it is there if it begins before the row's end.
__device__ int IndexOf(const RowThread& t, int c) { return c * t.threads + t.thread; }
__device__ bool Has(const RowThread& t, int c, int columns) {
  return IndexOf(t, c) * kChunk < columns;
}
__device__ bool IsF32(const DeviceTensor& x) { return x.present() && x.dtype == DType::kF32; }

// The thread's chunks first, first + 1, ... of a row; what lies beyond the row is 0. All loads are
// under way before the first is waited for.
template <int kChunks>
__device__ void LoadRow(const DeviceTensor& x, int64_t offset, const RowThread& t, int columns,
                        bool fours, Chunk (&row)[kChunks], int first = 0) {
  if (x.dtype == DType::kF32) {
    RawChunk raw[kChunks] = {};
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (!Has(t, first + c, columns)) continue;
      raw[c] = LoadRawF32(x, offset, PlaceOf(IndexOf(t, first + c), columns, fours));
    }
#pragma unroll
    for (int c = 0; c < kChunks; ++c) row[c] = ToFloats(raw[c], DType::kF32);
    return;
  }
  Packed<16> raw[kChunks] = {};
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (!Has(t, first + c, columns)) continue;
    raw[c] = LoadRaw16(x, offset, PlaceOf(IndexOf(t, first + c), columns, fours));
  }
  const bool is_f16 = x.dtype == DType::kF16;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    row[c] = ToFloats({raw[c], {}}, is_f16 ? DType::kF16 : DType::kBF16);
  }
}

// kAdd: with a residual.
template <int kChunks, bool kAdd>
__global__ void __launch_bounds__(MostThreads(kChunks), kChunks == kMaxRowChunks ? 1 : 3)
    RmsNormRegistersKernel(const RmsNormVectorParams p) {
  SharedCarver shared;
  auto* scratch = shared.Take<float>(kWarpSize);
  const RowThread t = RowThreadOf(p.row_threads);
  const bool fours = IsF32(p.x) || IsF32(p.out) || IsF32(p.residual) || IsF32(p.sum);
  for (int64_t row = t.first; row < p.rows; row += t.step) {
    Chunk held[kChunks];
    LoadRow(p.x, p.rows_of.Offset(p.x, row), t, p.columns, fours, held);
    if constexpr (kAdd) {
      constexpr int kAtOnce = kChunks < 2 ? kChunks : 2;  // more would need too many registers
      const int64_t residual = p.rows_of.Offset(p.residual, row);
      const int64_t sum = p.rows_of.Offset(p.sum, row);
#pragma unroll
      for (int first = 0; first < kChunks; first += kAtOnce) {
        Chunk other[kAtOnce];
        LoadRow(p.residual, residual, t, p.columns, fours, other, first);
#pragma unroll
        for (int c = 0; c < kAtOnce; ++c) {
          Chunk& chunk = held[first + c];
          if (!Has(t, first + c, p.columns)) continue;
#pragma unroll
          for (int j = 0; j < kChunk; ++j) chunk.x[j] += other[c].x[j];
          chunk = RoundChunkTo(p.sum.dtype, chunk);
          StoreChunk(p.sum, sum, PlaceOf(IndexOf(t, first + c), p.columns, fours), chunk);
        }
      }
    }
    float squares = 0.0f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (!Has(t, c, p.columns)) continue;
#pragma unroll
      for (int j = 0; j < kChunk; ++j) squares = MultiplyAdd(held[c].x[j], held[c].x[j], squares);
    }
    squares = RowSum(t, squares, scratch);
    const float inverse = 1.0f / Sqrt(squares / static_cast<float>(p.columns) + p.eps);
    const int64_t out = p.rows_of.Offset(p.out, row);
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (!Has(t, c, p.columns)) continue;
      const ChunkPlace place = PlaceOf(IndexOf(t, c), p.columns, fours);
      const Chunk weight = LoadChunk<CacheHint::kReadOnly>(p.weight, 0, place);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) held[c].x[j] = held[c].x[j] * inverse * weight.x[j];
      StoreChunk(p.out, out, place, held[c]);
    }
  }
}

__device__ float LargerOf(float max, float value) {
  return value > max || IsNaN(value) ? value : max;  // NaN stays: nothing is larger
}

template <int kChunks>
__global__ void __launch_bounds__(MostThreads(kChunks), kChunks == kMaxRowChunks ? 1 : 3)
    SoftmaxRegistersKernel(const SoftmaxVectorParams p) {
  SharedCarver shared;
  auto* scratch = shared.Take<float>(kWarpSize);
  const RowThread t = RowThreadOf(p.row_threads);
  const int columns = static_cast<int>(p.columns);
  const bool fours = IsF32(p.x) || IsF32(p.out);
  for (int64_t row = t.first; row < p.rows; row += t.step) {
    Chunk held[kChunks];
    LoadRow(p.x, row * p.x.strides[0], t, columns, fours, held);
    float max = kNegInf;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (!Has(t, c, columns)) continue;
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        held[c].x[j] *= p.scale;
        max = LargerOf(max, held[c].x[j]);
      }
    }
    max = RowMax(t, max, scratch);
    float sum = 0.0f;
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (!Has(t, c, columns)) continue;
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        held[c].x[j] = ExpDiff(held[c].x[j], max);
        sum += held[c].x[j];
      }
    }
    sum = RowSum(t, sum, scratch);
    const float normalizer = SoftmaxState{max, sum}.Normalizer();
#pragma unroll
    for (int c = 0; c < kChunks; ++c) {
      if (!Has(t, c, columns)) continue;
#pragma unroll
      for (int j = 0; j < kChunk; ++j) held[c].x[j] *= normalizer;
      StoreChunk(p.out, row * p.out.strides[0], PlaceOf(IndexOf(t, c), columns, fours), held[c]);
    }
  }
}

__global__ void __launch_bounds__(kVectorThreads) SoftmaxOnlineKernel(const SoftmaxVectorParams p) {
  SharedCarver shared;
  auto* scratch = shared.Take<float>(kWarpSize);
  const int64_t chunks = p.columns / kChunk;
  const bool fours = IsF32(p.x) || IsF32(p.out);
  for (int64_t row = blockIdx.x; row < p.rows; row += gridDim.x) {
    const int64_t x = row * p.x.strides[0], out = row * p.out.strides[0];
    SoftmaxState state;
    for (int64_t i = threadIdx.x; i < chunks; i += kVectorThreads) {
      const ChunkPlace place = PlaceOf(i, p.columns, fours);
      Chunk chunk = LoadChunk(p.x, x, place);
      SoftmaxState own;
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        chunk.x[j] *= p.scale;
        own.max = LargerOf(own.max, chunk.x[j]);
      }
#pragma unroll
      for (int j = 0; j < kChunk; ++j) own.sum += ExpDiff(chunk.x[j], own.max);
      state.Merge(own);
    }
    const float max = BlockMax(state.max, scratch);
    state.sum =
        BlockSum(state.max == kNegInf ? state.sum : state.sum * ExpDiff(state.max, max), scratch);
    const float normalizer = state.Normalizer();
    for (int64_t i = threadIdx.x; i < chunks; i += kVectorThreads) {
      const ChunkPlace place = PlaceOf(i, p.columns, fours);
      Chunk chunk = LoadChunk(p.x, x, place);
#pragma unroll
      for (int j = 0; j < kChunk; ++j) {
        chunk.x[j] = ExpDiff(p.scale * chunk.x[j], max) * normalizer;
      }
      StoreChunk(p.out, out, place, chunk);
    }
  }
}

// Orders floats as integers, NaN below everything, -0 as +0; then the lower index first.
__device__ uint64_t ArgMaxKey(float value, int64_t index) {
  const uint32_t bits = std::bit_cast<uint32_t>(value + 0.0f);
  const uint32_t ordered = bits >> 31 ? ~bits : bits | 0x80000000u;
  return uint64_t{ordered} << 32 | (0xFFFFFFFFu - static_cast<uint32_t>(index));
}

// The largest element that one thread has seen, the first of equals; it sees them in order.
struct Largest {
  float value = kNegInf;
  int64_t index = -1;  // none but NaN so far
  __device__ void See(float x, int64_t n) {
    if (x > value || (index < 0 && !IsNaN(x))) {
      value = x;
      index = n;
    }
  }
  __device__ uint64_t Key() const { return index < 0 ? 0 : ArgMaxKey(value, index); }
};

__device__ uint64_t LargerKey(uint64_t a, uint64_t b) { return a > b ? a : b; }

__global__ void __launch_bounds__(kVectorThreads) ArgMaxPiecesKernel(const ArgMaxSplitParams p) {
  SharedCarver shared;
  auto* scratch = shared.Take<uint64_t>(kWarpSize);
  const Divisor splits(p.splits);
  for (int64_t i = blockIdx.x; i < p.rows * p.splits; i += gridDim.x) {
    const Divisor::Result at = splits.Divide(i);
    const int64_t row = at.quotient * p.x.strides[0];
    const int64_t begin = at.remainder * p.piece_columns;
    const int64_t end = begin + p.piece_columns < p.columns ? begin + p.piece_columns : p.columns;
    Largest largest;
    for (int64_t n = begin + int64_t{threadIdx.x} * kChunk; n < end; n += kVectorThreads * kChunk) {
      if (n + kChunk <= end) {
        const Chunk chunk = LoadChunk<CacheHint::kReadOnly>(p.x, row, {n, n + 4});
#pragma unroll
        for (int j = 0; j < kChunk; ++j) largest.See(chunk.x[j], n + j);
      } else {
        for (int64_t m = n; m < end; ++m) largest.See(LoadElement(p.x, row + m), m);
      }
    }
    const uint64_t key = BlockReduce(largest.Key(), scratch, LargerKey);
    if (threadIdx.x == 0) p.keys[i] = key;
  }
}

__global__ void __launch_bounds__(kVectorThreads) ArgMaxMergeKernel(const ArgMaxSplitParams p) {
  const RowThread t = RowThreadOf(kWarpSize);
  for (int64_t row = t.first; row < p.rows; row += t.step) {
    uint64_t best = 0;
    for (int i = t.thread; i < p.splits; i += kWarpSize) {
      best = LargerKey(best, p.keys[row * p.splits + i]);
    }
    best = WarpReduce(best, LargerKey);
    const uint32_t index = best == 0 ? 0 : 0xFFFFFFFFu - static_cast<uint32_t>(best);
    if (t.thread == 0) p.out.As<int32_t>()[row * p.out.strides[0]] = static_cast<int32_t>(index);
  }
}

}  // namespace

KernelFunction RmsNormRegistersFunction(int chunks, bool add) {
  const auto of = [add]<int kChunks>() {
    return add ? MakeKernelFunction<&RmsNormRegistersKernel<kChunks, true>>(
                     "add_rms_norm_registers")
               : MakeKernelFunction<&RmsNormRegistersKernel<kChunks, false>>("rms_norm_registers");
  };
  return chunks == 1   ? of.template operator()<1>()
         : chunks == 2 ? of.template operator()<2>()
                       : of.template operator()<4>();
}
KernelFunction SoftmaxRegistersFunction(int chunks) {
  switch (chunks) {
    case 1:
      return MakeKernelFunction<&SoftmaxRegistersKernel<1>>("softmax_registers");
    case 2:
      return MakeKernelFunction<&SoftmaxRegistersKernel<2>>("softmax_registers");
    default:
      return MakeKernelFunction<&SoftmaxRegistersKernel<4>>("softmax_registers");
  }
}
KernelFunction SoftmaxOnlineFunction() {
  return MakeKernelFunction<&SoftmaxOnlineKernel>("softmax_online");
}
KernelFunction ArgMaxPiecesFunction() {
  return MakeKernelFunction<&ArgMaxPiecesKernel>("argmax_pieces");
}
KernelFunction ArgMaxMergeFunction() {
  return MakeKernelFunction<&ArgMaxMergeKernel>("argmax_merge");
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
