// Matrix instructions of a warp: mma.sync, ldmatrix (sm_80), stmatrix (sm_90). All 32 lanes take
// part. Fragments, with group = lane / 4, pair = lane % 4 * 2, quad = lane % 4 * 4; the lower half
// of a register holds the element of the lower index:
//
//   16-bit A 16x16   a[0] (group, pair..) a[1] (group + 8, pair..) a[2] (group, pair + 8..) a[3]
//   both 16-bit B 16x8    b[0] (k = pair.., n = group)  b[1] (k = pair + 8.., n = group) 8-bit  A
//   16x32   as above with quad and 16 in place of pair and 8;   B 32x8 likewise C, D 16x8 d[0..1]
//   (group, pair..)  d[2..3] (group + 8, pair..)
//
// Source: PTX ISA, "warp-level matrix instructions".
#pragma once

#include "core/dtype.h"
#include "cuda/device/shared_address.h"
#include "cuda/device/target.h"
#if TANDEM_CUDA_EMULATED
#include "cuda/emulator/matrix.h"
#endif

namespace tandem::cuda::TANDEM_CUDA_TARGET {

#if TANDEM_CUDA_EMULATED

template <typename T>
void MultiplyAccumulate16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                               emulator::Site site = emulator::Site::Here()) {
  static_assert(std::is_same_v<T, F16> || std::is_same_v<T, BF16>);
  emulator::FloatProductLane lane = {a, b, d, std::is_same_v<T, BF16>};
  emulator::WarpCollective("mma.m16n8k16", 0xFFFFFFFFu, &lane, &emulator::MultiplyFloat, site);
}
inline void MultiplyAccumulate16x8x32(int32_t (&d)[4], const uint32_t (&a)[4],
                                      const uint32_t (&b)[2],
                                      emulator::Site site = emulator::Site::Here()) {
  emulator::IntegerProductLane lane = {a, b, d};
  emulator::WarpCollective("mma.m16n8k32", 0xFFFFFFFFu, &lane, &emulator::MultiplyInteger, site);
}
template <int kCount, bool kTransposed = false>
void LoadMatrices(uint32_t (&registers)[kCount], const void* row,
                  emulator::Site site = emulator::Site::Here()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  emulator::MatrixLane lane = {const_cast<void*>(row), registers, kCount, kTransposed};
  emulator::MoveMatrices(/*load=*/true, &lane, site);
}
template <int kCount, bool kTransposed = false>
void StoreMatrices(void* row, const uint32_t (&registers)[kCount],
                   emulator::Site site = emulator::Site::Here()) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  emulator::MatrixLane lane = {row, const_cast<uint32_t*>(registers), kCount, kTransposed};
  emulator::MoveMatrices(/*load=*/false, &lane, site);
}
inline uint32_t PackPair(F16 low, F16 high) {
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
}
inline uint32_t PackPair(BF16 low, BF16 high) {
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
}
template <typename T>
uint32_t RoundPair(float low, float high) {
  if constexpr (std::is_same_v<T, F16>) {
    return PackPair(ToF16(low), ToF16(high));
  } else {
    return PackPair(ToBF16(low), ToBF16(high));
  }
}

#else

// d += a b: T = F16 or BF16, products and sums in f32.
template <typename T>
__device__ __forceinline__ void MultiplyAccumulate16x8x16(float (&d)[4], const uint32_t (&a)[4],
                                                          const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, F16> || std::is_same_v<T, BF16>);
#define TANDEM_MMA(types)                                                             \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." types                         \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same_v<T, F16>) {
    TANDEM_MMA("f16.f16");
  } else {
    TANDEM_MMA("bf16.bf16");
  }
#undef TANDEM_MMA
}
// d += a b of signed 8-bit integers, modulo 2^32.
__device__ __forceinline__ void MultiplyAccumulate16x8x32(int32_t (&d)[4], const uint32_t (&a)[4],
                                                          const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// kCount 8x8 matrices of 16-bit elements from shared memory: lane 8 j + r names row r (16 aligned
// bytes) of matrix j. Register j gets elements (group, pair..) of matrix j, or of its transpose.
template <int kCount, bool kTransposed = false>
__device__ __forceinline__ void LoadMatrices(uint32_t (&registers)[kCount], const void* row) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
  const uint32_t address = internal::SharedAddress(row);
#define TANDEM_LDMATRIX(shape)                                                                    \
  if constexpr (kCount == 1) {                                                                    \
    asm volatile("ldmatrix.sync.aligned.m8n8.x1" shape ".shared.b16 {%0}, [%1];"                  \
                 : "=r"(registers[0])                                                             \
                 : "r"(address)                                                                   \
                 : "memory");                                                                     \
  } else if constexpr (kCount == 2) {                                                             \
    asm volatile("ldmatrix.sync.aligned.m8n8.x2" shape ".shared.b16 {%0, %1}, [%2];"              \
                 : "=r"(registers[0]), "=r"(registers[1])                                         \
                 : "r"(address)                                                                   \
                 : "memory");                                                                     \
  } else {                                                                                        \
    asm volatile("ldmatrix.sync.aligned.m8n8.x4" shape ".shared.b16 {%0, %1, %2, %3}, [%4];"      \
                 : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3]) \
                 : "r"(address)                                                                   \
                 : "memory");                                                                     \
  }
  if constexpr (kTransposed) {
    TANDEM_LDMATRIX(".trans")
  } else {
    TANDEM_LDMATRIX("")
  }
#undef TANDEM_LDMATRIX
}
// The reverse.
template <int kCount, bool kTransposed = false>
__device__ __forceinline__ void StoreMatrices(void* row, const uint32_t (&registers)[kCount]) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4);
#if __CUDA_ARCH__ >= 900
  const uint32_t address = internal::SharedAddress(row);
#define TANDEM_STMATRIX(shape)                                                                   \
  if constexpr (kCount == 1) {                                                                   \
    asm volatile("stmatrix.sync.aligned.m8n8.x1" shape ".shared.b16 [%0], {%1};" ::"r"(address), \
                 "r"(registers[0])                                                               \
                 : "memory");                                                                    \
  } else if constexpr (kCount == 2) {                                                            \
    asm volatile("stmatrix.sync.aligned.m8n8.x2" shape                                           \
                 ".shared.b16 [%0], {%1, %2};" ::"r"(address),                                   \
                 "r"(registers[0]), "r"(registers[1])                                            \
                 : "memory");                                                                    \
  } else {                                                                                       \
    asm volatile("stmatrix.sync.aligned.m8n8.x4" shape                                           \
                 ".shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),                           \
                 "r"(registers[0]), "r"(registers[1]), "r"(registers[2]), "r"(registers[3])      \
                 : "memory");                                                                    \
  }
  if constexpr (kTransposed) {
    TANDEM_STMATRIX(".trans")
  } else {
    TANDEM_STMATRIX("")
  }
#undef TANDEM_STMATRIX
#else
  __trap();
#endif
}

__device__ __forceinline__ uint32_t PackPair(F16 low, F16 high) {
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
}
__device__ __forceinline__ uint32_t PackPair(BF16 low, BF16 high) {
  return uint32_t{low.bits} | uint32_t{high.bits} << 16;
}
// Two floats rounded to nearest even, as one register of a fragment.
template <typename T>
__device__ __forceinline__ uint32_t RoundPair(float low, float high) {
  uint32_t pair;
  if constexpr (std::is_same_v<T, F16>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

#endif

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
