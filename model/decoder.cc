#include "model/decoder.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>

#include "core/status.h"
#include "core/workspace.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"

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

// Rows of the feed-forward network that are computed at once with packed weights: half the memory
// of 512 rows and as fast, within 3 % (q4_k, q8_0, one core of a Zen 5).
constexpr int64_t kPackedRows = 256;

// Up to so many tokens the products of the same activations are one call: kernels for few rows read
// weights as fast as memory gives them, and what is left to win is around them. Beyond, each
// product is better off with the kernel that was measured to be the fastest for it.
constexpr int64_t kGroupedRows = 8;

// An activation of `columns` f32 per token, to be laid out in a buffer with others.
struct Column {
  Tensor& tensor;
  int64_t columns;
};

// Makes `parts` tensors of `buffer`, one after the other, aligned as allocations are; without a
// buffer it only counts. Returns the bytes they take.
int64_t LayOut(std::span<const Column> parts, int64_t rows, Device device,
               const std::shared_ptr<Buffer>& buffer) {
  Workspace place = buffer ? Workspace(buffer->data(), buffer->bytes()) : Workspace::Counting();
  for (const Column& part : parts) {
    void* data = place.Take<float>(rows * part.columns);
    if (!buffer) continue;
    part.tensor = Tensor(MakeView(data, DType::kF32, {rows, part.columns}, device), buffer);
  }
  return place.bytes_used();
}

TensorView Rows(const Tensor& tensor, int64_t begin, int64_t count) {
  return Slice(tensor.view(), 0, begin, count);
}

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
  TANDEM_ASSIGN_OR_RETURN(model->config_, DecoderConfig::Load(*model->file_));
  TANDEM_ASSIGN_OR_RETURN(model->weights_, DecoderWeights::Load(*model->file_, model->config_));

  const int64_t layer_count = model->config_.layers;
  model->placement_ = options.placement.value_or(DecoderPlacement::Everything(
      options.device.value_or(context.options().device.value_or(DeviceKind::kCpu)), layer_count));
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

  const bool pack_quantized = options.pack_quantized && context.options().quantize_activations;
  const auto packs = [&](const TensorView& view) {
    return view.device.kind == DeviceKind::kCpu &&
           (IsBlockQuantized(view.dtype) ? pack_quantized : options.pack_weights);
  };
  const DecoderWeights& weights = model->weights_;
  // The output matrix multiplies one row, or few: a second copy in f32 would not pay. The
  // largest matrix comes first, while there is room for both its forms.
  TANDEM_RETURN_IF_ERROR(model->Prepare(
      context, weights.output, IsBlockQuantized(weights.output.dtype) && packs(weights.output),
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
  if (IsBlockQuantized(view.dtype)) file_->ReleasePages(view);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<Session>> Session::Create(Context& context,
                                                         std::shared_ptr<const Model> model,
                                                         const SessionOptions& options) {
  if (model == nullptr) return InvalidArgument("model: expected a model, got null");
  constexpr int64_t kMaxCapacity = int64_t{1} << 30;
  if (options.capacity < 0 || options.capacity > kMaxCapacity) {
    return InvalidArgument("capacity: expected 0..", kMaxCapacity, " tokens, got ",
                           options.capacity);
  }
  if (options.ubatch < 1) return InvalidArgument("ubatch: expected >= 1, got ", options.ubatch);
  if (!IsFloat(options.kv_dtype) && options.kv_dtype != DType::kI8) {
    return InvalidArgument("kv_dtype: expected f32, f16, bf16 or i8, got ",
                           std::string(Name(options.kv_dtype)));
  }
  std::unique_ptr<Session> session(new Session(context, std::move(model)));
  session->capacity_ = options.capacity != 0 ? options.capacity
                                             : std::min(session->model_->config().context,
                                                        SessionOptions::kDefaultCapacity);
  session->ubatch_ = std::min(options.ubatch, session->capacity_);
  TANDEM_RETURN_IF_ERROR(session->Allocate(options.kv_dtype));
  return session;
}

absl::Status Session::Allocate(DType kv_dtype) {
  const DecoderConfig& c = model_->config();
  const DecoderPlacement& placement = model_->placement();
  const auto allocator = [&](DeviceKind kind) -> Allocator& {
    return context_.device(kind)->backend->allocator();
  };
  for (const LayerDevices& layer : placement.layers) {
    TANDEM_ASSIGN_OR_RETURN(KvCache cache, KvCache::Create(allocator(layer.attention),
                                                           {1, c.kv_heads, capacity_, c.head_dim,
                                                            c.v_head_dim, kv_dtype}));
    bytes_ += cache.bytes();
    caches_.push_back(std::move(cache));
  }
  for (const DeviceKind device : kDeviceKinds) {
    if (placement.uses(device)) TANDEM_RETURN_IF_ERROR(AllocateActivations(device));
  }
  TANDEM_ASSIGN_OR_RETURN(ids_,
                          Tensor::Allocate(allocator(placement.embedding), DType::kI32, {ubatch_}));
  TANDEM_ASSIGN_OR_RETURN(
      logits_, Tensor::Allocate(allocator(placement.output), DType::kF32, {1, c.vocabulary}));
  bytes_ += ids_.buffer()->bytes() + logits_.buffer()->bytes();
  const struct {
    Tensor& host;
    const Tensor& own;
  } inputs[] = {{host_ids_, ids_}, {host_positions_, on_[DeviceKind::kCpu].positions}};
  for (const auto& input : inputs) {
    input.host = input.own;
    if (input.own.view().present() && input.own.view().device.kind == DeviceKind::kCpu) continue;
    TANDEM_ASSIGN_OR_RETURN(input.host,
                            Tensor::Allocate(context_.host_allocator(), DType::kI32, {ubatch_}));
  }
  return absl::OkStatus();
}

absl::Status Session::AllocateActivations(DeviceKind device) {
  const DecoderConfig& c = model_->config();
  const DecoderPlacement& placement = model_->placement();
  Allocator& allocator = context_.device(device)->backend->allocator();
  // What goes between host and GPU with every token lies in page-locked memory.
  Allocator* residual = &allocator;
  if (device == DeviceKind::kCpu && !model_->on_one_device()) {
    Allocator* pinned = context_.device(DeviceKind::kCuda)->backend->pinned_allocator();
    if (pinned != nullptr) residual = pinned;
  }
  Activations& a = on_[device];
  const struct {
    Tensor& tensor;
    Allocator& allocator;
    DType dtype;
    Shape shape;
  } buffers[] = {
      {a.positions, allocator, DType::kI32, {ubatch_}},
      {a.x, *residual, DType::kF32, {ubatch_, c.hidden}},
      {a.h, allocator, DType::kF32, {ubatch_, c.hidden}},
  };
  for (const auto& buffer : buffers) {
    TANDEM_ASSIGN_OR_RETURN(buffer.tensor,
                            Tensor::Allocate(buffer.allocator, buffer.dtype, buffer.shape));
    bytes_ += buffer.tensor.buffer()->bytes();
  }
  // A layer's feed-forward network begins when its attention is done: their activations share
  // memory.
  const std::array<Column, 4> attention = {
      {{a.q, c.q_dim()}, {a.k, c.k_dim()}, {a.v, c.v_dim()}, {a.attention, c.attention_dim()}}};
  // Packed weights cost a row no more when only kPackedRows of them come at once.
  bool all_packed = true;
  for (size_t i = 0; i < placement.layers.size(); ++i) {
    if (placement.layers[i].feed_forward != device) continue;
    const Model::Layer& layer = model_->layers_[i];
    all_packed = all_packed && layer.gate.packed != nullptr && layer.up.packed != nullptr &&
                 layer.down.packed != nullptr;
  }
  a.ffn_rows = all_packed ? std::min(ubatch_, kPackedRows) : ubatch_;
  const std::array<Column, 2> feed_forward = {{{a.gate, c.ffn}, {a.up, c.ffn}}};
  TANDEM_ASSIGN_OR_RETURN(
      const std::shared_ptr<Buffer> shared,
      allocator.Allocate(std::max(LayOut(attention, ubatch_, allocator.device(), nullptr),
                                  LayOut(feed_forward, a.ffn_rows, allocator.device(), nullptr))));
  LayOut(attention, ubatch_, allocator.device(), shared);
  LayOut(feed_forward, a.ffn_rows, allocator.device(), shared);
  bytes_ += shared->bytes();
  return absl::OkStatus();
}

absl::Status Session::CheckTokens(std::span<const int32_t> tokens) const {
  if (tokens.empty()) return InvalidArgument("tokens: expected at least one");
  const int64_t vocabulary = model_->config().vocabulary;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocabulary) {
      return InvalidArgument("tokens[", i, "]: expected an id in 0..", vocabulary - 1, ", got ",
                             tokens[i]);
    }
  }
  if (static_cast<int64_t>(tokens.size()) > capacity_ - position_) {
    return InvalidArgument("tokens: expected at most ", capacity_ - position_,
                           " (what is left of the session's capacity of ", capacity_, "), got ",
                           tokens.size());
  }
  return absl::OkStatus();
}

absl::Status Session::Feed(std::span<const int32_t> tokens) {
  TANDEM_RETURN_IF_ERROR(CheckTokens(tokens));
  return Run(tokens, 0, {});
}

absl::StatusOr<TensorView> Session::Forward(std::span<const int32_t> tokens) {
  TANDEM_RETURN_IF_ERROR(CheckTokens(tokens));
  TANDEM_RETURN_IF_ERROR(Run(tokens, 1, logits_));
  return logits_.view();
}

absl::Status Session::ForwardAll(std::span<const int32_t> tokens, const TensorView& logits) {
  TANDEM_RETURN_IF_ERROR(CheckTokens(tokens));
  const auto count = static_cast<int64_t>(tokens.size());
  TANDEM_RETURN_IF_ERROR(ValidateOutput("logits", logits, 2));
  TANDEM_RETURN_IF_ERROR(CheckDType("logits", logits, DType::kF32));
  TANDEM_RETURN_IF_ERROR(CheckDim("logits", logits, 0, "tokens", count));
  TANDEM_RETURN_IF_ERROR(CheckDim("logits", logits, 1, "vocabulary", model_->config().vocabulary));
  if (logits.device.kind == model_->device()) return Run(tokens, count, logits);
  if (logits.device.kind != DeviceKind::kCpu || !IsContiguous(logits)) {
    return InvalidArgument("logits: expected them on ", std::string(Name(model_->device())),
                           ", or contiguous in host memory");
  }
  if (!device_logits_.view().present() || device_logits_.shape()[0] < count) {
    TANDEM_ASSIGN_OR_RETURN(device_logits_,
                            AllocateOn(context_, model_->device(), DType::kF32, logits.shape));
  }
  const TensorView there = Rows(device_logits_, 0, count);
  TANDEM_RETURN_IF_ERROR(Run(tokens, count, there));
  TANDEM_RETURN_IF_ERROR(Copy(context_, there, logits));
  return Synchronize(context_, model_->device());
}

absl::Status Session::Truncate(int64_t length) {
  if (length < 0 || length > position_) {
    return InvalidArgument("length: expected 0..", position_, ", got ", length);
  }
  for (KvCache& cache : caches_) TANDEM_RETURN_IF_ERROR(cache.Truncate(length));
  position_ = length;
  return absl::OkStatus();
}

absl::Status Session::Run(std::span<const int32_t> tokens, int64_t rows, const TensorView& logits) {
  const int64_t before = position_;
  const auto count = static_cast<int64_t>(tokens.size());
  for (int64_t begin = 0; begin < count; begin += ubatch_) {
    const int64_t chunk = std::min(ubatch_, count - begin);
    // Of the last `rows` tokens, those in this chunk.
    const int64_t first_row = std::max(begin, count - rows);
    const int64_t chunk_rows = std::max<int64_t>(begin + chunk - first_row, 0);
    const TensorView chunk_logits =
        chunk_rows > 0 ? Slice(logits, 0, first_row - (count - rows), chunk_rows) : TensorView();
    absl::Status status =
        RunChunk(tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(chunk)), chunk_rows,
                 chunk_logits);
    if (!status.ok()) {
      // What was queued may still read or write the host's part of a model on two devices.
      if (!model_->on_one_device()) {
        Synchronize(context_, DeviceKind::kCuda).IgnoreError();
        host_residual_in_use_ = false;
      }
      for (KvCache& cache : caches_) {
        status.Update(cache.Truncate(std::min(before, cache.length())));
      }
      position_ = before;
      return status;
    }
    position_ += chunk;
  }
  return absl::OkStatus();
}

absl::Status Session::RunChunk(std::span<const int32_t> tokens, int64_t rows,
                               const TensorView& logits) {
  const auto count = static_cast<int64_t>(tokens.size());
  std::copy(tokens.begin(), tokens.end(), host_ids_.As<int32_t>());
  for (int64_t i = 0; i < count; ++i) {
    host_positions_.As<int32_t>()[i] = static_cast<int32_t>(position_ + i);
  }
  Place place;
  place.tokens = count;
  for (const DeviceKind device : kDeviceKinds) {
    if (!on_[device].positions.view().present()) continue;
    place.positions[device] = Rows(on_[device].positions, 0, count);
    if (device == DeviceKind::kCpu) continue;
    TANDEM_RETURN_IF_ERROR(
        Copy(context_, Rows(host_positions_, 0, count), place.positions[device]));
  }
  if (model_->placement().embedding != DeviceKind::kCpu) {
    TANDEM_RETURN_IF_ERROR(Copy(context_, Rows(host_ids_, 0, count), Rows(ids_, 0, count)));
  }
  return RunTokens(Rows(ids_, 0, count), place, rows, logits);
}

absl::StatusOr<TensorView> Session::QueueToken(const TokenNumbers& numbers) {
  if (!model_->on_one_device()) {
    return absl::FailedPreconditionError(
        "the model is on two devices: between them the host waits");
  }
  Place place;
  place.positions[model_->device()] = numbers.position;
  place.length = numbers.length;
  place.tokens = 1;
  TANDEM_RETURN_IF_ERROR(RunTokens(numbers.token, place, 1, logits_));
  return logits_.view();
}

absl::Status Session::CountToken() {
  for (KvCache& cache : caches_) TANDEM_RETURN_IF_ERROR(cache.Advance(1));
  ++position_;
  return absl::OkStatus();
}

absl::Status Session::MoveResidual(DeviceKind from, DeviceKind to, int64_t begin, int64_t rows) {
  if (from == to || rows == 0) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(
      Copy(context_, Rows(on_[from].x, begin, rows), Rows(on_[to].x, begin, rows)));
  host_residual_in_use_ = to != DeviceKind::kCpu;
  return to == DeviceKind::kCpu ? Synchronize(context_, from) : absl::OkStatus();
}

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
    if (keep == 0) return absl::OkStatus();
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
  return MatMulInto(context_, output);
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
  KvCache& cache = caches_[index];
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
  KvAppendArgs append;
  if (keep > 0) {
    TANDEM_RETURN_IF_ERROR(normalise_heads(q, c.heads, w.q_norm));
    append.q = Heads(q, c.heads);
    append.q_out = append.q;
  }
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
  append.rope = {positions, model_->inv_freq_[device], c.rope.pairing, model_->rope_magnitude_};
  TANDEM_RETURN_IF_ERROR(KvAppendInto(context_, append));
  if (!place.on_device()) TANDEM_RETURN_IF_ERROR(cache.Advance(tokens));
  if (keep == 0) return absl::OkStatus();

  const TensorView attended = Rows(on.attention, 0, keep);
  AttentionArgs attention;
  attention.q = Heads(q, c.heads);
  attention.k = place.on_device() ? cache.k() : cache.Keys();
  attention.v = place.on_device() ? cache.v() : cache.Values();
  attention.k_scale = place.on_device() ? cache.k_scale() : cache.KeyScales();
  attention.v_scale = place.on_device() ? cache.v_scale() : cache.ValueScales();
  attention.kv_lens = place.length;
  attention.out = Heads(attended, c.heads);
  TANDEM_RETURN_IF_ERROR(AttentionInto(context_, attention));

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
