// How kernels of matrix products see what they were launched for: Params for a single product,
// GroupParams<Params> (cuda/kernels/matmul_group.h) for several.
#pragma once

#include "cuda/device/math.h"
#include "cuda/device/matmul_epilogue.h"
#include "cuda/device/target.h"
#include "cuda/kernels/matmul_group.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// This block's product, and that it is the block-th of `blocks` that do it.
struct BlockShare {
  int product;
  int64_t block, blocks;
};

template <typename Params>
struct MatMulWork {
  static constexpr bool kGroup = false;
  using Product = Params;
  __device__ static BlockShare Share(const Params&) { return {0, blockIdx.x, gridDim.x}; }
  __device__ static const Params& Of(const Params& p, int) { return p; }
  __device__ static bool Gated(const Params&) { return false; }
};

template <typename Params>
struct MatMulWork<GroupParams<Params>> {
  static constexpr bool kGroup = true;
  using Product = Params;
  __device__ static BlockShare Share(const GroupParams<Params>& p) {
    int i = 0;
    int64_t begin = 0;
    while (blockIdx.x >= p.ends[i]) begin = p.ends[i++];
    return {i, blockIdx.x - begin, p.ends[i] - begin};
  }
  __device__ static const Params& Of(const GroupParams<Params>& p, int i) { return p.products[i]; }
  __device__ static bool Gated(const GroupParams<Params>& p) { return p.gated; }
};

// One element of out = silu(gate) * up, from both sums of products.
template <typename Params>
__device__ inline void FinishGatedProduct(const GroupParams<Params>& p, int64_t m, int64_t n,
                                          float gate, float up) {
  const float x =
      Silu(EndProduct(p.products[0], 0, m, n, gate)) * EndProduct(p.products[1], 0, m, n, up);
  const DeviceTensor& out = p.products[0].out;
  StoreElement(out, m * out.strides[1] + n * out.strides[2], x);
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
