// Runs a kernel that waits for asynchronous work in every order of threads and completions, and
// says what went wrong: nothing for a correct one.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "cuda/device/target.h"
#include "cuda/emulator/launch.h"
#include "cuda/runtime/tensor_map.h"
#include "tests/sanitizers.h"

namespace tandem::cuda::emulated {

struct AsyncParams {
  float* out = nullptr;
  const float* in = nullptr;
  int64_t tiles = 0;
  TensorMap map = {};
  TensorMap out_map = {};
};

// Every order of threads with every way to complete asynchronous work.
inline std::vector<std::string> Modes() {
  std::vector<std::string> all;
  if (kThreadSanitized) {  // which finds races in any order; the other bugs need a few
    all = {"fifo", "reverse,eager"};
    for (int seed = 1; seed <= 6; ++seed)
      all.push_back("random:" + std::to_string(seed) + ",random");
    return all;
  }
  for (const char* completion : {"", ",eager", ",random"}) {
    for (const char* order : {"fifo", "lifo", "reverse"}) {
      all.push_back(std::string(order) + completion);
    }
    for (int seed = 1; seed <= 6; ++seed) {
      all.push_back("random:" + std::to_string(seed) + completion);
    }
  }
  return all;
}

template <auto kKernel>
absl::Status RunOnce(const AsyncParams& params, int64_t threads, int64_t shared_bytes,
                     const std::string& mode, emulator::EmulatorStatistics* statistics = nullptr) {
  auto options = emulator::EmulatorOptions::Parse(mode);
  EXPECT_TRUE(options.ok()) << options.status();
  options->statistics = statistics;
  LaunchConfig config;
  config.block.x = threads;
  config.shared_bytes = shared_bytes;
  return emulator::RunKernel(MakeKernelFunction<kKernel>("planted"), config, &params, *options);
}

// What all modes say of a kernel that should fill `out` with `expected`: reports, and "wrong
// result" where there was none but the result is wrong. Empty for a correct kernel.
template <auto kKernel>
std::string Verdicts(const AsyncParams& given, const std::vector<float>& expected, int64_t threads,
                     int64_t shared_bytes) {
  std::string verdicts;
  AsyncParams params = given;
  std::vector<float> out(expected.size());
  if (params.out == nullptr) params.out = out.data();
  for (const std::string& mode : Modes()) {
    float* result = params.out;
    std::fill_n(result, expected.size(), -1.0f);
    const absl::Status status = RunOnce<kKernel>(params, threads, shared_bytes, mode);
    if (!status.ok()) {
      verdicts += std::string(status.message()) + "\n";
      continue;
    }
    for (size_t i = 0; i < expected.size(); ++i) {
      if (!(std::fabs(result[i] - expected[i]) <= 1e-3f * (1 + std::fabs(expected[i])))) {
        verdicts += mode + ": wrong result\n";
        break;
      }
    }
  }
  return verdicts;
}

}  // namespace tandem::cuda::emulated
