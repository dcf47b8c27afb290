// The whole decoder on the emulated CUDA device: weights, cache and activations there, the same
// tokens as on the CPU.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "core/status.h"
#include "dispatch/copy.h"
#include "model/generate.h"

namespace tandem {
namespace {

struct Decoder {
  std::unique_ptr<Context> context;
  std::shared_ptr<const Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;
  std::unique_ptr<Session> session;
};

absl::StatusOr<Decoder> Open(const std::string& device, DType kv_dtype = DType::kF16) {
  ContextOptions options;
  options.threads = 2;
  options.quantize_activations = false;  // CUDA kernels do not round them either
  TANDEM_RETURN_IF_ERROR(options.SetDevice(device));
  Decoder decoder;
  TANDEM_ASSIGN_OR_RETURN(decoder.context, Context::Create(options));
  TANDEM_ASSIGN_OR_RETURN(decoder.model,
                          Model::Open(*decoder.context, TANDEM_SOURCE_DIR "/models/demo.gguf"));
  TANDEM_ASSIGN_OR_RETURN(decoder.tokenizer, Tokenizer::Load(decoder.model->file()));
  SessionOptions session_options;
  session_options.capacity = 64;
  session_options.ubatch = 8;
  session_options.kv_dtype = kv_dtype;
  TANDEM_ASSIGN_OR_RETURN(decoder.session,
                          Session::Create(*decoder.context, decoder.model, session_options));
  return decoder;
}

TEST(ModelOnCuda, AnswersASumWithTheTokensOfTheCpu) {
  std::vector<std::vector<int32_t>> tokens;
  for (const std::string device : {"cpu", "cuda:emulated"}) {
    auto decoder = Open(device);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    GenerateOptions options;
    options.max_tokens = 4;
    const auto result = Generate(*decoder->session, *decoder->tokenizer, "23+45=", options);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_THAT(result->text, testing::StartsWith("68"));
    tokens.push_back(result->tokens);
  }
  EXPECT_EQ(tokens[0], tokens[1]);
}

TEST(ModelOnCuda, SamplesTheTokensOfTheCpu) {
  std::vector<std::vector<int32_t>> tokens;
  for (const std::string device : {"cpu", "cuda:emulated"}) {
    auto decoder = Open(device);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    GenerateOptions options;
    options.max_tokens = 4;
    options.sampling.temperature = 0.8f;
    options.sampling.top_p = 0.9f;
    options.sampling.seed = 7;
    const auto result = Generate(*decoder->session, *decoder->tokenizer, "Once", options);
    ASSERT_TRUE(result.ok()) << result.status();
    tokens.push_back(result->tokens);
  }
  EXPECT_EQ(tokens[0], tokens[1]);
}

// Logits of every position, in two chunks, as far from the CPU's as both may be from the exact
// ones.
TEST(ModelOnCuda, LogitsAgreeWithTheCpu) {
  const std::vector<int32_t> ids = {5, 9, 1, 30, 12, 7, 7, 2, 19, 4};
  for (const DType kv_dtype : {DType::kF32, DType::kI8}) {
    std::vector<std::vector<float>> logits;
    for (const std::string device : {"cpu", "cuda:emulated"}) {
      auto decoder = Open(device, kv_dtype);
      ASSERT_TRUE(decoder.ok()) << decoder.status();
      const int64_t rows = static_cast<int64_t>(ids.size());
      const int64_t vocabulary = decoder->model->config().vocabulary;
      std::vector<float>& out = logits.emplace_back(static_cast<size_t>(rows * vocabulary));
      const absl::Status status =
          decoder->session->ForwardAll(ids, MakeView(out.data(), DType::kF32, {rows, vocabulary}));
      ASSERT_TRUE(status.ok()) << status;
    }
    double difference = 0.0, size = 0.0;
    for (size_t i = 0; i < logits[0].size(); ++i) {
      difference += std::pow(static_cast<double>(logits[0][i]) - logits[1][i], 2);
      size += std::pow(static_cast<double>(logits[0][i]), 2);
    }
    EXPECT_GT(size, 0.0);
    // One 8-bit step more or less in a cached key moves far more than f32 rounding does.
    EXPECT_LT(std::sqrt(difference / size), kv_dtype == DType::kF32 ? 2e-5 : 1e-2)
        << Name(kv_dtype);
  }
}

TEST(ModelOnCuda, OutOfDeviceMemoryIsReportedAndLeaksNothing) {
  ContextOptions options;
  ASSERT_TRUE(options.SetDevice("cuda:emulated").ok());
  options.cuda_memory_limit = int64_t{1} << 20;
  auto context = Context::Create(options);
  ASSERT_TRUE(context.ok()) << context.status();
  const auto model = Model::Open(**context, TANDEM_SOURCE_DIR "/models/demo.gguf");
  EXPECT_EQ(model.status().code(), absl::StatusCode::kResourceExhausted) << model.status();
  ContextDevice* device = (*context)->device(DeviceKind::kCuda);
  EXPECT_EQ(device->backend->allocator().bytes_in_use(), 0);
  // The context is still good.
  EXPECT_TRUE(AllocateOn(**context, DeviceKind::kCuda, DType::kF32, {1024}).ok());
}

}  // namespace
}  // namespace tandem
