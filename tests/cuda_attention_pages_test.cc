// Page tables in device memory are not validated. Keys of a page that is no page of the pool are
// hidden, by every attention kernel: the result is that of a call whose mask hides them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <climits>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/kernels.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/stream.h"
#include "tests/cases/attention_cases.h"
#include "tests/cases/run.h"

namespace tandem::cuda {
namespace {

using cases::AttentionCase;
using cases::DeviceOperands;

// Runs every kernel that takes the case, with pages for which `bad(sequence, page)` leading
// nowhere. The names of those kernels.
template <typename Bad>
std::set<std::string> ExpectHidden(const std::string& text, const Bad& bad) {
  const auto own_backend = *MakeCudaBackend(MakeEmulatedRuntime({}), {.device = kEmulatedDevice});
  const auto own_stream = *own_backend->CreateStream();
  Backend& backend = *own_backend;
  Stream& stream = *own_stream;
  std::set<std::string> ran;
  const auto c =
      cases::ParseCase<AttentionCase>("attention mask=full mask_hides=nothing lse=1 " + text);
  EXPECT_TRUE(c.ok()) << c.status();
  const auto prepared = cases::Prepare(*c);
  EXPECT_TRUE(prepared.ok()) << prepared.status();
  const cases::Operands& operands = prepared->operands;
  const AttentionArgs host = c->Bind(cases::Views(operands));
  const int64_t pool = host.k.dim(0), page_size = host.page_size();
  const std::vector<int32_t> nowhere = {-1, static_cast<int32_t>(pool), INT_MIN, INT_MAX};
  std::vector<int32_t> table;
  for (int64_t b = 0; b < host.page_table.dim(0); ++b) {
    // Columns behind them are those of new keys.
    const int64_t cached = host.kv_lens.present()
                               ? *host.kv_lens.At<int32_t>(b * host.kv_lens.stride(0))
                               : host.cache_len();
    for (int64_t page = 0; page < host.page_table.dim(1); ++page) {
      const bool leads_nowhere = bad(b, page);
      table.push_back(leads_nowhere
                          ? nowhere[static_cast<size_t>(b + page) % nowhere.size()]
                          : *host.page_table.At<int32_t>(b * host.page_table.stride(0) + page));
      if (!leads_nowhere) continue;
      for (int64_t h = 0; h < host.mask.dim(1); ++h) {
        for (int64_t row = 0; row < host.mask.dim(2); ++row) {
          for (int64_t j = page * page_size; j < (page + 1) * page_size; ++j) {
            const TensorView& mask = host.mask;
            if (j >= cached) break;
            *mask.At<uint8_t>(b * mask.stride(0) + h * mask.stride(1) + row * mask.stride(2) + j) =
                0;
          }
        }
      }
    }
  }
  const auto expectations = c->Expect(host);
  for (const auto& kernel : Kernels<AttentionArgs>()) {
    auto device = DeviceOperands::Upload(operands, backend, stream);
    EXPECT_TRUE(device.ok()) << device.status();
    AttentionArgs args = c->Bind(device->views());
    args.mask = {};
    const int64_t pages = host.page_table.dim(1);
    for (int64_t b = 0; b < host.page_table.dim(0); ++b) {  // its rows need not touch
      EXPECT_TRUE(backend
                      .Copy(stream, args.page_table.At<int32_t>(b * args.page_table.stride(0)),
                            table.data() + b * pages, pages * int64_t{sizeof(int32_t)})
                      .ok());
    }
    KernelContext context{.stream = &stream};
    if (!kernel.supports(context, args).ok()) continue;
    const auto scratch =
        backend.allocator().Allocate(std::max<int64_t>(kernel.workspace_bytes(context, args), 1));
    EXPECT_TRUE(scratch.ok());
    Workspace workspace((*scratch)->data(), (*scratch)->bytes());
    context.workspace = &workspace;
    EXPECT_TRUE(kernel.run(context, args).ok());
    EXPECT_TRUE(stream.Synchronize().ok());
    EXPECT_TRUE(device->Download(backend, stream).ok());
    cases::Outcome outcome;
    for (const cases::Expectation& expectation : expectations) {
      EXPECT_EQ(Compare(expectation, device->Result(expectation.operand), outcome), "")
          << kernel.name << ": " << text;
    }
    ran.insert(std::string(kernel.name));
  }
  return ran;
}

class AttentionPages : public testing::TestWithParam<std::string> {};

TEST_P(AttentionPages, ThatAreNoneAreHidden) {
  const auto ran =
      ExpectHidden(GetParam(), [](int64_t b, int64_t page) { return (3 * b + page) % 4 == 1; });
  EXPECT_GE(ran.size(), 2u);  // "generic" and another
  // Rows that see none: 0, and -inf.
  ExpectHidden(GetParam(), [](int64_t, int64_t) { return true; });
}

INSTANTIATE_TEST_SUITE_P(
    All, AttentionPages,
    testing::Values(
        "batch=2 q_heads=2 q_len=70 kv_len=150 page_size=16 q_dtype=f16 kv_dtype=f16",
        "batch=2 q_heads=2 q_len=70 kv_len=150 page_size=8 q_dtype=bf16 kv_dtype=bf16 softcap=9",
        "q_heads=2 q_len=40 kv_len=150 page_size=5 kv_dtype=f16 head_dim=128 sinks=1",
        "q_heads=2 q_len=40 kv_len=150 page_size=7 kv_dtype=bf16 head_dim=200 new_len=3 alibi=1",
        "batch=2 q_len=40 kv_len=150 page_size=16 q_dtype=f16 kv_dtype=i8 causal=none",
        "batch=2 q_len=40 kv_len=150 page_size=16 kv_dtype=i8",
        "batch=2 q_len=40 kv_len=150 page_size=16 kv_dtype=i8 new_len=2",
        "q_len=33 kv_len=99 page_size=3",
        "batch=3 q_heads=4 kv_heads=2 q_len=2 kv_len=300 page_size=16 kv_dtype=f16 ragged_kv=1",
        "batch=2 q_heads=4 kv_heads=2 q_len=5 kv_len=300 page_size=48 kv_dtype=i8 window_left=150",
        "batch=2 q_heads=2 kv_len=300 page_size=1 kv_dtype=f32",
        "batch=2 q_heads=2 q_len=40 kv_len=200 page_size=64 q_dtype=f16 kv_dtype=f16 "
        "queries=ragged left_padding=1 values=nan_first"));

TEST(AttentionPagesOf, AllKernels) {
  std::set<std::string> all, ran;
  for (const auto& kernel : Kernels<AttentionArgs>()) all.insert(std::string(kernel.name));
  for (const char* text :
       {"q_len=40 kv_len=90 page_size=16 q_dtype=f16 kv_dtype=f16",
        "q_len=40 kv_len=90 page_size=16 kv_dtype=i8", "q_len=40 kv_len=90 page_size=16"}) {
    ran.merge(ExpectHidden(text, [](int64_t, int64_t page) { return page == 2; }));
  }
  EXPECT_EQ(ran, all);
}

}  // namespace
}  // namespace tandem::cuda
