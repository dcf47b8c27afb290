// A llama model of random weights in memory or in a file, for tests that need a shape of their own.
#pragma once

#include <cmath>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "tests/cases/random.h"
#include "tests/gguf_builder.h"

namespace tandem {

struct RandomModel {
  uint64_t hidden = 256, feed_forward = 512, layers = 2, heads = 4, kv_heads = 2, vocabulary = 320;
  int64_t context = 4096;
  uint64_t seed = 1;
  // If set: the numbers of each matrix, which then is F32.
  std::function<std::vector<float>(const std::string& name)> matrix_values;

  // F16 matrices of N(0, 1 / columns), so that activations stay near unit size; norms of ones.
  std::vector<std::byte> Bytes() const {
    GgufBuilder file;
    file.String("general.architecture", "llama").Number<uint32_t>("general.file_type", 1);
    const auto number = [&](const char* key, uint64_t value) {
      file.Number<uint32_t>(std::string("llama.") + key, static_cast<uint32_t>(value));
    };
    number("block_count", layers);
    number("embedding_length", hidden);
    number("feed_forward_length", feed_forward);
    number("attention.head_count", heads);
    number("attention.head_count_kv", kv_heads);
    number("context_length", static_cast<uint64_t>(context));
    file.Number<float>("llama.attention.layer_norm_rms_epsilon", 1e-5f);
    cases::Rng rng(seed);
    const auto matrix = [&](const std::string& name, uint64_t columns, uint64_t rows) {
      if (matrix_values) {
        file.TensorF32(name, {columns, rows}, matrix_values(name));
        return;
      }
      const double scale = 1.0 / std::sqrt(static_cast<double>(columns));
      std::vector<uint16_t> bits(columns * rows);
      for (uint16_t& b : bits) b = ToF16(static_cast<float>(scale * rng.Normal())).bits;
      file.Tensor(name, {columns, rows}, 1, std::as_bytes(std::span(bits)));
    };
    const auto norm = [&](const std::string& name) {
      file.TensorF32(name, {hidden}, std::vector<float>(hidden, 1.0f));
    };
    const uint64_t kv = hidden / heads * kv_heads;
    matrix("token_embd.weight", hidden, vocabulary);
    matrix("output.weight", hidden, vocabulary);
    norm("output_norm.weight");
    for (uint64_t layer = 0; layer < layers; ++layer) {
      const std::string block = "blk." + std::to_string(layer) + ".";
      norm(block + "attn_norm.weight");
      matrix(block + "attn_q.weight", hidden, hidden);
      matrix(block + "attn_k.weight", hidden, kv);
      matrix(block + "attn_v.weight", hidden, kv);
      matrix(block + "attn_output.weight", hidden, hidden);
      norm(block + "ffn_norm.weight");
      matrix(block + "ffn_gate.weight", hidden, feed_forward);
      matrix(block + "ffn_up.weight", hidden, feed_forward);
      matrix(block + "ffn_down.weight", feed_forward, hidden);
    }
    return file.Build();
  }

  bool Write(const std::string& path) const {
    const std::vector<std::byte> bytes = Bytes();
    std::ofstream file(path, std::ios::binary);
    file.write(reinterpret_cast<const char*>(bytes.data()),
               static_cast<std::streamsize>(bytes.size()));
    return static_cast<bool>(file.flush());
  }
};

}  // namespace tandem
