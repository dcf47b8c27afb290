// A decode step as one graph, on the emulated CUDA device: the tokens of steps call by call, one
// capture, one wait per token, nothing allocated; and calls that fail in the middle.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>

#include "core/status.h"
#include "dispatch/ops.h"
#include "model/generate.h"
#include "model/quantize.h"
#include "tests/emulated_context.h"
#include "tests/random_model.h"
#include "tests/sanitizers.h"
#include "tests/scoped_env.h"

namespace tandem {
namespace {

constexpr char kDemo[] = TANDEM_SOURCE_DIR "/models/demo.gguf";

// Steps of the demo model on the emulated device take seconds under a sanitizer.
constexpr int64_t kTokens = kSanitized ? 8 : 64;
constexpr int64_t kPlainTokens = kSanitized ? 4 : 20;
constexpr int64_t kOrdinalStride = kSanitized ? 199 : 19;

struct Decoder {
  std::unique_ptr<Context> context;
  std::shared_ptr<const Model> model;
  std::unique_ptr<Session> session;

  cuda::EmulatedRuntime& runtime() { return cases::RuntimeOf(*context); }
};

Decoder Open(const std::string& device, const std::string& path, DType kv_dtype = DType::kF16,
             bool trace = false, int64_t capacity = 100, bool round = false) {
  ContextOptions options;
  options.threads = 1;
  options.kernel_profile = "off";
  options.quantize_activations = round;  // by default neither device rounds them
  options.trace = trace;
  EXPECT_TRUE(options.SetDevice(device).ok());
  Decoder decoder;
  decoder.context = std::move(Context::Create(options)).value();
  decoder.model = std::move(Model::Open(*decoder.context, path)).value();
  SessionOptions session;
  session.capacity = capacity;
  session.kv_dtype = kv_dtype;
  decoder.session = std::move(Session::Create(*decoder.context, decoder.model, session)).value();
  return decoder;
}

SamplingOptions Warm() { return {.temperature = 0.9f, .top_k = 40, .top_p = 0.95f, .seed = 11}; }

Generation Continue(Decoder& decoder, const SamplingOptions& sampling, bool graph, int64_t tokens) {
  const auto tokenizer = Tokenizer::Load(decoder.model->file());
  EXPECT_TRUE(tokenizer.ok()) << tokenizer.status();
  GenerateOptions options;
  options.max_tokens = tokens;
  options.ignore_end_tokens = true;
  options.sampling = sampling;
  options.cuda_graph = graph;
  auto result = Generate(*decoder.session, **tokenizer, "23+45=", options);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *std::move(result) : Generation();
}

TEST(CudaGraphSteps, GiveTheTokensOfTheCpuAndOfStepsCallByCall) {
  for (const SamplingOptions& sampling : {SamplingOptions(), Warm()}) {
    Decoder cpu = Open("cpu", kDemo);
    Decoder gpu = Open("cuda:emulated", kDemo);
    const Generation expected = Continue(cpu, sampling, true, kTokens);
    EXPECT_EQ(expected.stats.steps, "call by call: the CPU has no graphs");
    const Generation graph = Continue(gpu, sampling, true, kTokens);
    EXPECT_EQ(graph.tokens, expected.tokens);
    EXPECT_EQ(graph.stats.graph_captures, 1);
    // Of kTokens - 1 forwards: the first makes it possible.
    EXPECT_EQ(graph.stats.graph_launches, kTokens - 2);
    EXPECT_EQ(graph.stats.steps, "one graph per token");
    ASSERT_TRUE(gpu.session->Truncate(0).ok());
    const Generation plain = Continue(gpu, sampling, false, kPlainTokens);
    EXPECT_THAT(plain.tokens, testing::ElementsAreArray(expected.tokens.data(), kPlainTokens));
    EXPECT_EQ(plain.stats.graph_captures, 0);
    EXPECT_EQ(plain.stats.steps, "call by call: graphs are off");
    EXPECT_EQ(gpu.runtime().stats().graphs, 0);
  }
}

// Tokens of a session after `first`, by steps of its own.
std::vector<int32_t> Steps(Decoder& decoder, bool graph, int count) {
  auto steps = DecodeSteps::Create(*decoder.session, Warm(), graph);
  EXPECT_TRUE(steps.ok()) << steps.status();
  std::vector<int32_t> tokens = {7};
  for (int i = 0; i < count; ++i) {
    const auto token = steps->Next(tokens.back(), static_cast<uint64_t>(i));
    EXPECT_TRUE(token.ok()) << token.status();
    if (!token.ok()) break;
    tokens.push_back(*token);
  }
  return tokens;
}

TEST(CudaGraphSteps, WorkWithEveryWeightAndCacheType) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / "tandem_cuda_graph_test";
  std::filesystem::create_directories(folder);
  RandomModel random;
  random.layers = 1;
  random.feed_forward = 256;
  const std::vector<std::byte> bytes = random.Bytes();
  const auto file = GgufFile::FromMemory(bytes, "random");
  ASSERT_TRUE(file.ok()) << file.status();
  auto converter = Context::Create({});
  ASSERT_TRUE(converter.ok());
  for (const DType weights : {DType::kF16, DType::kQ8_0, DType::kQ4_K}) {
    const std::string path = (folder / std::string(Name(weights))).string();
    QuantizeOptions options;
    options.type = weights;
    ASSERT_TRUE(QuantizeGguf(**converter, **file, path, options).ok());
    for (const DType cache : {DType::kF16, DType::kI8}) {
      SCOPED_TRACE(absl::StrCat(std::string(Name(weights)), " weights, ", std::string(Name(cache)),
                                " cache"));
      Decoder decoder = Open("cuda:emulated", path, cache);
      const std::vector<int32_t> graph = Steps(decoder, true, 6);
      ASSERT_TRUE(decoder.session->Truncate(0).ok());
      EXPECT_EQ(graph, Steps(decoder, false, 6));
    }
  }
  std::filesystem::remove_all(folder);
}

TEST(CudaGraphSteps, WaitOnceAndAllocateNothing) {
  Decoder decoder = Open("cuda:emulated", kDemo);
  auto steps = DecodeSteps::Create(*decoder.session, Warm(), true);
  ASSERT_TRUE(steps.ok()) << steps.status();
  int32_t token = 7;
  for (uint64_t i = 0; i < 3; ++i) token = steps->Next(token, i).value();
  const auto counts = [&] {
    std::vector<int64_t> calls;
    for (const char* name : {"LaunchGraph", "Synchronize", "Launch", "Copy", "Allocate",
                             "AllocatePinned", "Free", "BeginCapture"}) {
      calls.push_back(decoder.runtime().calls(name));
    }
    return calls;
  };
  const std::vector<int64_t> before = counts();
  const int64_t all = decoder.runtime().calls();
  for (uint64_t i = 3; i < 13; ++i) token = steps->Next(token, i).value();
  std::vector<int64_t> made = counts();
  for (size_t i = 0; i < made.size(); ++i) made[i] -= before[i];
  EXPECT_THAT(made, testing::ElementsAre(10, 10, 0, 0, 0, 0, 0, 0));
  EXPECT_EQ(decoder.runtime().calls() - all, 20) << "and nothing else";
  EXPECT_EQ(steps->captures(), 1);
  EXPECT_EQ(decoder.session->position(), 13);
}

// Per layer: norm, Q K V, append, attention, output product, norm, gate and up, down product. And
// embedding; norm, LM head, choice, its logit.
TEST(CudaGraphSteps, LaunchEightKernelsALayer) {
  const std::filesystem::path folder =
      std::filesystem::path(testing::TempDir()) / "tandem_cuda_launches_test";
  std::filesystem::create_directories(folder);
  RandomModel random;
  random.layers = 3;
  random.feed_forward = 256;
  const std::vector<std::byte> bytes = random.Bytes();
  const auto file = GgufFile::FromMemory(bytes, "random");
  ASSERT_TRUE(file.ok()) << file.status();
  auto converter = Context::Create({});
  ASSERT_TRUE(converter.ok());
  for (const DType weights : {DType::kF16, DType::kQ8_0, DType::kQ4_K}) {
    SCOPED_TRACE(std::string(Name(weights)));
    const std::string path = (folder / std::string(Name(weights))).string();
    QuantizeOptions quantize;
    quantize.type = weights;
    ASSERT_TRUE(QuantizeGguf(**converter, **file, path, quantize).ok());
    Decoder decoder = Open("cuda:emulated", path, DType::kF16, false, 100, /*round=*/true);
    auto steps = DecodeSteps::Create(*decoder.session, Warm(), false);
    ASSERT_TRUE(steps.ok()) << steps.status();
    ASSERT_TRUE(steps->Next(7, 0).ok());
    const int64_t before = decoder.runtime().calls("Launch");
    ASSERT_TRUE(steps->Next(9, 1).ok());
    EXPECT_EQ(decoder.runtime().calls("Launch") - before, 8 * 3 + 5);
  }
  std::filesystem::remove_all(folder);
}

// A prompt in between makes the context's workspace grow: the graph goes on with its own.
TEST(CudaGraphSteps, OutliveTheWorkspaceTheyWereRecordedWith) {
  Decoder decoder = Open("cuda:emulated", kDemo);
  auto steps = DecodeSteps::Create(*decoder.session, Warm(), true);
  ASSERT_TRUE(steps.ok()) << steps.status();
  std::vector<int32_t> tokens = {7};
  for (uint64_t i = 0; i < 6; ++i) {
    if (i == 3) {
      ContextDevice& device = *decoder.context->device(DeviceKind::kCuda);
      ASSERT_TRUE(decoder.context
                      ->ReserveWorkspace(DeviceKind::kCuda,
                                         (device.scratch ? device.scratch->bytes() : 0) + 4096)
                      .ok());
    }
    tokens.push_back(steps->Next(tokens.back(), i).value());
  }
  EXPECT_EQ(steps->captures(), 1);
  ASSERT_TRUE(decoder.session->Truncate(0).ok());
  EXPECT_EQ(tokens, Steps(decoder, false, 6));
}

TEST(CudaGraphSteps, RunCallByCallUnderATrace) {
  Decoder decoder = Open("cuda:emulated", kDemo, DType::kF16, /*trace=*/true);
  const Generation traced = Continue(decoder, Warm(), true, 4);
  EXPECT_EQ(traced.stats.steps, "call by call: a trace times every op");
  EXPECT_EQ(traced.stats.graph_captures, 0);
  Decoder graph = Open("cuda:emulated", kDemo);
  EXPECT_EQ(traced.tokens, Continue(graph, Warm(), true, 4).tokens);
}

TEST(CudaGraphSteps, RefuseWhatCannotBeAppended) {
  Decoder decoder = Open("cuda:emulated", kDemo, DType::kF16, /*trace=*/false, /*capacity=*/12);
  auto steps = DecodeSteps::Create(*decoder.session, {}, true);
  ASSERT_TRUE(steps.ok()) << steps.status();
  EXPECT_THAT(steps->Next(-1, 0).status().message(), testing::HasSubstr("expected an id in 0.."));
  EXPECT_EQ(decoder.session->position(), 0);
  int32_t token = 7;
  for (uint64_t i = 0; i < 12; ++i) token = steps->Next(token, i).value();
  EXPECT_EQ(decoder.session->position(), 12);
  EXPECT_THAT(steps->Next(token, 12).status().message(), testing::HasSubstr("capacity"));
  EXPECT_EQ(steps->captures(), 1) << "up to the last row of the cache";
}

// Every call that the first, the captured and a launched step make, failing in turn.
TEST(CudaGraphSteps, MayFailAnywhere) {
  Decoder decoder = Open("cuda:emulated", kDemo);
  const std::vector<int32_t> expected = Steps(decoder, false, 4);
  cuda::EmulatedRuntime& runtime = decoder.runtime();
  const cuda::EmulatedStats before = runtime.stats();
  std::array<int64_t, 3> failures{};        // of each step
  for (const size_t failing : {0, 1, 2}) {  // which step
    bool happened = true;
    // Call by call there are many alike: not every one.
    for (int64_t ordinal = 1; happened;
         ordinal += failing == 2 || ordinal < 3 ? 1 : kOrdinalStride) {
      SCOPED_TRACE(absl::StrCat("step ", failing, ", call ", ordinal));
      ASSERT_TRUE(decoder.session->Truncate(0).ok());
      auto steps = DecodeSteps::Create(*decoder.session, Warm(), true);
      ASSERT_TRUE(steps.ok()) << steps.status();
      for (size_t i = 0; i < 4; ++i) {
        if (i == failing) runtime.Inject({.ordinal = ordinal});
        auto token = steps->Next(expected[i], i);
        if (i == failing) happened = runtime.fault_happened();
        runtime.Heal();
        if (!token.ok()) {
          ASSERT_TRUE(happened && i == failing) << token.status();
          ASSERT_EQ(decoder.session->position(), static_cast<int64_t>(i));
          ++failures[failing];
          token = steps->Next(expected[i], i);
        }
        ASSERT_TRUE(token.ok()) << token.status();
        ASSERT_EQ(*token, expected[i + 1]);
      }
    }
  }
  EXPECT_GT(failures[0], 0) << "call by call";
  EXPECT_GT(failures[1], 0) << "recorded";
  EXPECT_EQ(failures[2], 2) << "launched: the launch and the wait";
  EXPECT_EQ(runtime.stats().graphs, 0);
  EXPECT_EQ(runtime.stats().streams, before.streams);
  EXPECT_EQ(runtime.stats().pinned, before.pinned);
}

TEST(Graphs, SayWhatTheyCannot) {
  const auto context = cases::EmulatedContext(/*forced=*/false);
  const auto nothing = [] { return absl::OkStatus(); };
  EXPECT_EQ(Graph::Capture(*context, DeviceKind::kCpu, nothing).status().code(),
            absl::StatusCode::kUnimplemented);
  EXPECT_EQ(Graph().Launch().code(), absl::StatusCode::kFailedPrecondition);
  const auto failed =
      Graph::Capture(*context, DeviceKind::kCuda, [] { return absl::DataLossError("by itself"); });
  EXPECT_EQ(failed.status().message(), "by itself");
  auto empty = Graph::Capture(*context, DeviceKind::kCuda, nothing);
  ASSERT_TRUE(empty.ok()) << empty.status();
  EXPECT_TRUE(empty->Launch().ok());
  const auto grows = Graph::Capture(*context, DeviceKind::kCuda, [&] {
    return context->ReserveWorkspace(DeviceKind::kCuda, int64_t{1} << 20);
  });
  EXPECT_FALSE(grows.ok());
  const WithoutGpu alone;
  ContextOptions cpu;
  auto host_only = Context::Create(cpu);
  ASSERT_TRUE(host_only.ok());
  EXPECT_EQ(Graph::Capture(**host_only, DeviceKind::kCuda, nothing).status().code(),
            absl::StatusCode::kInvalidArgument);
  context->trace().Enable(true);
  EXPECT_EQ(Graph::Capture(*context, DeviceKind::kCuda, nothing).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace tandem
