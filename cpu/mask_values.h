// The two values of each form of mask, as bit patterns of its elements.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace tandem::cpu {

template <typename BitsType, BitsType kHiddenBits, BitsType kVisibleBits>
struct MaskValues {
  using Bits = BitsType;
  static constexpr Bits kHidden = kHiddenBits;
  static constexpr Bits kVisible = kVisibleBits;
};
using F32MaskValues = MaskValues<uint32_t, 0xFF800000u, 0>;  // -inf, 0
using F16MaskValues = MaskValues<uint16_t, 0xFC00u, 0>;
using BF16MaskValues = MaskValues<uint16_t, 0xFF80u, 0>;
using BoolMaskValues = MaskValues<uint8_t, 0, 1>;
using PackedMaskValues = MaskValues<uint32_t, 0, ~uint32_t{0}>;  // 32 keys per word

// How an output is written, by its size.
enum class Stores : uint8_t {
  kPlain,       // fits the cache of the core
  kPrefetched,  // fits the last cache: lines are fetched before they are stored to
  kStreaming,   // larger: past the caches
};

// Calls fn.template operator()<Values>() with the values of an element-wise (not packed) mask.
template <typename Fn>
void DispatchMaskValues(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kF32:
      return fn.template operator()<F32MaskValues>();
    case DType::kF16:
      return fn.template operator()<F16MaskValues>();
    case DType::kBF16:
      return fn.template operator()<BF16MaskValues>();
    default:
      return fn.template operator()<BoolMaskValues>();
  }
}

}  // namespace tandem::cpu
