// Bytes and operations of attention and of its merge, as the scheduler and the trace see them.
#include <gtest/gtest.h>

#include <vector>

#include "dispatch/facts.h"

namespace tandem {
namespace {

// Views that are never read, but for the lists.
TensorView Unread(DType dtype, const Shape& shape) {
  return MakeView(reinterpret_cast<void*>(uintptr_t{4096}), dtype, shape);
}

AttentionArgs Dense(int64_t batch, int64_t q_len, int64_t kv_len, DType kv_dtype) {
  AttentionArgs args;
  args.q = Unread(DType::kF32, {batch, 8, q_len, 64});
  args.k = Unread(kv_dtype, {batch, 2, kv_len, 64});
  args.v = Unread(kv_dtype, {batch, 2, kv_len, 32});
  args.out = Unread(DType::kF32, {batch, 8, q_len, 32});
  return args;
}

double FlopsOf(const MaskRule& rule, int64_t heads) {
  double pairs = 0;
  for (int64_t q = 0; q < rule.q_len; ++q) {
    pairs += static_cast<double>(rule.Range(q).end - rule.Range(q).begin);
  }
  return 2.0 * static_cast<double>(heads) * (64 + 32) * pairs;
}

TEST(AttentionFacts, CountVisiblePairsOfEveryRule) {
  for (const MaskRule& rule :
       {MaskRule{.q_len = 1, .kv_len = 1000}, MaskRule{.q_len = 7, .kv_len = 5},
        MaskRule{.q_len = 1000, .kv_len = 1000}, MaskRule{.q_len = 1000, .kv_len = 3000},
        MaskRule{.q_len = 1000, .kv_len = 1000, .causal = Causal::kNone},
        MaskRule{.q_len = 4096, .kv_len = 4096, .window_left = 100},
        MaskRule{.q_len = 2048, .kv_len = 2048, .chunk = 300},
        MaskRule{.q_len = 512, .kv_len = 700, .prefix_len = 400}}) {
    AttentionArgs args = Dense(3, rule.q_len, rule.kv_len, DType::kF16);
    args.causal = rule.causal;
    args.window_left = rule.window_left;
    args.chunk = rule.chunk;
    args.prefix_len = rule.prefix_len;
    const double expected = FlopsOf(rule, 3 * 8);
    // Long ones are estimated.
    EXPECT_NEAR(FactsOf(args).flops, expected, rule.q_len > 64 ? 0.05 * expected : 0.0)
        << rule.q_len << " queries, " << rule.kv_len << " keys, window " << rule.window_left
        << ", chunk " << rule.chunk;
  }
}

TEST(AttentionFacts, RaggedBatchesCountWhatTheyHold) {
  AttentionArgs args = Dense(3, 4, 100, DType::kF16);
  const std::vector<int32_t> q_lens = {4, 0, 1}, kv_lens = {100, 30, 0};
  const int64_t q_and_out = 3 * 8 * 4 * (64 + 32) * 4;
  EXPECT_EQ(FactsOf(args).bytes, q_and_out + 3 * 2 * 100 * (64 + 32) * 2);
  args.q_lens = MakeView(q_lens.data(), DType::kI32, {3});
  args.kv_lens = MakeView(kv_lens.data(), DType::kI32, {3});
  const OpFacts facts = FactsOf(args);
  EXPECT_EQ(facts.kv_len, 100);
  EXPECT_EQ(facts.bytes, q_and_out + 2 * 130 * (64 + 32) * 2);
  EXPECT_EQ(facts.flops, FlopsOf({.q_len = 4, .kv_len = 100}, 8));
}

TEST(AttentionFacts, PagedInt8CachesCountPagesInUse) {
  AttentionArgs args = Dense(2, 1, 16, DType::kI8);
  args.k = Unread(DType::kI8, {1000, 2, 16, 64});
  args.v = Unread(DType::kI8, {1000, 2, 16, 32});
  args.k_scale = args.v_scale = Unread(DType::kF32, {1000, 2, 16});
  args.page_table = Unread(DType::kI32, {2, 64});
  const std::vector<int32_t> kv_lens = {20, 500};
  args.kv_lens = MakeView(kv_lens.data(), DType::kI32, {2});
  const OpFacts facts = FactsOf(args);
  EXPECT_EQ(facts.kv_len, 500);
  EXPECT_EQ(facts.bytes, 2 * 8 * (64 + 32) * 4 + 2 * 520 * (64 + 32 + 2 * 4));
  EXPECT_EQ(facts.flops, 2.0 * 8 * (64 + 32) * 520);
}

TEST(AttentionFacts, LengthsOnADeviceCountAsFull) {
  AttentionArgs args = Dense(2, 1, 100, DType::kF32);
  args.kv_lens = Unread(DType::kI32, {2});
  for (TensorView* view : {&args.q, &args.k, &args.v, &args.out, &args.kv_lens}) {
    view->device = {DeviceKind::kCuda, 0};
  }
  const OpFacts facts = FactsOf(args);
  EXPECT_EQ(facts.kv_len, 100);
  EXPECT_EQ(facts.bytes, 2 * 8 * (64 + 32) * 4 + 2 * 2 * 100 * (64 + 32) * 4);
}

TEST(GroupedMatMulFacts, CountActivationsOnce) {
  GroupedMatMulArgs args;
  args.a = Unread(DType::kF32, {2, 64});
  args.num_products = 3;
  for (size_t i = 0; i < 3; ++i) {
    const int64_t n = i == 0 ? 96 : 32;
    args.products[i] = {.b = Unread(i == 2 ? DType::kF16 : DType::kQ8_0, {n, 64}),
                        .bias = Unread(DType::kF32, {n}),
                        .out = Unread(DType::kF32, {2, n})};
  }
  OpFacts facts = FactsOf(args);
  EXPECT_EQ(facts.op, OpKind::kGroupedMatMul);
  EXPECT_EQ(facts.m, 2);
  EXPECT_EQ(facts.n, 160);
  EXPECT_EQ(facts.k, 64);
  EXPECT_EQ(facts.elements, 2 * 160);
  EXPECT_EQ(facts.bytes, 2 * 64 * 4 + 128 * 2 * 34 + 32 * 64 * 2 + 160 * 4 + 2 * 160 * 4);
  EXPECT_EQ(facts.flops, 2.0 * 2 * 160 * 64);
  EXPECT_EQ(facts.weights, DType::kQ8_0);
  // Gate and up leave one result.
  args.num_products = 2;
  args.epilogue = GroupEpilogue::kSiluMultiply;
  args.products[1] = args.products[0];
  args.products[1].out = {};
  facts = FactsOf(args);
  EXPECT_EQ(facts.n, 192);
  EXPECT_EQ(facts.elements, 2 * 96);
  EXPECT_EQ(facts.bytes, 2 * 64 * 4 + 2 * (96 * 2 * 34 + 96 * 4) + 2 * 96 * 4);
}

TEST(MergeFacts, CountEveryPart) {
  const std::vector<TensorView> outs(5, Unread(DType::kF16, {1, 8, 3, 64}));
  const std::vector<TensorView> lses(5, Unread(DType::kF32, {1, 8, 3}));
  MergeAttentionArgs args;
  args.out_parts = outs;
  args.lse_parts = lses;
  args.out = Unread(DType::kF32, {1, 8, 3, 64});
  const OpFacts facts = FactsOf(args);
  EXPECT_EQ(facts.op, OpKind::kMergeAttention);
  EXPECT_EQ(facts.bytes, 5 * (24 * 64 * 2 + 24 * 4) + 24 * 64 * 4);
  EXPECT_EQ(facts.flops, 2.0 * 5 * 24 * 64);
}

}  // namespace
}  // namespace tandem
