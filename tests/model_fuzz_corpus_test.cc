// The fuzzer's seed corpus in the ordinary build: every file is handled, and the seeds still reach
// what they are there to reach.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <set>

#include "tests/fuzz/gguf_input.h"

namespace tandem {
namespace {

std::vector<std::pair<std::string, std::vector<std::byte>>> Corpus() {
  std::vector<std::pair<std::string, std::vector<std::byte>>> files;
  const std::filesystem::path folder = TANDEM_SOURCE_DIR "/tests/fuzz/corpus/gguf_fuzz";
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream in(entry.path(), std::ios::binary);
    const std::vector<char> bytes{std::istreambuf_iterator<char>(in), {}};
    const auto view = std::as_bytes(std::span(bytes));
    files.emplace_back(entry.path().filename().string(),
                       std::vector<std::byte>(view.begin(), view.end()));
  }
  return files;
}

TEST(GgufFuzzCorpus, SeedsReachWhatTheyAreFor) {
  std::set<std::string> decoders, tokenizers;
  for (const auto& [name, bytes] : Corpus()) {
    const GgufInputResult result = UseGgufInput(bytes);
    EXPECT_EQ(result.opened, name.find("damaged") == std::string::npos) << name;
    if (result.has_tokenizer) tokenizers.insert(name);
    if (result.has_decoder) decoders.insert(name);
  }
  EXPECT_EQ(decoders, (std::set<std::string>{"llama.gguf", "qwen2.gguf", "qwen3.gguf"}));
  EXPECT_EQ(tokenizers, (std::set<std::string>{"bpe.gguf", "llama.gguf", "qwen2.gguf", "qwen3.gguf",
                                               "spm.gguf"}));
}

// A plain mutation fuzzer with a fixed seed: no clang needed.
TEST(GgufFuzzCorpus, MutatedSeeds) {
  std::mt19937_64 random(2020);
  for (const auto& [name, bytes] : Corpus()) {
    if (bytes.empty()) continue;
    for (int round = 0; round < 300; ++round) {
      SCOPED_TRACE(testing::Message() << name << " round " << round);
      std::vector<std::byte> changed = bytes;
      const auto changes = 1 + random() % 4;
      for (uint64_t i = 0; i < changes; ++i) {
        // Mostly in the header and the metadata, where structure is.
        const size_t at = random() % std::min<size_t>(changed.size(), 2048);
        switch (random() % 4) {
          case 0:
            changed[at] = static_cast<std::byte>(random());
            break;
          case 1:
            changed[at] ^= static_cast<std::byte>(1u << (random() % 8));
            break;
          case 2:
            for (size_t j = at; j < std::min(at + 8, changed.size()); ++j) {
              changed[j] = random() % 2 ? std::byte{0xFF} : std::byte{0};
            }
            break;
          default:
            changed.resize(1 + random() % changed.size());
        }
      }
      UseGgufInput(changed);
    }
  }
}

}  // namespace
}  // namespace tandem
