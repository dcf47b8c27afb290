// Conversions of the 16-bit float types over all their values, against an oracle in f64.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/dtype.h"
#include "tests/cases/random.h"

namespace tandem {
namespace {

// Value of sign/exponent/mantissa fields, straight from the formats' definitions.
double Decode(uint16_t bits, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const int mantissa = bits & ((1 << mantissa_bits) - 1);
  const double sign = bits & 0x8000 ? -1.0 : 1.0;
  if (exponent == (1 << exponent_bits) - 1) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN()
                    : sign * std::numeric_limits<double>::infinity();
  }
  const double fraction = std::ldexp(mantissa, -mantissa_bits);
  return sign * (exponent == 0 ? std::ldexp(fraction, 1 - bias)
                               : std::ldexp(1.0 + fraction, exponent - bias));
}

double DecodeF16(uint16_t bits) { return Decode(bits, 5, 10); }
double DecodeBF16(uint16_t bits) { return Decode(bits, 8, 7); }

TEST(F16, EveryValueWidensExactly) {
  for (int bits = 0; bits < 65536; ++bits) {
    const double expected = DecodeF16(static_cast<uint16_t>(bits));
    const float got = ToFloat(F16{static_cast<uint16_t>(bits)});
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(got)) << bits;
    } else {
      ASSERT_EQ(expected, got) << bits;
      ASSERT_EQ(std::signbit(expected), std::signbit(got)) << bits;
    }
  }
}

TEST(BF16, EveryValueWidensExactly) {
  for (int bits = 0; bits < 65536; ++bits) {
    const double expected = DecodeBF16(static_cast<uint16_t>(bits));
    const float got = ToFloat(BF16{static_cast<uint16_t>(bits)});
    if (std::isnan(expected)) {
      EXPECT_TRUE(std::isnan(got)) << bits;
    } else {
      ASSERT_EQ(expected, got) << bits;
      ASSERT_EQ(std::signbit(expected), std::signbit(got)) << bits;
    }
  }
}

TEST(F16, EveryValueSurvivesF32) {
  for (int bits = 0; bits < 65536; ++bits) {
    const F16 x{static_cast<uint16_t>(bits)};
    const F16 back = ToF16(ToFloat(x));
    if (std::isnan(DecodeF16(x.bits))) {
      EXPECT_TRUE(std::isnan(ToFloat(back))) << bits;
    } else {
      ASSERT_EQ(x.bits, back.bits);
    }
  }
}

TEST(BF16, EveryValueSurvivesF32) {
  for (int bits = 0; bits < 65536; ++bits) {
    const BF16 x{static_cast<uint16_t>(bits)};
    const BF16 back = ToBF16(ToFloat(x));
    if (std::isnan(DecodeBF16(x.bits))) {
      EXPECT_TRUE(std::isnan(ToFloat(back))) << bits;
    } else {
      ASSERT_EQ(x.bits, back.bits);
    }
  }
}

// Round to nearest even by looking at the two neighbours in f64, where everything is exact. The
// value 2^(max exponent + 1) that would follow the largest finite one stands for infinity.
template <double (*kDecode)(uint16_t)>
uint16_t RoundByNeighbours(float x, uint16_t infinity, double beyond) {
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::fabs(static_cast<double>(x));
  const auto value = [&](int bits) {
    return bits >= infinity ? beyond : kDecode(static_cast<uint16_t>(bits));
  };
  int low = 0, high = infinity;  // largest representable <= magnitude, by bisection
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (value(middle) <= magnitude) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  if (low >= infinity) return sign | infinity;
  const double down = magnitude - value(low), up = value(low + 1) - magnitude;
  const bool round_up = up < down || (up == down && (low & 1));
  return static_cast<uint16_t>(sign | (low + (round_up ? 1 : 0)));
}

uint16_t OracleF16(float x) { return RoundByNeighbours<DecodeF16>(x, 0x7C00, 65536.0); }
uint16_t OracleBF16(float x) { return RoundByNeighbours<DecodeBF16>(x, 0x7F80, 0x1p128); }

// Every f16 value, the midpoint to its neighbour, and the floats next to both.
TEST(F16, RoundsToNearestEvenAroundEveryValueAndMidpoint) {
  for (int bits = 0; bits < 0x7C00; ++bits) {
    const float value = ToFloat(F16{static_cast<uint16_t>(bits)});
    const double next = bits + 1 == 0x7C00 ? 65536.0 : DecodeF16(static_cast<uint16_t>(bits + 1));
    const auto middle = static_cast<float>((value + next) / 2);  // exact in f32
    for (float x : {value, middle}) {
      for (float y : {x, std::nextafterf(x, -1e30f), std::nextafterf(x, 1e30f)}) {
        ASSERT_EQ(OracleF16(y), ToF16(y).bits) << y;
        ASSERT_EQ(OracleF16(-y), ToF16(-y).bits) << -y;
      }
    }
  }
}

TEST(BF16, RoundsToNearestEvenAroundEveryValueAndMidpoint) {
  for (int bits = 0; bits < 0x7F80; ++bits) {
    const auto value = static_cast<uint32_t>(bits) << 16;
    for (uint32_t pattern : {value, value + 0x7FFF, value + 0x8000, value + 0x8001, value + 1}) {
      const float x = std::bit_cast<float>(pattern);
      ASSERT_EQ(OracleBF16(x), ToBF16(x).bits) << x;
      ASSERT_EQ(OracleBF16(-x), ToBF16(-x).bits) << -x;
    }
  }
}

TEST(F16, RoundsRandomFloatsOfEveryExponent) {
  cases::Rng rng(1);
  for (int i = 0; i < 200'000; ++i) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(rng.Integer(0, UINT32_MAX)));
    if (std::isnan(x)) {
      EXPECT_TRUE(std::isnan(ToFloat(ToF16(x))));
      EXPECT_TRUE(std::isnan(ToFloat(ToBF16(x))));
      continue;
    }
    ASSERT_EQ(OracleF16(x), ToF16(x).bits) << x;
    if (!std::isinf(x)) {
      ASSERT_EQ(OracleBF16(x), ToBF16(x).bits) << x;
    }
  }
}

TEST(Floats, InfinityOverflowAndNan) {
  const float inf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(ToF16(inf).bits, 0x7C00);
  EXPECT_EQ(ToF16(-inf).bits, 0xFC00);
  EXPECT_EQ(ToF16(65504.0f).bits, 0x7BFF);
  EXPECT_EQ(ToF16(65519.996f).bits, 0x7BFF);
  EXPECT_EQ(ToF16(65520.0f).bits, 0x7C00);
  EXPECT_EQ(ToF16(1e38f).bits, 0x7C00);
  EXPECT_EQ(ToBF16(inf).bits, 0x7F80);
  EXPECT_EQ(ToBF16(-inf).bits, 0xFF80);
  EXPECT_EQ(ToBF16(std::numeric_limits<float>::max()).bits, 0x7F80);
  EXPECT_EQ(ToF16(-0.0f).bits, 0x8000);
  EXPECT_EQ(ToBF16(-0.0f).bits, 0x8000);
  // A NaN whose payload lies only in the bits that are cut off must not become an infinity.
  for (uint32_t bits : {0x7F800001u, 0xFF800001u, 0x7FC00000u, 0xFFFFFFFFu, 0x7F80FFFFu}) {
    const float nan = std::bit_cast<float>(bits);
    EXPECT_TRUE(std::isnan(ToFloat(ToF16(nan))));
    EXPECT_TRUE(std::isnan(ToFloat(ToBF16(nan))));
  }
}

constexpr DType kAll[] = {DType::kF32,  DType::kF16,  DType::kBF16, DType::kI8,   DType::kI32,
                          DType::kI64,  DType::kU32,  DType::kBool, DType::kQ8_0, DType::kQ4_0,
                          DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kTQ2_0};

TEST(DTypes, NamesRoundTrip) {
  for (DType dtype : kAll) {
    EXPECT_TRUE(IsKnown(dtype));
    EXPECT_EQ(ParseDType(Name(dtype)), dtype);
    EXPECT_GT(BlockBytes(dtype), 0);
    EXPECT_GT(BlockLength(dtype), 0);
    EXPECT_EQ(BlockBytes(dtype) % Alignment(dtype), 0) << Name(dtype);
    EXPECT_EQ(IsBlockQuantized(dtype), BlockLength(dtype) > 1);
  }
  EXPECT_FALSE(ParseDType("f64").has_value());
  EXPECT_FALSE(ParseDType("").has_value());
}

TEST(DTypes, UnknownValuesAreHarmless) {
  for (int value : {14, 15, 100, 255}) {
    const auto dtype = static_cast<DType>(value);
    EXPECT_FALSE(IsKnown(dtype));
    EXPECT_EQ(Name(dtype), "unknown");
    EXPECT_EQ(BlockBytes(dtype), 0);
    EXPECT_GE(BlockLength(dtype), 1);
    EXPECT_GE(Alignment(dtype), 1);
    EXPECT_FALSE(IsFloat(dtype));
    EXPECT_FALSE(IsBlockQuantized(dtype));
  }
}

TEST(DTypes, DispatchGivesTheType) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    EXPECT_EQ(DispatchFloat(dtype, []<typename T>() { return DTypeOf<T>::value; }), dtype);
  }
  for (DType dtype : kAll) {
    if (IsBlockQuantized(dtype)) {
      EXPECT_EQ(DispatchBlock(dtype, []<typename T>() { return DTypeOf<T>::value; }), dtype);
      EXPECT_EQ(DispatchBlock(dtype, []<typename T>() { return static_cast<int>(sizeof(T)); }),
                BlockBytes(dtype));
      EXPECT_EQ(DispatchBlock(dtype, []<typename T>() { return T::kLength; }), BlockLength(dtype));
      EXPECT_TRUE(DispatchBlock(dtype, []<typename T>() { return kIsBlock<T>; }));
    }
    if (IsBlockQuantized(dtype) || IsFloat(dtype)) {
      EXPECT_EQ(DispatchWeight(dtype, []<typename T>() { return DTypeOf<T>::value; }), dtype);
    }
  }
  EXPECT_FALSE(kIsBlock<float>);
}

}  // namespace
}  // namespace tandem
