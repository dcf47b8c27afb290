// wgmma: products of a warpgroup (128 consecutive threads), m64nNk16 of f16 or bf16 with f32
// accumulators, asynchronous (sm_90a). A comes from shared memory or registers, B from shared
// memory, both named by descriptors.
//
//   WarpgroupFence();                                  // registers are as the threads left them
//   WarpgroupMultiply<BF16, 128>(d, a, b, accumulate); // any number
//   WarpgroupCommit();
//   WarpgroupWait<0>(d);                               // before d, or the shared memory, is
//   touched
//
// Accumulators: thread t of the warpgroup holds, with row = t / 32 * 16 + t % 32 / 4 and
// column = t % 4 * 2, in d[4 j + i] the element (row + i / 2 * 8, 8 j + column + i % 2).
// Source: PTX ISA, "asynchronous warpgroup-level matrix instructions".
#pragma once

#include "core/dtype.h"
#include "cuda/device/shared_address.h"
#include "cuda/device/target.h"
#include "cuda/runtime/tensor_map.h"
#if TANDEM_CUDA_EMULATED
#include "cuda/emulator/warpgroup.h"
#endif

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// How a matrix of 16-bit elements lies in shared memory: in units of 16 bytes, W = swizzle / 16,
//   K-major   row r, unit u of K    r % 8 * W + r / 8 * stride + u    (no swizzle: r % 8 + u *
//   leading) MN-major  unit u of MN, row k   u % W + u / W * leading + k % 8 * W + k / 8 * stride
//                                   (no swizzle: u * stride + k % 8 + k / 8 * leading)
// where `leading` and `stride` are bytes, multiples of 16. The swizzle XORs address bits 4.. with
// bits 7.., as tensor maps do: a tile starts at a multiple of 8 rows of W units. Advancing along K
// inside a swizzled row adds 32 bytes to the address.
struct MatrixDescriptor {
  uint64_t bits;
};

// The same layout `bytes` (a multiple of 16) further on.
TANDEM_HOST_DEVICE inline MatrixDescriptor Advance(MatrixDescriptor d, uint32_t bytes) {
  return {d.bits + (bytes >> 4)};
}

// Does the code being compiled have these instructions? A kernel made of them has no body
// elsewhere.
#if TANDEM_CUDA_EMULATED || !defined(__CUDA_ARCH__) || __CUDA_ARCH_FEAT_SM90_ALL
inline constexpr bool kHasWarpgroups = true;
#else
inline constexpr bool kHasWarpgroups = false;
#endif

namespace internal {

TANDEM_HOST_DEVICE inline MatrixDescriptor EncodeMatrixDescriptor(uint32_t address, Swizzle swizzle,
                                                                  uint32_t leading,
                                                                  uint32_t stride) {
  const uint64_t mode = swizzle == Swizzle::k128  ? 1
                        : swizzle == Swizzle::k64 ? 2
                        : swizzle == Swizzle::k32 ? 3
                                                  : 0;
  return {uint64_t{(address & 0x3FFFFu) >> 4} | uint64_t{(leading & 0x3FFFFu) >> 4} << 16 |
          uint64_t{(stride & 0x3FFFFu) >> 4} << 32 | mode << 62};
}

}  // namespace internal

#if TANDEM_CUDA_EMULATED

inline MatrixDescriptor DescribeMatrix(const void* shared, Swizzle swizzle, uint32_t leading,
                                       uint32_t stride,
                                       emulator::Site site = emulator::Site::Here()) {
  return internal::EncodeMatrixDescriptor(emulator::SharedAddress(shared, site), swizzle, leading,
                                          stride);
}
inline void WarpgroupFence(emulator::Site site = emulator::Site::Here()) {
  emulator::WarpgroupFence(site);
}
template <typename T, int kN, bool kTransposeA = false, bool kTransposeB = false>
void WarpgroupMultiply(float (&d)[kN / 2], MatrixDescriptor a, MatrixDescriptor b, bool accumulate,
                       emulator::Site site = emulator::Site::Here()) {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256);
  emulator::WarpgroupProduct product;
  product.n = kN;
  product.bf16 = std::is_same_v<T, BF16>;
  product.transpose_a = kTransposeA;
  product.transpose_b = kTransposeB;
  product.accumulate = accumulate;
  product.a_descriptor = a.bits;
  product.b_descriptor = b.bits;
  product.accumulators = d;
  emulator::WarpgroupMultiply(product, site);
}
template <typename T, int kN, bool kTransposeB = false>
void WarpgroupMultiply(float (&d)[kN / 2], const uint32_t (&a)[4], MatrixDescriptor b,
                       bool accumulate, emulator::Site site = emulator::Site::Here()) {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256);
  emulator::WarpgroupProduct product;
  product.n = kN;
  product.bf16 = std::is_same_v<T, BF16>;
  product.a_in_registers = true;
  product.transpose_b = kTransposeB;
  product.accumulate = accumulate;
  product.b_descriptor = b.bits;
  for (int i = 0; i < 4; ++i) product.a[i] = a[i];
  product.accumulators = d;
  emulator::WarpgroupMultiply(product, site);
}
inline void WarpgroupCommit(emulator::Site site = emulator::Site::Here()) {
  emulator::WarpgroupCommit(site);
}
template <int kPending, int kCount>
void WarpgroupWait(float (&)[kCount], emulator::Site site = emulator::Site::Here()) {
  emulator::WarpgroupWait(kPending, site);
}
template <int kRegisters>
void IncreaseRegisters(emulator::Site site = emulator::Site::Here()) {
  emulator::SetMaxRegisters(kRegisters, true, site);
}
template <int kRegisters>
void DecreaseRegisters(emulator::Site site = emulator::Site::Here()) {
  emulator::SetMaxRegisters(kRegisters, false, site);
}

#else

namespace internal {
template <int kN>
struct WarpgroupInstruction;
#include "cuda/device/warpgroup_instructions.h"
}  // namespace internal

__device__ __forceinline__ MatrixDescriptor DescribeMatrix(const void* shared, Swizzle swizzle,
                                                           uint32_t leading, uint32_t stride) {
  return internal::EncodeMatrixDescriptor(internal::SharedAddress(shared), swizzle, leading,
                                          stride);
}

// Before the first product of every commit group: orders what the threads did to registers.
__device__ __forceinline__ void WarpgroupFence() {
#if __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#else
  __trap();
#endif
}
// d = a b, plus d if `accumulate`. kTransposeA, kTransposeB: that operand is MN-major.
template <typename T, int kN, bool kTransposeA = false, bool kTransposeB = false>
__device__ __forceinline__ void WarpgroupMultiply(float (&d)[kN / 2], MatrixDescriptor a,
                                                  MatrixDescriptor b, bool accumulate) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  internal::WarpgroupInstruction<kN>::template Shared<std::is_same_v<T, BF16>, kTransposeA,
                                                      kTransposeB>(d, a.bits, b.bits, accumulate);
#else
  __trap();
#endif
}
// The same with A in registers: fragments of a warp's 16x16 part, as for MultiplyAccumulate16x8x16.
template <typename T, int kN, bool kTransposeB = false>
__device__ __forceinline__ void WarpgroupMultiply(float (&d)[kN / 2], const uint32_t (&a)[4],
                                                  MatrixDescriptor b, bool accumulate) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  internal::WarpgroupInstruction<kN>::template Registers<std::is_same_v<T, BF16>, kTransposeB>(
      d, a, b.bits, accumulate);
#else
  __trap();
#endif
}
// Ends the group of products issued since the last Commit.
__device__ __forceinline__ void WarpgroupCommit() {
#if __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits for all groups but the kPending last. `d`: accumulators that are complete then; the
// compiler must not read them earlier.
template <int kPending, int kCount>
__device__ __forceinline__ void WarpgroupWait(float (&d)[kCount]) {
#if __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(d[i])::"memory");
#endif
}
// Registers per thread of this warpgroup from here on, 24..256 in steps of 8; the kernel needs
// __launch_bounds__. Increasing waits until others have decreased.
template <int kRegisters>
__device__ __forceinline__ void IncreaseRegisters() {
#if __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}
template <int kRegisters>
__device__ __forceinline__ void DecreaseRegisters() {
#if __CUDA_ARCH_FEAT_SM90_ALL
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
#endif
}

#endif

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
