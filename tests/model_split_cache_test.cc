// Sessions whose caches do not fit in the GPU's memory: its part is full, the rest is in host
// memory, both devices attend, and the tokens are those of the CPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "model/generate.h"
#include "model/recovery.h"
#include "tests/emulated_context.h"
#include "tests/generation_steps.h"
#include "tests/random_model.h"

namespace tandem {
namespace {

constexpr DeviceKind kCpu = DeviceKind::kCpu, kGpu = DeviceKind::kCuda;
constexpr int64_t kLayers = 2, kCapacity = 160;

std::shared_ptr<const GgufFile> SmallModel() {
  RandomModel random;
  random.layers = static_cast<uint64_t>(kLayers);
  random.hidden = 64;
  random.feed_forward = 96;
  random.vocabulary = 64;
  static const std::vector<std::byte> bytes = random.Bytes();
  return *GgufFile::FromMemory(bytes, "small");
}

struct Decoder {
  std::unique_ptr<Context> context;
  std::shared_ptr<const Model> model;
  std::unique_ptr<Session> session;
};

std::unique_ptr<Context> MakeContext(bool gpu, int64_t limit = 0, bool trace = false) {
  ContextOptions options;
  options.threads = 1;
  options.kernel_profile = "off";
  options.quantize_activations = false;  // CUDA kernels do not round them either
  options.cuda_emulated = gpu;
  options.cuda_memory_limit = limit;
  options.trace = trace;
  auto context = Context::Create(options).value();
  context->health().SetLog({});
  return context;
}

SessionOptions OptionsOf(DType kv_dtype) {
  return {.capacity = kCapacity, .kv_dtype = kv_dtype, .ubatch = 24};
}

Decoder Open(const std::optional<DecoderPlacement>& placement, DType kv_dtype = DType::kF16,
             bool trace = false) {
  Decoder decoder;
  decoder.context = MakeContext(placement.has_value(), 0, trace);
  ModelOptions options;
  options.placement = placement;
  decoder.model = Model::Load(*decoder.context, SmallModel(), options).value();
  decoder.session = Session::Create(*decoder.context, decoder.model, OptionsOf(kv_dtype)).value();
  return decoder;
}

// A prompt over the edge of the GPU's rows, in chunks and by token; back to rows of it; on again.
std::vector<int32_t> Walk(Session& session) {
  std::vector<int32_t> tokens;
  auto steps = ResilientSteps::Create(session, {}, /*use_graph=*/true);
  EXPECT_TRUE(steps.ok()) << steps.status();
  const auto go_on = [&](std::span<const int32_t> prompt, int count) {
    GoOn(*steps, steps->Prompt([&] { return session.Forward(prompt); }), count, tokens);
  };
  std::vector<int32_t> prompt(60);
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = static_cast<int32_t>((i * 7 + 3) % 64);
  go_on(std::span(prompt).first(30), 5);  // 35
  go_on(prompt, 5);                       // 100
  EXPECT_TRUE(session.Truncate(20).ok());
  std::reverse(prompt.begin(), prompt.end());
  go_on(prompt, 20);  // 100
  EXPECT_EQ(session.position(), 100);
  return tokens;
}

DecoderPlacement WithRows(DecoderPlacement placement, int64_t rows) {
  placement.gpu_cache_rows = rows;
  return placement;
}
DecoderPlacement Everything(int64_t rows) {
  return WithRows(DecoderPlacement::Everything(kGpu, kLayers), rows);
}
DecoderPlacement OneLayer(int64_t rows) {
  DecoderPlacement placement = DecoderPlacement::Everything(kCpu, kLayers);
  placement.layers[1] = {kGpu, kCpu};
  return WithRows(placement, rows);
}

TEST(SplitCacheModel, GivesTheTokensOfTheCpu) {
  for (const DType kv_dtype : {DType::kF16, DType::kI8}) {
    const std::vector<int32_t> expected = Walk(*Open(std::nullopt, kv_dtype).session);
    ASSERT_EQ(expected.size(), 30u);
    EXPECT_GT(std::set<int32_t>(expected.begin(), expected.end()).size(), 5u);
    for (const DecoderPlacement& placement :
         {Everything(0), Everything(32), Everything(64), Everything(kCapacity), OneLayer(32)}) {
      SCOPED_TRACE(absl::StrCat(Describe(placement), ", ", std::string(Name(kv_dtype))));
      const Decoder split = Open(placement, kv_dtype);
      EXPECT_EQ(Walk(*split.session), expected);
      EXPECT_EQ(split.context->health().counters().all_faults(), 0);
    }
  }
}

// Both devices have rows, and attend to them.
TEST(SplitCacheModel, BothDevicesAttend) {
  const Decoder split = Open(Everything(32), DType::kF16, /*trace=*/true);
  Walk(*split.session);
  PerDevice<int> attentions;
  int merges = 0;
  for (const TraceRecord& record : split.context->trace().records()) {
    attentions[record.device.kind] += record.facts.op == OpKind::kAttention;
    merges += record.facts.op == OpKind::kMergeAttention;
  }
  EXPECT_GT(attentions[kCpu], 20 * kLayers);
  EXPECT_GT(attentions[kGpu], 20 * kLayers);
  EXPECT_GT(merges, 20 * kLayers);
}

TEST(SplitCacheModel, StepsRunCallByCallAndSaySo) {
  const Decoder split = Open(Everything(32));
  const auto steps = DecodeSteps::Create(*split.session, {}, true);
  ASSERT_TRUE(steps.ok()) << steps.status();
  EXPECT_EQ(steps->mode(),
            "call by call: the cache is on two devices, between which the host waits");
  EXPECT_EQ(split.session->QueueToken({}).status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(Describe(split.model->placement()),
            "everything on cuda; of caches on cuda the first 32 tokens, the others on cpu");
}

// Less memory than the caches take: the GPU's part is as much as fits, within the limit that the
// allocator enforces, and the tokens are the CPU's. More memory: more of it, until all is there.
TEST(SplitCacheModel, TheGpusPartIsFull) {
  const std::vector<int32_t> expected = Walk(*Open(std::nullopt).session);
  ModelOptions options;
  options.hybrid.emplace().session = OptionsOf(DType::kF16);
  options.hybrid->gpu_layers = kLayers;
  int64_t before = 0, splits = 0;
  bool whole = false;
  for (int64_t limit = 64 << 10; !whole; limit += 8 << 10) {
    ASSERT_LT(limit, int64_t{1} << 30);
    const auto context = MakeContext(/*gpu=*/true, limit);
    const auto model = Model::Load(*context, SmallModel(), options);
    if (absl::IsResourceExhausted(model.status())) {
      EXPECT_EQ(splits, 0) << "more memory, and less fits";
      continue;
    }
    ASSERT_TRUE(model.ok()) << model.status();
    const std::optional<int64_t> rows = (*model)->placement().gpu_cache_rows;
    whole = !rows;
    EXPECT_TRUE((*model)->on_one_device());
    if (rows) {
      EXPECT_GE(*rows, before);
      EXPECT_LT(*rows, kCapacity);
      if (*rows == before) continue;
      before = *rows;
      ++splits;
      EXPECT_THAT((*model)->placement().reason,
                  testing::HasSubstr(absl::StrCat("of 160 tokens of cache ", *rows, " per layer")));
    }
    SCOPED_TRACE(absl::StrCat("limit ", limit, ": ", Describe((*model)->placement())));
    const auto session = Session::Create(*context, *model, options.hybrid->session);
    ASSERT_TRUE(session.ok()) << session.status();
    EXPECT_EQ(Walk(**session), expected);
    EXPECT_EQ(context->health().counters().all_faults(), 0);
    EXPECT_LE(cases::InUse(*context), limit);
  }
  EXPECT_GE(splits, 2);
}

// Whatever call of the GPU fails during a generation, its tokens are the CPU's: the cache of a
// layer goes to the host, or all of the session does.
TEST(SplitCacheModel, SurvivesEveryFault) {
  const std::vector<int32_t> expected = Walk(*Open(std::nullopt).session);
  for (const auto kind : {cuda::Fault::Kind::kError, cuda::Fault::Kind::kOutOfMemory,
                          cuda::Fault::Kind::kDeviceLost}) {
    int64_t calls = 0;
    {
      const Decoder split = Open(Everything(32));
      cuda::EmulatedRuntime& runtime = cases::RuntimeOf(*split.context);
      calls = -runtime.calls();
      Walk(*split.session);
      calls += runtime.calls();
    }
    constexpr int64_t kTries = 5;
    for (int64_t i = 0; i < kTries; ++i) {
      const int64_t ordinal = 1 + calls * i / kTries;
      SCOPED_TRACE(absl::StrCat("call ", ordinal, ", kind ", static_cast<int>(kind)));
      const Decoder split = Open(Everything(32));
      cases::RuntimeOf(*split.context).Inject({.ordinal = ordinal, .kind = kind});
      EXPECT_EQ(Walk(*split.session), expected);
      EXPECT_TRUE(cases::RuntimeOf(*split.context).fault_happened());
    }
  }
}

}  // namespace
}  // namespace tandem
