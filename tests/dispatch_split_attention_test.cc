// Attention over the parts of a cache, each on another device, merged: the whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "core/ops/split_attention.h"
#include "dispatch/ops.h"
#include "tests/cases/attention_cases.h"
#include "tests/emulated_context.h"

namespace tandem::cases {
namespace {

// A random call that keeps the emulator busy for milliseconds, and that can be split.
AttentionCase SmallCase(Rng& rng) {
  AttentionCase c = AttentionCase::Random(rng);
  c.q_heads = c.q_heads / c.kv_heads;
  c.kv_heads = 1;
  if (c.q_heads % 2 == 0 && rng.Chance(0.5)) c.kv_heads = 2;
  c.q_len = std::min<int64_t>(c.q_len, 12);
  c.kv_len = std::min<int64_t>(c.kv_len, 150);
  c.head_dim = std::min<int64_t>(c.head_dim, 72);
  c.v_head_dim = std::min<int64_t>(c.v_head_dim, 40);
  c.out_dtype = DType::kF32;
  c.lse = true;
  const bool lengths = c.ragged_kv || c.page_size > 0;
  if (lengths && c.new_len > 0) c.bias = c.mask = AttentionExtents::kAbsent;
  return c;
}

std::vector<int64_t> RandomCuts(Rng& rng, const AttentionArgs& args) {
  int64_t step = args.paged() ? args.page_size() : 1;
  if (args.mask.present() && args.mask.dtype == DType::kU32) {
    while (step % 32 != 0) step *= 2;
  }
  std::vector<int64_t> cuts(static_cast<size_t>(rng.Integer(0, 3)));
  for (int64_t& cut : cuts) cut = rng.Integer(0, args.cache_len() / step) * step;
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

class SplitAttentionTest : public testing::Test {
 protected:
  SplitAttentionTest() {
    ContextOptions options;
    options.threads = 2;
    options.kernel_profile = "off";
    contexts_.push_back(std::move(Context::Create(options)).value());
    contexts_.push_back(EmulatedContext(/*forced=*/true));
  }

  Tensor Floats(const Shape& shape) {
    return Tensor::Allocate(contexts_[0]->host_allocator(), DType::kF32, shape).value();
  }

  // The parts on random devices, merged. `args.out` and `args.lse` are not used.
  void Run(Rng& rng, const AttentionArgs& args, const std::vector<int64_t>& cuts, Tensor& out,
           Tensor& lse) {
    auto parts = SplitAttention(args, cuts);
    ASSERT_TRUE(parts.ok()) << parts.status();
    ASSERT_EQ(parts->size(), cuts.size() + 1);
    std::vector<Tensor> memory;
    std::vector<TensorView> outs, lses;
    for (AttentionArgs& part : *parts) {
      memory.push_back(Floats(args.out.shape));
      outs.push_back(memory.back().view());
      memory.push_back(Floats(args.lse.shape));
      lses.push_back(memory.back().view());
      part.out = outs.back();
      part.lse = lses.back();
      const absl::Status status = AttentionInto(*contexts_[rng.Integer(0, 1)], part);
      ASSERT_TRUE(status.ok()) << status;
    }
    out = Floats(args.out.shape);
    lse = Floats(args.lse.shape);
    const absl::Status merged =
        MergeAttentionInto(*contexts_[rng.Integer(0, 1)],
                           {.out_parts = outs, .lse_parts = lses, .out = out.view(), .lse = lse});
    ASSERT_TRUE(merged.ok()) << merged;
  }

  std::vector<std::unique_ptr<Context>> contexts_;
};

TEST_F(SplitAttentionTest, MergedPartsAreTheWhole) {
  Rng rng(1);
  int with_parts = 0;
  for (int i = 0; i < 150; ++i) {
    const AttentionCase c = SmallCase(rng);
    const auto prepared = Prepare(c);
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    const Views views(prepared->operands);
    const AttentionArgs args = c.Bind(views);
    const std::vector<int64_t> cuts = RandomCuts(rng, args);
    with_parts += !cuts.empty() && args.cache_len() > 0;
    SCOPED_TRACE(CaseText(c));
    Tensor out, lse;
    Run(rng, args, cuts, out, lse);
    if (HasFatalFailure()) return;
    Outcome outcome;
    EXPECT_EQ(Compare(prepared->expectations[0], out.view(), outcome), "");
    EXPECT_EQ(Compare(prepared->expectations[1], lse.view(), outcome), "");
  }
  EXPECT_GT(with_parts, 60);
}

// A part can be split again: its cuts count its own rows.
TEST_F(SplitAttentionTest, PartsOfParts) {
  AttentionCase c = {.batch = 3,
                     .q_heads = 4,
                     .kv_heads = 2,
                     .q_len = 6,
                     .kv_len = 90,
                     .new_len = 2,
                     .window_left = 60,
                     .chunk = 64,
                     .prefix_len = 20,
                     .alibi = true,
                     .sinks = true,
                     .ragged_kv = true,
                     .left_padding = true,
                     .lse = true};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const Views views(prepared->operands);
  const AttentionArgs args = c.Bind(views);
  auto halves = SplitAttention(args, std::vector<int64_t>{30});
  ASSERT_TRUE(halves.ok()) << halves.status();
  Rng rng(2);
  Tensor memory[4];
  std::vector<TensorView> outs, lses;
  for (int i = 0; i < 2; ++i) {
    AttentionArgs half = (*halves)[static_cast<size_t>(i)];
    half.out = args.out;
    half.lse = args.lse;
    Run(rng, half, {10, 25}, memory[2 * i], memory[2 * i + 1]);
    if (HasFatalFailure()) return;
    outs.push_back(memory[2 * i].view());
    lses.push_back(memory[2 * i + 1].view());
  }
  Tensor out = Floats(args.out.shape), lse = Floats(args.lse.shape);
  ASSERT_TRUE(
      MergeAttentionInto(*contexts_[0],
                         {.out_parts = outs, .lse_parts = lses, .out = out.view(), .lse = lse})
          .ok());
  Outcome outcome;
  EXPECT_EQ(Compare(prepared->expectations[0], out.view(), outcome), "");
  EXPECT_EQ(Compare(prepared->expectations[1], lse.view(), outcome), "");
}

}  // namespace
}  // namespace tandem::cases
