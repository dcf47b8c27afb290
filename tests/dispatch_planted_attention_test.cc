// Attention's cases catch what they are there to catch (tests/planted_attention.h has the bugs).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/cases/attention_cases.h"
#include "tests/planted_attention.h"
#include "tests/planted_bugs.h"

namespace tandem::cases {
namespace {

using ::testing::HasSubstr;

class PlantedAttention : public PlantedBugs {
 protected:
  template <Bug kBug>
  void ExpectCaught(const std::string& message, GridSize grid = GridSize::kShort) {
    EXPECT_THAT(FirstFailure<AttentionCase>(PlantedKernel<kBug>(), grid), HasSubstr(message));
  }
};

TEST_F(PlantedAttention, NoBugNoFailure) {
  EXPECT_EQ(FirstFailure<AttentionCase>(PlantedKernel<Bug::kNone>(), GridSize::kShort), "");
}

TEST_F(PlantedAttention, WrongKeys) {
  ExpectCaught<Bug::kCausalOffByOne>("out[");
  ExpectCaught<Bug::kTopLeftForBottomRight>("out[");
  ExpectCaught<Bug::kWindowOffByOne>("out[");
  ExpectCaught<Bug::kChunkIgnored>("out[");
  ExpectCaught<Bug::kPrefixIgnored>("out[");
  ExpectCaught<Bug::kHeadModulo>("out[");
  ExpectCaught<Bug::kIgnoresNewKeys>("out[");
  ExpectCaught<Bug::kNewKeysBehindCapacity>("out[");
  ExpectCaught<Bug::kKvLensIgnored>("out[");
  ExpectCaught<Bug::kKvStartsIgnored>("out[");
  ExpectCaught<Bug::kKeysBeforeIgnored>("out[");
  ExpectCaught<Bug::kKeysAfterIgnored>("out[");
}

TEST_F(PlantedAttention, Pages) { ExpectCaught<Bug::kPageOffByOne>("out["); }

TEST_F(PlantedAttention, RaggedRows) {
  ExpectCaught<Bug::kPaddingRowsNotWritten>("got nan, expected 0");
  ExpectCaught<Bug::kPackedRowsOfTheFirst>("out[");
}

TEST_F(PlantedAttention, RowsThatSeeNothing) {
  ExpectCaught<Bug::kMaskedRowDividesByZero>("got nan, expected 0");
  ExpectCaught<Bug::kFiniteMinusInfinity>("out[");
}

TEST_F(PlantedAttention, NaN) {
  ExpectCaught<Bug::kMaskedNanLeaks>("got nan");
  ExpectCaught<Bug::kHiddenByBiasLeaks>("got nan");
  ExpectCaught<Bug::kNanSwallowed>("expected nan");
}

TEST_F(PlantedAttention, Scores) {
  ExpectCaught<Bug::kScaleIgnored>("expected");
  ExpectCaught<Bug::kSoftcapAfterBias>("expected");
  ExpectCaught<Bug::kSoftcapBeforeScale>("expected");
  ExpectCaught<Bug::kAlibiSign>("expected");
  ExpectCaught<Bug::kAlibiFromTheFirstQuery>("expected");
  ExpectCaught<Bug::kBiasOfTheFirstHead>("expected");
  ExpectCaught<Bug::kMaskOfTheFirstRow>("expected");
  ExpectCaught<Bug::kMaskBitOrder>("expected");
}

TEST_F(PlantedAttention, Sinks) {
  ExpectCaught<Bug::kSinkTwice>("expected");
  ExpectCaught<Bug::kSinkNotInMaximum>("lse[");
  ExpectCaught<Bug::kLseWithoutSink>("lse[");
}

TEST_F(PlantedAttention, Int8Scales) {
  ExpectCaught<Bug::kInt8ScaleOfTheNextToken>("out[");
  ExpectCaught<Bug::kInt8ScaleOfK>("out[");
}

TEST_F(PlantedAttention, Memory) {
  ExpectCaught<Bug::kReadsThroughPadding>("out[", GridSize::kFull);
  ExpectCaught<Bug::kWritesThroughPadding>("out", GridSize::kFull);
  ExpectCaught<Bug::kWritesPastTheEnd>("guard or padding bytes of out were changed");
  ExpectCaught<Bug::kLastRowMissing>("got nan");
  ExpectCaught<Bug::kAddsToOutput>("got nan");
  ExpectCaught<Bug::kWritesInput>("input q changed");
}

TEST_F(PlantedAttention, Workspace) {
  ExpectCaught<Bug::kTakesMoreWorkspace>("more workspace than");
  ExpectCaught<Bug::kWritesBeyondWorkspace>("beyond the workspace");
  ExpectCaught<Bug::kTrustsZeroedWorkspace>("got nan");
}

TEST_F(PlantedAttention, Numerics) {
  ExpectCaught<Bug::kLseBase2>("lse[");
  ExpectCaught<Bug::kF16Scores>("expected");
  ExpectCaught<Bug::kF16Sum>("out", GridSize::kFull);
}

}  // namespace
}  // namespace tandem::cases
