// The weights of a decoder: views of the mapped file, each checked for type and shape.
//
// | tensor (blk.N.)    | shape, outermost first    | needed by      |
// |--------------------|---------------------------|----------------|
// | attn_norm.weight   | [hidden]                  | all            |
// | attn_q.weight      | [q_dim, hidden]           | all            |
// | attn_k.weight      | [k_dim, hidden]           | all            |
// | attn_v.weight      | [v_dim, hidden]           | all            |
// | attn_{q,k,v}.bias  | [q_dim], [k_dim], [v_dim] | qwen2          |
// | attn_{q,k}_norm.weight | [head_dim]            | qwen3          |
// | attn_output.weight | [hidden, attention_dim]   | all            |
// | ffn_norm.weight    | [hidden]                  | all            |
// | ffn_{gate,up}.weight | [ffn, hidden]           | all            |
// | ffn_down.weight    | [hidden, ffn]             | all            |
//
// and token_embd.weight [vocabulary, hidden], output_norm.weight [hidden], output.weight
// [vocabulary, hidden] (absent: the embedding is used again, "tied").
// Matrices may be of any supported type, vectors F32, F16 or BF16.
#pragma once

#include <vector>

#include "absl/status/statusor.h"
#include "core/tensor_view.h"
#include "model/config.h"
#include "model/gguf.h"

namespace tandem {

struct LayerWeights {
  TensorView attn_norm;
  TensorView q, k, v;
  TensorView q_bias, k_bias, v_bias;  // not present: rank 0
  TensorView q_norm, k_norm;          // not present: rank 0
  TensorView attn_output;
  TensorView ffn_norm;
  TensorView gate, up, down;
};

struct DecoderWeights {
  TensorView embedding;
  std::vector<LayerWeights> layers;
  TensorView output_norm;
  TensorView output;
  bool tied = false;

  int64_t bytes() const;  // of all of them, shared ones once

  static absl::StatusOr<DecoderWeights> Load(const GgufFile& file, const DecoderConfig& config);
};

}  // namespace tandem
