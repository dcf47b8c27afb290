// Hyperparameters and weights of a file: what is read, and that whatever does not fit together is
// refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>

#include "core/status.h"
#include "model/config.h"
#include "model/weights.h"
#include "tests/gguf_builder.h"
#include "tests/model_golden.h"

namespace tandem {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// A tiny model as key and tensor tables, so that a test can change one entry.
struct ModelFile {
  std::string architecture = "llama";
  std::map<std::string, int64_t> ints = {
      {"block_count", 2},          {"embedding_length", 64},       {"feed_forward_length", 96},
      {"attention.head_count", 4}, {"attention.head_count_kv", 2}, {"context_length", 256},
  };
  std::map<std::string, double> floats = {{"attention.layer_norm_rms_epsilon", 1e-5}};
  std::map<std::string, std::string> strings;
  struct Entry {
    std::vector<uint64_t> extents;  // innermost first
    uint32_t type = 0;
  };
  std::map<std::string, Entry> tensors;

  ModelFile() {
    tensors["token_embd.weight"] = {{64, 320}};
    tensors["output.weight"] = {{64, 320}};
    tensors["output_norm.weight"] = {{64}};
    for (const std::string block : {"blk.0.", "blk.1."}) {
      tensors[block + "attn_norm.weight"] = tensors[block + "ffn_norm.weight"] = {{64}};
      tensors[block + "attn_q.weight"] = tensors[block + "attn_output.weight"] = {{64, 64}};
      tensors[block + "attn_k.weight"] = tensors[block + "attn_v.weight"] = {{64, 32}};
      tensors[block + "ffn_gate.weight"] = tensors[block + "ffn_up.weight"] = {{64, 96}};
      tensors[block + "ffn_down.weight"] = {{96, 64}};
    }
  }

  std::vector<std::byte> Bytes() const {
    GgufBuilder file;
    if (!architecture.empty()) file.String("general.architecture", architecture);
    const std::string prefix = architecture + ".";
    for (const auto& [key, value] : ints) file.Number<int64_t>(prefix + key, value);
    for (const auto& [key, value] : floats)
      file.Number<float>(prefix + key, static_cast<float>(value));
    for (const auto& [key, value] : strings) file.String(prefix + key, value);
    for (const auto& [name, tensor] : tensors) {
      uint64_t elements = 1;
      for (const uint64_t extent : tensor.extents) elements *= extent;
      // Large enough for every type used here; ones, so that divisors are valid.
      const std::vector<float> data(elements, 1.0f);
      file.Tensor(name, tensor.extents, tensor.type, std::as_bytes(std::span(data)));
    }
    return file.Build();
  }
};

struct Loaded {
  DecoderConfig config;
  DecoderWeights weights;
};

absl::StatusOr<Loaded> Load(const ModelFile& model) {
  const std::vector<std::byte> bytes = model.Bytes();
  TANDEM_ASSIGN_OR_RETURN(const auto file, GgufFile::FromMemory(bytes, "test.gguf"));
  Loaded loaded;
  TANDEM_ASSIGN_OR_RETURN(loaded.config, DecoderConfig::Load(*file));
  TANDEM_ASSIGN_OR_RETURN(loaded.weights, DecoderWeights::Load(*file, loaded.config));
  return loaded;
}

void ExpectRefused(absl::StatusCode code, const std::string& text,
                   const std::function<void(ModelFile&)>& change) {
  ModelFile model;
  change(model);
  const absl::Status status = Load(model).status();
  EXPECT_EQ(status.code(), code) << status;
  EXPECT_THAT(Message(status), AllOf(HasSubstr("test.gguf"), HasSubstr(text)));
}

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;

TEST(DecoderConfig, ReadsAndFillsInDefaults) {
  const auto loaded = Load(ModelFile());
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  const DecoderConfig& c = loaded->config;
  EXPECT_EQ(c.architecture, Architecture::kLlama);
  EXPECT_EQ(c.layers, 2);
  EXPECT_EQ(c.head_dim, 16);
  EXPECT_EQ(c.v_head_dim, 16);
  EXPECT_EQ(c.vocabulary, 320);
  EXPECT_EQ(c.rope.rotary_dim, 16);
  EXPECT_EQ(c.rope.base, 10000.0);
  EXPECT_EQ(c.rope.pairing, RopePairing::kInterleaved);
  EXPECT_FALSE(loaded->weights.tied);
  ModelFile few;
  few.ints.erase("attention.head_count_kv");
  for (const std::string block : {"blk.0.", "blk.1."}) {
    few.tensors[block + "attn_k.weight"] = few.tensors[block + "attn_v.weight"] = {{64, 64}};
  }
  few.tensors.erase("output.weight");
  const auto tied = Load(few);
  ASSERT_TRUE(tied.ok()) << tied.status();
  EXPECT_EQ(tied->config.kv_heads, 4);
  EXPECT_TRUE(tied->weights.tied);
  EXPECT_LT(tied->weights.bytes(), loaded->weights.bytes());
}

TEST(DecoderConfig, ReadsGoldenModels) {
  const auto qwen3 = GgufFile::Open(LoadGoldenModel("qwen3_f32").path);
  ASSERT_TRUE(qwen3.ok());
  const auto c = DecoderConfig::Load(**qwen3);
  ASSERT_TRUE(c.ok()) << c.status();
  EXPECT_EQ(c->architecture, Architecture::kQwen3);
  EXPECT_EQ(c->hidden, 64);
  EXPECT_EQ(c->q_dim(), 128);
  EXPECT_EQ(c->k_dim(), 64);
  EXPECT_EQ(c->rope.pairing, RopePairing::kHalf);
  EXPECT_EQ(c->rope.base, 1e6);
  const auto linear = GgufFile::Open(LoadGoldenModel("llama_linear_f16").path);
  ASSERT_TRUE(linear.ok());
  EXPECT_EQ(DecoderConfig::Load(**linear)->rope.scaling.kind, RopeScaling::Kind::kLinear);
  EXPECT_EQ(DecoderConfig::Load(**linear)->rope.scaling.factor, 4.0);
  const auto factors = GgufFile::Open(LoadGoldenModel("llama_rope_factors_f16").path);
  ASSERT_TRUE(factors.ok());
  EXPECT_EQ(DecoderConfig::Load(**factors)->rope.scaling.divisors.size(), 16u);
}

TEST(DecoderConfig, ReadsYarn) {
  ModelFile model;
  model.strings["rope.scaling.type"] = "yarn";
  model.floats["rope.scaling.factor"] = 4;
  model.ints["rope.scaling.original_context_length"] = 64;
  const auto loaded = Load(model);
  ASSERT_TRUE(loaded.ok()) << loaded.status();
  EXPECT_EQ(loaded->config.rope.scaling.kind, RopeScaling::Kind::kYarn);
  EXPECT_EQ(loaded->config.rope.scaling.original_context, 64.0);
}

TEST(DecoderConfig, MissingKeys) {
  for (const char* key : {"block_count", "embedding_length", "feed_forward_length",
                          "attention.head_count", "context_length"}) {
    ExpectRefused(kNotFound, absl::StrCat("llama.", key), [&](auto& m) { m.ints.erase(key); });
  }
  ExpectRefused(kNotFound, "llama.attention.layer_norm_rms_epsilon",
                [](auto& m) { m.floats.clear(); });
  ExpectRefused(kNotFound, "general.architecture", [](auto& m) { m.architecture = ""; });
  ExpectRefused(kUnimplemented, "expected llama, qwen2 or qwen3, got 'mamba'",
                [](auto& m) { m.architecture = "mamba"; });
}

TEST(DecoderConfig, ValuesOutOfRange) {
  for (const char* key :
       {"block_count", "embedding_length", "feed_forward_length", "attention.head_count",
        "attention.head_count_kv", "context_length", "attention.key_length",
        "attention.value_length", "rope.dimension_count"}) {
    for (const int64_t value : {int64_t{0}, int64_t{-1}, int64_t{1} << 40, INT64_MIN}) {
      ExpectRefused(kInvalid, absl::StrCat("llama.", key), [&](auto& m) { m.ints[key] = value; });
    }
  }
  ExpectRefused(kInvalid, "3 layers, but the file has only", [](auto& m) {
    m.ints["block_count"] = 3;
    for (auto it = m.tensors.begin(); it != m.tensors.end();) {
      it = it->first.rfind("blk", 0) == 0 ? m.tensors.erase(it) : std::next(it);
    }
    m.tensors.erase("output.weight");
  });
  ExpectRefused(kNotFound, "'blk.2.attn_norm.weight'", [](auto& m) { m.ints["block_count"] = 3; });
  ExpectRefused(kInvalid, "multiple of the 3 key/value heads",
                [](auto& m) { m.ints["attention.head_count_kv"] = 3; });
  ExpectRefused(kInvalid, "multiple of the 5 heads", [](auto& m) {
    m.ints["attention.head_count"] = m.ints["attention.head_count_kv"] = 5;
  });
  for (const int64_t value : {15, 18}) {
    ExpectRefused(kInvalid, "an even number up to the head dimension 16",
                  [&](auto& m) { m.ints["rope.dimension_count"] = value; });
  }
  for (const double value : {0.0, -1e-5, 2.0}) {
    ExpectRefused(kInvalid, "layer_norm_rms_epsilon",
                  [&](auto& m) { m.floats["attention.layer_norm_rms_epsilon"] = value; });
  }
  ExpectRefused(kInvalid, "rope.freq_base", [](auto& m) { m.floats["rope.freq_base"] = 0; });
  ExpectRefused(kInvalid, "rope.freq_base", [](auto& m) { m.floats["rope.freq_base"] = NAN; });
}

TEST(DecoderConfig, RopeScaling) {
  const auto scaled = [](const std::string& type, double factor) {
    return [=](ModelFile& m) {
      m.strings["rope.scaling.type"] = type;
      m.floats["rope.scaling.factor"] = factor;
    };
  };
  ExpectRefused(kUnimplemented, "expected none, linear or yarn, got 'longrope'",
                scaled("longrope", 2));
  ExpectRefused(kInvalid, "rope.scaling.factor", scaled("linear", 0.5));
  ExpectRefused(kInvalid, "rope.scaling.factor", scaled("yarn", INFINITY));
  ExpectRefused(kNotFound, "rope.scaling.factor",
                [](auto& m) { m.strings["rope.scaling.type"] = "linear"; });
  ExpectRefused(kInvalid, "'rope_freqs.weight': expected shape [8]",
                [](auto& m) { m.tensors["rope_freqs.weight"] = {{7}}; });
  ExpectRefused(kInvalid, "'rope_freqs.weight': expected F32", [](auto& m) {
    m.tensors["rope_freqs.weight"] = {{8}, 1};
  });
}

TEST(DecoderConfig, MixturesOfExperts) {
  ExpectRefused(kUnimplemented, "8 experts", [](auto& m) { m.ints["expert_count"] = 8; });
}

TEST(DecoderWeights, ShapesAndTypes) {
  const ModelFile model;
  for (const auto& [name, tensor] : model.tensors) {
    if (name == "output.weight") continue;
    ExpectRefused(kNotFound, absl::StrCat("'", name, "'"), [&](auto& m) { m.tensors.erase(name); });
  }
  for (const auto& [name, tensor] : model.tensors) {
    for (size_t i = 0; i < tensor.extents.size(); ++i) {
      // More rows in the embedding are a larger vocabulary, which then output.weight lacks.
      const std::string named = name == "token_embd.weight" && i == 1 ? "output.weight" : name;
      ExpectRefused(kInvalid, absl::StrCat("'", named, "': expected shape"),
                    [&](auto& m) { m.tensors[name].extents[i] += 32; });
    }
    ExpectRefused(kInvalid, absl::StrCat("'", name, "'"),
                  [&](auto& m) { m.tensors[name].extents.push_back(1); });
    // Q4_K needs rows of 256, I8 is no type of weights.
    ExpectRefused(kUnimplemented, absl::StrCat("'", name, "' has type I8"),
                  [&](auto& m) { m.tensors[name].type = 24; });
  }
  ExpectRefused(kInvalid, "'blk.0.attn_norm.weight': expected F32, F16 or BF16, got q8_0",
                [](auto& m) { m.tensors["blk.0.attn_norm.weight"].type = 8; });
}

TEST(DecoderWeights, WhatArchitecturesNeed) {
  ExpectRefused(kNotFound, "'blk.0.attn_q.bias'", [](auto& m) { m.architecture = "qwen2"; });
  ExpectRefused(kNotFound, "'blk.0.attn_q_norm.weight'", [](auto& m) { m.architecture = "qwen3"; });
  ExpectRefused(kInvalid, "'blk.1.attn_k.bias': expected shape [32]",
                [](auto& m) { m.tensors["blk.1.attn_k.bias"] = {{64}}; });
  ExpectRefused(kUnimplemented, "'blk.1.attn_output.bias' is not supported",
                [](auto& m) { m.tensors["blk.1.attn_output.bias"] = {{64}}; });
}

}  // namespace
}  // namespace tandem
