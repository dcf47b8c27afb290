// Hyperparameters of a decoder-only transformer, from the metadata of a GGUF file.
//
// | field           | GGUF key (<arch>.)                        | default          |
// |-----------------|-------------------------------------------|------------------|
// | layers          | block_count                               | -                |
// | hidden          | embedding_length                          | -                |
// | ffn             | feed_forward_length                       | -                |
// | heads           | attention.head_count                      | -                |
// | kv_heads        | attention.head_count_kv                   | heads            |
// | head_dim        | attention.key_length                      | hidden / heads   |
// | v_head_dim      | attention.value_length                    | hidden / heads   |
// | context         | context_length (tokens in training)       | -                |
// | rms_eps         | attention.layer_norm_rms_epsilon          | -                |
// | rope.rotary_dim | rope.dimension_count                      | head_dim         |
// | rope.base       | rope.freq_base                            | 10000            |
// | rope.scaling    | rope.scaling.*, tensor rope_freqs.weight  | none             |
// | vocabulary      | rows of the tensor token_embd.weight      | -                |
//
// q_dim = heads * head_dim need not equal hidden (qwen3). Architectures differ in little:
//   llama   RoPE pairs (2i, 2i + 1)
//   qwen2   RoPE pairs (i, i + R/2); biases of q, k, v
//   qwen3   RoPE pairs (i, i + R/2); RMS norm of every q and k head before RoPE
// A bias or per-head norm that the file has is used whatever the architecture; those that the
// architecture needs must be there (weights.h).
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "core/ops/rope.h"
#include "model/gguf.h"

namespace tandem {

enum class Architecture : uint8_t { kLlama, kQwen2, kQwen3 };
std::string_view Name(Architecture architecture);

struct DecoderConfig {
  Architecture architecture = Architecture::kLlama;
  std::string name;  // general.name, for people
  int64_t layers = 0;
  int64_t hidden = 0;
  int64_t ffn = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t v_head_dim = 0;
  int64_t vocabulary = 0;
  int64_t context = 0;
  float rms_eps = 0.0f;

  struct Rope {
    int64_t rotary_dim = 0;
    double base = 10000.0;
    RopePairing pairing = RopePairing::kInterleaved;
    RopeScaling scaling;
  } rope;

  int64_t q_dim() const { return heads * head_dim; }
  int64_t k_dim() const { return kv_heads * head_dim; }
  int64_t v_dim() const { return kv_heads * v_head_dim; }
  int64_t attention_dim() const { return heads * v_head_dim; }

  // Every field is checked against its range and against the others. NotFound names a missing key,
  // Unimplemented an architecture or a feature that Tandem does not have.
  static absl::StatusOr<DecoderConfig> Load(const GgufFile& file);
};

}  // namespace tandem
