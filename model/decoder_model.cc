// Weights: from the file to the devices of their layers.
#include <algorithm>

#include "core/status.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"
#include "model/decoder.h"

namespace tandem {

absl::StatusOr<std::shared_ptr<const Model>> Model::Open(Context& context, const std::string& path,
                                                         const ModelOptions& options) {
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<const GgufFile> file, GgufFile::Open(path));
  return Load(context, std::move(file), options);
}

absl::StatusOr<std::shared_ptr<const Model>> Model::Load(Context& context,
                                                         std::shared_ptr<const GgufFile> file,
                                                         const ModelOptions& options) {
  std::shared_ptr<Model> model(new Model());
  model->file_ = std::move(file);
  model->options_ = options;
  TANDEM_ASSIGN_OR_RETURN(model->config_, DecoderConfig::Load(*model->file_));
  TANDEM_ASSIGN_OR_RETURN(model->weights_, DecoderWeights::Load(*model->file_, model->config_));

  const int64_t layer_count = model->config_.layers;
  if (options.hybrid) {
    TANDEM_ASSIGN_OR_RETURN(model->placement_,
                            PlaceDecoder(context, model->config_, model->weights_, *options.hybrid,
                                         options.pack_in_place, options.pack_weights));
  } else {
    model->placement_ = options.placement.value_or(DecoderPlacement::Everything(
        options.device.value_or(context.preferred_device()), layer_count));
  }
  const DecoderPlacement& placement = model->placement_;
  if (static_cast<int64_t>(placement.layers.size()) != layer_count) {
    return InvalidArgument("placement: expected devices of ", layer_count, " layers, got ",
                           placement.layers.size());
  }
  model->on_one_device_ = placement.on_one_device();
  if (!model->on_one_device_ && context.options().device) {
    return InvalidArgument("placement: is on two devices, but every op is forced onto ",
                           std::string(Name(*context.options().device)));
  }
  if (placement.uses(DeviceKind::kCuda)) TANDEM_RETURN_IF_ERROR(model->MoveWeights(context));

  const auto packs = [&](const TensorView& view) {
    if (view.device.kind != DeviceKind::kCpu) return false;
    return (options.pack_in_place && PacksInPlace(context, view.dtype)) ||
           (options.pack_weights && !IsBlockQuantized(view.dtype));
  };
  const DecoderWeights& weights = model->weights_;
  // The output matrix multiplies one row, or few: a second copy in f32 would not pay. The
  // largest matrix comes first, while there is room for both its forms.
  TANDEM_RETURN_IF_ERROR(model->Prepare(
      context, weights.output, PacksInPlace(context, weights.output.dtype) && packs(weights.output),
      model->output_));
  model->layers_.resize(weights.layers.size());
  for (size_t i = 0; i < weights.layers.size(); ++i) {
    const LayerWeights& from = weights.layers[i];
    Layer& to = model->layers_[i];
    for (const auto& [view, matrix] :
         {std::pair(&from.q, &to.q), std::pair(&from.k, &to.k), std::pair(&from.v, &to.v),
          std::pair(&from.attn_output, &to.attn_output), std::pair(&from.gate, &to.gate),
          std::pair(&from.up, &to.up), std::pair(&from.down, &to.down)}) {
      TANDEM_RETURN_IF_ERROR(model->Prepare(context, *view, packs(*view), *matrix));
    }
  }

  const DecoderConfig::Rope& rope = model->config_.rope;
  TANDEM_ASSIGN_OR_RETURN(const RopeFrequencies frequencies,
                          RopeInverseFrequencies(rope.rotary_dim, rope.base, rope.scaling));
  Tensor& inv_freq = model->inv_freq_[DeviceKind::kCpu];
  TANDEM_ASSIGN_OR_RETURN(inv_freq,
                          Tensor::Allocate(context.host_allocator(), DType::kF32,
                                           {static_cast<int64_t>(frequencies.inv_freq.size())}));
  std::copy(frequencies.inv_freq.begin(), frequencies.inv_freq.end(), inv_freq.As<float>());
  model->rope_magnitude_ = frequencies.magnitude;
  if (placement.uses(DeviceKind::kCuda)) {
    TANDEM_ASSIGN_OR_RETURN(model->inv_freq_[DeviceKind::kCuda],
                            CopyTo(context, DeviceKind::kCuda, inv_freq));
    TANDEM_RETURN_IF_ERROR(Synchronize(context, DeviceKind::kCuda));
  }
  return std::shared_ptr<const Model>(std::move(model));
}

absl::Status Model::MoveWeights(Context& context) {
  constexpr DeviceKind kGpu = DeviceKind::kCuda;
  std::vector<TensorView*> views;
  if (placement_.embedding == kGpu) views.push_back(&weights_.embedding);
  if (placement_.output == kGpu) {
    views.push_back(&weights_.output_norm);
    if (!weights_.tied || placement_.embedding != kGpu) views.push_back(&weights_.output);
  }
  for (size_t i = 0; i < weights_.layers.size(); ++i) {
    LayerWeights& w = weights_.layers[i];
    if (placement_.layers[i].attention == kGpu) {
      views.insert(views.end(), {&w.attn_norm, &w.q, &w.k, &w.v, &w.q_bias, &w.k_bias, &w.v_bias,
                                 &w.q_norm, &w.k_norm, &w.attn_output});
    }
    if (placement_.layers[i].feed_forward == kGpu) {
      views.insert(views.end(), {&w.ffn_norm, &w.gate, &w.up, &w.down});
    }
  }
  for (TensorView* view : views) {
    if (!view->present()) continue;
    TANDEM_ASSIGN_OR_RETURN(Tensor copy, CopyTo(context, kGpu, *view));
    *view = copy.view();
    resident_.push_back(std::move(copy));
  }
  if (weights_.tied && placement_.output == kGpu && placement_.embedding == kGpu) {
    weights_.output = weights_.embedding;
  }
  return Synchronize(context, kGpu);
}

absl::Status Model::Prepare(Context& context, const TensorView& view, bool pack, Matrix& matrix) {
  matrix.view = view;
  if (!pack) return absl::OkStatus();
  auto packed = PackWeights(context, view);
  if (absl::IsUnimplemented(packed.status())) return absl::OkStatus();
  if (!packed.ok()) return packed.status();
  matrix.packed = *std::move(packed);
  packed_bytes_ += matrix.packed->bytes();
  // The stored form stays readable (for the embedding, if tied; for a kernel that is forced).
  if (PacksInPlace(context, view.dtype)) file_->ReleasePages(view);
  return absl::OkStatus();
}

}  // namespace tandem
