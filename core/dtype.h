// Element types, their sizes, and the 16-bit float types' exact conversions.
//
// Two families:
//   plain types  one element = ByteSize bytes (f32, f16, bf16, i8, i32, i64, u32, bool)
//   block types  a block of BlockLength consecutive elements = BlockBytes bytes (GGUF formats)
// For block types element-wise addressing does not exist: rows are whole numbers of blocks.
#pragma once

#include <bit>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

namespace tandem {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kI8,
  kI32,
  kI64,
  kU32,
  kBool,  // one byte, 0 or 1
  kQ8_0,  // 32 elements: f16 scale d, 32 x i8 q;              x = d * q
  kQ4_0,  // 32 elements: f16 scale d, 16 bytes of nibbles q;  x = d * (q - 8)
  // 256 elements each; layouts below. Bits per element, scales included:
  kQ4_K,   // 4.5
  kQ5_K,   // 5.5
  kQ6_K,   // 6.5625
  kTQ2_0,  // 2.0625: ternary
};

// IEEE binary16 and bfloat16 as storage types: convert, compute in f32, convert back (RNE).
struct F16 {
  uint16_t bits = 0;
};
struct BF16 {
  uint16_t bits = 0;
};

// Storage of GGUF's block formats (little-endian, as in the file).
struct BlockQ8_0 {
  static constexpr int kLength = 32;
  F16 d;
  int8_t q[kLength];
};
static_assert(sizeof(BlockQ8_0) == 34);

// Element i < 16 is the low nibble of q[i], element i >= 16 the high nibble of q[i - 16].
struct BlockQ4_0 {
  static constexpr int kLength = 32;
  F16 d;
  uint8_t q[kLength / 2];
};
static_assert(sizeof(BlockQ4_0) == 18);

// Super-blocks of 256 elements in sub-blocks with integer scales.
// Q4_K: 8 sub-blocks of 32, 4 bits; x = d * scale * q - dmin * min.
// Element i: nibble i / 32 % 2 (0: low) of q[i / 64 * 32 + i % 32]. The 6-bit scales and mins of
// sub-block s: s < 4: scales[s] & 63 and scales[s + 4] & 63; s >= 4: the low and the high nibble of
// scales[s + 4], with the top two bits of scales[s - 4] and scales[s] above them.
struct BlockQ4_K {
  static constexpr int kLength = 256;
  F16 d, dmin;
  uint8_t scales[12];
  uint8_t q[kLength / 2];
};
static_assert(sizeof(BlockQ4_K) == 144);

// Q5_K: as Q4_K with a fifth bit: bit 4 of element i is bit i / 32 of high[i % 32].
struct BlockQ5_K {
  static constexpr int kLength = 256;
  F16 d, dmin;
  uint8_t scales[12];
  uint8_t high[kLength / 8];
  uint8_t q[kLength / 2];
};
static_assert(sizeof(BlockQ5_K) == 176);

// Q6_K: 16 sub-blocks of 16, 6 bits; x = d * scale * (q - 32).
// Element i, with h = i / 128 and r = i % 128: low four bits are nibble r / 64 of
// low[64 h + r % 64], high two bits are bits 2 (r / 32) and up of high[32 h + r % 32].
struct BlockQ6_K {
  static constexpr int kLength = 256;
  uint8_t low[kLength / 2];
  uint8_t high[kLength / 4];
  int8_t scales[kLength / 16];
  F16 d;
};
static_assert(sizeof(BlockQ6_K) == 210);

// TQ2_0: ternary; x = d * (q - 1).
// Element i, with h = i / 128 and r = i % 128: bits 2 (r / 32) and up of q[32 h + r % 32].
struct BlockTQ2_0 {
  static constexpr int kLength = 256;
  uint8_t q[kLength / 4];
  F16 d;
};
static_assert(sizeof(BlockTQ2_0) == 66);

constexpr float ToFloat(float x) { return x; }

constexpr float ToFloat(BF16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16);
}

constexpr float ToFloat(F16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1Fu;
  const uint32_t mantissa = x.bits & 0x3FFu;
  if (exponent == 0x1F) {  // infinity, or NaN made quiet as the processors' conversions do
    const uint32_t quiet = mantissa != 0 ? 0x400000u : 0u;
    return std::bit_cast<float>(sign | 0x7F800000u | quiet | (mantissa << 13));
  }
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24 is exact in f32
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
  }
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (mantissa << 13));
}

// Round to nearest even; overflow goes to infinity, NaN stays NaN (quiet).
constexpr BF16 ToBF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16)};
}

constexpr F16 ToF16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return {static_cast<uint16_t>(sign | 0x7E00u)};   // NaN
  if (magnitude >= 0x477FF000u) return {static_cast<uint16_t>(sign | 0x7C00u)};  // >= 65520
  if (magnitude < 0x38800000u) {  // below the smallest normal f16: the adder rounds for us
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3F000000u))};
  }
  const uint32_t rounded = magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | (rounded >> 13))};
}

template <typename T>
constexpr T FromFloat(float x) {
  if constexpr (std::is_same_v<T, F16>) {
    return ToF16(x);
  } else if constexpr (std::is_same_v<T, BF16>) {
    return ToBF16(x);
  } else {
    static_assert(std::is_same_v<T, float>);
    return x;
  }
}

template <typename T>
struct DTypeOf;
template <>
struct DTypeOf<float> : std::integral_constant<DType, DType::kF32> {};
template <>
struct DTypeOf<F16> : std::integral_constant<DType, DType::kF16> {};
template <>
struct DTypeOf<BF16> : std::integral_constant<DType, DType::kBF16> {};
template <>
struct DTypeOf<int8_t> : std::integral_constant<DType, DType::kI8> {};
template <>
struct DTypeOf<int32_t> : std::integral_constant<DType, DType::kI32> {};
template <>
struct DTypeOf<int64_t> : std::integral_constant<DType, DType::kI64> {};
template <>
struct DTypeOf<uint32_t> : std::integral_constant<DType, DType::kU32> {};
template <>
struct DTypeOf<BlockQ8_0> : std::integral_constant<DType, DType::kQ8_0> {};
template <>
struct DTypeOf<BlockQ4_0> : std::integral_constant<DType, DType::kQ4_0> {};
template <>
struct DTypeOf<BlockQ4_K> : std::integral_constant<DType, DType::kQ4_K> {};
template <>
struct DTypeOf<BlockQ5_K> : std::integral_constant<DType, DType::kQ5_K> {};
template <>
struct DTypeOf<BlockQ6_K> : std::integral_constant<DType, DType::kQ6_K> {};
template <>
struct DTypeOf<BlockTQ2_0> : std::integral_constant<DType, DType::kTQ2_0> {};

// False for a value outside the enumeration (an uninitialised or corrupted view).
bool IsKnown(DType dtype);
// "f32", "q8_0", ...; "unknown" for a value outside the enumeration.
std::string_view Name(DType dtype);
std::optional<DType> ParseDType(std::string_view name);

// Elements per block: 1 for plain types.
int BlockLength(DType dtype);
// Bytes of one block (of one element for plain types); 0 for unknown types.
int BlockBytes(DType dtype);
// Required address alignment in bytes (block formats: 2, as they hold an f16).
int Alignment(DType dtype);

constexpr bool IsFloat(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kF16 || dtype == DType::kBF16;
}
constexpr bool IsBlockQuantized(DType dtype) {
  return dtype == DType::kQ8_0 || dtype == DType::kQ4_0 || dtype == DType::kQ4_K ||
         dtype == DType::kQ5_K || dtype == DType::kQ6_K || dtype == DType::kTQ2_0;
}

// For T = a block struct: its dtype is DTypeOf<T>::value, and this is true.
template <typename T>
inline constexpr bool kIsBlock = requires {
  T::kLength;
};

// Calls fn.template operator()<T>() with T = float, F16 or BF16. Requires IsFloat(dtype).
//   DispatchFloat(x.dtype, [&]<typename T>() { return Run<T>(x); });
template <typename Fn>
auto DispatchFloat(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kF16:
      return fn.template operator()<F16>();
    case DType::kBF16:
      return fn.template operator()<BF16>();
    default:
      return fn.template operator()<float>();
  }
}

// The same with T = the block struct of a block format. Requires IsBlockQuantized(dtype).
template <typename Fn>
auto DispatchBlock(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kQ4_0:
      return fn.template operator()<BlockQ4_0>();
    case DType::kQ4_K:
      return fn.template operator()<BlockQ4_K>();
    case DType::kQ5_K:
      return fn.template operator()<BlockQ5_K>();
    case DType::kQ6_K:
      return fn.template operator()<BlockQ6_K>();
    case DType::kTQ2_0:
      return fn.template operator()<BlockTQ2_0>();
    default:
      return fn.template operator()<BlockQ8_0>();
  }
}

// What weights are stored in: a float type or a block format. Requires one of them.
template <typename Fn>
auto DispatchWeight(DType dtype, Fn&& fn) {
  return IsBlockQuantized(dtype) ? DispatchBlock(dtype, fn) : DispatchFloat(dtype, fn);
}

}  // namespace tandem
