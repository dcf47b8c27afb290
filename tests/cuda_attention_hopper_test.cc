// The attention kernel `hopper` on the emulated device: right, and the same bits, in every order of
// threads and completions of asynchronous work; what it takes and what it declines. (The shared
// grid: cuda_cases_test.)
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/status.h"
#include "cuda/kernels.h"
#include "cuda/runtime/emulated_runtime.h"
#include "tests/cases/attention_cases.h"
#include "tests/cases/run.h"
#include "tests/emulated_device.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

using ::testing::HasSubstr;

const Kernel<AttentionArgs>& Hopper() {
  for (const auto& kernel : cuda::Kernels<AttentionArgs>()) {
    if (kernel.name == "hopper") return kernel;
  }
  ADD_FAILURE() << "no kernel of this name";
  return cuda::Kernels<AttentionArgs>().front();
}

std::vector<std::string> Modes() {
  // ThreadSanitizer looks for races, which it finds in any order.
  if (kThreadSanitized) return {"fifo", "random:1,random"};
  if (kAddressSanitized) return {"fifo", "lifo,eager", "random:1,random"};
  std::vector<std::string> all;
  for (const char* completion : {"", ",eager", ",random"}) {
    for (const char* order : {"fifo", "lifo", "reverse", "random:1", "random:2"}) {
      all.push_back(std::string(order) + completion);
    }
  }
  return all;
}

Prepared<AttentionCase> PreparedCase(const std::string& text) {
  const auto c = ParseCase<AttentionCase>("attention " + text);
  EXPECT_TRUE(c.ok()) << c.status();
  auto prepared = Prepare(*c);
  EXPECT_TRUE(prepared.ok()) << text << ": " << prepared.status();
  return *std::move(prepared);
}

constexpr char k16[] = " q_dtype=f16 kv_dtype=f16 out_dtype=f16 lse=1 ";

class AttentionHopperModes : public testing::TestWithParam<std::string> {};

// In all of them the same bits: nothing depends on who comes first.
TEST_P(AttentionHopperModes, RightAndRepeatable) {
  const auto prepared = PreparedCase(GetParam());
  std::set<uint64_t> results;
  for (const std::string& mode : Modes()) {
    const EmulatedDevice device(mode);
    const Outcome outcome = RunPrepared(prepared, Hopper(), device.target());
    EXPECT_TRUE(outcome.passed()) << mode << ": " << outcome.message;
    results.insert(outcome.output_hash);
  }
  EXPECT_EQ(results.size(), 1u);
}

INSTANTIATE_TEST_SUITE_P(
    All, AttentionHopperModes,
    testing::Values(
        // several tiles of keys and of queries, whole and masked ones; more tiles than blocks
        k16 + std::string("q_heads=2 kv_heads=1 q_len=333 kv_len=333"),
        k16 + std::string("q_heads=6 kv_heads=2 q_len=200 kv_len=400 head_dim=128"),
        "q_dtype=bf16 kv_dtype=bf16 out_dtype=f32 q_len=130 kv_len=250 head_dim=256 lse=1",
        k16 + std::string("q_len=150 kv_len=500 head_dim=128 causal=none"),
        // f32 activations and an f16 cache: q is scaled row by row
        "kv_dtype=f16 q_len=70 kv_len=200 head_dim=128 lse=1",
        "q_dtype=bf16 kv_dtype=f16 q_len=70 kv_len=200 lse=1",
        // scores beyond the range of f16
        k16 + std::string("q_len=70 kv_len=200 head_dim=128 values=large scale=1"),
        // NaN that some rows of a tile see
        k16 + std::string("q_len=140 kv_len=300 values=nan_last"),
        k16 + std::string("q_len=140 kv_len=300 values=nan_first head_dim=128"),
        // every variant
        k16 + std::string("q_heads=4 kv_heads=2 q_len=100 kv_len=300 softcap=15 alibi=1 "
                          "sinks=1 window_left=90 window_right=20"),
        k16 + std::string("batch=3 q_len=150 kv_len=260 queries=packed ragged_kv=1 "
                          "left_padding=1 softcap=50 head_dim=256"),
        k16 + std::string("batch=3 q_len=150 kv_len=260 queries=ragged ragged_kv=1 "
                          "page_size=16 head_dim=128 values=nan_last"),
        k16 + std::string("batch=2 q_len=210 kv_len=210 chunk=50 prefix_len=30 sinks=1"),
        k16 + std::string("batch=2 q_len=64 kv_len=40 page_size=128 head_dim=256")));

TEST(AttentionHopper, Declines) {
  const EmulatedDevice device;
  for (const auto& [text, reason] : std::vector<std::pair<std::string, std::string>>{
           {"q_len=20 kv_len=100", "20 queries"},
           {"q_len=64 kv_len=100 head_dim=96", "head dimensions 96 and 96"},
           {"q_len=64 kv_len=100 v_head_dim=128", "head dimensions 64 and 128"},
           {"q_len=64 kv_len=100 kv_dtype=f32", "keys of type f32"},
           {"q_len=64 kv_len=100 new_len=3", "keys beside the cache"},
           {"q_len=64 kv_len=100 mask=full", "bias or mask"},
           {"q_len=64 kv_len=0", "0 keys"},
           {"q_len=64 kv_len=100 page_size=4", "pages of 4 keys"},
           {"q_len=64 kv_len=100 kv_layout=spread", "k: needs the elements of a row side by side"},
           {"q_len=64 kv_len=100 q_layout=spread",
            "q: needs the elements of a row side by side"}}) {
    const Outcome outcome =
        RunPrepared(PreparedCase("kv_dtype=f16 " + text), Hopper(), device.target());
    EXPECT_EQ(outcome.kind, Outcome::Kind::kUnsupported) << text;
    EXPECT_THAT(outcome.message, HasSubstr(reason)) << text;
  }
}

// The first kernel of the list that takes a call without looking at its memory.
std::string ChosenFor(const EmulatedDevice& device, const AttentionArgs& args) {
  for (const auto& kernel : cuda::Kernels<AttentionArgs>()) {
    if (kernel.supports({.stream = &device.stream()}, args).ok()) return std::string(kernel.name);
  }
  return "none";
}
AttentionArgs Prefill(int64_t heads, int64_t kv_heads, int64_t length, int64_t head_dim) {
  const auto view = [&](int64_t planes) {
    void* somewhere = reinterpret_cast<void*>(uintptr_t{1} << 20);
    return MakeView(somewhere, DType::kBF16, {1, planes, length, head_dim},
                    Device{DeviceKind::kCuda, kEmulatedDevice});
  };
  AttentionArgs args;
  args.q = args.out = view(heads);
  args.k = args.v = view(kv_heads);
  return args;
}

TEST(AttentionHopper, IsChosenForPrefill) {
  const EmulatedDevice hopper;
  const EmulatedDevice ampere(
      cuda::EmulatedRuntimeOptions{.compute_capability_major = 8, .compute_capability_minor = 0});
  const EmulatedDevice blackwell(
      cuda::EmulatedRuntimeOptions{.compute_capability_major = 10, .compute_capability_minor = 0});
  for (const int64_t head_dim : {64, 128, 256}) {
    for (const int64_t length : {512, 8192, 131072}) {
      AttentionArgs args = Prefill(32, 8, length, head_dim);
      EXPECT_EQ(ChosenFor(hopper, args), "hopper");
      args.softcap = 30.0f;
      EXPECT_EQ(ChosenFor(hopper, args), "hopper");
      // wgmma is of 9.0 alone.
      EXPECT_NE(ChosenFor(ampere, args), "hopper");
      EXPECT_NE(ChosenFor(blackwell, args), "hopper");
    }
  }
}

}  // namespace
}  // namespace tandem::cases
