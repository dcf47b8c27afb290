// The forward pass: embedding, layers, output, each on the device of its weights.
#include <algorithm>

#include "core/status.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"
#include "model/decoder.h"

namespace tandem {
namespace {

// [S, heads * dim] as [1, heads, S, dim].
TensorView Heads(const TensorView& view, int64_t heads) {
  const TensorView split = SplitDim(view, 1, heads, view.dim(1) / heads);  // [S, heads, dim]
  TensorView result = Transpose(split, 0, 1);
  result.shape = {1, heads, view.dim(0), view.dim(1) / heads};
  result.strides = {heads * split.strides[1], split.strides[1], split.strides[0], split.strides[2]};
  return result;
}

// Up to so many tokens the products of the same activations are one call: kernels for few rows read
// weights as fast as memory gives them, and what is left to win is around them. Beyond, each
// product is better off with the kernel that was measured to be the fastest for it.
constexpr int64_t kGroupedRows = 8;

absl::Status Normalise(Context& context, const TensorView& x, const TensorView& weight, float eps,
                       const TensorView& out) {
  RmsNormArgs args;
  args.x = x;
  args.weight = weight;
  args.out = out;
  args.eps = eps;
  return RmsNormInto(context, args);
}

}  // namespace

absl::Status Session::RunTokens(const TensorView& ids, const Place& place, int64_t rows,
                                const TensorView& logits) {
  // Where weights are decides where a model on two devices runs, not the ops one by one.
  const PlacedCalls placed(context_, !model_->on_one_device());
  const DecoderPlacement& placement = model_->placement();
  DeviceKind at = placement.embedding;
  if (at == DeviceKind::kCpu && host_residual_in_use_) {
    TANDEM_RETURN_IF_ERROR(Synchronize(context_, DeviceKind::kCuda));
    host_residual_in_use_ = false;
  }
  if (at == DeviceKind::kCuda && times_segments()) segment_.Begin(context_);
  EmbeddingArgs embedding;
  embedding.table = model_->weights().embedding;
  embedding.ids = ids;
  embedding.out = Rows(on_[at].x, 0, place.tokens);
  TANDEM_RETURN_IF_ERROR(EmbeddingInto(context_, embedding));

  // Behind the last layer's cache only the rows whose logits are wanted matter.
  int64_t keep = place.tokens;
  for (size_t i = 0; i < placement.layers.size(); ++i) {
    const LayerDevices& devices = placement.layers[i];
    TANDEM_RETURN_IF_ERROR(MoveResidual(at, devices.attention, 0, place.tokens));
    if (i + 1 == placement.layers.size()) keep = rows;
    TANDEM_RETURN_IF_ERROR(RunAttention(i, place, keep));
    if (keep == 0) {
      segment_.End(context_);
      return absl::OkStatus();
    }
    at = devices.feed_forward;
    TANDEM_RETURN_IF_ERROR(MoveResidual(devices.attention, at, place.tokens - keep, keep));
    TANDEM_RETURN_IF_ERROR(RunFeedForward(i, place.tokens - keep, keep));
  }
  const int64_t first = place.tokens - rows;
  TANDEM_RETURN_IF_ERROR(MoveResidual(at, placement.output, first, rows));
  const Activations& a = on_[placement.output];
  const TensorView normalised = Rows(a.h, 0, rows);
  TANDEM_RETURN_IF_ERROR(Normalise(context_, Rows(a.x, first, rows), model_->weights().output_norm,
                                   model_->config().rms_eps, normalised));
  MatMulArgs output;
  output.a = normalised;
  output.b = model_->output_.view;
  output.b_packed = model_->output_.packed.get();
  output.out = logits;
  absl::Status status = MatMulInto(context_, output);
  segment_.End(context_);
  return status;
}

GroupedMatMulArgs::Product Session::Project(const Model::Matrix& matrix, const TensorView& bias,
                                            const TensorView& out) {
  return {.b = matrix.view, .bias = bias, .out = out, .b_packed = matrix.packed.get()};
}

// Keys and values of all tokens go to the cache; queries, and what follows from them, are computed
// for the last `keep`.
absl::Status Session::RunAttention(size_t index, const Place& place, int64_t keep) {
  const int64_t tokens = place.tokens;
  const DecoderConfig& c = model_->config();
  const LayerWeights& w = model_->weights().layers[index];
  const Model::Layer& m = model_->layers_[index];
  LayerCache& layer_cache = caches_[index];
  const DeviceKind device = model_->placement().layers[index].attention;
  const Activations& on = on_[device];
  const TensorView& positions = place.positions[device];

  const TensorView h = Rows(on.h, 0, tokens);
  TANDEM_RETURN_IF_ERROR(Normalise(context_, Rows(on.x, 0, tokens), w.attn_norm, c.rms_eps, h));
  // Normalises every head, in place, if the model does.
  const auto normalise_heads = [&](const TensorView& x, int64_t heads, const TensorView& norm) {
    if (!norm.present()) return absl::OkStatus();
    const TensorView split = SplitDim(x, 1, heads, c.head_dim);
    return Normalise(context_, split, norm, c.rms_eps, split);
  };

  const TensorView k = Rows(on.k, 0, tokens), v = Rows(on.v, 0, tokens), q = Rows(on.q, 0, keep);
  const int64_t first = tokens - keep;
  GroupedMatMulArgs projections;
  projections.a = h;
  projections.num_products = 3;
  projections.products = {
      {Project(m.k, w.k_bias, k), Project(m.v, w.v_bias, v), Project(m.q, w.q_bias, q), {}}};
  if (tokens <= kGroupedRows && keep == tokens) {
    TANDEM_RETURN_IF_ERROR(GroupedMatMulInto(context_, projections));
  } else {
    for (int i = 0; i < (keep > 0 ? 3 : 2); ++i) {
      MatMulArgs product = projections.ProductArgs(i);
      if (i == 2) product.a = Slice(h, 0, first, keep);
      TANDEM_RETURN_IF_ERROR(MatMulInto(context_, product));
    }
  }
  TANDEM_RETURN_IF_ERROR(normalise_heads(k, c.kv_heads, w.k_norm));
  if (keep > 0) TANDEM_RETURN_IF_ERROR(normalise_heads(q, c.heads, w.q_norm));
  const TensorView attended = Rows(on.attention, 0, keep);
  const RopeRotation rope = {positions, model_->inv_freq_[device], c.rope.pairing,
                             model_->rope_magnitude_};
  if (SplitKvCache* split = layer_cache.split()) {
    CacheAppendArgs append = {.k = Heads(k, c.kv_heads), .v = Heads(v, c.kv_heads), .rope = rope};
    if (keep > 0) append.q = append.q_out = Heads(q, c.heads);
    TANDEM_RETURN_IF_ERROR(split->Append(append));
    if (keep == 0) return absl::OkStatus();
    AttentionArgs attention;
    attention.q = Heads(q, c.heads);
    attention.out = Heads(attended, c.heads);
    TANDEM_RETURN_IF_ERROR(split_attention_->Run(*split, attention));
    return AddAttended(index, attended, first, keep);
  }
  KvCache& cache = *layer_cache.whole();
  KvAppendArgs append;
  if (keep > 0) append.q = append.q_out = Heads(q, c.heads);
  append.k = Heads(k, c.kv_heads);
  append.v = Heads(v, c.kv_heads);
  append.k_cache = cache.k();
  append.v_cache = cache.v();
  append.k_scale = cache.k_scale();
  append.v_scale = cache.v_scale();
  if (place.on_device()) {
    append.cache_lens = positions;  // one token
  } else {
    append.position = cache.length();
  }
  append.rope = rope;
  TANDEM_RETURN_IF_ERROR(KvAppendInto(context_, append));
  if (!place.on_device()) TANDEM_RETURN_IF_ERROR(cache.Advance(tokens));
  if (keep == 0) return absl::OkStatus();

  AttentionArgs attention;
  attention.q = Heads(q, c.heads);
  attention.k = place.on_device() ? cache.k() : cache.Keys();
  attention.v = place.on_device() ? cache.v() : cache.Values();
  attention.k_scale = place.on_device() ? cache.k_scale() : cache.KeyScales();
  attention.v_scale = place.on_device() ? cache.v_scale() : cache.ValueScales();
  attention.kv_lens = place.length;
  attention.out = Heads(attended, c.heads);
  TANDEM_RETURN_IF_ERROR(AttentionInto(context_, attention));
  return AddAttended(index, attended, first, keep);
}

absl::Status Session::AddAttended(size_t index, const TensorView& attended, int64_t first,
                                  int64_t keep) {
  const Model::Layer& m = model_->layers_[index];
  const Activations& on = on_[model_->placement().layers[index].attention];
  MatMulArgs output;
  output.a = attended;
  output.b = m.attn_output.view;
  output.b_packed = m.attn_output.packed.get();
  output.addend = Rows(on.x, first, keep);
  output.out = output.addend;
  return MatMulInto(context_, output);
}

absl::Status Session::RunFeedForward(size_t index, int64_t first, int64_t count) {
  const DecoderConfig& c = model_->config();
  const Model::Layer& m = model_->layers_[index];
  const Activations& on = on_[model_->placement().layers[index].feed_forward];
  for (int64_t begin = 0; begin < count; begin += on.ffn_rows) {
    const int64_t rows = std::min(on.ffn_rows, count - begin);
    const TensorView x = Rows(on.x, first + begin, rows), h = Rows(on.h, 0, rows);
    TANDEM_RETURN_IF_ERROR(
        Normalise(context_, x, model_->weights().layers[index].ffn_norm, c.rms_eps, h));

    const TensorView gate = Rows(on.gate, 0, rows), up = Rows(on.up, 0, rows);
    GroupedMatMulArgs projections;
    projections.a = h;
    projections.num_products = 2;
    projections.products = {{Project(m.gate, {}, gate), Project(m.up, {}, up), {}, {}}};
    if (rows <= kGroupedRows) {
      projections.epilogue = GroupEpilogue::kSiluMultiply;
      projections.products[1].out = {};
      TANDEM_RETURN_IF_ERROR(GroupedMatMulInto(context_, projections));
    } else {
      TANDEM_RETURN_IF_ERROR(MatMulInto(context_, projections.ProductArgs(0)));
      TANDEM_RETURN_IF_ERROR(MatMulInto(context_, projections.ProductArgs(1)));
      SiluMulArgs activation;
      activation.gate = gate;
      activation.up = up;
      activation.out = gate;
      TANDEM_RETURN_IF_ERROR(SiluMulInto(context_, activation));
    }

    MatMulArgs down;
    down.a = gate;
    down.b = m.down.view;
    down.b_packed = m.down.packed.get();
    down.addend = x;
    down.out = x;
    TANDEM_RETURN_IF_ERROR(MatMulInto(context_, down));
  }
  return absl::OkStatus();
}

}  // namespace tandem
