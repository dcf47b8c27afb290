// Generations whose GPU fails: every call of the runtime, in every way, at sampled places from the
// first weight to the last token. They finish with the tokens of an undisturbed run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "core/status.h"
#include "dispatch/ops.h"
#include "model/generate.h"
#include "model/recovery.h"
#include "tests/emulated_context.h"
#include "tests/fault_matrix.h"
#include "tests/sanitizers.h"

namespace tandem {
namespace {

using cuda::Fault;
using ::testing::HasSubstr;

constexpr char kDemo[] = TANDEM_SOURCE_DIR "/models/demo.gguf";
constexpr char kPrompt[] = "23+45=";
constexpr int64_t kTokens = kSanitized ? 4 : 5;

// How a model uses the GPU.
enum class Use { kGraphs, kCallByCall, kByPolicy };
constexpr Use kUses[] = {Use::kGraphs, Use::kCallByCall, Use::kByPolicy};

std::string Name(Use use) {
  switch (use) {
    case Use::kGraphs:
      return "model on the GPU, a graph per token";
    case Use::kCallByCall:
      return "model on the GPU, call by call";
    case Use::kByPolicy:
      return "model on the CPU, single calls on the GPU";
  }
  return "";
}

struct Machine {
  std::unique_ptr<Context> context;
  std::shared_ptr<const Model> model;
  std::unique_ptr<Session> session;
  absl::StatusOr<Generation> result = absl::UnknownError("not run");

  cuda::EmulatedRuntime& runtime() { return cases::RuntimeOf(*context); }
  DeviceHealth& health() { return context->health(); }
};

ContextOptions OptionsFor(const std::string& device) {
  ContextOptions options;
  options.threads = 1;
  options.kernel_profile = "off";
  options.quantize_activations = false;  // CUDA kernels do not round them either
  EXPECT_TRUE(options.SetDevice(device).ok());
  return options;
}

// The context of a use, silent.
Machine Begin(Use use) {
  Machine run;
  ContextOptions options = OptionsFor("prefer:cuda:emulated");
  if (use == Use::kByPolicy) {
    options.prefer_cuda = false;
    options.policy.attention_min_kv_len = 4;
  }
  run.context = std::move(Context::Create(options)).value();
  run.health().SetLog(nullptr);
  return run;
}

GenerateOptions Options(Use use) {
  GenerateOptions options;
  options.max_tokens = kTokens;
  options.ignore_end_tokens = true;
  options.cuda_graph = use != Use::kCallByCall;
  return options;
}

absl::StatusOr<Generation> Continue(Machine& run, const GenerateOptions& options,
                                    std::string_view prompt = kPrompt) {
  TANDEM_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(run.model->file()));
  return Generate(*run.session, *tokenizer, prompt, options);
}

// Weights, session, tokens.
absl::Status Finish(Machine& run, const GenerateOptions& options) {
  TANDEM_ASSIGN_OR_RETURN(auto file, GgufFile::Open(kDemo));
  TANDEM_ASSIGN_OR_RETURN(run.model, LoadModel(*run.context, std::move(file)));
  SessionOptions session;
  session.capacity = 48;
  session.ubatch = 4;  // a prompt of two chunks
  TANDEM_ASSIGN_OR_RETURN(run.session, CreateSession(*run.context, run.model, session));
  run.result = Continue(run, options);
  return run.result.status();
}

std::vector<int32_t> TokensOfTheCpu() {
  Machine run;
  run.context = std::move(Context::Create(OptionsFor("cpu"))).value();
  EXPECT_TRUE(Finish(run, Options(Use::kGraphs)).ok());
  return run.result->tokens;
}

// Of so many calls, the first, one in the middle, and the last.
std::set<int64_t> Sample(Use use, int64_t calls) {
  if (kSanitized || use != Use::kGraphs) return {1, calls / 2 + 1};
  return {1, calls / 2 + 1, calls};
}

// Every kind of failure for the usual way; for the others, and with sanitizers, one after the
// other.
std::vector<Fault::Kind> KindsOfNext(Use use) {
  const std::vector<Fault::Kind> kinds = {Fault::Kind::kError, Fault::Kind::kOutOfMemory,
                                          Fault::Kind::kDeviceLost};
  if (use == Use::kGraphs && !kSanitized) return kinds;
  static size_t next = 0;
  return {kinds[next++ % kinds.size()]};
}

TEST(Recovery, EveryCallOfAGenerationMayFail) {
  const std::vector<int32_t> expected = TokensOfTheCpu();
  ASSERT_EQ(expected.size(), static_cast<size_t>(kTokens));
  FaultMatrix matrix;
  int64_t moved = 0, copied = 0, computed = 0, fallbacks = 0;
  for (const Use use : kUses) {
    std::map<std::string, int64_t> calls;
    Machine undisturbed = Begin(use);
    for (const std::string_view call : cuda::kFaultCalls) {
      calls[std::string(call)] = -undisturbed.runtime().calls(std::string(call));
    }
    ASSERT_TRUE(Finish(undisturbed, Options(use)).ok()) << undisturbed.result.status();
    ASSERT_EQ(undisturbed.result->tokens, expected);
    EXPECT_EQ(undisturbed.health().counters(), FaultCounters());
    EXPECT_EQ(undisturbed.result->stats.graph_launches > 0, use == Use::kGraphs);
    for (auto& [call, count] : calls) count += undisturbed.runtime().calls(call);

    for (const auto& [call, count] : calls) {
      if (count == 0) continue;
      for (const int64_t ordinal : Sample(use, count)) {
        for (const auto kind : KindsOfNext(use)) {
          SCOPED_TRACE(absl::StrCat(Name(use), ": ", tandem::Name(kind), " at ", call, " ", ordinal,
                                    " of ", count));
          Machine run = Begin(use);
          run.runtime().Inject({.call = call, .ordinal = ordinal, .kind = kind});
          const absl::Status status = Finish(run, Options(use));
          if (!run.runtime().fault_happened()) continue;  // fewer calls this time
          const bool survived = status.ok() && run.result->tokens == expected;
          EXPECT_TRUE(status.ok()) << status;
          if (status.ok()) {
            EXPECT_EQ(run.result->tokens, expected);
            for (const Recovery& recovery : run.result->stats.recoveries) {
              (recovery.cache == Recovery::Cache::kCopied ? copied : computed) += 1;
              EXPECT_EQ(run.session->model().device(), DeviceKind::kCpu);
              EXPECT_EQ(recovery.device, "cuda:emulated");
            }
          }
          moved += run.health().counters().moved;
          fallbacks += run.health().counters().all_fallbacks();
          // Nothing left behind, and the context goes on.
          run.runtime().Heal();
          EXPECT_TRUE(run.context->Revive(DeviceKind::kCuda).ok());
          run.session.reset();
          run.model.reset();
          ContextDevice& device = *run.context->device(DeviceKind::kCuda);
          device.scratch.reset();
          device.landing.reset();
          cases::ResetBlas(*run.context);
          EXPECT_TRUE(device.backend->ReleaseUnused().ok());
          EXPECT_EQ(run.runtime().stats(), (cuda::EmulatedStats{.streams = 1}));
          matrix.Count(Name(use), call, survived && !HasFailure());
        }
      }
    }
  }
  EXPECT_EQ(matrix.survived(), matrix.injected());
  for (const char* call : {"Allocate", "AllocatePinned", "Copy", "Launch", "LaunchGraph",
                           "BeginCapture", "EndCapture", "Synchronize"}) {
    EXPECT_TRUE(matrix.calls().contains(call)) << call;
  }
  // Each way out was taken, more than by chance.
  EXPECT_GT(moved, 3);
  EXPECT_GT(copied, 1);
  EXPECT_GT(computed, 1);
  EXPECT_GT(fallbacks, 3);
  matrix.Publish("generations.md", "Whole generations, from loading the weights to the last token");
}

// Two prompts, the device lost in the second: nothing of the first is forgotten.
TEST(Recovery, KeepsWhatWasSaidBefore) {
  for (const auto kind : {Fault::Kind::kError, Fault::Kind::kDeviceLost}) {
    std::vector<std::vector<int32_t>> tokens;
    for (const bool fails : {false, true}) {
      Machine run = Begin(Use::kGraphs);
      ASSERT_TRUE(Finish(run, Options(Use::kGraphs)).ok()) << run.result.status();
      const int64_t position = run.session->position();
      EXPECT_EQ(static_cast<int64_t>(run.session->tokens().size()), position);
      if (fails) run.runtime().Inject({.call = "LaunchGraph", .ordinal = 2, .kind = kind});
      const auto result = Continue(run, Options(Use::kGraphs), "+1=");
      ASSERT_TRUE(result.ok()) << result.status();
      tokens.push_back(result->tokens);
      if (!fails) continue;
      ASSERT_EQ(result->stats.recoveries.size(), 1u);
      const Recovery& recovery = result->stats.recoveries[0];
      EXPECT_GT(recovery.position, position);
      EXPECT_EQ(recovery.cache, kind == Fault::Kind::kError ? Recovery::Cache::kCopied
                                                            : Recovery::Cache::kComputed);
      EXPECT_THAT(Describe(recovery), HasSubstr("went on with the CPU"));
      EXPECT_EQ(result->stats.steps, "call by call: the CPU has no graphs");
      EXPECT_EQ(result->stats.graph_captures, 1);
      // And it goes on from there.
      ASSERT_TRUE(Continue(run, Options(Use::kGraphs), "+1=").ok());
      ASSERT_TRUE(run.session->Truncate(3).ok());
      EXPECT_EQ(run.session->tokens().size(), 3u);
    }
    EXPECT_EQ(tokens[0], tokens[1]);
  }
}

// int8 keys have scales of their own.
TEST(Recovery, CopiesEveryTypeOfCache) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
    SCOPED_TRACE(std::string(tandem::Name(dtype)));
    Machine run = Begin(Use::kGraphs);
    run.model = *LoadModel(*run.context, *GgufFile::Open(kDemo));
    SessionOptions options;
    options.capacity = 16;
    options.kv_dtype = dtype;
    run.session = *CreateSession(*run.context, run.model, options);
    const std::vector<int32_t> ids = {5, 9, 1, 30, 12};
    ASSERT_TRUE(run.session->Feed(ids).ok());
    Machine cpu = Begin(Use::kByPolicy);
    ModelOptions on_cpu;
    on_cpu.device = DeviceKind::kCpu;
    cpu.model = *Model::Open(*run.context, kDemo, on_cpu);
    cpu.session = *Session::Create(*run.context, cpu.model, options);
    ASSERT_TRUE(cpu.session->CopySequence(*run.session).ok());
    EXPECT_TRUE(std::equal(ids.begin(), ids.end(), cpu.session->tokens().begin()));
    EXPECT_FALSE(cpu.session->CopySequence(*run.session).ok()) << "it is not empty any more";
    const int32_t next = 7;
    const TensorView there = *run.session->Forward({&next, 1});
    const TensorView here = *cpu.session->Forward({&next, 1});
    const Tensor logits =
        *Tensor::Allocate(run.context->host_allocator(), DType::kF32, there.shape);
    ContextDevice& device = *run.context->device(DeviceKind::kCuda);
    ASSERT_TRUE(device.backend
                    ->Copy(*device.stream, logits.view().data, there.data, logits.buffer()->bytes())
                    .ok());
    ASSERT_TRUE(device.stream->Synchronize().ok());
    double difference = 0.0, size = 0.0;
    for (int64_t i = 0; i < logits.shape()[1]; ++i) {
      const double a = logits.As<float>()[i], b = *here.At<float>(i);
      difference += (a - b) * (a - b);
      size += b * b;
    }
    EXPECT_GT(size, 0.0);
    EXPECT_LT(difference, 1e-4 * size);
    cpu.session.reset();
    cpu.model.reset();
  }
}

TEST(Recovery, AForcedDeviceFailsLoudly) {
  for (const auto kind :
       {Fault::Kind::kError, Fault::Kind::kOutOfMemory, Fault::Kind::kDeviceLost}) {
    Machine run;
    run.context = std::move(Context::Create(OptionsFor("cuda:emulated"))).value();
    run.health().SetLog(nullptr);
    run.runtime().Inject({.call = "LaunchGraph", .ordinal = 1, .kind = kind});
    const absl::Status status = Finish(run, Options(Use::kGraphs));
    EXPECT_THAT(Message(status), HasSubstr("LaunchGraph: "));
    EXPECT_EQ(run.health().counters().moved, 0);
    EXPECT_EQ(run.session->model().device(), DeviceKind::kCuda);
  }
}

// Devices of every size, from too small for the weights to large enough for all.
TEST(Recovery, RunsOutOfMemoryAnywhere) {
  const std::vector<int32_t> expected = TokensOfTheCpu();
  std::set<DeviceKind> ended;
  const int64_t step = kSanitized ? 4 << 20 : 1 << 19;
  for (int64_t limit = 1 << 18;; limit += step) {
    SCOPED_TRACE(limit);
    Machine run;
    ContextOptions options = OptionsFor("prefer:cuda:emulated");
    options.cuda_memory_limit = limit;
    run.context = std::move(Context::Create(options)).value();
    run.health().SetLog(nullptr);
    ASSERT_TRUE(Finish(run, Options(Use::kGraphs)).ok()) << run.result.status();
    EXPECT_EQ(run.result->tokens, expected);
    ended.insert(run.session->model().device());
    if (run.health().counters().all_faults() == 0) break;
    ASSERT_LT(limit, 1 << 28);
  }
  EXPECT_EQ(ended.size(), 2u);
}

// A kernel that fails every time: single calls are made good a few times, then the session leaves.
TEST(Recovery, LeavesADeviceThatKeepsFailing) {
  const std::vector<int32_t> expected = TokensOfTheCpu();
  for (const Use use : {Use::kGraphs, Use::kCallByCall}) {
    Machine run = Begin(use);
    run.model = *LoadModel(*run.context, *GgufFile::Open(kDemo));
    SessionOptions session;
    session.capacity = 48;
    run.session = *CreateSession(*run.context, run.model, session);
    run.runtime().Inject({.call = "Launch", .times = int64_t{1} << 40});
    run.result = Continue(run, Options(use));
    ASSERT_TRUE(run.result.ok()) << run.result.status();
    EXPECT_EQ(run.result->tokens, expected);
    EXPECT_EQ(run.session->model().device(), DeviceKind::kCpu);
    ASSERT_EQ(run.result->stats.recoveries.size(), 1u);
    EXPECT_FALSE(run.health().lost());
    EXPECT_LE(run.health().counters().all_fallbacks(), 200);
  }
}

}  // namespace
}  // namespace tandem
