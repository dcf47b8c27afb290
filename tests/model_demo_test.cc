// The demo model answers: sums and recall over 64..1024 tokens of context at least 95 % right, on
// every path. A wrong kernel shows here as wrong sums or lost keys.
//
// The full set of questions runs on the default path; every other path (instruction set, cache
// type, packed weights, reference kernels) runs a part of it, spread over the whole.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "core/status.h"
#include "model/generate.h"
#include "tests/model_golden.h"
#include "tests/sanitizers.h"

namespace tandem {
namespace {

constexpr double kRequired = 0.95;  // of each group of questions

// Sanitizer builds run some 10x slower: shorter contexts there.
constexpr int64_t kMaxContext = kSanitized ? 128 : 1024;

struct Question {
  std::string prompt;
  std::string answer;
  int64_t context = 0;  // tokens
};

// Questions by group: "sum", "recall 64", "recall 128", ...
std::map<std::string, std::vector<Question>> LoadQuestions() {
  std::map<std::string, std::vector<Question>> groups;
  std::ifstream in(TANDEM_SOURCE_DIR "/models/demo_eval.json");
  const auto json = nlohmann::json::parse(in, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) {
    ADD_FAILURE() << "cannot read models/demo_eval.json";
    return groups;
  }
  for (const auto& entry : json) {
    const auto context = entry["context_tokens"].get<int64_t>();
    const auto task = entry["task"].get<std::string>();
    const std::string group = task == "sum" ? task : absl::StrCat(task, " ", context);
    groups[group].push_back(
        {entry["prompt"].get<std::string>(), entry["answer"].get<std::string>(), context});
  }
  return groups;
}

struct Path {
  std::string name;
  ContextOptions context = OneThread();
  SessionOptions session;
  ModelOptions model;
  size_t questions = 20;       // at most, per group
  int64_t max_context = 1024;  // longer questions are left out
};

// Asks `path.questions` of each group, evenly spread.
void Ask(const Path& path) {
  SCOPED_TRACE(path.name);
  auto decoder =
      MakeDecoder(TANDEM_SOURCE_DIR "/models/demo.gguf", path.context, path.session, path.model);
  ASSERT_TRUE(decoder.ok()) << decoder.status();
  const auto tokenizer = Tokenizer::Load(decoder->model->file());
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  GenerateOptions options;
  options.max_tokens = 8;
  size_t groups = 0;
  for (const auto& [group, questions] : LoadQuestions()) {
    if (questions.front().context > std::min(path.max_context, kMaxContext)) continue;
    ++groups;
    const size_t asked = std::min(path.questions, questions.size());
    size_t right = 0;
    std::string first_wrong;
    for (size_t i = 0; i < asked; ++i) {
      const Question& question = questions[i * questions.size() / asked];
      ASSERT_TRUE(decoder->session->Truncate(0).ok());
      const auto result = Generate(*decoder->session, **tokenizer, question.prompt, options);
      ASSERT_TRUE(result.ok()) << result.status();
      // The length the question claims: prompt and answer without the end token.
      if (result->text == question.answer && result->stop == StopReason::kEndToken) {
        ++right;
        EXPECT_EQ(decoder->session->position(), question.context);
      } else if (first_wrong.empty()) {
        first_wrong = absl::StrCat("'...", question.prompt.substr(question.prompt.rfind('\n') + 1),
                                   "': expected '", question.answer, "', got '", result->text, "'");
      }
    }
    // One more may go wrong in a sample of the questions.
    const double slack = asked < questions.size() ? 1.0 : 0.0;
    EXPECT_GE(static_cast<double>(right), kRequired * static_cast<double>(asked) - slack)
        << group << ": " << right << " of " << asked << " right; first wrong " << first_wrong;
    if (std::getenv("TANDEM_TEST_PRINT") != nullptr) {
      std::printf("%-20s %-12s %zu of %zu right\n", path.name.c_str(), group.c_str(), right, asked);
    }
  }
  EXPECT_GE(groups, 3u);
}

TEST(DemoModel, AnswersEveryQuestion) {
  Path path;
  path.name = "default";
  path.questions = 1000;
  Ask(path);
}

TEST(DemoModel, OnAllCores) {
  Path path;
  path.name = "all cores";
  path.context.threads = 0;
  path.questions = 10;
  Ask(path);
}

TEST(DemoModel, OnEveryIsa) {
  for (const std::string& isa : AvailableIsas()) {
    Path path;
    path.name = isa;
    path.context.isa = isa;
    if (isa == "scalar") path.max_context = 512;
    Ask(path);
  }
}

TEST(DemoModel, WithEveryCacheType) {
  for (const DType kv : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
    Path path;
    path.name = absl::StrCat("kv ", std::string(Name(kv)));
    path.session.kv_dtype = kv;
    Ask(path);
  }
}

TEST(DemoModel, WithPackedWeights) {
  Path path;
  path.name = "packed";
  path.max_context = 512;
  path.model.pack_weights = true;
  Ask(path);
}

TEST(DemoModel, InSmallChunks) {
  Path path;
  path.name = "ubatch 37";
  path.max_context = 256;
  path.session.ubatch = 37;
  Ask(path);
}

// Each op in turn on its reference kernel, the others as chosen.
TEST(DemoModel, WithReferenceKernels) {
  for (const char* op : {"attention", "matmul", "rms_norm", "rope", "silu_mul", "embedding",
                         "kv_append", "argmax", "grouped_matmul"}) {
    Path path;
    path.name = absl::StrCat(op, "=reference");
    path.context.force_kernel[op] = "reference";
    path.questions = 5;
    path.max_context = 128;
    Ask(path);
  }
  Path all;
  all.name = "all reference";
  all.context = ReferenceKernels();
  all.questions = 5;
  all.max_context = 128;
  Ask(all);
}

}  // namespace
}  // namespace tandem
