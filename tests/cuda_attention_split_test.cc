// Every attention kernel over parts of a cache, on the emulated device: 1 to 133 parts, empty ones
// among them, contiguous and paged, cut anywhere. Merged they are the whole.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "core/ops/merge_attention.h"
#include "core/ops/split_attention.h"
#include "core/status.h"
#include "core/tensor.h"
#include "cuda/backend.h"
#include "cuda/kernels.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/stream.h"
#include "tests/cases/attention_cases.h"
#include "tests/cases/run.h"
#include "tests/sanitizers.h"

namespace tandem::cuda {
namespace {

using cases::AttentionCase;
using cases::DeviceOperands;

struct SplitCase {
  const char* kernel;
  const char* text;
};
void PrintTo(const SplitCase& c, std::ostream* out) { *out << c.kernel << ": " << c.text; }

class AttentionParts : public testing::TestWithParam<SplitCase> {
 protected:
  AttentionParts() {
    backend_ = *MakeCudaBackend(MakeEmulatedRuntime({}), {.device = kEmulatedDevice});
    stream_ = *backend_->CreateStream();
  }

  TensorView Floats(const Shape& shape) {
    memory_.push_back(*Tensor::Allocate(backend_->allocator(), DType::kF32, shape));
    return memory_.back().view();
  }

  template <typename Args>
  void Call(const Kernel<Args>& kernel, const Args& args) {
    KernelContext context{.stream = stream_.get()};
    const int64_t bytes = kernel.workspace_bytes(context, args);
    const auto scratch = backend_->allocator().Allocate(std::max<int64_t>(bytes, 1));
    ASSERT_TRUE(scratch.ok());
    Workspace workspace((*scratch)->data(), (*scratch)->bytes());
    context.workspace = &workspace;
    const absl::Status status = kernel.run(context, args);
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(stream_->Synchronize().ok());
  }

  // The parts, by the kernel where it takes them ("hopper" does not take none or new keys), else by
  // "generic". Returns how many it took.
  int RunParts(const AttentionArgs& args, const std::string& name,
               const std::vector<int64_t>& cuts) {
    auto parts = SplitAttention(args, cuts);
    EXPECT_TRUE(parts.ok()) << parts.status();
    std::vector<TensorView> outs, lses;
    int taken = 0;
    for (AttentionArgs& part : *parts) {
      outs.push_back(part.out = Floats(args.out.shape));
      lses.push_back(part.lse = Floats(args.lse.shape));
      const Kernel<AttentionArgs>* chosen = &Kernels<AttentionArgs>().back();
      for (const auto& kernel : Kernels<AttentionArgs>()) {
        if (kernel.name == name && kernel.supports({.stream = stream_.get()}, part).ok()) {
          chosen = &kernel;
        }
      }
      taken += chosen->name == name;
      Call(*chosen, part);
    }
    Call(
        Kernels<MergeAttentionArgs>().front(),
        MergeAttentionArgs{.out_parts = outs, .lse_parts = lses, .out = args.out, .lse = args.lse});
    return taken;
  }

  std::unique_ptr<Backend> backend_;
  std::unique_ptr<Stream> stream_;
  std::vector<Tensor> memory_;
};

// Parts that end at multiples of `step`; every seventh is empty.
std::vector<int64_t> CutsInto(int64_t parts, int64_t keys, int64_t step) {
  std::vector<int64_t> cuts;
  for (int64_t i = 1; i < parts; ++i) {
    const int64_t cut = i * keys / parts / step * step;
    cuts.push_back(i % 7 == 3 && !cuts.empty() ? cuts.back() : cut);
  }
  return cuts;
}

TEST_P(AttentionParts, MergedAreTheWhole) {
  const auto c = cases::ParseCase<AttentionCase>("attention lse=1 " + std::string(GetParam().text));
  ASSERT_TRUE(c.ok()) << c.status();
  const auto prepared = cases::Prepare(*c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  std::vector<int64_t> counts = {1, 2, 3, 8, 33, 133};
  if (kSanitized) counts = {3, 33};
  for (const int64_t count : counts) {
    SCOPED_TRACE(count);
    auto device = DeviceOperands::Upload(prepared->operands, *backend_, *stream_);
    ASSERT_TRUE(device.ok()) << device.status();
    const AttentionArgs args = c->Bind(device->views());
    const int64_t step = args.paged() ? args.page_size() : 1;
    const int taken = RunParts(args, GetParam().kernel, CutsInto(count, args.cache_len(), step));
    if (HasFailure()) return;
    // The others are empty.
    EXPECT_GE(2 * taken, count < 33 ? count : 2);
    const auto damage = device->Download(*backend_, *stream_);
    ASSERT_TRUE(damage.ok()) << damage.status();
    EXPECT_EQ(damage->value_or(""), "");
    cases::Outcome outcome;
    for (const cases::Expectation& expectation : prepared->expectations) {
      EXPECT_EQ(Compare(expectation, device->Result(expectation.operand), outcome), "");
    }
    memory_.clear();
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, AttentionParts,
    testing::Values(
        SplitCase{"decode", "batch=2 q_heads=4 kv_heads=2 q_len=3 kv_len=400 kv_dtype=f16"},
        SplitCase{"decode",
                  "batch=2 q_heads=4 kv_heads=2 q_len=2 kv_len=400 kv_dtype=bf16 "
                  "page_size=3 ragged_kv=1 new_len=2 sinks=1 window_left=120"},
        SplitCase{"decode", "q_heads=4 kv_len=300 kv_dtype=i8 alibi=1 mask=full causal=none"},
        SplitCase{"decode", "q_heads=4 q_len=5 kv_len=300 kv_dtype=f32 new_len=5 bias=one_head"},
        SplitCase{"prefill", "q_heads=4 kv_heads=2 q_len=150 kv_len=200 kv_dtype=f16"},
        SplitCase{"prefill",
                  "batch=2 q_heads=2 q_len=70 kv_len=200 head_dim=80 q_dtype=bf16 "
                  "kv_dtype=bf16 page_size=2 queries=packed left_padding=1 sinks=1 "
                  "new_len=3 new_dtype=bf16 softcap=20"},
        SplitCase{"prefill",
                  "batch=2 q_len=70 kv_len=150 q_dtype=f16 kv_dtype=i8 chunk=40 "
                  "prefix_len=10 mask=full"},
        SplitCase{"prefill_f32", "q_heads=2 q_len=100 kv_len=160 window_left=50 sinks=1"},
        SplitCase{"prefill_f32",
                  "batch=2 q_len=40 kv_len=150 kv_dtype=i8 page_size=4 ragged_kv=1 "
                  "queries=ragged head_dim=96"},
        SplitCase{"hopper", "q_heads=4 kv_heads=2 q_len=150 kv_len=330 q_dtype=f16 kv_dtype=f16"},
        SplitCase{"hopper",
                  "batch=2 q_len=140 kv_len=300 q_dtype=bf16 kv_dtype=bf16 page_size=8 "
                  "queries=packed ragged_kv=1 softcap=9 sinks=1 head_dim=128"},
        SplitCase{"hopper",
                  "batch=2 q_len=40 kv_len=260 kv_dtype=f16 window_left=70 alibi=1 "
                  "left_padding=1 values=nan_last"},
        SplitCase{"generic", "batch=2 q_heads=2 q_len=20 kv_len=150 kv_dtype=i8 head_dim=300"}),
    [](const auto& param) {
      return std::string(param.param.kernel) + std::to_string(param.index);
    });

}  // namespace
}  // namespace tandem::cuda
