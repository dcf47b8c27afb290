// The cases of merge_attention catch what merges get wrong: "no part so far" told from the value of
// the log-sum-exp, exponentials of unbounded differences, empty parts that leak.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "tests/cases/merge_attention_cases.h"
#include "tests/planted_bugs.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

using ::testing::HasSubstr;

enum class MergeBug {
  kNone,
  kZeroLseMeansUnset,
  kUnguardedExponential,
  kEmptyPartLeaks,
  kAllEmptyDividesByZero,
  kLastPartMissing,
  kNotNormalised,
  kLseOverwrittenTooEarly,
};

// Part by part, two at a time, as one would write it down.
template <MergeBug kBug>
absl::Status MergePlainly(const KernelContext&, const MergeAttentionArgs& args) {
  const int64_t columns = args.out.dim(3);
  const int64_t parts = args.parts() - (kBug == MergeBug::kLastPartMissing && args.parts() > 1);
  for (int64_t b = 0; b < args.out.dim(0); ++b) {
    for (int64_t h = 0; h < args.out.dim(1); ++h) {
      for (int64_t i = 0; i < args.out.dim(2); ++i) {
        const auto offset = [&](const TensorView& v) {
          return b * v.stride(0) + h * v.stride(1) + i * v.stride(2);
        };
        std::vector<double> sum(static_cast<size_t>(columns));
        double total = -INFINITY;  // log-sum-exp so far
        if (kBug == MergeBug::kZeroLseMeansUnset) total = 0.0;
        if (kBug == MergeBug::kLseOverwrittenTooEarly && args.lse.present()) {
          Store(args.lse, offset(args.lse), 0.0f);
        }
        for (int64_t p = 0; p < parts; ++p) {
          const TensorView& out = args.out_parts[static_cast<size_t>(p)];
          const TensorView& part_lse = args.lse_parts[static_cast<size_t>(p)];
          const double lse = reference::ReadAt(part_lse, offset(part_lse));
          if (lse == -INFINITY && kBug != MergeBug::kEmptyPartLeaks) continue;
          const bool unset =
              kBug == MergeBug::kZeroLseMeansUnset ? std::fabs(total) < 1e-6 : total == -INFINITY;
          double merged = 0.0;
          if (unset) {
            merged = lse;
          } else if (kBug == MergeBug::kUnguardedExponential) {
            merged = total + std::log1p(std::exp(static_cast<float>(lse - total)));
          } else {
            const double largest = std::fmax(total, lse);
            merged = largest + std::log(std::exp(total - largest) + std::exp(lse - largest));
          }
          if (std::isnan(lse)) merged = lse;
          const double keep = unset ? 0.0 : std::exp(total - merged);
          const double add = std::exp(lse - merged);
          for (int64_t c = 0; c < columns; ++c) {
            double& own = sum[static_cast<size_t>(c)];
            const double x = reference::ReadAt(out, offset(out) + c * out.stride(3));
            own = kBug == MergeBug::kNotNormalised ? own + add * x : own * keep + add * x;
          }
          total = merged;
        }
        for (int64_t c = 0; c < columns; ++c) {
          double x = sum[static_cast<size_t>(c)];
          if (kBug == MergeBug::kAllEmptyDividesByZero && total == -INFINITY) x = NAN;
          Store(args.out, offset(args.out) + c * args.out.stride(3), static_cast<float>(x));
        }
        if (args.lse.present()) Store(args.lse, offset(args.lse), static_cast<float>(total));
      }
    }
  }
  return absl::OkStatus();
}

class PlantedMerge : public PlantedBugs {
 protected:
  template <MergeBug kBug>
  std::string First() {
    const Kernel<MergeAttentionArgs> kernel = {.name = "planted",
                                               .device = DeviceKind::kCpu,
                                               .supports = SupportsAll<MergeAttentionArgs>,
                                               .workspace_bytes = NoWorkspace<MergeAttentionArgs>,
                                               .run = MergePlainly<kBug>};
    return FirstFailure<MergeAttentionCase>(kernel, GridSize::kShort);
  }
};

TEST_F(PlantedMerge, NoBugNoFailure) { EXPECT_EQ(First<MergeBug::kNone>(), ""); }

TEST_F(PlantedMerge, ZeroIsNotUnset) {
  EXPECT_THAT(First<MergeBug::kZeroLseMeansUnset>(), HasSubstr("expected"));
}

TEST_F(PlantedMerge, UnguardedExponential) {
  EXPECT_THAT(First<MergeBug::kUnguardedExponential>(), HasSubstr("expected"));
}

TEST_F(PlantedMerge, EmptyParts) {
  EXPECT_THAT(First<MergeBug::kEmptyPartLeaks>(), HasSubstr("got nan"));
  EXPECT_THAT(First<MergeBug::kAllEmptyDividesByZero>(), HasSubstr("got nan, expected 0"));
}

TEST_F(PlantedMerge, WrongSums) {
  EXPECT_THAT(First<MergeBug::kLastPartMissing>(), HasSubstr("expected"));
  EXPECT_THAT(First<MergeBug::kNotNormalised>(), HasSubstr("expected"));
  EXPECT_THAT(First<MergeBug::kLseOverwrittenTooEarly>(), HasSubstr("expected"));
}

}  // namespace
}  // namespace tandem::cases
