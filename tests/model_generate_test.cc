// Generation: stop conditions, streaming, sampling, and bad options.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <set>

#include "core/status.h"
#include "model/generate.h"
#include "tests/model_golden.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

constexpr char kDemo[] = TANDEM_SOURCE_DIR "/models/demo.gguf";

struct Generator {
  Decoder decoder;
  std::shared_ptr<const Tokenizer> tokenizer;

  absl::StatusOr<Generation> Run(std::string_view prompt, const GenerateOptions& options) {
    TANDEM_RETURN_IF_ERROR(decoder.session->Truncate(0));
    return Generate(*decoder.session, *tokenizer, prompt, options);
  }
};

class GenerateTest : public ::testing::Test {
 protected:
  void SetUp() override { Make(0); }

  void Make(int64_t capacity) {
    SessionOptions options;
    options.capacity = capacity;
    options.ubatch = 8;
    auto decoder = MakeDecoder(kDemo, OneThread(), options);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    auto tokenizer = Tokenizer::Load(decoder->model->file());
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    generator_.emplace(Generator{*std::move(decoder), *std::move(tokenizer)});
  }

  Generation Run(std::string_view prompt, const GenerateOptions& options) {
    auto result = generator_->Run(prompt, options);
    EXPECT_TRUE(result.ok()) << result.status();
    return result.ok() ? *std::move(result) : Generation();
  }

  std::optional<Generator> generator_;
};

TEST_F(GenerateTest, SumEndsByItself) {
  std::string streamed;
  GenerateOptions options;
  options.on_text = [&](std::string_view text) {
    streamed += text;
    return true;
  };
  const Generation result = Run("23+45=", options);
  EXPECT_EQ(result.text, "68");
  EXPECT_EQ(streamed, "68");
  EXPECT_EQ(result.stop, StopReason::kEndToken);
  EXPECT_EQ(result.tokens.size(), 3u);
  EXPECT_EQ(result.stats.generated_tokens, 3);
  EXPECT_EQ(result.stats.forwarded_tokens, 2);
  EXPECT_EQ(result.stats.prompt_tokens, 7);
}

TEST_F(GenerateTest, MaxTokensAndNone) {
  GenerateOptions options;
  options.max_tokens = 1;
  const Generation one = Run("23+45=", options);
  EXPECT_EQ(one.text, "6");
  EXPECT_EQ(one.stop, StopReason::kMaxTokens);
  options.max_tokens = 0;
  const Generation none = Run("23+45=", options);
  EXPECT_EQ(none.text, "");
  EXPECT_EQ(none.stop, StopReason::kMaxTokens);
  EXPECT_EQ(generator_->decoder.session->position(), 7);
}

TEST_F(GenerateTest, IgnoreEndTokens) {
  GenerateOptions options;
  options.max_tokens = 12;
  options.ignore_end_tokens = true;
  const Generation result = Run("23+45=", options);
  EXPECT_EQ(result.stop, StopReason::kMaxTokens);
  EXPECT_EQ(result.tokens.size(), 12u);
}

// A stop string is found across tokens, and no part of it reaches the caller.
TEST_F(GenerateTest, StopStrings) {
  GenerateOptions options;
  const std::string prompt = "Once there was a girl named Mia.";
  const std::string whole = Run(prompt, options).text;
  ASSERT_GT(whole.size(), 60u);
  for (size_t length : {1u, 3u, 9u}) {
    const std::string stop = whole.substr(40, length);
    std::string streamed;
    options.stop = {"never there", stop};
    options.on_text = [&](std::string_view text) {
      streamed += text;
      return true;
    };
    const Generation result = Run(prompt, options);
    EXPECT_EQ(result.stop, StopReason::kStopString);
    EXPECT_EQ(result.text, whole.substr(0, whole.find(stop)));
    EXPECT_EQ(streamed, result.text);
  }
  options.on_text = nullptr;
  // The beginning of a stop string at the end of the text is let through after all.
  options.stop = {whole.substr(whole.size() - 4) + "and more"};
  EXPECT_EQ(Run(prompt, options).text, whole);
}

TEST_F(GenerateTest, Cancel) {
  GenerateOptions options;
  int calls = 0;
  options.on_text = [&](std::string_view) { return ++calls < 3; };
  const Generation result = Run("Once there was a girl named Mia.", options);
  EXPECT_EQ(result.stop, StopReason::kCancelled);
  EXPECT_EQ(calls, 3);
}

TEST_F(GenerateTest, ContextFull) {
  Make(20);
  GenerateOptions options;
  options.ignore_end_tokens = true;
  const Generation result = Run("23+45=", options);
  EXPECT_EQ(result.stop, StopReason::kContextFull);
  // 7 of the prompt, 13 that were forwarded, and the last, which found no more room.
  EXPECT_EQ(result.tokens.size(), 14u);
  EXPECT_EQ(generator_->decoder.session->position(), 20);
  const auto longer = Generate(*generator_->decoder.session, *generator_->tokenizer, "1", options);
  EXPECT_EQ(longer.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(longer.status()), HasSubstr("prompt: expected at most 0 tokens"));
  const auto too_long = generator_->Run("BA=KE\nQC=AD\nZL=MB\nQC=AD\nZL=MB\nQC?", options);
  EXPECT_THAT(Message(too_long.status()), HasSubstr("prompt: expected at most 20 tokens"));
  EXPECT_EQ(generator_->decoder.session->position(), 0);
}

TEST_F(GenerateTest, ReportsPromptProgress) {
  std::vector<int64_t> done;
  GenerateOptions options;
  options.max_tokens = 0;
  options.on_prompt = [&](int64_t tokens, int64_t total) {
    EXPECT_EQ(total, 15);
    done.push_back(tokens);
  };
  Run("BA=KE\nQC=AD\nZL=MB\nQC?", options);
  EXPECT_EQ(done, (std::vector<int64_t>{8, 15}));
}

// The second call continues the sequence: no second BOS, and the first part is remembered.
TEST_F(GenerateTest, ContinuesTheSequence) {
  GenerateOptions feed;
  feed.max_tokens = 0;
  Run("BA=KE\nQC=AD\n", feed);
  const auto answer =
      Generate(*generator_->decoder.session, *generator_->tokenizer, "ZL=MB\nQC?", {});
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->text, "AD");
}

TEST_F(GenerateTest, SamplingFollowsTheSeed) {
  GenerateOptions options;
  options.max_tokens = 40;
  options.sampling.temperature = 1.5f;
  const std::string prompt = "Once there was";
  std::set<std::string> texts;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    options.sampling.seed = seed;
    const std::string text = Run(prompt, options).text;
    EXPECT_EQ(Run(prompt, options).text, text);
    texts.insert(text);
  }
  EXPECT_GE(texts.size(), 4u);
  GenerateOptions few;
  few.max_tokens = 40;
  // The most probable token alone is what greedy decoding takes.
  const std::string greedy = Run(prompt, few).text;
  options.sampling.top_k = 1;
  EXPECT_EQ(Run(prompt, options).text, greedy);
  options.sampling.top_k = 0;
  options.sampling.top_p = 1e-6f;
  EXPECT_EQ(Run(prompt, options).text, greedy);
}

TEST_F(GenerateTest, RefusesBadOptions) {
  const auto refusal = [&](auto change) {
    GenerateOptions options;
    change(options);
    const absl::Status status = generator_->Run("1+1=", options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    EXPECT_EQ(generator_->decoder.session->position(), 0);
    return Message(status);
  };
  EXPECT_THAT(refusal([](auto& o) { o.max_tokens = -1; }), HasSubstr("max_tokens"));
  EXPECT_THAT(refusal([](auto& o) { o.sampling.temperature = -1; }), HasSubstr("temperature"));
  EXPECT_THAT(refusal([](auto& o) { o.sampling.temperature = NAN; }), HasSubstr("temperature"));
  EXPECT_THAT(refusal([](auto& o) { o.sampling.top_k = -1; }), HasSubstr("top_k"));
  EXPECT_THAT(refusal([](auto& o) { o.sampling.top_p = 0; }), HasSubstr("top_p"));
  EXPECT_THAT(refusal([](auto& o) { o.sampling.top_p = 1.5f; }), HasSubstr("top_p"));
  EXPECT_THAT(refusal([](auto& o) { o.stop = {"a", ""}; }), HasSubstr("stop"));
}

TEST_F(GenerateTest, RefusesEmptyPromptsAndOtherVocabularies) {
  GenerateOptions options;
  Run("1", options);
  const auto empty = Generate(*generator_->decoder.session, *generator_->tokenizer, "", options);
  EXPECT_EQ(empty.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(empty.status()), HasSubstr("prompt"));
  const auto other = GgufFile::Open(TANDEM_SOURCE_DIR "/tests/golden/tokenizer_spm.gguf");
  ASSERT_TRUE(other.ok());
  const auto tokenizer = Tokenizer::Load(*other);
  ASSERT_TRUE(tokenizer.ok());
  const auto wrong = Generate(*generator_->decoder.session, **tokenizer, "1", options);
  EXPECT_THAT(Message(wrong.status()), HasSubstr("expected the model's 960 tokens, got 640"));
}

TEST(UniformNumber, KnownValuesAndRange) {
  // splitmix64 from seed 0 begins E220A8397B1DCDAF 6E789E6AA1B965F4 06C45D188009454F.
  EXPECT_EQ(UniformNumber(0, 0), static_cast<float>(0xE220A8) * 0x1p-24f);
  EXPECT_EQ(UniformNumber(0, 1), static_cast<float>(0x6E789E) * 0x1p-24f);
  EXPECT_EQ(UniformNumber(0, 2), static_cast<float>(0x06C45D) * 0x1p-24f);
  double sum = 0.0;
  for (uint64_t i = 0; i < 10000; ++i) {
    const float u = UniformNumber(77, i);
    ASSERT_GE(u, 0.0f);
    ASSERT_LT(u, 1.0f);
    sum += u;
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.01);
}

}  // namespace
}  // namespace tandem
