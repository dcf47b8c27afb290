// How much memory a model takes: its weights, its KV cache, and at most 64 MiB.
#include <gtest/gtest.h>

#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "tests/cli.h"
#include "tests/random_model.h"
#include "tests/sanitizers.h"
#include "tools/process_memory.h"

namespace tandem::tools {
namespace {

constexpr int64_t kMargin = int64_t{64} << 20;

// The peak of a process is over its whole life, so each measurement gets a process of its own.
// Without GPUs, whose drivers take memory of the host.
nlohmann::json BenchModel(const std::string& path, const std::string& more) {
  const std::string command = std::string("CUDA_VISIBLE_DEVICES= '" TANDEM_BINARY "' bench-model") +
                              " --json -r 1 -t 2 -m '" + path + "' " + more;
  std::string out;
  FILE* pipe = popen(command.c_str(), "r");
  if (pipe == nullptr) return {};
  char buffer[4096];
  for (size_t n; (n = fread(buffer, 1, sizeof(buffer), pipe)) > 0;) out.append(buffer, n);
  EXPECT_EQ(pclose(pipe), 0) << command;
  return nlohmann::json::parse(out, nullptr, /*allow_exceptions=*/false);
}

TEST(PeakMemory, IsWeightsAndKvCacheAnd64MiB) {
  if (kSanitized) GTEST_SKIP() << "sanitizers take memory of their own";
  if (PeakResidentBytes() == 0) GTEST_SKIP() << "this kernel does not tell the peak (VmHWM)";
  const std::string folder = ::testing::TempDir() + "/tandem_peak_memory";
  std::filesystem::create_directories(folder);
  const std::string f16 = folder + "/f16.gguf";
  RandomModel model;
  model.hidden = 512;
  model.feed_forward = 1536;
  model.layers = 4;
  model.heads = 8;
  model.kv_heads = 2;
  model.vocabulary = 8192;
  ASSERT_TRUE(model.Write(f16));
  for (const char* type : {"f16", "q4_k"}) {
    SCOPED_TRACE(type);
    const std::string path = folder + "/" + type + ".gguf";
    if (path != f16) {
      const CliResult result = RunCli({"quantize", f16, path, "--type", type, "-t", "2"});
      ASSERT_EQ(result.code, kExitOk) << result.err;
    }
    const auto json = BenchModel(path, "--prompt-tokens 1024 --gen-tokens 16");
    ASSERT_TRUE(json.is_object());
    const auto weights = json["weight_bytes"].get<int64_t>();
    const auto cache = json["kv_cache_bytes"].get<int64_t>();
    const auto peak = json["peak_resident_bytes"].get<int64_t>();
    EXPECT_EQ(cache, 1024 * 4 * 2 * (2 * 64) * 2);
    EXPECT_GT(weights, 4 << 20);
    // What was computed with was in memory: else the measurement misses something.
    EXPECT_GT(peak, weights + cache) << json.dump();
    EXPECT_LE(peak, weights + cache + kMargin) << json.dump();
    std::printf("%s: peak %.1f MiB = weights %.1f + cache %.1f + %.1f\n", type,
                static_cast<double>(peak) / (1 << 20), static_cast<double>(weights) / (1 << 20),
                static_cast<double>(cache) / (1 << 20),
                static_cast<double>(peak - weights - cache) / (1 << 20));
  }
  std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace tandem::tools
