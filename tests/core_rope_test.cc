// Rotary frequencies: the formulas of the papers, values computed independently, bad parameters.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "core/ops/rope.h"
#include "core/status.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;
using Kind = RopeScaling::Kind;

RopeFrequencies Frequencies(int64_t dim, double base, const RopeScaling& scaling) {
  const auto result = RopeInverseFrequencies(dim, base, scaling);
  EXPECT_TRUE(result.ok()) << result.status().ToString();
  return result.ok() ? *result : RopeFrequencies{};
}

void ExpectValues(const RopeFrequencies& got,
                  const std::vector<std::pair<size_t, double>>& expected) {
  for (const auto& [i, value] : expected) {
    ASSERT_LT(i, got.inv_freq.size());
    EXPECT_NEAR(got.inv_freq[i], value, 2e-7 * value) << "pair " << i;
  }
}

TEST(RopeFrequencies, Unscaled) {
  for (const auto& [dim, base] :
       {std::pair<int64_t, double>{2, 10000}, {64, 10000}, {128, 1e6}, {80, 500000}}) {
    const RopeFrequencies f = Frequencies(dim, base, {});
    ASSERT_EQ(static_cast<int64_t>(f.inv_freq.size()), dim / 2);
    EXPECT_EQ(f.magnitude, 1.0f);
    EXPECT_EQ(f.inv_freq[0], 1.0f);
    for (int64_t i = 0; i < dim / 2; ++i) {
      const double exact = std::exp(-2.0 * double(i) / double(dim) * std::log(base));
      EXPECT_NEAR(f.inv_freq[static_cast<size_t>(i)], exact, 1e-7 * exact);
    }
  }
}

TEST(RopeFrequencies, LinearDividesAll) {
  const RopeFrequencies plain = Frequencies(64, 10000, {});
  RopeScaling scaling;
  scaling.kind = Kind::kLinear;
  scaling.factor = 4;
  const RopeFrequencies scaled = Frequencies(64, 10000, scaling);
  for (size_t i = 0; i < 32; ++i) EXPECT_EQ(scaled.inv_freq[i], plain.inv_freq[i] / 4);
  EXPECT_EQ(scaled.magnitude, 1.0f);
}

TEST(RopeFrequencies, DivisorsDivideEachPair) {
  RopeScaling scaling;
  for (int i = 0; i < 32; ++i) scaling.divisors.push_back(static_cast<float>(1 << (i % 3)));
  const RopeFrequencies plain = Frequencies(64, 10000, {});
  const RopeFrequencies divided = Frequencies(64, 10000, scaling);
  for (size_t i = 0; i < 32; ++i) {
    EXPECT_EQ(divided.inv_freq[i], plain.inv_freq[i] / scaling.divisors[i]);
  }
}

// Llama 3.1 8B: base 500000, factor 8, training context 8192; values from the published formula in
// another language.
TEST(RopeFrequencies, Llama3) {
  RopeScaling scaling;
  scaling.kind = Kind::kLlama3;
  scaling.factor = 8;
  scaling.original_context = 8192;
  scaling.low_freq_factor = 1;
  scaling.high_freq_factor = 4;
  ExpectValues(Frequencies(128, 500000, scaling), {{0, 1.0},
                                                   {20, 0.0165604401},
                                                   {28, 0.00321144599},
                                                   {29, 0.00216657076},
                                                   {31, 0.000856751413},
                                                   {33, 0.00031269375},
                                                   {35, 9.55621235e-05},
                                                   {36, 7.78465527e-05},
                                                   {50, 4.41153467e-06},
                                                   {63, 3.06892599e-07}});
}

// Qwen2.5 with YaRN: base 1e6, factor 4, training context 32768; likewise.
TEST(RopeFrequencies, Yarn) {
  RopeScaling scaling;
  scaling.kind = Kind::kYarn;
  scaling.factor = 4;
  scaling.original_context = 32768;
  const RopeFrequencies f = Frequencies(128, 1e6, scaling);
  ExpectValues(f, {{0, 1.0},
                   {22, 0.00865964323},
                   {23, 0.00697830585},
                   {24, 0.00537532149},
                   {30, 0.00106436098},
                   {35, 0.000246258407},
                   {39, 6.49039432e-05},
                   {40, 4.44569853e-05},
                   {41, 3.58253143e-05},
                   {63, 3.1023444e-07}});
  EXPECT_FLOAT_EQ(f.magnitude, 1.13862944f);
  scaling.attention_factor = 0.5;
  EXPECT_FLOAT_EQ(Frequencies(128, 1e6, scaling).magnitude, 0.56931472f);
}

TEST(RopeFrequencies, FactorOneChangesNothing) {
  const RopeFrequencies plain = Frequencies(64, 10000, {});
  for (Kind kind : {Kind::kLinear, Kind::kLlama3, Kind::kYarn}) {
    RopeScaling scaling;
    scaling.kind = kind;
    scaling.original_context = 2048;
    const RopeFrequencies f = Frequencies(64, 10000, scaling);
    for (size_t i = 0; i < 32; ++i) {
      EXPECT_NEAR(f.inv_freq[i], plain.inv_freq[i], 1e-7 * plain.inv_freq[i]);
    }
    EXPECT_EQ(f.magnitude, 1.0f);
  }
}

TEST(RopeFrequencies, BadParametersAreNamed) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  const auto message = [](int64_t dim, double base, const RopeScaling& scaling) {
    const auto result = RopeInverseFrequencies(dim, base, scaling);
    EXPECT_EQ(result.status().code(), absl::StatusCode::kInvalidArgument);
    return Message(result.status());
  };
  for (int64_t dim : {int64_t{0}, int64_t{-2}, int64_t{7}, INT64_MAX, INT64_MIN}) {
    EXPECT_THAT(message(dim, 10000, {}), HasSubstr("rotary_dim"));
  }
  for (double base : {0.0, -1.0, nan, inf, 1e-300}) {
    EXPECT_THAT(message(64, base, {}), HasSubstr("base"));
  }
  const auto with = [&](Kind kind, auto field, auto value) {
    RopeScaling scaling;
    scaling.kind = kind;
    scaling.factor = 2;
    scaling.original_context = 4096;
    scaling.*field = value;
    return message(64, 10000, scaling);
  };
  for (Kind kind : {Kind::kLinear, Kind::kLlama3, Kind::kYarn}) {
    for (double factor : {0.5, 0.0, -4.0, nan, inf}) {
      EXPECT_THAT(with(kind, &RopeScaling::factor, factor), HasSubstr("factor"));
    }
  }
  for (Kind kind : {Kind::kLlama3, Kind::kYarn}) {
    for (double context : {0.0, -1.0, nan}) {
      EXPECT_THAT(with(kind, &RopeScaling::original_context, context),
                  HasSubstr("original_context"));
    }
  }
  EXPECT_THAT(with(Kind::kLlama3, &RopeScaling::low_freq_factor, 4.0),
              HasSubstr("low_freq_factor"));
  EXPECT_THAT(with(Kind::kLlama3, &RopeScaling::low_freq_factor, 0.0),
              HasSubstr("low_freq_factor"));
  EXPECT_THAT(with(Kind::kLlama3, &RopeScaling::high_freq_factor, nan),
              HasSubstr("high_freq_factor"));
  EXPECT_THAT(with(Kind::kYarn, &RopeScaling::attention_factor, nan),
              HasSubstr("attention_factor"));
  EXPECT_THAT(with(Kind::kNone, &RopeScaling::divisors, std::vector<float>(31, 1.0f)),
              HasSubstr("divisors: expected 32 values, got 31"));
  for (float bad : {0.0f, -1.0f, std::nanf(""), std::numeric_limits<float>::infinity()}) {
    std::vector<float> divisors(32, 1.0f);
    divisors[5] = bad;
    EXPECT_THAT(with(Kind::kNone, &RopeScaling::divisors, divisors), HasSubstr("index 5"));
  }
}

}  // namespace
}  // namespace tandem
