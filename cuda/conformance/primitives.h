// Kernels that do one thing each with a wrapper of cuda/device/, so that what the wrapper does can
// be compared with what its documentation says: see suite.h.
#pragma once

#include <array>
#include <cstdint>

#include "cuda/kernel_function.h"
#include "cuda/runtime/tensor_map.h"

namespace tandem::cuda {

// What a primitive's kernel reads and writes; which fields, is said at its function.
struct PrimitiveParams {
  const void* a = nullptr;
  const void* b = nullptr;
  const void* c = nullptr;
  void* out = nullptr;
  std::array<int32_t, 12> v = {};
  TensorMap map = {};
};

// All products store [m, n] row by row, all matrices are [row, k] row by row unless they are images
// of shared memory.
enum class Primitive : int32_t {
  // One warp per block. a: [16, 16], b: [8, 16], c, out: f32 [16, 8]; one of each per block.
  kMultiplyF16,
  kMultiplyBF16,
  // a: int8 [16, 32], b: int8 [8, 32], c, out: int32 [16, 8].
  kMultiplyI8,
  // a: 16-bit [count, 8, 8]; out: the registers, [lane, count].
  kLoadMatrix1,
  kLoadMatrix2,
  kLoadMatrix4,
  kLoadMatrix1Transposed,
  kLoadMatrix2Transposed,
  kLoadMatrix4Transposed,
  // a: registers [lane, count]; out: 16-bit [count, 8, 8].
  kStoreMatrix1,
  kStoreMatrix2,
  kStoreMatrix4,
  kStoreMatrix1Transposed,
  kStoreMatrix2Transposed,
  kStoreMatrix4Transposed,
  // Thread t of 128 copies to element t of `out`, t % (bytes + 1) bytes of it valid.
  kCopyAsync4,
  kCopyAsync8,
  kCopyAsync16,
  // cp.async that arrive at an mbarrier; a, out: 512 bytes.
  kCopyAsyncArrive,
  // v[0..4]: element of the box, v[5]: bytes of the box. out: the image of shared memory.
  kTensorLoad1,
  kTensorLoad2,
  kTensorLoad3,
  kTensorLoad4,
  kTensorLoad5,
  // a: the image of shared memory.
  kTensorStore1,
  kTensorStore2,
  kTensorStore3,
  kTensorStore4,
  kTensorStore5,
  // v[5]: bytes.
  kBulkLoad,
  kBulkStore,
  // v[0]: rounds, v[5]: bytes of each. Through one piece of shared memory.
  kBulkStoreReuse,
  // v[0]: rounds. Producer and consumer warps over a ring of three; out: int32 [64] sums.
  kMbarrierRing,
  // out: uint32 [32, 12] of one warp: shuffles, votes.
  kWarp,
  // out: uint32 [128]: named barriers and registers per warp set up and down.
  kNamedBarriers,
  // a: 128 x 28 bytes; out: the same, by vector accesses of 4, 8 and 16 bytes with every hint.
  kVectorAccesses,
  // 32 blocks of 128 threads; out, zeros before: uint32 [16], see AddAtomics in suite.cc.
  kAtomics,
  // a: f32 [n = v[0]]; out: f32 [n, 8]: exp, log, tanh, sqrt, sin(pi x), cos(pi x), pairs rounded
  // to f16, bf16.
  kMath,
  // a: uint32 [128, 3], x y z; out: uint32 [128, 3]: z plus the dot product of the bytes of x and
  // y, y:x shifted right by z, the f16 in the low half of x without bit 10 as f32.
  kInteger,
  // a: uint32 [256, 2], x y; out: uint32 [256, 16]: byte i / 4 of x and i % 4 of y as a pair of
  // f16.
  kBytesToF16,
  kCount,
};
TANDEM_KERNEL_FUNCTION(PrimitiveFunction, Primitive primitive)

// wgmma. a: image of A in shared memory, or, in registers, [64, 16 steps]; b: image of B.
// v: bytes of the images (0, 1), steps (2), bytes from step to step (3, 4), swizzle (5), leading
// and stride of A (6, 7) and of B (8, 9). out: f32 [64, n].
struct WarpgroupShape {
  bool bf16 = false;
  int n = 64;
  bool a_in_registers = false;
  bool transpose_a = false, transpose_b = false;
};
// Empty where it is not built: transposed only for n = 64, f16 likewise.
TANDEM_KERNEL_FUNCTION(WarpgroupFunction, const WarpgroupShape& shape)

}  // namespace tandem::cuda
