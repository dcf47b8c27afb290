// tandem quantize as a user meets it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "model/gguf.h"
#include "tests/cli.h"

namespace tandem::tools {
namespace {

using ::testing::HasSubstr;

const std::string kModel = TANDEM_SOURCE_DIR "/models/demo.gguf";

std::string Temporary(const std::string& name) { return ::testing::TempDir() + "/tandem_" + name; }

TEST(CliQuantize, MakesAModelThatGenerates) {
  const std::string out = Temporary("quantize.gguf");
  for (const char* type : {"q8_0", "q4_k"}) {
    const CliResult result = RunCli({"quantize", kModel, out, "--type", type, "-t", "2"});
    ASSERT_EQ(result.code, kExitOk) << result.err;
    EXPECT_THAT(result.out, HasSubstr(out));
    EXPECT_THAT(result.out, HasSubstr("tensors"));
    const CliResult text = RunCli({"generate", "-m", out, "-p", "sum:", "-n", "4", "--json"});
    EXPECT_EQ(text.code, kExitOk) << text.err;
    EXPECT_THAT(text.out, HasSubstr("\"text\""));
  }
  std::filesystem::remove(out);
}

TEST(CliQuantize, SaysWhichTensorsFallBack) {
  const std::string model = TANDEM_SOURCE_DIR "/tests/golden/llama_f16.gguf";  // rows of 64 and 96
  const std::string out = Temporary("fallback.gguf");
  const CliResult result = RunCli({"quantize", model, out, "--type", "q6_k"});
  ASSERT_EQ(result.code, kExitOk) << result.err;
  EXPECT_THAT(result.err,
              HasSubstr("'blk.0.ffn_down.weight': rows of 96 are not whole blocks of q6_k (256); "
                        "it becomes Q8_0"));
  const CliResult text = RunCli({"logits", "-m", out, "--tokens", "1,5,9", "--json"});
  EXPECT_EQ(text.code, kExitOk) << text.err;
  std::filesystem::remove(out);
}

TEST(CliQuantize, ErrorsNameTheArgument) {
  const std::string out = Temporary("bad.gguf");
  std::filesystem::remove(out);
  const auto error = [&](std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "quantize");
    const CliResult result = RunCli(arguments);
    EXPECT_EQ(result.code, kExitUsage) << result.err;
    EXPECT_FALSE(std::filesystem::exists(out));
    return result.err;
  };
  EXPECT_THAT(error({kModel, out}), HasSubstr("--type"));
  EXPECT_THAT(error({kModel, out, "--type", "q9_k"}), HasSubstr("--type"));
  EXPECT_THAT(error({kModel, out, "--type", "i32"}), HasSubstr("--type"));
  EXPECT_THAT(error({kModel, out, "--type", "q4_k", "--output-type", "none"}),
              HasSubstr("--output-type"));
  EXPECT_THAT(error({kModel, out, "--type", "q4_k", "--tensor-type", "attn"}),
              HasSubstr("--tensor-type: expected text=type, got 'attn'"));
  EXPECT_THAT(error({kModel, out, "--type", "q4_k", "--tensor-type", "attn=q9"}),
              HasSubstr("--tensor-type: unknown type 'q9'"));
  EXPECT_THAT(error({"/no/such/file.gguf", out, "--type", "q4_k"}), HasSubstr("/no/such/file"));
  EXPECT_THAT(error({kModel, "/no/such/folder/x.gguf", "--type", "q4_k"}),
              HasSubstr("/no/such/folder/x.gguf"));
  EXPECT_THAT(error({kModel, ::testing::TempDir(), "--type", "q4_k"}),
              HasSubstr("not a regular file"));
  const CliResult same = RunCli({"quantize", kModel, kModel, "--type", "q4_k"});
  EXPECT_EQ(same.code, kExitUsage);
  EXPECT_THAT(same.err, HasSubstr("the output is the input file"));
}

}  // namespace
}  // namespace tandem::tools
