// What a warp of a decode kernel on tensor cores (attention_decode_mma.h) reads from a tile of keys
// or values, and in which order: the operands of mma.m16n8k16, of 16-bit elements by ldmatrix, of
// int8 by 4 bytes that become f16 in registers.
#pragma once

#include "cuda/device/convert.h"
#include "cuda/device/matrix.h"
#include "cuda/kernels/attention_decode_block.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// The 16-bit type that a stored type is multiplied in.
template <typename Stored>
using DecodeOperand = std::conditional_t<std::is_same_v<Stored, int8_t>, F16, Stored>;

// Of the 16 keys of a tile that are warp `key_warp`'s.
template <typename Stored>
struct DecodeFragments {
  using Operand = DecodeOperand<Stored>;
  static constexpr bool kScaled = std::is_same_v<Stored, int8_t>;

  const DecodeParams& p;
  int lane, key_warp;

  // Of element i of a 16x8 fragment.
  __device__ int KeyOf(int i) const { return key_warp * 16 + lane / 4 + (i >= 2 ? 8 : 0); }

  __device__ void LoadKeys(uint32_t (&a)[4], const char* keys, int step) const {
    const char* row = keys + key_warp * 16 * p.layout.k_stride;
    if constexpr (kScaled) {
      // 4 elements next to each other take the places of two pairs: q lies in the same order.
      const char* at = row + lane / 4 * p.layout.k_stride + step * 16 + lane % 4 * 4;
      const uint32_t low = LoadPacked<4>(at).words[0];
      const uint32_t high = LoadPacked<4>(at + 8 * p.layout.k_stride).words[0];
      a[0] = BytesToF16<0, 1>(low, low);
      a[1] = BytesToF16<0, 1>(high, high);
      a[2] = BytesToF16<2, 3>(low, low);
      a[3] = BytesToF16<2, 3>(high, high);
    } else {
      LoadMatrices<4>(a, row + lane % 16 * p.layout.k_stride + step * 32 + lane / 16 * 16);
    }
  }

  // Values 16 t .. 16 t + 15 of the tile's 16 keys. Of int8, t even: two such fragments, whose rows
  // r and r + 8 are the values 16 t + 4 r and the next, and the two after these.
  __device__ void LoadValues(uint32_t (&a)[kScaled ? 8 : 4], const char* values, int t) const {
    const char* row = values + key_warp * 16 * p.layout.v_stride;
    if constexpr (kScaled) {
      const char* at = row + lane % 4 * 2 * p.layout.v_stride + t * 16 + lane / 4 * 4;
      uint32_t keys[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        keys[i] = LoadPacked<4>(at + (i % 2 + i / 2 * 8) * p.layout.v_stride).words[0];
      }
      a[0] = BytesToF16<0, 0>(keys[0], keys[1]);
      a[1] = BytesToF16<1, 1>(keys[0], keys[1]);
      a[2] = BytesToF16<0, 0>(keys[2], keys[3]);
      a[3] = BytesToF16<1, 1>(keys[2], keys[3]);
      a[4] = BytesToF16<2, 2>(keys[0], keys[1]);
      a[5] = BytesToF16<3, 3>(keys[0], keys[1]);
      a[6] = BytesToF16<2, 2>(keys[2], keys[3]);
      a[7] = BytesToF16<3, 3>(keys[2], keys[3]);
    } else {
      LoadMatrices<4, true>(
          a, row + (lane % 8 + lane / 16 * 8) * p.layout.v_stride + t * 32 + lane / 8 % 2 * 16);
    }
  }
  // Which value element i of acc[t] is.
  __device__ int ValueOf(int t, int i) const {
    if constexpr (kScaled) return t / 2 * 32 + lane / 4 * 4 + t % 2 * 2 + i / 2;
    return t * 16 + lane / 4 + i / 2 * 8;
  }

  // Is one of the values of this warp's keys not finite?
  __device__ bool AnyValueNonFinite(const char* values) const {
    const int tiles = (static_cast<int>(p.attention.out.dims[3]) + 15) / 16;
    bool found = false;
#pragma unroll 1
    for (int t = 0; t < tiles; ++t) {
      uint32_t a[4];
      LoadValues(a, values, t);
#pragma unroll
      for (int i = 0; i < 4; ++i) found = found || AnyNonFinite<Operand>(a[i]);
    }
    return Any(found);
  }

  // The weights of 8 keys, a pair of columns per lane, as the operand of the second product: a pair
  // of keys per lane. Lane (r, q) of the source has key r, columns 2q and 2q + 1; of the result
  // column r, keys 2q and 2q + 1.
  __device__ uint32_t Transpose(uint32_t pair) const {
    const int source = lane % 4 * 8 + lane / 8;
    const uint32_t first = Shuffle(pair, source), second = Shuffle(pair, source + 4);
    return lane / 4 % 2 == 0 ? (first & 0xFFFFu) | second << 16
                             : first >> 16 | (second & 0xFFFF0000u);
  }
};

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
