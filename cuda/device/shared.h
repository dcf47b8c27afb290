// Shared memory: always dynamic, carved by the same function on the device, which takes pieces, and
// on the host, which counts them (as core/workspace.h does for scratch memory).
//
//   struct Tile { float* keys; float* values; };
//   template <typename Carver>
//   TANDEM_HOST_DEVICE Tile Carve(Carver& carver, int rows) {
//     return {carver.template Take<float>(rows * 64), carver.template Take<float>(rows * 64)};
//   }
//   host:    SharedBytes bytes; Carve(bytes, rows); config.shared_bytes = bytes.total();
//   kernel:  SharedCarver shared; const Tile tile = Carve(shared, p.rows);
#pragma once

#include "cuda/device/target.h"
#include "cuda/kernels/shared_bytes.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

#if !TANDEM_CUDA_EMULATED
namespace internal {
extern __shared__ __align__(1024) unsigned char dynamic_shared[];
}  // namespace internal
#endif

// Every thread of a block takes the same pieces in the same order. Contents are uninitialised.
class SharedCarver {
 public:
  // `count` elements of T, aligned to at least 16 bytes.
  template <typename T>
#if TANDEM_CUDA_EMULATED
  T* Take(int64_t count, int64_t alignment = 16, emulator::Site site = emulator::Site::Here()) {
    const int64_t offset = SharedBytes::Align(used_, alignment);
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    used_ = offset + bytes;
    return static_cast<T*>(emulator::SharedPiece(offset, bytes, pieces_++, alignment, site));
  }
#else
  __device__ T* Take(int64_t count, int64_t alignment = 16) {
    const int64_t offset = SharedBytes::Align(used_, alignment);
    used_ = offset + count * static_cast<int64_t>(sizeof(T));
    return reinterpret_cast<T*>(internal::dynamic_shared + offset);
  }
#endif

 private:
  int64_t used_ = 0;
#if TANDEM_CUDA_EMULATED
  int pieces_ = 0;
#endif
};

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
