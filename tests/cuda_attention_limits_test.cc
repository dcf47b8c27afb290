// The limits in `supports` of every attention kernel of the CUDA device: what is just inside runs
// and is right, what is just outside is declined, with the reason.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/tensor_view.h"
#include "cuda/backend.h"
#include "cuda/kernels.h"
#include "cuda/runtime/emulated_runtime.h"
#include "tests/cases/attention_cases.h"
#include "tests/cases/run.h"

namespace tandem::cuda {
namespace {

using cases::AttentionCase;
using ::testing::HasSubstr;

struct LimitsDevice {
  explicit LimitsDevice(const EmulatedRuntimeOptions& options = {}) {
    backend = *MakeCudaBackend(MakeEmulatedRuntime(options), {.device = kEmulatedDevice});
    stream = *backend->CreateStream();
  }
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
};

const Kernel<AttentionArgs>& KernelOf(const std::string& name) {
  for (const auto& kernel : Kernels<AttentionArgs>()) {
    if (kernel.name == name) return kernel;
  }
  ADD_FAILURE() << "no kernel " << name;
  return Kernels<AttentionArgs>().back();
}

cases::Outcome RunText(const LimitsDevice& device, const std::string& kernel,
                       const std::string& text) {
  const auto c = cases::ParseCase<AttentionCase>("attention lse=1 " + text);
  EXPECT_TRUE(c.ok()) << c.status();
  return RunCase(*c, KernelOf(kernel),
                 {.backend = device.backend.get(), .stream = device.stream.get(), .pack = nullptr});
}

struct Limit {
  const char *kernel, *inside, *outside, *reason;
};

TEST(AttentionLimits, InsideRunsOutsideSaysWhy) {
  const LimitsDevice device;
  for (const Limit& limit : std::vector<Limit>{
           // hopper
           {"hopper", "q_len=32 kv_len=40 kv_dtype=f16", "q_len=31 kv_len=40 kv_dtype=f16",
            "31 queries"},
           {"hopper", "q_len=32 kv_len=1 kv_dtype=f16 causal=none",
            "q_len=32 kv_len=0 kv_dtype=f16", "0 keys"},
           {"hopper", "q_len=32 kv_len=40 kv_dtype=bf16 head_dim=128",
            "q_len=32 kv_len=40 kv_dtype=bf16 head_dim=120", "head dimensions 120"},
           {"hopper", "q_len=32 kv_len=40 kv_dtype=f16", "q_len=32 kv_len=40 kv_dtype=i8",
            "keys of type i8"},
           {"hopper", "q_len=32 kv_len=40 kv_dtype=f16 page_size=8",
            "q_len=32 kv_len=40 kv_dtype=f16 page_size=12", "pages of 12"},
           {"hopper", "q_len=32 kv_len=40 kv_dtype=f16 softcap=9 alibi=1 sinks=1",
            "q_len=32 kv_len=40 kv_dtype=f16 bias=full", "bias or mask"},
           {"hopper", "q_len=32 kv_len=40 kv_dtype=f16",
            "q_len=32 kv_len=40 kv_dtype=f16 new_len=1", "keys beside the cache"},
           {"hopper", "batch=2 q_len=32 kv_len=40 kv_dtype=f16 batch_invariant=1",
            "batch=2 q_len=32 kv_len=40 kv_dtype=f16 batch_invariant=1 queries=packed",
            "batch_invariant"},
           // decode
           {"decode", "q_heads=8 q_len=8 kv_len=70 kv_dtype=f16",
            "q_heads=13 q_len=5 kv_len=70 kv_dtype=f16", "<= 64 query rows"},
           {"decode", "q_heads=32 q_len=2 kv_len=70 kv_dtype=i8 head_dim=256",
            "q_heads=32 q_len=2 kv_len=70 kv_dtype=i8 head_dim=272", "head dimensions <= 256"},
           {"decode", "kv_len=70 kv_dtype=f16 head_dim=64 v_head_dim=256",
            "kv_len=70 kv_dtype=f16 head_dim=64 v_head_dim=264", "head dimensions <= 256"},
           {"decode", "kv_len=70 kv_dtype=f16 head_dim=72", "kv_len=70 kv_dtype=f16 head_dim=76",
            "k: needs rows that begin on 16 bytes"},
           {"decode", "kv_len=70 kv_dtype=i8 head_dim=80 v_head_dim=96",
            "kv_len=70 kv_dtype=i8 head_dim=80 v_head_dim=88",
            "v: needs rows that begin on 16 bytes"},
           {"decode", "batch=3 q_len=2 kv_len=70 queries=packed",
            "batch=3 q_len=2 kv_len=70 queries=packed batch_invariant=1", "batch_invariant"},
           // prefill
           {"prefill", "q_len=20 kv_len=40 kv_dtype=bf16 head_dim=256",
            "q_len=20 kv_len=40 kv_dtype=bf16 head_dim=257", "exceed 256"},
           {"prefill", "q_len=20 kv_len=40 kv_dtype=f16 v_head_dim=255",
            "q_len=20 kv_len=40 kv_dtype=f16 v_head_dim=258", "exceed 256"},
           {"prefill", "q_len=20 kv_len=40 q_dtype=bf16 kv_dtype=i8",
            "q_len=20 kv_len=40 q_dtype=f32 kv_dtype=i8", "16 bits would lose"},
           {"prefill", "q_len=20 kv_len=40 kv_dtype=f16", "q_len=20 kv_len=40 kv_dtype=f32",
            "keys are f32"},
           // prefill_i8
           {"prefill_i8", "q_len=20 kv_len=40 kv_dtype=i8 head_dim=256",
            "q_len=20 kv_len=40 kv_dtype=i8 head_dim=257", "exceed 256"},
           {"prefill_i8", "q_len=20 kv_len=40 kv_dtype=i8",
            "q_len=20 kv_len=40 q_dtype=f16 kv_dtype=i8", "queries of f32"},
           {"prefill_i8", "q_len=20 kv_len=40 kv_dtype=i8",
            "q_len=20 kv_len=40 kv_dtype=i8 new_len=1", "keys beside the cache"},
           // prefill_f32
           {"prefill_f32", "q_len=20 kv_len=40 head_dim=256", "q_len=20 kv_len=40 head_dim=257",
            "exceed 256"},
           {"prefill_f32", "q_len=20 kv_len=40 kv_dtype=i8 new_len=1",
            "q_len=20 kv_len=40 q_dtype=f16 kv_dtype=i8 new_len=1", "tensor cores"}}) {
    const cases::Outcome inside = RunText(device, limit.kernel, limit.inside);
    EXPECT_TRUE(inside.passed()) << limit.kernel << " " << limit.inside << ": " << inside.message;
    const cases::Outcome outside = RunText(device, limit.kernel, limit.outside);
    EXPECT_EQ(outside.kind, cases::Outcome::Kind::kUnsupported)
        << limit.kernel << " " << limit.outside;
    EXPECT_THAT(outside.message, HasSubstr(limit.reason)) << limit.kernel;
  }
}

// Calls too large to run: memory that is never looked at.
AttentionArgs Huge(int64_t batch, int64_t q_heads, int64_t kv_heads, int64_t q_len, int64_t kv_len,
                   DType kv_dtype) {
  const auto view = [](DType dtype, const Shape& shape) {
    return MakeView(reinterpret_cast<void*>(uintptr_t{1} << 20), dtype, shape,
                    Device{DeviceKind::kCuda, kEmulatedDevice});
  };
  AttentionArgs args;
  args.q = args.out = view(DType::kF32, {batch, q_heads, q_len, 64});
  args.k = args.v = view(kv_dtype, {batch, kv_heads, kv_len, 64});
  return args;
}

TEST(AttentionLimits, OfWhatKernelsCount) {
  const LimitsDevice device;
  const auto answer = [&](const std::string& kernel, const AttentionArgs& args) {
    return std::string(KernelOf(kernel).supports({.stream = device.stream.get()}, args).message());
  };
  constexpr int64_t kGiga = int64_t{1} << 30;
  constexpr DType kF16 = DType::kF16, kF32 = DType::kF32, kI8 = DType::kI8;
  // Keys of a sequence.
  EXPECT_EQ(answer("hopper", Huge(1, 1, 1, 64, kGiga, kF16)), "");
  EXPECT_THAT(answer("hopper", Huge(1, 1, 1, 64, kGiga + 1, kF16)), HasSubstr("expected 1..10737"));
  EXPECT_EQ(answer("decode", Huge(1, 1, 1, 1, kGiga, kF16)), "");
  EXPECT_THAT(answer("decode", Huge(1, 1, 1, 1, kGiga + 1, kF16)), HasSubstr("2^30 keys"));
  for (const auto& [kernel, dtype] : std::vector<std::pair<std::string, DType>>{
           {"prefill", kF16}, {"prefill_i8", kI8}, {"prefill_f32", kF32}}) {
    EXPECT_EQ(answer(kernel, Huge(1, 1, 1, 64, kGiga - 1, dtype)), "");
    EXPECT_THAT(answer(kernel, Huge(1, 1, 1, 64, kGiga, dtype)), HasSubstr("2^30 rows"));
    // Rows of a sequence and key/value head.
    EXPECT_EQ(answer(kernel, Huge(1, 4, 1, kGiga / 4 - 1, 64, dtype)), "");
    EXPECT_THAT(answer(kernel, Huge(1, 4, 1, kGiga / 4, 64, dtype)), HasSubstr("2^30 rows"));
    // Blocks.
    EXPECT_EQ(answer(kernel, Huge(1 << 20, 2047, 2047, 1, 64, dtype)), "");
    EXPECT_THAT(answer(kernel, Huge(1 << 20, 2048, 2048, 1, 64, dtype)), HasSubstr("grid"));
  }
  EXPECT_EQ(answer("hopper", Huge(1 << 20, 2047, 1, 128, 64, kF16)), "");
  EXPECT_THAT(answer("hopper", Huge(1 << 20, 2048, 1, 128, 64, kF16)), HasSubstr("2^31 tiles"));
  EXPECT_EQ(answer("decode", Huge(1044495, 1, 1, 1, 64, kF16)), "");
  EXPECT_THAT(answer("decode", Huge(1044496, 1, 1, 1, 64, kF16)), HasSubstr("1044495"));
}

// Devices that have less.
TEST(AttentionLimits, OfDevices) {
  const LimitsDevice hopper;
  const LimitsDevice ampere({.compute_capability_major = 8, .compute_capability_minor = 0});
  EXPECT_EQ(RunText(ampere, "hopper", "q_len=40 kv_len=40 kv_dtype=f16").kind,
            cases::Outcome::Kind::kUnsupported);
  EXPECT_TRUE(RunText(hopper, "hopper", "q_len=40 kv_len=40 kv_dtype=f16").passed());
  for (const char* kernel : {"decode", "prefill"}) {
    EXPECT_TRUE(RunText(ampere, kernel, "q_heads=2 q_len=5 kv_len=40 kv_dtype=f16").passed())
        << kernel;
  }
  const LimitsDevice small({.shared_memory_per_block_bytes = 40 << 10});
  for (const auto& [kernel, type] :
       std::vector<std::pair<std::string, std::string>>{{"hopper", "f16"},
                                                        {"decode", "f16"},
                                                        {"prefill", "f16"},
                                                        {"prefill_i8", "i8"},
                                                        {"prefill_f32", "f32"}}) {
    const auto outcome = RunText(small, kernel, "q_len=40 kv_len=40 head_dim=256 kv_dtype=" + type);
    EXPECT_EQ(outcome.kind, cases::Outcome::Kind::kUnsupported) << kernel;
    EXPECT_THAT(outcome.message, HasSubstr("bytes of shared memory, the device has 40960"));
  }
}

}  // namespace
}  // namespace tandem::cuda
