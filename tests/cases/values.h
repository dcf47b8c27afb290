// What the inputs of the row-wise ops hold.
#pragma once

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string_view>
#include <vector>

#include "tests/cases/operands.h"
#include "tests/cases/random.h"

namespace tandem::cases {

enum class Values : uint8_t {
  kNormal,     // normal(0, 1)
  kLarge,      // normal(0, 1e4): exponentials overflow
  kSmall,      // normal(0, 1e-6): subnormal in f16
  kIntegers,   // -3 .. 3: many equal ones
  kZeros,      // nothing but 0
  kNonFinite,  // one in eight is an infinity, a NaN, a zero or the largest f16
  kMasked,     // -inf but for one in sixteen: some rows hold nothing else
  kOnlyNan,
};
template <>
inline constexpr std::array<std::string_view, 8> kEnumNames<Values> = {
    "normal", "large", "small", "integers", "zeros", "non_finite", "masked", "only_nan"};

inline Fill FillWith(Values values, uint64_t seed) {
  return [values, rng = Rng(seed)](int64_t) mutable -> double {
    constexpr double kInfinity = std::numeric_limits<double>::infinity();
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    switch (values) {
      case Values::kNormal:
        return rng.Normal();
      case Values::kLarge:
        return 1e4 * rng.Normal();
      case Values::kSmall:
        return 1e-6 * rng.Normal();
      case Values::kIntegers:
        return static_cast<double>(rng.Integer(-3, 3));
      case Values::kZeros:
        return 0.0;
      case Values::kNonFinite:
        if (rng.Chance(0.875)) return rng.Normal();
        return rng.Pick<double>({kInfinity, -kInfinity, kNan, 0.0, -0.0, 65504.0, -65504.0});
      case Values::kMasked:
        return rng.Chance(0.0625) ? rng.Normal() : -kInfinity;
      case Values::kOnlyNan:
        break;
    }
    return kNan;
  };
}

inline const std::vector<DType>& FloatDTypes() {
  static const std::vector<DType> dtypes = {DType::kF32, DType::kF16, DType::kBF16};
  return dtypes;
}

inline const std::vector<DType>& BlockDTypes() {
  static const std::vector<DType> dtypes = {DType::kQ8_0, DType::kQ4_0, DType::kQ4_K,
                                            DType::kQ5_K, DType::kQ6_K, DType::kTQ2_0};
  return dtypes;
}

// `columns` as whole blocks of a dtype.
inline int64_t WholeBlocks(DType dtype, int64_t columns) {
  const int64_t length = BlockLength(dtype);
  return (columns + length - 1) / length * length;
}

// "f32", or "f16 -> f32"
inline std::string ConversionLabel(DType from, DType to) {
  std::string label(Name(from));
  if (from != to) label += " -> " + std::string(Name(to));
  return label;
}

}  // namespace tandem::cases
