#include <utility>

#include "core/dtype.h"
#include "cuda/conformance/primitives.h"
#include "cuda/device/bulk_copy.h"
#include "cuda/device/convert.h"
#include "cuda/device/cp_async.h"
#include "cuda/device/integer.h"
#include "cuda/device/math.h"
#include "cuda/device/matrix.h"
#include "cuda/device/mbarrier.h"
#include "cuda/device/memory.h"
#include "cuda/device/shared.h"
#include "cuda/device/sync.h"
#include "cuda/device/warp.h"
#include "cuda/device/warpgroup.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

__device__ inline int Thread() { return static_cast<int>(threadIdx.x); }

template <typename T>
__global__ void __launch_bounds__(32) MultiplyKernel(const PrimitiveParams p) {
  const int64_t block = blockIdx.x;
  const auto* a = static_cast<const T*>(p.a) + block * 256;
  const auto* b = static_cast<const T*>(p.b) + block * 128;
  const int group = LaneId() / 4, pair = LaneId() % 4 * 2;
  uint32_t x[4], y[2];
#pragma unroll
  for (int r = 0; r < 4; ++r) {
    const T* at = a + (group + r % 2 * 8) * 16 + pair + r / 2 * 8;
    x[r] = PackPair(at[0], at[1]);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const T* at = b + group * 16 + pair + r * 8;
    y[r] = PackPair(at[0], at[1]);
  }
  float d[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    d[i] = static_cast<const float*>(p.c)[block * 128 + (group + i / 2 * 8) * 8 + pair + i % 2];
  }
  MultiplyAccumulate16x8x16<T>(d, x, y);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    static_cast<float*>(p.out)[block * 128 + (group + i / 2 * 8) * 8 + pair + i % 2] = d[i];
  }
}

__global__ void __launch_bounds__(32) MultiplyIntegerKernel(const PrimitiveParams p) {
  const int64_t block = blockIdx.x;
  const auto* a = static_cast<const uint32_t*>(p.a) + block * 128;  // four int8 each
  const auto* b = static_cast<const uint32_t*>(p.b) + block * 64;
  const int group = LaneId() / 4, quad = LaneId() % 4;
  uint32_t x[4], y[2];
#pragma unroll
  for (int r = 0; r < 4; ++r) x[r] = a[(group + r % 2 * 8) * 8 + quad + r / 2 * 4];
#pragma unroll
  for (int r = 0; r < 2; ++r) y[r] = b[group * 8 + quad + r * 4];
  int32_t d[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    d[i] =
        static_cast<const int32_t*>(p.c)[block * 128 + (group + i / 2 * 8) * 8 + quad * 2 + i % 2];
  }
  MultiplyAccumulate16x8x32(d, x, y);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    static_cast<int32_t*>(p.out)[block * 128 + (group + i / 2 * 8) * 8 + quad * 2 + i % 2] = d[i];
  }
}

template <int kCount, bool kTransposed>
__global__ void __launch_bounds__(32) LoadMatrixKernel(const PrimitiveParams p) {
  SharedCarver shared;
  auto* tile = shared.Take<uint16_t>(64 * kCount);
  for (int i = Thread(); i < 64 * kCount; i += 32) {
    tile[i] = static_cast<const uint16_t*>(p.a)[i];
  }
  SyncWarp();
  uint32_t registers[kCount];
  LoadMatrices<kCount, kTransposed>(registers, tile + Thread() % (8 * kCount) * 8);
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    static_cast<uint32_t*>(p.out)[Thread() * kCount + i] = registers[i];
  }
}

template <int kCount, bool kTransposed>
__global__ void __launch_bounds__(32) StoreMatrixKernel(const PrimitiveParams p) {
  SharedCarver shared;
  auto* tile = shared.Take<uint16_t>(64 * kCount);
  uint32_t registers[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    registers[i] = static_cast<const uint32_t*>(p.a)[Thread() * kCount + i];
  }
  StoreMatrices<kCount, kTransposed>(tile + Thread() % (8 * kCount) * 8, registers);
  SyncWarp();
  for (int i = Thread(); i < 64 * kCount; i += 32) {
    static_cast<uint16_t*>(p.out)[i] = tile[i];
  }
}

template <int kBytes>
__global__ void __launch_bounds__(128) CopyAsyncKernel(const PrimitiveParams p) {
  SharedCarver shared;
  auto* tile = shared.Take<uint32_t>(128 * kBytes / 4);
  CopyAsync<kBytes>(tile + Thread() * (kBytes / 4),
                    static_cast<const char*>(p.a) + Thread() * kBytes, Thread() % (kBytes + 1));
  CopyAsyncCommit();
  CopyAsyncWait<0>();
  SyncThreads();
  for (int i = Thread(); i < 128 * kBytes / 4; i += 128) {
    static_cast<uint32_t*>(p.out)[i] = tile[128 * kBytes / 4 - 1 - i];
  }
}

__global__ void __launch_bounds__(64) CopyAsyncArriveKernel(const PrimitiveParams p) {
  SharedCarver shared;
  auto* tile = shared.Take<uint32_t>(128);
  auto* full = shared.Take<Mbarrier>(1);
  if (Thread() == 0) MbarrierInit(full, 32);
  SyncThreads();
  if (Thread() < 32) {
    CopyAsync<16>(tile + Thread() * 4, static_cast<const uint32_t*>(p.a) + Thread() * 4);
    CopyAsyncArrive(full);
    CopyAsyncWait<0>();
  } else {
    MbarrierWait(full, 0);
    for (int i = Thread() - 32; i < 128; i += 32) static_cast<uint32_t*>(p.out)[i] = tile[i];
  }
}

template <int kRank>
__global__ void __launch_bounds__(128) TensorLoadKernel(const __grid_constant__ PrimitiveParams p) {
  SharedCarver shared;
  auto* tile = shared.Take<uint32_t>(p.v[5] / 4, 1024);
  auto* full = shared.Take<Mbarrier>(1);
  if (Thread() == 0) {
    PrefetchTensorMap(&p.map);
    MbarrierInit(full, 1);
    FenceMbarrierInit();
    MbarrierArriveExpect(full, static_cast<uint32_t>(p.v[5]));
    int32_t at[kRank];
#pragma unroll
    for (int i = 0; i < kRank; ++i) at[i] = p.v[static_cast<size_t>(i)];
    TensorLoad(tile, &p.map, at, full);
  }
  SyncThreads();
  MbarrierWait(full, 0);
  for (int i = Thread(); i < p.v[5] / 4; i += 128) static_cast<uint32_t*>(p.out)[i] = tile[i];
}

template <int kRank>
__global__ void __launch_bounds__(128)
    TensorStoreKernel(const __grid_constant__ PrimitiveParams p) {
  SharedCarver shared;
  auto* tile = shared.Take<uint32_t>(p.v[5] / 4, 1024);
  for (int i = Thread(); i < p.v[5] / 4; i += 128) tile[i] = static_cast<const uint32_t*>(p.a)[i];
  FenceProxyAsync();
  SyncThreads();
  if (Thread() == 0) {
    int32_t at[kRank];
#pragma unroll
    for (int i = 0; i < kRank; ++i) at[i] = p.v[static_cast<size_t>(i)];
    TensorStore(&p.map, at, tile);
    BulkCommit();
    BulkWait<0>();
  }
}

__global__ void __launch_bounds__(64) BulkLoadKernel(const PrimitiveParams p) {
  SharedCarver shared;
  auto* tile = shared.Take<uint32_t>(p.v[5] / 4);
  auto* full = shared.Take<Mbarrier>(1);
  if (Thread() == 0) {
    MbarrierInit(full, 1);
    FenceMbarrierInit();
    MbarrierArriveExpect(full, static_cast<uint32_t>(p.v[5]));
    BulkLoad(tile, p.a, static_cast<uint32_t>(p.v[5]), full);
  }
  SyncThreads();
  MbarrierWait(full, 0);
  for (int i = Thread(); i < p.v[5] / 4; i += 64) static_cast<uint32_t*>(p.out)[i] = tile[i];
}

__global__ void __launch_bounds__(64) BulkStoreKernel(const PrimitiveParams p) {
  SharedCarver shared;
  auto* tile = shared.Take<uint32_t>(p.v[5] / 4);
  for (int i = Thread(); i < p.v[5] / 4; i += 64) tile[i] = static_cast<const uint32_t*>(p.a)[i];
  FenceProxyAsync();
  SyncThreads();
  if (Thread() == 0) {
    BulkStore(p.out, tile, static_cast<uint32_t>(p.v[5]));
    BulkCommit();
    BulkWait<0>();
  }
}

__global__ void __launch_bounds__(64) BulkStoreReuseKernel(const PrimitiveParams p) {
  SharedCarver shared;
  const int words = p.v[5] / 4;
  auto* tile = shared.Take<uint32_t>(words);
  for (int round = 0; round < p.v[0]; ++round) {
    for (int i = Thread(); i < words; i += 64) {
      tile[i] = static_cast<const uint32_t*>(p.a)[round * words + i];
    }
    FenceProxyAsync();
    SyncThreads();
    if (Thread() == 0) {
      BulkStore(static_cast<uint32_t*>(p.out) + round * words, tile, static_cast<uint32_t>(p.v[5]));
      BulkCommit();
      BulkWaitRead<0>();
    }
    SyncThreads();
  }
}

// Warp 0 puts round * 64 + i into slot round % 3, warps 1 and 2 add the slots up.
__global__ void __launch_bounds__(96) MbarrierRingKernel(const PrimitiveParams p) {
  constexpr int kSlots = 3;
  SharedCarver shared;
  auto* ring = shared.Take<int32_t>(kSlots * 64);
  auto* full = shared.Take<Mbarrier>(kSlots);
  auto* empty = shared.Take<Mbarrier>(kSlots);
  if (Thread() == 0) {
    for (int s = 0; s < kSlots; ++s) {
      MbarrierInit(&full[s], 32);
      MbarrierInit(&empty[s], 64);
    }
  }
  SyncThreads();
  int32_t sum = 0;
  for (int round = 0; round < p.v[0]; ++round) {
    const int slot = round % kSlots;
    const auto parity = static_cast<uint32_t>(round / kSlots % 2);
    if (Thread() < 32) {
      if (round >= kSlots) MbarrierWait(&empty[slot], parity ^ 1);
      ring[slot * 64 + Thread()] = round * 64 + Thread();
      ring[slot * 64 + 32 + Thread()] = round * 64 + 32 + Thread();
      MbarrierArrive(&full[slot]);
    } else {
      MbarrierWait(&full[slot], parity);
      sum += ring[slot * 64 + Thread() - 32];
      MbarrierArrive(&empty[slot]);
    }
  }
  if (Thread() >= 32) static_cast<int32_t*>(p.out)[Thread() - 32] = sum;
  SyncThreads();
  if (Thread() == 0) {
    for (int s = 0; s < kSlots; ++s) {
      MbarrierInvalidate(&full[s]);
      MbarrierInvalidate(&empty[s]);
    }
  }
}

__global__ void __launch_bounds__(32) WarpKernel(const PrimitiveParams p) {
  const auto lane = static_cast<uint32_t>(LaneId());
  const uint32_t x = lane * lane + 7;
  auto* out = static_cast<uint32_t*>(p.out) + lane * 12;
  out[0] = Shuffle(x, 5);
  out[1] = Shuffle(x, static_cast<int>(31 - lane));
  out[2] = ShuffleXor(x, 9);
  out[3] = ShuffleUp(x, 3);
  out[4] = ShuffleDown(x, 4);
  out[5] = Ballot(lane % 3 == 0);
  out[6] = Any(lane == 40) ? 1 : 0;
  out[7] = All(x > 6) ? 1 : 0;
  // The two halves of the warp by themselves.
  const uint32_t half = lane < 16 ? 0x0000FFFFu : 0xFFFF0000u;
  out[8] = ShuffleXor(x, 1, half);
  out[9] = Ballot(lane % 2 == 0, half);
  out[10] = WarpSum(x);
  out[11] = static_cast<uint32_t>(WarpMax(static_cast<float>(31 - lane)));
}

// Two warps hand over to the other two and back, each time through a barrier of their own.
__global__ void __launch_bounds__(128) NamedBarriersKernel(const PrimitiveParams p) {
  SharedCarver shared;
  auto* board = shared.Take<uint32_t>(128);
  const int t = Thread();
  if (t < 64) {
    board[t] = static_cast<uint32_t>(t) * 3;
    NamedBarrierArrive(1, 128);
    NamedBarrierSync(2, 128);
    static_cast<uint32_t*>(p.out)[t] = board[64 + (t + 17) % 64];
  } else {
    NamedBarrierSync(1, 128);
    board[t] = board[(t + 5) % 64] + 1;
    NamedBarrierArrive(2, 128);
    static_cast<uint32_t*>(p.out)[t] = board[t];
  }
}

template <int kBytes, CacheHint kLoad, CacheHint kStore>
__device__ inline void CopyPacked(const PrimitiveParams& p, int64_t offset) {
  const int64_t at = offset + Thread() * kBytes;
  StorePacked<kStore>(static_cast<char*>(p.out) + at,
                      LoadPacked<kBytes, kLoad>(static_cast<const char*>(p.a) + at));
}

__global__ void __launch_bounds__(128) VectorAccessKernel(const PrimitiveParams p) {
  CopyPacked<16, CacheHint::kReadOnly, CacheHint::kStreaming>(p, 0);
  CopyPacked<8, CacheHint::kStreaming, CacheHint::kNone>(p, 128 * 16);
  CopyPacked<4, CacheHint::kNone, CacheHint::kStreaming>(p, 128 * 24);
}

__global__ void __launch_bounds__(128) AtomicsKernel(const PrimitiveParams p) {
  auto* words = static_cast<uint32_t*>(p.out);
  auto* wide = reinterpret_cast<uint64_t*>(words + 8);
  auto* numbers = reinterpret_cast<float*>(words + 12);
  const uint32_t id = blockIdx.x * 128 + threadIdx.x;
  AtomicAdd(&words[0], 3);
  AtomicAdd<Scope::kSystem>(reinterpret_cast<int32_t*>(&words[1]), -2);
  AtomicMax(&words[2], id);
  AtomicMax(reinterpret_cast<int32_t*>(&words[3]), static_cast<int32_t>(id) - 4000);
  AtomicInc(&words[4], 99);
  if (AtomicCompareExchange(&words[5], 0, id + 1) == 0) AtomicAdd(&words[6], 1);
  // Of this block alone: nobody else touches it.
  if (blockIdx.x == 7) AtomicAdd<Scope::kBlock>(&words[7], threadIdx.x);
  AtomicAdd(&wide[0], uint64_t{1} << 33);
  AtomicMax(&wide[1], uint64_t{id} << 32);
  AtomicAdd(&numbers[0], 0.5f);  // exact whatever the order
}

__global__ void __launch_bounds__(128) MathKernel(const PrimitiveParams p) {
  const int i = static_cast<int>(blockIdx.x) * 128 + Thread();
  if (i >= p.v[0]) return;
  const float x = static_cast<const float*>(p.a)[i];
  auto* out = static_cast<float*>(p.out) + int64_t{i} * 8;
  out[0] = Exp(x);
  out[1] = Log(Abs(x));
  out[2] = Tanh(x);
  out[3] = Sqrt(Abs(x));
  const SinCosF64 both = SinCosPiF64(x);
  out[4] = static_cast<float>(both.sine);
  out[5] = static_cast<float>(both.cosine);
  const uint32_t half = RoundPair<F16>(x, 0.5f), brain = RoundPair<BF16>(0.5f, x);
  out[6] = ToFloat(F16{static_cast<uint16_t>(half)});
  out[7] = ToFloat(BF16{static_cast<uint16_t>(brain >> 16)});
}

__global__ void __launch_bounds__(128) IntegerKernel(const PrimitiveParams p) {
  const auto* in = static_cast<const uint32_t*>(p.a) + Thread() * 3;
  auto* out = static_cast<uint32_t*>(p.out) + Thread() * 3;
  out[0] = static_cast<uint32_t>(DotProduct4(in[0], in[1], static_cast<int32_t>(in[2])));
  out[1] = FunnelShiftRight(in[0], in[1], in[2]);
  out[2] = std::bit_cast<uint32_t>(UnpackHalf(static_cast<uint16_t>(in[0] & 0xFBFFu)));
}

template <int... kPair>
__device__ inline void StoreBytesAsF16(uint32_t x, uint32_t y, uint32_t* out,
                                       std::integer_sequence<int, kPair...>) {
  ((out[kPair] = BytesToF16<kPair / 4, kPair % 4>(x, y)), ...);
}
__global__ void __launch_bounds__(128) BytesToF16Kernel(const PrimitiveParams p) {
  const int i = static_cast<int>(blockIdx.x) * 128 + Thread();
  const auto* in = static_cast<const uint32_t*>(p.a) + i * 2;
  StoreBytesAsF16(in[0], in[1], static_cast<uint32_t*>(p.out) + i * 16,
                  std::make_integer_sequence<int, 16>());
}

template <typename T, int kN, bool kRegisters, bool kTransposeA, bool kTransposeB>
__global__ void __launch_bounds__(128) WarpgroupKernel(const PrimitiveParams p) {
  SharedCarver shared;
  const int t = Thread();
  auto* a = shared.Take<uint32_t>(p.v[0] / 4, 1024);
  auto* b = shared.Take<uint32_t>(p.v[1] / 4, 1024);
  if (!kRegisters) {
    for (int i = t; i < p.v[0] / 4; i += 128) a[i] = static_cast<const uint32_t*>(p.a)[i];
  }
  for (int i = t; i < p.v[1] / 4; i += 128) b[i] = static_cast<const uint32_t*>(p.b)[i];
  FenceProxyAsync();
  SyncThreads();
  const auto swizzle = static_cast<Swizzle>(p.v[5]);
  const int depth = 16 * p.v[2];
  float d[kN / 2];
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) d[i] = 0.0f;
  for (int step = 0; step < p.v[2]; ++step) {
    const MatrixDescriptor db =
        DescribeMatrix(reinterpret_cast<const char*>(b) + step * p.v[4], swizzle,
                       static_cast<uint32_t>(p.v[8]), static_cast<uint32_t>(p.v[9]));
    if constexpr (kRegisters) {
      const int row = t / 32 * 16 + t % 32 / 4, column = 16 * step + t % 4 * 2;
      uint32_t x[4];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const T* at = static_cast<const T*>(p.a) + (row + r % 2 * 8) * depth + column + r / 2 * 8;
        x[r] = PackPair(at[0], at[1]);
      }
      WarpgroupFence();
      WarpgroupMultiply<T, kN, kTransposeB>(d, x, db, step > 0);
    } else {
      const MatrixDescriptor da =
          DescribeMatrix(reinterpret_cast<const char*>(a) + step * p.v[3], swizzle,
                         static_cast<uint32_t>(p.v[6]), static_cast<uint32_t>(p.v[7]));
      WarpgroupFence();
      WarpgroupMultiply<T, kN, kTransposeA, kTransposeB>(d, da, db, step > 0);
    }
    WarpgroupCommit();
    WarpgroupWait<0>(d);
  }
#pragma unroll
  for (int i = 0; i < kN / 2; ++i) {
    const int row = t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8;
    const int column = i / 4 * 8 + t % 4 * 2 + i % 2;
    static_cast<float*>(p.out)[row * kN + column] = d[i];
  }
}

template <typename T, bool kRegisters, bool kTransposeA, bool kTransposeB>
KernelFunction Warpgroup64() {
  return MakeKernelFunction<&WarpgroupKernel<T, 64, kRegisters, kTransposeA, kTransposeB>>("wgmma");
}

template <typename T>
KernelFunction WarpgroupOf64(const WarpgroupShape& s) {
  if (s.a_in_registers) {
    return s.transpose_b ? Warpgroup64<T, true, false, true>()
                         : Warpgroup64<T, true, false, false>();
  }
  if (s.transpose_a) {
    return s.transpose_b ? Warpgroup64<T, false, true, true>()
                         : Warpgroup64<T, false, true, false>();
  }
  return s.transpose_b ? Warpgroup64<T, false, false, true>()
                       : Warpgroup64<T, false, false, false>();
}

template <int kN>
KernelFunction WarpgroupUpTo(const WarpgroupShape& s) {
  if (s.n == kN) {
    return s.a_in_registers
               ? MakeKernelFunction<&WarpgroupKernel<BF16, kN, true, false, false>>("wgmma")
               : MakeKernelFunction<&WarpgroupKernel<BF16, kN, false, false, false>>("wgmma");
  }
  if constexpr (kN > 8) {
    return WarpgroupUpTo<kN - 8>(s);
  } else {
    return {};
  }
}

}  // namespace

KernelFunction WarpgroupFunction(const WarpgroupShape& s) {
  if (s.n == 64) return s.bf16 ? WarpgroupOf64<BF16>(s) : WarpgroupOf64<F16>(s);
  if (!s.bf16 || s.transpose_a || s.transpose_b) return {};
  return WarpgroupUpTo<256>(s);
}

KernelFunction PrimitiveFunction(Primitive primitive) {
  switch (primitive) {
    case Primitive::kMultiplyF16:
      return MakeKernelFunction<&MultiplyKernel<F16>>("mma_f16");
    case Primitive::kMultiplyBF16:
      return MakeKernelFunction<&MultiplyKernel<BF16>>("mma_bf16");
    case Primitive::kMultiplyI8:
      return MakeKernelFunction<&MultiplyIntegerKernel>("mma_s8");
    case Primitive::kLoadMatrix1:
      return MakeKernelFunction<&LoadMatrixKernel<1, false>>("ldmatrix_x1");
    case Primitive::kLoadMatrix2:
      return MakeKernelFunction<&LoadMatrixKernel<2, false>>("ldmatrix_x2");
    case Primitive::kLoadMatrix4:
      return MakeKernelFunction<&LoadMatrixKernel<4, false>>("ldmatrix_x4");
    case Primitive::kLoadMatrix1Transposed:
      return MakeKernelFunction<&LoadMatrixKernel<1, true>>("ldmatrix_x1_trans");
    case Primitive::kLoadMatrix2Transposed:
      return MakeKernelFunction<&LoadMatrixKernel<2, true>>("ldmatrix_x2_trans");
    case Primitive::kLoadMatrix4Transposed:
      return MakeKernelFunction<&LoadMatrixKernel<4, true>>("ldmatrix_x4_trans");
    case Primitive::kStoreMatrix1:
      return MakeKernelFunction<&StoreMatrixKernel<1, false>>("stmatrix_x1");
    case Primitive::kStoreMatrix2:
      return MakeKernelFunction<&StoreMatrixKernel<2, false>>("stmatrix_x2");
    case Primitive::kStoreMatrix4:
      return MakeKernelFunction<&StoreMatrixKernel<4, false>>("stmatrix_x4");
    case Primitive::kStoreMatrix1Transposed:
      return MakeKernelFunction<&StoreMatrixKernel<1, true>>("stmatrix_x1_trans");
    case Primitive::kStoreMatrix2Transposed:
      return MakeKernelFunction<&StoreMatrixKernel<2, true>>("stmatrix_x2_trans");
    case Primitive::kStoreMatrix4Transposed:
      return MakeKernelFunction<&StoreMatrixKernel<4, true>>("stmatrix_x4_trans");
    case Primitive::kCopyAsync4:
      return MakeKernelFunction<&CopyAsyncKernel<4>>("cp_async_4");
    case Primitive::kCopyAsync8:
      return MakeKernelFunction<&CopyAsyncKernel<8>>("cp_async_8");
    case Primitive::kCopyAsync16:
      return MakeKernelFunction<&CopyAsyncKernel<16>>("cp_async_16");
    case Primitive::kCopyAsyncArrive:
      return MakeKernelFunction<&CopyAsyncArriveKernel>("cp_async_mbarrier");
    case Primitive::kTensorLoad1:
      return MakeKernelFunction<&TensorLoadKernel<1>>("tensor_load_1d");
    case Primitive::kTensorLoad2:
      return MakeKernelFunction<&TensorLoadKernel<2>>("tensor_load_2d");
    case Primitive::kTensorLoad3:
      return MakeKernelFunction<&TensorLoadKernel<3>>("tensor_load_3d");
    case Primitive::kTensorLoad4:
      return MakeKernelFunction<&TensorLoadKernel<4>>("tensor_load_4d");
    case Primitive::kTensorLoad5:
      return MakeKernelFunction<&TensorLoadKernel<5>>("tensor_load_5d");
    case Primitive::kTensorStore1:
      return MakeKernelFunction<&TensorStoreKernel<1>>("tensor_store_1d");
    case Primitive::kTensorStore2:
      return MakeKernelFunction<&TensorStoreKernel<2>>("tensor_store_2d");
    case Primitive::kTensorStore3:
      return MakeKernelFunction<&TensorStoreKernel<3>>("tensor_store_3d");
    case Primitive::kTensorStore4:
      return MakeKernelFunction<&TensorStoreKernel<4>>("tensor_store_4d");
    case Primitive::kTensorStore5:
      return MakeKernelFunction<&TensorStoreKernel<5>>("tensor_store_5d");
    case Primitive::kBulkLoad:
      return MakeKernelFunction<&BulkLoadKernel>("bulk_load");
    case Primitive::kBulkStore:
      return MakeKernelFunction<&BulkStoreKernel>("bulk_store");
    case Primitive::kBulkStoreReuse:
      return MakeKernelFunction<&BulkStoreReuseKernel>("bulk_store_reuse");
    case Primitive::kMbarrierRing:
      return MakeKernelFunction<&MbarrierRingKernel>("mbarrier_ring");
    case Primitive::kWarp:
      return MakeKernelFunction<&WarpKernel>("warp");
    case Primitive::kNamedBarriers:
      return MakeKernelFunction<&NamedBarriersKernel>("named_barriers");
    case Primitive::kVectorAccesses:
      return MakeKernelFunction<&VectorAccessKernel>("vector_accesses");
    case Primitive::kAtomics:
      return MakeKernelFunction<&AtomicsKernel>("atomics");
    case Primitive::kMath:
      return MakeKernelFunction<&MathKernel>("math");
    case Primitive::kInteger:
      return MakeKernelFunction<&IntegerKernel>("integer");
    case Primitive::kBytesToF16:
      return MakeKernelFunction<&BytesToF16Kernel>("bytes_to_f16");
    case Primitive::kCount:
      break;
  }
  return {};
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
