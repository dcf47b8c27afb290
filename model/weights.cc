#include "model/weights.h"

#include "core/status.h"
#include "model/gguf_format.h"

namespace tandem {
namespace {

absl::Status LoadVector(const GgufFile& file, const std::string& name, int64_t extent,
                        bool optional, TensorView& view) {
  if (optional && file.FindTensor(name) == nullptr) return absl::OkStatus();
  TANDEM_ASSIGN_OR_RETURN(view, file.Tensor(name, {extent}));
  if (!IsFloat(view.dtype)) {
    return InvalidArgument(file.name(), ": tensor ", Quote(name),
                           ": expected F32, F16 or BF16, got ", std::string(Name(view.dtype)));
  }
  return absl::OkStatus();
}

absl::Status LoadMatrix(const GgufFile& file, const std::string& name, int64_t rows,
                        int64_t columns, TensorView& view) {
  TANDEM_ASSIGN_OR_RETURN(view, file.Tensor(name, {rows, columns}));
  return absl::OkStatus();
}

absl::Status LoadLayer(const GgufFile& file, const DecoderConfig& c, int64_t index,
                       LayerWeights& layer) {
  const std::string block = absl::StrCat("blk.", index, ".");
  const bool no_bias = c.architecture != Architecture::kQwen2;
  const bool no_norm = c.architecture != Architecture::kQwen3;
  const struct {
    const char* name;
    int64_t extent;
    bool optional;
    TensorView& view;
  } vectors[] = {
      {"attn_norm.weight", c.hidden, false, layer.attn_norm},
      {"attn_q.bias", c.q_dim(), no_bias, layer.q_bias},
      {"attn_k.bias", c.k_dim(), no_bias, layer.k_bias},
      {"attn_v.bias", c.v_dim(), no_bias, layer.v_bias},
      {"attn_q_norm.weight", c.head_dim, no_norm, layer.q_norm},
      {"attn_k_norm.weight", c.head_dim, no_norm, layer.k_norm},
      {"ffn_norm.weight", c.hidden, false, layer.ffn_norm},
  };
  for (const auto& v : vectors) {
    TANDEM_RETURN_IF_ERROR(LoadVector(file, block + v.name, v.extent, v.optional, v.view));
  }
  const struct {
    const char* name;
    int64_t rows, columns;
    TensorView& view;
  } matrices[] = {
      {"attn_q.weight", c.q_dim(), c.hidden, layer.q},
      {"attn_k.weight", c.k_dim(), c.hidden, layer.k},
      {"attn_v.weight", c.v_dim(), c.hidden, layer.v},
      {"attn_output.weight", c.hidden, c.attention_dim(), layer.attn_output},
      {"ffn_gate.weight", c.ffn, c.hidden, layer.gate},
      {"ffn_up.weight", c.ffn, c.hidden, layer.up},
      {"ffn_down.weight", c.hidden, c.ffn, layer.down},
  };
  for (const auto& m : matrices) {
    TANDEM_RETURN_IF_ERROR(LoadMatrix(file, block + m.name, m.rows, m.columns, m.view));
  }
  // Biases that no supported architecture has would be left out silently.
  for (const char* name : {"attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"}) {
    if (file.FindTensor(block + name) != nullptr) {
      return Unimplemented(file.name(), ": tensor ", Quote(block + name), " is not supported");
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<DecoderWeights> DecoderWeights::Load(const GgufFile& file,
                                                    const DecoderConfig& config) {
  DecoderWeights w;
  TANDEM_RETURN_IF_ERROR(
      LoadMatrix(file, "token_embd.weight", config.vocabulary, config.hidden, w.embedding));
  TANDEM_RETURN_IF_ERROR(
      LoadVector(file, "output_norm.weight", config.hidden, false, w.output_norm));
  w.tied = file.FindTensor("output.weight") == nullptr;
  w.output = w.embedding;
  if (!w.tied) {
    TANDEM_RETURN_IF_ERROR(
        LoadMatrix(file, "output.weight", config.vocabulary, config.hidden, w.output));
  }
  // config.layers is at most the number of tensors in the file.
  w.layers.resize(static_cast<size_t>(config.layers));
  for (int64_t i = 0; i < config.layers; ++i) {
    TANDEM_RETURN_IF_ERROR(LoadLayer(file, config, i, w.layers[static_cast<size_t>(i)]));
  }
  return w;
}

int64_t DecoderWeights::bytes() const {
  int64_t total = ByteExtent(embedding) + ByteExtent(output_norm) + (tied ? 0 : ByteExtent(output));
  for (const LayerWeights& l : layers) {
    for (const TensorView* view :
         {&l.attn_norm, &l.q, &l.k, &l.v, &l.q_bias, &l.k_bias, &l.v_bias, &l.q_norm, &l.k_norm,
          &l.attn_output, &l.ffn_norm, &l.gate, &l.up, &l.down}) {
      if (view->present()) total += ByteExtent(*view);
    }
  }
  return total;
}

}  // namespace tandem
