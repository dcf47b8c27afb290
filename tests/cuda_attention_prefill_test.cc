// The attention kernel "prefill" on the emulated device: which calls it takes, every order of
// threads and completions, banks, what it skips, repeatability.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cuda/kernels.h"
#include "tests/cases/attention_cases.h"
#include "tests/cases/run.h"
#include "tests/emulated_device.h"
#include "tests/sanitizers.h"

namespace tandem::cuda {
namespace {

using cases::AttentionCase;
using cases::EmulatedDevice;
using cases::ParseCase;
using cases::RunCase;
using ::testing::HasSubstr;

const Kernel<AttentionArgs>& Prefill() {
  for (const auto& kernel : Kernels<AttentionArgs>()) {
    if (kernel.name == "prefill") return kernel;
  }
  ADD_FAILURE() << "no kernel of this name";
  return Kernels<AttentionArgs>().back();
}

AttentionCase Parse(const std::string& text) {
  auto c = ParseCase<AttentionCase>("attention " + text);
  EXPECT_TRUE(c.ok()) << c.status();
  return *c;
}

// Of every part of the kernel: several tiles in both directions, masked and not, each head size,
// pages, conversions, variants, special values.
const std::vector<std::string> kCases = {
    "q_heads=2 kv_heads=1 q_len=150 kv_len=260 head_dim=128 q_dtype=bf16 kv_dtype=bf16 "
    "out_dtype=bf16 lse=1",
    "q_heads=4 kv_heads=2 q_len=90 kv_len=130 head_dim=64 q_dtype=f16 kv_dtype=f16 out_dtype=f16 "
    "window_left=40 lse=1",
    "q_heads=2 kv_heads=1 q_len=40 kv_len=100 head_dim=200 v_head_dim=136 q_dtype=f32 kv_dtype=f16 "
    "causal=none",
    "batch=3 q_heads=4 kv_heads=2 q_len=37 kv_len=90 new_len=3 new_dtype=f32 head_dim=80 "
    "q_dtype=bf16 kv_dtype=bf16 page_size=7 queries=packed left_padding=1 values=nan_last lse=1",
    "batch=2 q_heads=2 kv_heads=2 q_len=50 kv_len=120 head_dim=59 q_dtype=f16 kv_dtype=i8 "
    "softcap=15 alibi=1 sinks=1 bias=one_head mask=full mask_packed=1 queries=ragged lse=1",
};

TEST(CudaAttentionPrefill, EveryOrderOfThreadsAndCompletions) {
  std::vector<std::string> modes = {"fifo",        "lifo,eager",     "reverse,random",
                                    "random:1",    "random:2,eager", "random:3,random",
                                    "lifo,random", "reverse,eager"};
  if (kSanitized) modes = {"random:1,random"};
  for (const std::string& text : kCases) {
    const auto prepared = cases::Prepare(Parse(text));
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    for (const std::string& mode : modes) {
      const EmulatedDevice device(mode);
      const cases::Outcome outcome = RunPrepared(*prepared, Prefill(), device.target());
      EXPECT_TRUE(outcome.passed()) << mode << ": " << outcome.message;
    }
  }
}

TEST(CudaAttentionPrefill, NoBankConflicts) {
  for (const std::string& text : kCases) {
    emulator::EmulatorStatistics statistics;
    const EmulatedDevice device("fifo", &statistics);
    EXPECT_TRUE(RunCase(Parse(text), Prefill(), device.target()).passed()) << text;
    EXPECT_GT(statistics.matrix_moves, 0) << text;
    EXPECT_EQ(statistics.bank_conflicts, 0) << text;
  }
}

// Matrices that ldmatrix moves for a call: tiles that nobody sees cost nothing.
int64_t MatrixMoves(const std::string& text) {
  emulator::EmulatorStatistics statistics;
  const EmulatedDevice device("fifo", &statistics);
  const cases::Outcome outcome = RunCase(Parse(text), Prefill(), device.target());
  EXPECT_TRUE(outcome.passed()) << outcome.message;
  return statistics.matrix_moves;
}

TEST(CudaAttentionPrefill, SkipsTilesThatNobodySees) {
  const std::string base = "q_heads=1 kv_heads=1 q_len=512 kv_len=512 q_dtype=bf16 kv_dtype=bf16 ";
  const int64_t all = MatrixMoves(base + "causal=none");
  // A warp has 32 rows and a tile 64 keys: of 8 tiles, its rows see 1, 1, 2, 2, ..., 8: half of
  // them and half of the diagonal.
  const int64_t causal = MatrixMoves(base);
  EXPECT_EQ(causal * 16, all * 9);
  // 32 rows see 32 + 63 keys, of at most 3 tiles.
  const int64_t window = MatrixMoves(base + "window_left=63");
  EXPECT_LE(window * 8, all * 3);
  EXPECT_GT(window, 0);
}

TEST(CudaAttentionPrefill, RepeatsBitForBit) {
  for (const std::string& text : kCases) {
    const auto prepared = cases::Prepare(Parse(text));
    ASSERT_TRUE(prepared.ok());
    uint64_t first = 0;
    for (const char* mode : {"fifo", "fifo", "random:5,random"}) {
      const EmulatedDevice device(mode);
      const auto outcome = RunPrepared(*prepared, Prefill(), device.target());
      ASSERT_TRUE(outcome.passed()) << outcome.message;
      if (first == 0) first = outcome.output_hash;
      EXPECT_EQ(outcome.output_hash, first) << mode << ": " << text;
    }
  }
}

// What the kernel says of a call: empty if it takes it.
std::string Refusal(const std::string& text) {
  const EmulatedDevice device;
  const auto prepared = cases::Prepare(Parse(text));
  EXPECT_TRUE(prepared.ok());
  const AttentionArgs args = prepared->c.Bind(cases::Views(prepared->operands));
  const KernelContext context{.stream = &device.stream()};
  return std::string(Prefill().supports(context, args).message());
}

TEST(CudaAttentionPrefill, TakesWhatModelsPrefillWith) {
  for (const char* heads :
       {"q_heads=32 kv_heads=8", "q_heads=8 kv_heads=8", "q_heads=4 kv_heads=1"}) {
    for (const char* dim : {"head_dim=64", "head_dim=128", "head_dim=256", "head_dim=111",
                            "head_dim=192 v_head_dim=128"}) {
      for (const char* types :
           {"q_dtype=bf16 kv_dtype=bf16", "q_dtype=f32 kv_dtype=f16", "q_dtype=f16 kv_dtype=i8"}) {
        const std::string text =
            std::string(heads) + " q_len=3 kv_len=9 " + dim + " " + types + " softcap=5";
        EXPECT_EQ(Refusal(text), "") << text;
      }
    }
  }
}

TEST(CudaAttentionPrefill, SaysWhatItDoesNotTake) {
  EXPECT_THAT(Refusal("q_len=3 kv_len=9"), HasSubstr("keys are f32"));
  EXPECT_THAT(Refusal("q_len=3 kv_len=9 kv_dtype=i8"), HasSubstr("16 bits would lose"));
  EXPECT_THAT(Refusal("q_len=3 kv_len=9 head_dim=257 kv_dtype=f16"), HasSubstr("exceed 256"));
}

}  // namespace
}  // namespace tandem::cuda
