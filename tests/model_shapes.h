// Decoders of known shapes, without weights: for planning.
#pragma once

#include <string>
#include <vector>

#include "model/config.h"
#include "model/decoder_placement.h"
#include "model/weights.h"

namespace tandem {

struct ModelShape {
  std::string name;
  int64_t layers, hidden, ffn, heads, kv_heads, vocabulary;
  bool tied = false;
};

// From the demo to 70B, of the proportions of published models; rows are whole blocks of any type.
inline std::vector<ModelShape> ModelShapes() {
  return {{"demo", 4, 256, 768, 4, 2, 512, true},        {"0.1B", 30, 512, 1536, 8, 2, 49152, true},
          {"0.5B", 24, 1024, 4864, 16, 2, 151936, true}, {"1B", 22, 2048, 5632, 32, 4, 32000},
          {"8B", 32, 4096, 14336, 32, 8, 128256},        {"14B", 40, 5120, 13824, 40, 8, 152064},
          {"32B", 64, 5120, 27648, 40, 8, 152064},       {"70B", 80, 8192, 28672, 64, 8, 128256}};
}

struct ShapedModel {
  DecoderConfig config;
  DecoderWeights weights;  // views of nothing

  ShapedModel(const ModelShape& shape, DType matrices) {
    config.layers = shape.layers;
    config.hidden = shape.hidden;
    config.ffn = shape.ffn;
    config.heads = shape.heads;
    config.kv_heads = shape.kv_heads;
    config.head_dim = config.v_head_dim = shape.hidden / shape.heads;
    config.vocabulary = shape.vocabulary;
    config.context = 8192;
    const auto matrix = [&](int64_t rows, int64_t columns) {
      return MakeView(static_cast<void*>(nullptr), matrices, {rows, columns});
    };
    const TensorView norm = MakeView(static_cast<void*>(nullptr), DType::kF32, {shape.hidden});
    weights.embedding = weights.output = matrix(shape.vocabulary, shape.hidden);
    weights.tied = shape.tied;
    weights.output_norm = norm;
    LayerWeights layer;
    layer.attn_norm = layer.ffn_norm = norm;
    layer.q = matrix(config.q_dim(), shape.hidden);
    layer.k = matrix(config.k_dim(), shape.hidden);
    layer.v = matrix(config.v_dim(), shape.hidden);
    layer.attn_output = matrix(shape.hidden, config.attention_dim());
    layer.gate = layer.up = matrix(shape.ffn, shape.hidden);
    layer.down = matrix(shape.hidden, shape.ffn);
    weights.layers.assign(static_cast<size_t>(shape.layers), layer);
  }
};

// How many of the layers' halves (attention, feed-forward) are on the GPU.
inline int64_t HalvesOnGpu(const DecoderPlacement& placement) {
  int64_t count = 0;
  for (const LayerDevices& layer : placement.layers) {
    count += (layer.attention == DeviceKind::kCuda ? 1 : 0) +
             (layer.feed_forward == DeviceKind::kCuda ? 1 : 0);
  }
  return count;
}

}  // namespace tandem
