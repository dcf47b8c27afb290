// Attention kernels on the emulated device where 16 bits do not do or a block has not room for all
// query rows: "prefill_i8", "prefill_f32", and "decode" with up to 64 rows of a key/value head. In
// several orders of threads and completions, with the same bits in each.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
using ::testing::HasSubstr;

cases::Prepared<AttentionCase> PreparedCase(const std::string& text) {
  const auto c = cases::ParseCase<AttentionCase>("attention " + text);
  EXPECT_TRUE(c.ok()) << c.status();
  auto prepared = cases::Prepare(*c);
  EXPECT_TRUE(prepared.ok()) << prepared.status();
  return *std::move(prepared);
}

const Kernel<AttentionArgs>& KernelOf(const std::string& name) {
  for (const auto& kernel : Kernels<AttentionArgs>()) {
    if (kernel.name == name) return kernel;
  }
  ADD_FAILURE() << "no kernel " << name;
  return Kernels<AttentionArgs>().back();
}

void ExpectRightInEveryOrder(const std::string& kernel, const std::vector<std::string>& texts) {
  std::vector<std::string> modes = {"fifo", "lifo,eager", "reverse,random", "random:1,random"};
  if (kSanitized) modes = {"random:1,random"};
  for (const std::string& text : texts) {
    const auto prepared = PreparedCase(text);
    uint64_t first = 0;
    for (const std::string& mode : modes) {
      const EmulatedDevice device(mode);
      const auto outcome = RunPrepared(prepared, KernelOf(kernel), device.target());
      EXPECT_TRUE(outcome.passed()) << mode << ": " << outcome.message;
      if (first == 0) first = outcome.output_hash;
      EXPECT_EQ(outcome.output_hash, first) << mode << ": " << text;
    }
  }
}

// More columns than a block has: neighbouring blocks share them, each part merged by itself.
TEST(CudaDecodeRows, UpTo64OfAKeyValueHead) {
  ExpectRightInEveryOrder(
      "decode",
      {"q_heads=16 kv_heads=2 q_len=8 kv_len=330 head_dim=64 kv_dtype=f16 lse=1",
       "q_heads=16 kv_heads=2 q_len=8 kv_len=330 head_dim=64 kv_dtype=i8 lse=1 window_left=100",
       "batch=2 q_heads=8 q_len=5 kv_len=200 head_dim=256 q_dtype=bf16 kv_dtype=bf16 sinks=1 lse=1 "
       "new_len=3 new_dtype=bf16",
       "q_heads=8 q_len=8 kv_len=300 kv_dtype=f32 lse=1 page_size=16",
       "batch=3 q_heads=8 q_len=7 kv_len=300 kv_dtype=bf16 queries=ragged ragged_kv=1 softcap=10 "
       "lse=1",
       "q_heads=64 kv_heads=1 kv_len=150 head_dim=192 v_head_dim=128 kv_dtype=f16 mask=full lse=1",
       "q_heads=8 q_len=6 kv_len=150 kv_dtype=f16 keys_before=30 keys_after=9 lse=1",
       "batch=2 q_heads=2 kv_heads=1 q_len=30 kv_len=150 kv_dtype=f16 queries=packed lse=1"});
}

TEST(CudaAttentionPrefillFloat, IsRightInEveryOrder) {
  ExpectRightInEveryOrder(
      "prefill_f32",
      {"q_heads=2 kv_heads=1 q_len=100 kv_len=140 head_dim=64 lse=1",
       "q_heads=3 kv_heads=1 q_len=50 kv_len=170 head_dim=128 window_left=40 lse=1 "
       "values=nan_first",
       "batch=2 q_heads=2 q_len=33 kv_len=90 head_dim=200 v_head_dim=77 out_dtype=bf16 causal=none "
       "sinks=1 lse=1",
       "batch=3 q_heads=4 kv_heads=2 q_len=37 kv_len=90 new_len=3 new_dtype=bf16 head_dim=59 "
       "page_size=7 queries=packed left_padding=1 values=nan_last lse=1",
       "batch=2 q_heads=2 q_len=40 kv_len=120 head_dim=59 kv_dtype=i8 softcap=15 alibi=1 "
       "bias=one_head mask=full mask_packed=1 queries=ragged lse=1",
       "q_heads=2 q_len=70 kv_len=70 head_dim=64 kv_dtype=i8 lse=1 values=nan_last",
       "q_heads=2 q_len=45 kv_len=77 scale=1 values=large lse=1",
       "q_heads=2 q_len=45 kv_len=77 q_dtype=f16 kv_dtype=f32 keys_before=20 keys_after=11 "
       "new_after=2 window_left=50 lse=1 kv_layout=transposed q_layout=spread",
       "q_heads=2 q_len=45 kv_len=77 kv_layout=spread out_layout=spread bias=one_key "
       "bias_hides=rows lse=1",
       "q_heads=2 q_len=90 kv_len=30 lse=1"});
}

const std::vector<std::string> kInt8Cases = {
    "q_heads=2 kv_heads=1 q_len=100 kv_len=140 head_dim=64 kv_dtype=i8 lse=1",
    "q_heads=3 kv_heads=1 q_len=50 kv_len=170 head_dim=128 kv_dtype=i8 window_left=40 lse=1 "
    "values=nan_first",
    "batch=2 q_heads=2 q_len=40 kv_len=120 head_dim=59 kv_dtype=i8 softcap=15 alibi=1 "
    "bias=one_head mask=full mask_packed=1 queries=ragged lse=1",
    "batch=2 q_heads=2 q_len=33 kv_len=90 head_dim=200 v_head_dim=77 kv_dtype=i8 out_dtype=bf16 "
    "causal=none sinks=1 lse=1",
    "batch=3 q_heads=4 kv_heads=2 q_len=37 kv_len=90 kv_dtype=i8 head_dim=80 page_size=7 "
    "queries=packed left_padding=1 values=nan_last lse=1",
    "q_heads=2 q_len=45 kv_len=77 kv_dtype=i8 scale=1 values=large lse=1",
    "q_heads=2 q_len=45 kv_len=77 kv_dtype=i8 keys_before=20 keys_after=11 window_left=50 lse=1 "
    "kv_layout=transposed q_layout=spread",
    "q_heads=2 q_len=45 kv_len=77 kv_dtype=i8 values=nan_query lse=1"};

TEST(CudaAttentionPrefillI8, IsRightInEveryOrder) {
  ExpectRightInEveryOrder("prefill_i8", kInt8Cases);
}

TEST(CudaAttentionPrefillI8, HasNoBankConflicts) {
  for (const std::string& text : kInt8Cases) {
    emulator::EmulatorStatistics statistics;
    EmulatedRuntimeOptions options;
    options.emulator.statistics = &statistics;
    const auto backend =
        *MakeCudaBackend(MakeEmulatedRuntime(options), {.device = kEmulatedDevice});
    const auto stream = *backend->CreateStream();
    EXPECT_TRUE(RunPrepared(PreparedCase(text), KernelOf("prefill_i8"),
                            {.backend = backend.get(), .stream = stream.get(), .pack = nullptr})
                    .passed());
    EXPECT_GT(statistics.matrix_moves, 0) << text;
    EXPECT_EQ(statistics.bank_conflicts, 0) << text;
  }
}

std::string Refusal(const std::string& kernel, const std::string& text) {
  const EmulatedDevice device;
  const auto prepared = PreparedCase(text);
  const AttentionArgs args = prepared.c.Bind(cases::Views(prepared.operands));
  const KernelContext context{.stream = &device.stream()};
  return std::string(KernelOf(kernel).supports(context, args).message());
}

TEST(CudaAttentionPrefillFloat, TakesWhatTensorCoresAreNotFor) {
  for (const char* types : {"q_dtype=f32 kv_dtype=f32", "q_dtype=bf16 kv_dtype=f32",
                            "q_dtype=f32 kv_dtype=i8 head_dim=256"}) {
    EXPECT_EQ(Refusal("prefill_f32", std::string("q_len=99 kv_len=99 ") + types), "") << types;
  }
  EXPECT_THAT(Refusal("prefill_f32", "q_len=99 kv_len=99 kv_dtype=f16"), HasSubstr("tensor cores"));
  EXPECT_THAT(Refusal("prefill_f32", "q_len=3 kv_len=9 head_dim=257"), HasSubstr("exceed 256"));
  EXPECT_THAT(Refusal("decode", "q_heads=13 q_len=5 kv_len=9"), HasSubstr("<= 64 query rows"));
}

}  // namespace
}  // namespace tandem::cuda
