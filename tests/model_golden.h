// The golden models of tests/golden, and a decoder on a model file, for tests.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/status.h"
#include "dispatch/context.h"
#include "dispatch/ops.h"
#include "dispatch/registry.h"
#include "model/decoder.h"

namespace tandem {

// One entry of models.json.
struct GoldenModel {
  std::string name;
  std::string path;
  std::vector<int32_t> prompt;
  std::vector<int32_t> greedy;
  std::vector<float> logits;  // [prompt, vocabulary], of a float64 forward
  // Relative L2 error of computing the same with less precision, and of deliberate mistakes.
  nlohmann::json errors;
  nlohmann::json mistakes;

  double Error(const std::string& kind) const { return errors[kind]["rel_l2"].get<double>(); }
  double SmallestMistake() const {
    double smallest = 1.0;
    for (const auto& [name_, error] : mistakes.items()) {
      smallest = std::min(smallest, error.get<double>());
    }
    return smallest;
  }
};

inline const std::vector<std::string>& GoldenModelNames() {
  static const auto* const names = new std::vector<std::string>{"llama_f32",
                                                                "llama_f16",
                                                                "llama_bf16",
                                                                "llama_q8_0",
                                                                "llama_q4_0",
                                                                "llama_mixed",
                                                                "qwen2_f32",
                                                                "qwen3_f32",
                                                                "qwen3_q8_0",
                                                                "llama_linear_f16",
                                                                "llama_rope_factors_f16"};
  return *names;
}

inline GoldenModel LoadGoldenModel(const std::string& name) {
  const std::string folder = TANDEM_SOURCE_DIR "/tests/golden/";
  std::ifstream manifest(folder + "models.json");
  const auto json = nlohmann::json::parse(manifest, nullptr, /*allow_exceptions=*/false);
  GoldenModel model;
  if (json.is_discarded()) {
    ADD_FAILURE() << "cannot read " << folder << "models.json";
    return model;
  }
  for (const auto& entry : json["models"]) {
    if (entry["name"] != name) continue;
    model.name = name;
    model.path = folder + entry["file"].get<std::string>();
    model.prompt = entry["prompt"].get<std::vector<int32_t>>();
    model.greedy = entry["greedy"].get<std::vector<int32_t>>();
    model.errors = entry["errors"];
    model.mistakes = entry["mistakes_rel_l2"];
    const auto count = model.prompt.size() * entry["shape"]["vocab"].get<size_t>();
    model.logits.resize(count);
    std::ifstream logits(folder + entry["logits"].get<std::string>(), std::ios::binary);
    logits.read(reinterpret_cast<char*>(model.logits.data()),
                static_cast<std::streamsize>(count * sizeof(float)));
    EXPECT_TRUE(logits) << name;
  }
  EXPECT_EQ(model.name, name) << "not in models.json";
  return model;
}

struct Difference {
  double max_abs = 0.0;
  double relative_l2 = 0.0;
};

inline Difference Compare(const std::vector<float>& actual, const std::vector<float>& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  Difference difference;
  double squares = 0.0, norm = 0.0;
  for (size_t i = 0; i < std::min(actual.size(), expected.size()); ++i) {
    const double delta = static_cast<double>(actual[i]) - static_cast<double>(expected[i]);
    difference.max_abs = std::isnan(delta) ? delta : std::max(difference.max_abs, std::abs(delta));
    squares += delta * delta;
    norm += static_cast<double>(expected[i]) * static_cast<double>(expected[i]);
  }
  difference.relative_l2 = std::sqrt(squares / norm);
  return difference;
}

// A context, a model, and a session on it.
struct Decoder {
  std::unique_ptr<Context> context;
  std::shared_ptr<const Model> model;
  std::unique_ptr<Session> session;

  int64_t vocabulary() const { return model->config().vocabulary; }

  // Logits behind each of the tokens, in one call.
  absl::StatusOr<std::vector<float>> All(const std::vector<int32_t>& tokens) {
    std::vector<float> logits(tokens.size() * static_cast<size_t>(vocabulary()));
    TANDEM_RETURN_IF_ERROR(session->ForwardAll(
        tokens,
        MakeView(logits.data(), DType::kF32, {static_cast<int64_t>(tokens.size()), vocabulary()})));
    return logits;
  }

  // The same, one call per token.
  absl::StatusOr<std::vector<float>> OneByOne(const std::vector<int32_t>& tokens) {
    std::vector<float> all;
    for (const int32_t token : tokens) {
      TANDEM_ASSIGN_OR_RETURN(const TensorView row, session->Forward({&token, 1}));
      all.insert(all.end(), row.As<float>(), row.As<float>() + row.dim(1));
    }
    return all;
  }

  // The `count` tokens that follow by argmax.
  absl::StatusOr<std::vector<int32_t>> Greedy(const std::vector<int32_t>& prompt, size_t count) {
    std::vector<int32_t> generated, next = prompt;
    while (generated.size() < count) {
      TANDEM_ASSIGN_OR_RETURN(const TensorView row, session->Forward(next));
      const float* begin = row.As<float>();
      const auto best = std::max_element(begin, begin + row.dim(1)) - begin;
      generated.push_back(static_cast<int32_t>(best));
      next = {generated.back()};
    }
    return generated;
  }
};

inline absl::StatusOr<Decoder> MakeDecoder(const std::string& path,
                                           const ContextOptions& context = {},
                                           const SessionOptions& session = {},
                                           const ModelOptions& model = {}) {
  Decoder decoder;
  TANDEM_ASSIGN_OR_RETURN(decoder.context, Context::Create(context));
  TANDEM_ASSIGN_OR_RETURN(decoder.model, Model::Open(*decoder.context, path, model));
  TANDEM_ASSIGN_OR_RETURN(decoder.session,
                          Session::Create(*decoder.context, decoder.model, session));
  return decoder;
}

// The instruction sets this machine can run, lowest first.
inline std::vector<std::string> AvailableIsas() {
  std::vector<std::string> isas;
  for (const char* isa : {"scalar", "avx2", "avx512"}) {
    ContextOptions options;
    options.isa = isa;
    if (Context::Create(options).ok()) isas.push_back(isa);
  }
  return isas;
}

// For tests that compare paths: the bits are the same at any number of threads (which tests of
// their own show), and tests that share cores with others then do not wait for each other.
inline ContextOptions OneThread() {
  ContextOptions options;
  options.threads = 1;
  return options;
}

// One thread; every op that has one runs its plain reference kernel.
inline ContextOptions ReferenceKernels() {
  ContextOptions options = OneThread();
  for (int op = 0; op < kNumOps; ++op) {
    const auto kind = static_cast<OpKind>(op);
    for (const std::string_view kernel : KernelNames(kind, DeviceKind::kCpu)) {
      if (kernel == "reference") options.force_kernel[std::string(Name(kind))] = "reference";
    }
  }
  return options;
}

}  // namespace tandem
