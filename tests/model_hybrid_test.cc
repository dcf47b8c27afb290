// One model on two devices, the CPU and the emulated GPU: the tokens of the CPU for every split of
// its layers, with weights, caches and copies where the placement says.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "core/status.h"
#include "dispatch/copy.h"
#include "model/generate.h"
#include "tests/cases/random.h"
#include "tests/emulated_context.h"
#include "tests/generation_steps.h"
#include "tests/random_model.h"
#include "tests/sanitizers.h"
#include "tests/scoped_env.h"

namespace tandem {
namespace {

constexpr DeviceKind kCpu = DeviceKind::kCpu, kGpu = DeviceKind::kCuda;
constexpr char kDemo[] = TANDEM_SOURCE_DIR "/models/demo.gguf";
constexpr int64_t kLayers = 3;

std::vector<std::byte> SmallModel() {
  RandomModel random;
  random.layers = static_cast<uint64_t>(kLayers);
  random.hidden = 64;
  random.feed_forward = 96;
  random.vocabulary = 64;
  return random.Bytes();
}

struct Decoder {
  std::shared_ptr<Context> context;
  std::shared_ptr<const Model> model;
  std::unique_ptr<Session> session;
};

std::shared_ptr<Context> MakeContext(bool gpu, bool trace = false) {
  const WithoutGpu unless_asked_for;
  ContextOptions options;
  options.threads = 1;
  options.kernel_profile = "off";
  options.quantize_activations = false;  // CUDA kernels do not round them either
  options.cuda_emulated = gpu;
  options.trace = trace;
  auto context = Context::Create(options);
  EXPECT_TRUE(context.ok()) << context.status();
  return *std::move(context);
}

struct Files {
  std::vector<std::byte> bytes = SmallModel();
  std::shared_ptr<const GgufFile> file = *GgufFile::FromMemory(bytes, "small");
};

absl::StatusOr<Decoder> Open(std::shared_ptr<const GgufFile> file,
                             const std::optional<DecoderPlacement>& placement,
                             DType kv_dtype = DType::kF16, bool trace = false,
                             std::shared_ptr<Context> context = nullptr) {
  Decoder decoder;
  decoder.context =
      context != nullptr ? std::move(context) : MakeContext(placement.has_value(), trace);
  ModelOptions options;
  options.placement = placement;
  TANDEM_ASSIGN_OR_RETURN(decoder.model, Model::Load(*decoder.context, std::move(file), options));
  SessionOptions session;
  session.capacity = 64;
  session.ubatch = 6;
  session.kv_dtype = kv_dtype;
  TANDEM_ASSIGN_OR_RETURN(decoder.session,
                          Session::Create(*decoder.context, decoder.model, session));
  return decoder;
}

// A prompt of two chunks and a part, steps, back to the middle of it, other tokens, steps.
std::vector<int32_t> Walk(Session& session) {
  std::vector<int32_t> tokens;
  auto steps = DecodeSteps::Create(session, {}, /*use_graph=*/true);
  EXPECT_TRUE(steps.ok()) << steps.status();
  const auto go_on = [&](std::span<const int32_t> prompt, int count) {
    GoOn(*steps, session.Forward(prompt), count, tokens);
  };
  std::vector<int32_t> prompt(8);
  std::iota(prompt.begin(), prompt.end(), 3);
  EXPECT_TRUE(session.Feed(std::span(prompt).first(2)).ok());
  go_on(prompt, 3);
  EXPECT_TRUE(session.Truncate(5).ok());
  std::reverse(prompt.begin(), prompt.end());
  go_on(std::span(prompt).first(4), 3);
  EXPECT_EQ(session.position(), 5 + 4 + 3);
  return tokens;
}

DecoderPlacement Split(int64_t count, bool last) {
  DecoderPlacement placement = DecoderPlacement::Everything(kCpu, kLayers);
  for (int64_t i = 0; i < count; ++i) {
    placement.layers[static_cast<size_t>(last ? kLayers - 1 - i : i)] = {kGpu, kGpu};
  }
  return placement;
}

TEST(HybridModel, GivesTheTokensOfTheCpuForEverySplit) {
  const Files files;
  const std::shared_ptr<Context> context = MakeContext(/*gpu=*/true);
  for (const DType kv_dtype : {DType::kF16, DType::kI8}) {
    auto cpu = Open(files.file, std::nullopt, kv_dtype);
    ASSERT_TRUE(cpu.ok()) << cpu.status();
    const std::vector<int32_t> expected = Walk(*cpu->session);
    ASSERT_EQ(expected.size(), 6u);
    EXPECT_GT(std::set<int32_t>(expected.begin(), expected.end()).size(), 2u);
    for (const bool last : {false, true}) {
      for (int64_t count = last ? 1 : 0; count < kLayers + (last ? 0 : 1); ++count) {
        for (const bool ends : {false, true}) {
          if (!ends && kv_dtype == DType::kI8) continue;  // half of them are enough
          DecoderPlacement placement = Split(count, last);
          if (ends) (last ? placement.output : placement.embedding) = kGpu;
          if (count == kLayers) placement.output = placement.embedding;
          SCOPED_TRACE(absl::StrCat(Describe(placement), ", cache ", std::string(Name(kv_dtype))));
          auto hybrid = Open(files.file, placement, kv_dtype, /*trace=*/false, context);
          ASSERT_TRUE(hybrid.ok()) << hybrid.status();
          EXPECT_EQ(Walk(*hybrid->session), expected);
        }
      }
    }
  }
}

TEST(HybridModel, HalvesOfLayersMayBeAnywhere) {
  const Files files;
  auto cpu = Open(files.file, std::nullopt);
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  const std::vector<int32_t> expected = Walk(*cpu->session);
  const std::shared_ptr<Context> context = MakeContext(/*gpu=*/true);
  cases::Rng rng(1);
  for (int round = 0; round < (kSanitized ? 2 : 8); ++round) {
    const auto any = [&] { return rng.Chance(0.5) ? kGpu : kCpu; };
    DecoderPlacement placement = DecoderPlacement::Everything(kCpu, kLayers);
    placement.embedding = any();
    placement.output = any();
    for (LayerDevices& layer : placement.layers) layer = {any(), any()};
    SCOPED_TRACE(Describe(placement));
    auto hybrid = Open(files.file, placement, DType::kF16, /*trace=*/false, context);
    ASSERT_TRUE(hybrid.ok()) << hybrid.status();
    EXPECT_EQ(Walk(*hybrid->session), expected);
  }
}

// As close to the CPU's as the whole model on the GPU is; and rows behind a chunk's end.
TEST(HybridModel, LogitsOfEveryPositionAgree) {
  const Files files;
  const std::vector<int32_t> ids = {5, 9, 1, 30, 12, 7, 7, 2, 19, 4};
  const auto rows = static_cast<int64_t>(ids.size());
  std::vector<float> expected;
  for (const int64_t count : {int64_t{-1}, int64_t{1}, int64_t{2}}) {
    auto decoder =
        Open(files.file, count < 0 ? std::nullopt : std::optional(Split(count, true)), DType::kF32);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    const int64_t vocabulary = decoder->model->config().vocabulary;
    std::vector<float> logits(static_cast<size_t>(rows * vocabulary));
    const absl::Status status =
        decoder->session->ForwardAll(ids, MakeView(logits.data(), DType::kF32, {rows, vocabulary}));
    ASSERT_TRUE(status.ok()) << status;
    if (count < 0) {
      expected = logits;
      continue;
    }
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < logits.size(); ++i) {
      difference += std::pow(static_cast<double>(logits[i]) - expected[i], 2);
      size += std::pow(static_cast<double>(expected[i]), 2);
    }
    EXPECT_GT(size, 0.0);
    EXPECT_LT(std::sqrt(difference / size), 2e-5);
  }
}

TEST(HybridModel, EveryOpRunsWhereItsLayerIs) {
  const Files files;
  auto hybrid = Open(files.file, Split(2, true), DType::kF16, /*trace=*/true);
  ASSERT_TRUE(hybrid.ok()) << hybrid.status();
  // Long enough that the policy, asked for each op alone, would send it to the GPU.
  const std::vector<int32_t> prompt(60, 7);
  ASSERT_TRUE(hybrid->session->Feed(std::span(prompt).first(54)).ok());
  hybrid->context->trace().Clear();
  ASSERT_TRUE(hybrid->session->Forward(std::span(prompt).first(6)).ok());
  std::map<OpKind, std::map<DeviceKind, int>> calls;
  std::map<DeviceKind, int> gates;  // gate and up, joined by one call: half as many elements
  for (const TraceRecord& record : hybrid->context->trace().records()) {
    const OpFacts& facts = record.facts;
    ++calls[facts.op][record.device.kind];
    gates[record.device.kind] +=
        facts.op == OpKind::kGroupedMatMul && facts.m * facts.n == 2 * facts.elements;
    EXPECT_EQ(record.moved_bytes, 0) << Name(record.facts.op);
    EXPECT_EQ(record.decision.rule, Decision::Rule::kPlaced) << Name(record.facts.op);
  }
  EXPECT_EQ(calls[OpKind::kAttention][kCpu], 1);
  EXPECT_EQ(calls[OpKind::kAttention][kGpu], 2);
  EXPECT_EQ(calls[OpKind::kKvAppend][kGpu], 2);
  EXPECT_EQ(gates[kCpu], 1);
  EXPECT_EQ(gates[kGpu], 2);
  EXPECT_EQ(calls[OpKind::kEmbedding][kCpu], 1);
}

TEST(HybridModel, CopiesOnlyTheResidualStream) {
  const Files files;
  auto hybrid = Open(files.file, Split(2, true));
  ASSERT_TRUE(hybrid.ok()) << hybrid.status();
  cuda::EmulatedRuntime& runtime = cases::RuntimeOf(*hybrid->context);
  ASSERT_TRUE(hybrid->session->Forward({{1, 2, 3}}).ok());
  const int64_t copies = runtime.calls("Copy"), waits = runtime.calls("Synchronize"),
                allocations = runtime.calls("Allocate");
  ASSERT_TRUE(hybrid->session->Forward({{4}}).ok());
  // Positions and the stream to the GPU, the stream back to the output matrix.
  EXPECT_EQ(runtime.calls("Copy") - copies, 3);
  EXPECT_EQ(runtime.calls("Synchronize") - waits, 1);
  EXPECT_EQ(runtime.calls("Allocate") - allocations, 0);
}

TEST(HybridModel, StepsRunCallByCallAndSaySo) {
  const Files files;
  auto hybrid = Open(files.file, Split(1, false));
  ASSERT_TRUE(hybrid.ok()) << hybrid.status();
  const auto steps = DecodeSteps::Create(*hybrid->session, {}, true);
  ASSERT_TRUE(steps.ok()) << steps.status();
  EXPECT_EQ(steps->mode(),
            "call by call: the model is on two devices, between which the host waits");
  EXPECT_EQ(hybrid->session->QueueToken({}).status().code(), absl::StatusCode::kFailedPrecondition);
}

TEST(HybridModel, TheDemoAnswersASum) {
  auto file = GgufFile::Open(kDemo);
  ASSERT_TRUE(file.ok()) << file.status();
  const auto config = DecoderConfig::Load(**file);
  ASSERT_TRUE(config.ok());
  DecoderPlacement placement = DecoderPlacement::Everything(kCpu, config->layers);
  placement.layers.back() = {kGpu, kGpu};
  placement.output = kGpu;
  auto hybrid = Open(*file, placement);
  ASSERT_TRUE(hybrid.ok()) << hybrid.status();
  const auto tokenizer = Tokenizer::Load(*file);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  GenerateOptions options;
  options.max_tokens = 4;
  const auto result = Generate(*hybrid->session, **tokenizer, "23+45=", options);
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_THAT(result->text, testing::StartsWith("68"));
}

// Every runtime call of a chunk failing in turn: either the CPU did the call instead, or the error
// is reported, the sequence is as before, and the same tokens follow.
TEST(HybridModel, MayFailAnywhere) {
  const Files files;
  auto hybrid = Open(files.file, Split(1, true));
  ASSERT_TRUE(hybrid.ok()) << hybrid.status();
  cuda::EmulatedRuntime& runtime = cases::RuntimeOf(*hybrid->context);
  const std::vector<int32_t> prompt = {3, 1, 4, 1, 5};
  const auto first = [&](const TensorView& logits) { return *logits.As<float>(); };
  const auto expected = hybrid->session->Forward(prompt);
  ASSERT_TRUE(expected.ok());
  const float value = first(*expected);
  int faults = 0, failures = 0;
  for (int64_t ordinal = 1;; ++ordinal) {
    ASSERT_TRUE(hybrid->session->Truncate(0).ok());
    runtime.Inject({.ordinal = ordinal});
    const auto failed = hybrid->session->Forward(prompt);
    const bool happened = runtime.fault_happened();
    runtime.Heal();
    if (!happened) break;
    ++faults;
    if (failed.ok()) {
      EXPECT_NEAR(first(*failed), value, 1e-4) << ordinal;
    } else {
      ++failures;
      EXPECT_EQ(hybrid->session->position(), 0);
      const auto again = hybrid->session->Forward(prompt);
      ASSERT_TRUE(again.ok()) << again.status();
      EXPECT_EQ(first(*again), value);
    }
  }
  EXPECT_GT(faults, 10);
  EXPECT_GT(failures, 0);  // copies of tokens and of the residual, which nothing can replace
}

// The allocator enforces the limit; that nothing runs into it shows that the plan counted right.
TEST(HybridModel, TakesWhatFitsAndNoMore) {
  const Files files;
  auto cpu = Open(files.file, std::nullopt);
  ASSERT_TRUE(cpu.ok()) << cpu.status();
  const std::vector<int32_t> expected = Walk(*cpu->session);
  std::set<int64_t> counts;
  bool everything = false;
  for (int64_t limit = 32 << 10; !everything; limit += limit / 8) {
    ASSERT_LT(limit, int64_t{1} << 30);
    ContextOptions context_options;
    context_options.threads = 1;
    context_options.kernel_profile = "off";
    context_options.quantize_activations = false;
    context_options.cuda_emulated = true;
    context_options.cuda_memory_limit = limit;
    auto context = Context::Create(context_options);
    ASSERT_TRUE(context.ok()) << context.status();
    ModelOptions options;
    options.hybrid.emplace().session = {.capacity = 64, .kv_dtype = DType::kI8, .ubatch = 6};
    auto model = Model::Load(**context, files.file, options);
    ASSERT_TRUE(model.ok()) << model.status() << ", limit " << limit;
    SCOPED_TRACE(absl::StrCat("limit ", limit, ": ", Describe((*model)->placement())));
    const auto count = std::count((*model)->placement().layers.begin(),
                                  (*model)->placement().layers.end(), LayerDevices{kGpu, kGpu});
    everything = (*model)->on_one_device() && (*model)->device() == kGpu;
    if (!counts.insert(count).second && !everything) continue;
    auto session = Session::Create(**context, *model, options.hybrid->session);
    ASSERT_TRUE(session.ok()) << session.status();
    EXPECT_EQ(Walk(**session).size(), expected.size());
    EXPECT_LE(cases::InUse(**context), limit);
  }
  EXPECT_EQ(counts.size(), static_cast<size_t>(kLayers) + 1) << "every number of layers";
}

TEST(HybridModel, SaysWhatDoesNotFit) {
  const Files files;
  ContextOptions context_options;
  context_options.cuda_emulated = true;
  context_options.cuda_memory_limit = 128 << 10;
  auto context = Context::Create(context_options);
  ASSERT_TRUE(context.ok());
  ModelOptions options;
  options.hybrid.emplace().gpu_layers = kLayers;
  const auto refused = Model::Load(**context, files.file, options);
  EXPECT_EQ(refused.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.status().message()), testing::HasSubstr("gpu_layers: 3 layers"));
  EXPECT_EQ(cases::InUse(**context), 0);
  auto without = MakeContext(/*gpu=*/false);
  EXPECT_EQ(Model::Load(*without, files.file, options).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(HybridModel, BadPlacementsAreRefused) {
  const Files files;
  DecoderPlacement placement = Split(1, true);
  placement.layers.pop_back();
  EXPECT_EQ(Open(files.file, placement).status().code(), absl::StatusCode::kInvalidArgument);
  ModelOptions options;
  options.placement = Split(1, true);
  auto without = MakeContext(/*gpu=*/false);
  EXPECT_EQ(Model::Load(*without, files.file, options).status().code(),
            absl::StatusCode::kInvalidArgument);
  ContextOptions forced;
  forced.cuda_emulated = true;
  forced.device = kCpu;
  auto context = Context::Create(forced);
  ASSERT_TRUE(context.ok());
  EXPECT_THAT(std::string(Model::Load(**context, files.file, options).status().message()),
              testing::HasSubstr("forced onto cpu"));
}

TEST(HybridModel, PlacementsAreDescribed) {
  EXPECT_EQ(Describe(DecoderPlacement::Everything(kGpu, 2)), "everything on cuda");
  DecoderPlacement placement = DecoderPlacement::Everything(kCpu, 8);
  for (const size_t i : {2, 3, 4, 6}) placement.layers[i] = {kGpu, kGpu};
  placement.output = kGpu;
  EXPECT_EQ(Describe(placement), "layers 2-4, 6, the output matrix on cuda, the rest on cpu");
  placement = DecoderPlacement::Everything(kCpu, 8);
  placement.embedding = kGpu;
  placement.layers[0].feed_forward = kGpu;
  placement.layers[7].attention = kGpu;
  EXPECT_EQ(Describe(placement),
            "the embedding, attention of layers 7, feed-forward network of layers 0 on cuda, the "
            "rest on cpu");
}

}  // namespace
}  // namespace tandem
