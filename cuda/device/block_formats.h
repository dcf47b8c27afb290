// GGUF's block formats as the integer kernels read them: bytes to multiply with activations of 8
// bits, 32 elements of K (a sub-block, `s` of the block) at a time. Layouts: core/dtype.h.
//
// Of a format F, with `block` the address of a block in shared memory, on 2 bytes:
//   F::Open(block)                        words of the block's quants, whatever its alignment
//   F::Pair(words, s, j, first, second)   elements 4j.. and 16 + 4j.. of the sub-block, j < 4, each
//                                         as four bytes: the stored quants, without their offset
//   F::kSigned                            quants are signed bytes
//   F::kOffset                            what is to be subtracted from every quant
//   F::Scales(block, s)                   what the sums of products are multiplied with
//   F::kHalves                            a scale of its own for each half of a sub-block
//   F::kMinimum                           a minimum to be subtracted
#pragma once

#include "core/dtype.h"
#include "cuda/device/convert.h"
#include "cuda/device/integer.h"
#include "cuda/device/memory.h"
#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// x = scale * (q - offset) - min, or scale * half[i / 16] * (q - offset).
struct SubBlockScales {
  float scale, min;
  int half[2];
};

namespace internal {

__device__ __forceinline__ uint32_t Word(const uint8_t* at) { return LoadPacked<4>(at).words[0]; }
__device__ __forceinline__ float HalfAt(const uint8_t* at) {
  return UnpackHalf(*reinterpret_cast<const uint16_t*>(at));
}

}  // namespace internal

// Words at multiples of 4 bytes from a place that is a multiple of 4.
struct AlignedWords {
  const uint8_t* at;
  __device__ uint32_t operator[](int offset) const { return internal::Word(at + offset); }
  __device__ AlignedWords Skip(int bytes) const { return {at + bytes}; }
};
// Or of 2: out of two words. Reads up to 4 bytes beyond the one asked for.
struct HalfAlignedWords {
  const uint8_t* at;  // on 4 bytes
  uint32_t shift;     // bits
  __device__ uint32_t operator[](int offset) const {
    return FunnelShiftRight(internal::Word(at + offset), internal::Word(at + offset + 4), shift);
  }
  __device__ HalfAlignedWords Skip(int bytes) const { return {at + bytes, shift}; }
  __device__ static HalfAlignedWords From(const uint8_t* place) {
    const auto odd = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(place)) & 2u;
    return {place - odd, odd * 8};
  }
};

template <typename Block>
struct BlockFormat;

template <>
struct BlockFormat<BlockQ8_0> {
  static constexpr int kOffset = 0;
  static constexpr bool kSigned = true, kHalves = false, kMinimum = false;
  using Words = HalfAlignedWords;
  __device__ static Words Open(const uint8_t* block) { return Words::From(block + 2); }
  __device__ static void Pair(Words words, int /*s*/, int j, uint32_t& first, uint32_t& second) {
    first = words[4 * j];
    second = words[16 + 4 * j];
  }
  __device__ static SubBlockScales Scales(const uint8_t* block, int /*s*/) {
    return {internal::HalfAt(block), 0.0f, {1, 1}};
  }
};

template <>
struct BlockFormat<BlockQ4_0> {
  static constexpr int kOffset = 8;
  static constexpr bool kSigned = false, kHalves = false, kMinimum = false;
  using Words = HalfAlignedWords;
  __device__ static Words Open(const uint8_t* block) { return Words::From(block + 2); }
  __device__ static void Pair(Words words, int /*s*/, int j, uint32_t& first, uint32_t& second) {
    const uint32_t both = words[4 * j];
    first = both & 0x0F0F0F0Fu;
    second = both >> 4 & 0x0F0F0F0Fu;
  }
  __device__ static SubBlockScales Scales(const uint8_t* block, int /*s*/) {
    return {internal::HalfAt(block), 0.0f, {1, 1}};
  }
};

// Blocks of these two are multiples of 4 bytes and lie on 4.
struct NibbleFormat {
  static constexpr int kOffset = 0;
  static constexpr bool kSigned = false, kHalves = false, kMinimum = true;
  using Words = AlignedWords;
  __device__ static Words Open(const uint8_t* block) { return {block}; }
  // All eight 6-bit scales, then minima, are taken apart four at a time.
  __device__ static SubBlockScales Scales(const uint8_t* block, int s) {
    const uint32_t a = internal::Word(block + 4), b = internal::Word(block + 8);
    const uint32_t c = internal::Word(block + 12);
    const bool upper = s >= 4;
    const uint32_t scales = upper ? (c & 0x0F0F0F0Fu) | (a >> 2 & 0x30303030u) : a & 0x3F3F3F3Fu;
    const uint32_t minima =
        upper ? (c >> 4 & 0x0F0F0F0Fu) | (b >> 2 & 0x30303030u) : b & 0x3F3F3F3Fu;
    const int shift = s % 4 * 8;
    return {internal::HalfAt(block) * static_cast<float>(scales >> shift & 63u),
            internal::HalfAt(block + 2) * static_cast<float>(minima >> shift & 63u),
            {1, 1}};
  }
};

template <>
struct BlockFormat<BlockQ4_K> : NibbleFormat {
  __device__ static void Pair(Words words, int s, int j, uint32_t& first, uint32_t& second) {
    const int at = 16 + s / 2 * 32 + 4 * j;
    const int shift = s % 2 * 4;
    first = words[at] >> shift & 0x0F0F0F0Fu;
    second = words[at + 16] >> shift & 0x0F0F0F0Fu;
  }
};

template <>
struct BlockFormat<BlockQ5_K> : NibbleFormat {
  __device__ static void Pair(Words words, int s, int j, uint32_t& first, uint32_t& second) {
    const int at = 48 + s / 2 * 32 + 4 * j;
    const int high = 16 + 4 * j;
    const int shift = s % 2 * 4;
    first = (words[at] >> shift & 0x0F0F0F0Fu) | (words[high] >> s & 0x01010101u) << 4;
    second = (words[at + 16] >> shift & 0x0F0F0F0Fu) | (words[high + 16] >> s & 0x01010101u) << 4;
  }
};

template <>
struct BlockFormat<BlockQ6_K> {
  static constexpr int kOffset = 32;
  static constexpr bool kSigned = false, kHalves = true, kMinimum = false;
  using Words = HalfAlignedWords;
  __device__ static Words Open(const uint8_t* block) { return Words::From(block); }
  __device__ static void Pair(Words words, int s, int j, uint32_t& first, uint32_t& second) {
    const int h = s / 4, r = s % 4;
    const int low = 64 * h + r % 2 * 32 + 4 * j;
    const int high = 128 + 32 * h + 4 * j;
    const int shift = r / 2 * 4;
    first = (words[low] >> shift & 0x0F0F0F0Fu) | (words[high] >> (2 * r) & 0x03030303u) << 4;
    second = (words[low + 16] >> shift & 0x0F0F0F0Fu) | (words[high + 16] >> (2 * r) & 0x03030303u)
                                                            << 4;
  }
  __device__ static SubBlockScales Scales(const uint8_t* block, int s) {
    const auto* halves = reinterpret_cast<const int8_t*>(block + 192 + 2 * s);
    return {internal::HalfAt(block + 208), 0.0f, {halves[0], halves[1]}};
  }
};

template <>
struct BlockFormat<BlockTQ2_0> {
  static constexpr int kOffset = 1;
  static constexpr bool kSigned = false, kHalves = false, kMinimum = false;
  using Words = HalfAlignedWords;
  __device__ static Words Open(const uint8_t* block) { return Words::From(block); }
  __device__ static void Pair(Words words, int s, int j, uint32_t& first, uint32_t& second) {
    const int at = s / 4 * 32 + 4 * j;
    first = words[at] >> (s % 4 * 2) & 0x03030303u;
    second = words[at + 16] >> (s % 4 * 2) & 0x03030303u;
  }
  __device__ static SubBlockScales Scales(const uint8_t* block, int /*s*/) {
    return {internal::HalfAt(block + 64), 0.0f, {1, 1}};
  }
};

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
