// Models in every block format, end to end: what a quantised file computes is as far from the f16
// file as its rounded weights are, not further.
//
// Three forwards over one prompt, logits in f32:
//   F  the f16 file
//   D  a file of the dequantised weights (fp64 by tests/reference, stored as f32), reference
//   kernels Q  the quantised file, as it is run
// |D - F| is the format's own error. By the triangle inequality |Q - F| <= |D - F| + |Q - D|, where
// |Q - D| is rounding in f32 alone, or with activations rounded to 8 bits that as well.
#include <gtest/gtest.h>

#include <filesystem>

#include "model/quantize.h"
#include "tests/model_golden.h"
#include "tests/random_model.h"
#include "tests/reference/elements.h"

namespace tandem {
namespace {

// The same model with every matrix dequantised.
std::vector<std::byte> Dequantised(const GgufFile& file, const RandomModel& shape) {
  RandomModel copy = shape;
  copy.matrix_values = [&](const std::string& name) {
    const auto view = file.Tensor(name);
    EXPECT_TRUE(view.ok()) << view.status();
    const std::vector<double> values = reference::ReadAll(*view);
    return std::vector<float>(values.begin(), values.end());
  };
  return copy.Bytes();
}

class BlockFormats : public ::testing::TestWithParam<DType> {};

TEST_P(BlockFormats, QuantisedModelsAreAsFarFromF16AsTheirWeights) {
  const std::string folder =
      ::testing::TempDir() + "/tandem_block_formats_" + std::string(Name(GetParam()));
  std::filesystem::create_directories(folder);
  const std::string f16 = folder + "/f16.gguf", quantised = folder + "/quantised.gguf",
                    dequantised = folder + "/dequantised.gguf";
  const RandomModel shape;
  ASSERT_TRUE(shape.Write(f16));
  const std::vector<int32_t> prompt = {1, 17, 300, 45, 45, 9, 128, 211, 2, 76, 260, 33};
  SessionOptions session;
  session.kv_dtype = DType::kF32;
  const auto logits = [&](const std::string& path, ContextOptions context) {
    auto decoder = MakeDecoder(path, context, session);
    EXPECT_TRUE(decoder.ok()) << decoder.status();
    auto all = decoder->All(prompt);
    EXPECT_TRUE(all.ok()) << all.status();
    return *all;
  };
  {
    auto context = Context::Create(OneThread());
    ASSERT_TRUE(context.ok()) << context.status();
    const auto in = GgufFile::Open(f16);
    ASSERT_TRUE(in.ok()) << in.status();
    QuantizeOptions options;
    options.type = GetParam();
    ASSERT_TRUE(QuantizeGguf(**context, **in, quantised, options).ok());
    const auto out = GgufFile::Open(quantised);
    ASSERT_TRUE(out.ok()) << out.status();
    EXPECT_EQ((*out)->Tensor("blk.0.ffn_down.weight")->dtype, GetParam());
    const std::vector<std::byte> bytes = Dequantised(**out, shape);
    std::ofstream(dequantised, std::ios::binary)
        .write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
  }
  const std::vector<float> f = logits(f16, ReferenceKernels());
  const std::vector<float> d = logits(dequantised, ReferenceKernels());
  const double own = Compare(d, f).relative_l2;
  EXPECT_GT(own, 1e-3);  // the formats do differ from f16
  for (const bool rounded : {false, true}) {
    SCOPED_TRACE(rounded ? "activations rounded to 8 bits" : "activations as they are");
    ContextOptions context = OneThread();
    context.quantize_activations = rounded;
    const std::vector<float> q = logits(quantised, context);
    const double rounding = rounded ? 0.02 : 1e-5;  // 0.02: as in LogitsWithRoundedActivations
    const double beside = Compare(q, d).relative_l2, whole = Compare(q, f).relative_l2;
    EXPECT_LE(beside, rounding);
    // |Q - D| is measured in |D|, which the format may make longer than |F|.
    EXPECT_LE(whole, own + rounding * (1.0 + own));
    std::printf("%s%s: |D-F| %.2e |Q-F| %.2e |Q-D| %.2e\n", std::string(Name(GetParam())).c_str(),
                rounded ? " rounded" : "", own, whole, beside);
    auto decoder = MakeDecoder(quantised, context);
    ASSERT_TRUE(decoder.ok()) << decoder.status();
    const auto tokens = decoder->Greedy(prompt, 32);
    ASSERT_TRUE(tokens.ok()) << tokens.status();
    EXPECT_EQ(decoder->session->position(), 12 + 31);
  }
  std::filesystem::remove_all(folder);
}

INSTANTIATE_TEST_SUITE_P(All, BlockFormats,
                         ::testing::Values(DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ5_K,
                                           DType::kQ6_K, DType::kTQ2_0),
                         [](const auto& type) { return std::string(Name(type.param)); });

}  // namespace
}  // namespace tandem
