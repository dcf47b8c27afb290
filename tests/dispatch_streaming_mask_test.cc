// The mask that grows: every state is what a fresh build gives, and growing touches nothing else.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "core/ops/mask.h"
#include "core/ops/mask_patterns.h"
#include "core/status.h"
#include "dispatch/ops.h"
#include "dispatch/streaming_mask.h"
#include "tests/cases/random.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Context> MakeContext() {
  ContextOptions options;
  options.threads = 2;
  auto context = Context::Create(options);
  EXPECT_TRUE(context.ok()) << context.status();
  return std::move(context).value();
}

const std::vector<DType> kDTypes = {DType::kF32, DType::kF16, DType::kBF16, DType::kBool,
                                    DType::kU32};

const std::vector<MaskRule> kPatterns = {
    FullMask(0, 0),         CausalMask(0, 0),        SlidingWindowMask(0, 0, 7),
    LocalMask(0, 0, 5, 3),  ChunkedMask(0, 0, 6),    BlockLocalMask(0, 0, 5),
    PrefixLmMask(0, 0, 20), LeftPaddedMask(0, 0, 4), {.causal = Causal::kTopLeft, .window_left = 9},
};

// The first row in which the two differ, or -1.
int64_t FirstDifferentRow(const TensorView& a, const TensorView& b) {
  EXPECT_EQ(a.shape, b.shape);
  const auto bytes = static_cast<size_t>(a.dim(1) * BlockBytes(a.dtype));
  for (int64_t row = 0; row < a.dim(0); ++row) {
    const char* left = a.As<char>() + row * a.stride(0) * BlockBytes(a.dtype);
    const char* right = b.As<char>() + row * b.stride(0) * BlockBytes(b.dtype);
    if (bytes > 0 && std::memcmp(left, right, bytes) != 0) return row;
  }
  return -1;
}

void ExpectFresh(Context& context, const StreamingMask& mask, DType dtype) {
  const auto fresh = Mask(context, mask.rule(), dtype);
  ASSERT_TRUE(fresh.ok()) << fresh.status();
  ASSERT_EQ(FirstDifferentRow(mask.view(), fresh->view()), -1)
      << Name(dtype) << " " << mask.rule().q_len << " x " << mask.rule().kv_len;
}

TEST(StreamingMask, EveryStateIsAFreshBuild) {
  const auto context = MakeContext();
  cases::Rng rng(1);
  for (DType dtype : kDTypes) {
    for (MaskRule rule : kPatterns) {
      rule.q_len = 3;
      rule.kv_len = 5;
      auto mask = StreamingMask::Create(*context, rule, dtype, 70, 150);
      ASSERT_TRUE(mask.ok()) << mask.status();
      ExpectFresh(*context, *mask, dtype);
      for (int step = 0; step < 40; ++step) {
        // Tokens one by one, then keys or queries alone, then several.
        const int64_t rows = step < 20 ? 1 : rng.Integer(0, 2);
        const int64_t columns = step < 20 ? 1 : rng.Integer(0, 4);
        ASSERT_TRUE(mask->Append(*context, rows, columns).ok());
        ExpectFresh(*context, *mask, dtype);
      }
    }
  }
}

TEST(StreamingMask, ChangesToAnyRule) {
  const auto context = MakeContext();
  cases::Rng rng(2);
  for (DType dtype : kDTypes) {
    auto mask = StreamingMask::Create(*context, CausalMask(0, 0), dtype, 50, 200);
    ASSERT_TRUE(mask.ok()) << mask.status();
    for (int step = 0; step < 200; ++step) {
      MaskRule rule = rng.Pick(kPatterns);
      rule.q_len = rng.Integer(0, 50);
      rule.kv_len = rng.Integer(0, 200);
      ASSERT_TRUE(mask->Update(*context, rule).ok());
      ExpectFresh(*context, *mask, dtype);
    }
  }
}

TEST(StreamingMask, DecodingWithOneQueryMovesTheWindow) {
  const auto context = MakeContext();
  auto mask = StreamingMask::Create(*context, SlidingWindowMask(1, 1, 8), DType::kF32, 1, 64);
  ASSERT_TRUE(mask.ok());
  const float* first = mask->view().As<float>();
  for (int64_t kv_len = 2; kv_len <= 64; ++kv_len) {
    ASSERT_TRUE(mask->Append(*context, 0, 1).ok());
    EXPECT_EQ(mask->view().As<float>(), first) << "in place";
    ExpectFresh(*context, *mask, DType::kF32);
  }
}

// Marks every cell that stays, appends, and finds the marks again.
TEST(StreamingMask, WritesOnlyCellsThatDiffer) {
  const auto context = MakeContext();
  for (DType dtype : {DType::kF32, DType::kU32}) {  // both of 4 bytes
    for (MaskRule rule : kPatterns) {
      for (const auto& [rows, columns] : {std::pair(1, 1), std::pair(0, 1), std::pair(2, 40)}) {
        rule.q_len = 40;
        rule.kv_len = 70;
        auto mask = StreamingMask::Create(*context, rule, dtype, 44, 120);
        ASSERT_TRUE(mask.ok());
        const TensorView before = mask->view();
        MaskRule next = rule;
        next.q_len += rows;
        next.kv_len += columns;
        const Tensor now = Mask(*context, next, dtype).value();
        constexpr uint32_t kMark = 0x12345678;
        const auto cell = [](const TensorView& view, int64_t q, int64_t column) -> uint32_t& {
          return view.As<uint32_t>()[q * view.stride(0) + column];
        };
        const Tensor was = Mask(*context, rule, dtype).value();
        const auto stays = [&](int64_t q, int64_t column) {
          return cell(was.view(), q, column) == cell(now.view(), q, column);
        };
        for (int64_t q = 0; q < before.dim(0); ++q) {
          for (int64_t column = 0; column < before.dim(1); ++column) {
            if (stays(q, column)) cell(before, q, column) = kMark;
          }
        }
        ASSERT_TRUE(mask->Append(*context, rows, columns).ok());
        for (int64_t q = 0; q < next.q_len; ++q) {
          for (int64_t column = 0; column < now.view().dim(1); ++column) {
            const bool marked = q < before.dim(0) && column < before.dim(1) && stays(q, column);
            ASSERT_EQ(cell(mask->view(), q, column), marked ? kMark : cell(now.view(), q, column))
                << Name(dtype) << " row " << q << " column " << column;
          }
        }
      }
    }
  }
}

TEST(StreamingMask, ErrorsChangeNothing) {
  const auto context = MakeContext();
  auto mask = StreamingMask::Create(*context, CausalMask(4, 6), DType::kF32, 5, 8);
  ASSERT_TRUE(mask.ok());
  EXPECT_EQ(mask->Append(*context, 2, 1).code(), absl::StatusCode::kResourceExhausted);
  const absl::Status beyond = mask->Append(*context, 1, 3);
  EXPECT_EQ(beyond.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(beyond),
              HasSubstr("5 queries and 9 keys are beyond its capacity of 5 and 8"));
  EXPECT_EQ(mask->Append(*context, -1, 0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(mask->Append(*context, INT64_MAX, 0).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(mask->Update(*context, {.q_len = 4, .kv_len = 6, .chunk = -1}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(mask->rule().q_len, 4);
  EXPECT_EQ(mask->rule().kv_len, 6);
  ExpectFresh(*context, *mask, DType::kF32);

  const auto create = [&](const MaskRule& rule, DType dtype, int64_t rows, int64_t columns,
                          Device device = {}) {
    return StreamingMask::Create(*context, rule, dtype, rows, columns, device).status();
  };
  EXPECT_THAT(Message(create(CausalMask(4, 6), DType::kF32, 3, 8)), HasSubstr("rule: expected"));
  EXPECT_THAT(Message(create(CausalMask(4, 6), DType::kF32, -3, 8)), HasSubstr("max_rows"));
  EXPECT_THAT(Message(create(CausalMask(4, 6), DType::kI32, 4, 8)), HasSubstr("dtype"));
  EXPECT_THAT(Message(create(CausalMask(-4, 6), DType::kF32, 4, 8)), HasSubstr("rule.q_len"));
  EXPECT_THAT(Message(create(CausalMask(4, 6), DType::kF32, 4, 8, {DeviceKind::kCuda, 0})),
              HasSubstr("device"));
}

TEST(MaskValue, BatchesBandsAndErrors) {
  const auto context = MakeContext();
  std::vector<int32_t> lens = {3, 5};
  MaskArgs args = {.rule = CausalMask(5, 5)};
  args.kv_lens = MakeView(static_cast<void*>(lens.data()), DType::kI32, {2});
  const auto batch = BatchMask(*context, args, DType::kBool);
  ASSERT_TRUE(batch.ok()) << batch.status();
  EXPECT_EQ(batch->view().shape, (Shape{2, 1, 5, 5}));
  const auto band = BatchMask(*context, {.rule = CausalMask(5, 5), .first_row = 3}, DType::kBool);
  ASSERT_TRUE(band.ok());
  EXPECT_EQ(band->view().shape, (Shape{2, 5}));
  EXPECT_THAT(std::vector<uint8_t>(band->view().As<uint8_t>(), band->view().As<uint8_t>() + 10),
              testing::ElementsAre(1, 1, 1, 1, 0, 1, 1, 1, 1, 1));
  EXPECT_FALSE(BatchMask(*context, {.rule = CausalMask(5, 5), .first_row = 6}, DType::kBool).ok());
  EXPECT_FALSE(
      BatchMask(*context, {.rule = CausalMask(5, 5), .previous = CausalMask(4, 4)}, DType::kBool)
          .ok());
  lens[0] = 9;
  EXPECT_FALSE(BatchMask(*context, args, DType::kBool).ok());
}

}  // namespace
}  // namespace tandem
