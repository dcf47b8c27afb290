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

// Rows of the feed-forward network that are computed at once with packed weights: half the memory
// of 512 rows and as fast, within 3 % (q4_k, q8_0, one core of a Zen 5).
constexpr int64_t kPackedRows = 256;

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

}  // namespace

absl::StatusOr<std::unique_ptr<Session>> Session::Create(Context& context,
                                                         std::shared_ptr<const Model> model,
                                                         const SessionOptions& options) {
  if (model == nullptr) return InvalidArgument("model: expected a model, got null");
  TANDEM_RETURN_IF_ERROR(Validate(options));
  std::unique_ptr<Session> session(new Session(context, std::move(model)));
  session->capacity_ = options.CapacityFor(session->model_->config().context);
  session->ubatch_ = std::min(options.ubatch, session->capacity_);
  session->options_ = options;
  session->tokens_.reserve(static_cast<size_t>(session->capacity_));
  TANDEM_RETURN_IF_ERROR(session->Allocate(options.kv_dtype));
  return session;
}

absl::Status Session::Allocate(DType kv_dtype) {
  const DecoderConfig& c = model_->config();
  const DecoderPlacement& placement = model_->placement();
  const auto allocator = [&](DeviceKind kind) -> Allocator& {
    return context().device(kind)->backend->allocator();
  };
  for (const LayerDevices& layer : placement.layers) {
    TANDEM_ASSIGN_OR_RETURN(
        LayerCache cache,
        LayerCache::Create(context_, {1, c.kv_heads, capacity_, c.head_dim, c.v_head_dim, kv_dtype},
                           layer.attention,
                           placement.gpu_cache_rows
                               ? std::optional(std::min(*placement.gpu_cache_rows, capacity_))
                               : std::nullopt));
    bytes_ += cache.bytes();
    caches_.push_back(std::move(cache));
  }
  if (placement.gpu_cache_rows) split_attention_ = std::make_unique<CacheAttention>(context());
  for (const DeviceKind device : kDeviceKinds) {
    if (placement.uses(device)) TANDEM_RETURN_IF_ERROR(AllocateActivations(device));
  }
  // At once: growing it takes the old and the new one.
  if (placement.gpu_workspace_bytes > 0) {
    TANDEM_RETURN_IF_ERROR(
        context().ReserveWorkspace(DeviceKind::kCuda, placement.gpu_workspace_bytes));
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
                            Tensor::Allocate(context().host_allocator(), DType::kI32, {ubatch_}));
  }
  return absl::OkStatus();
}

absl::Status Session::AllocateActivations(DeviceKind device) {
  const DecoderConfig& c = model_->config();
  const DecoderPlacement& placement = model_->placement();
  Allocator& allocator = context().device(device)->backend->allocator();
  // What goes between host and GPU with every token lies in page-locked memory.
  Allocator* residual = &allocator;
  if (device == DeviceKind::kCpu && !model_->on_one_device()) {
    Allocator* pinned = context().device(DeviceKind::kCuda)->backend->pinned_allocator();
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

TensorView Session::Rows(const Tensor& tensor, int64_t begin, int64_t count) {
  return Slice(tensor.view(), 0, begin, count);
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
  for (LayerCache& cache : caches_) TANDEM_RETURN_IF_ERROR(cache.Truncate(length));
  position_ = length;
  tokens_.resize(static_cast<size_t>(length));
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
      segment_.Forget(context_);
      if (!recordable()) {
        Synchronize(context_, DeviceKind::kCuda).IgnoreError();
        host_residual_in_use_ = false;
      }
      for (LayerCache& cache : caches_) {
        status.Update(cache.Truncate(std::min(before, cache.length())));
      }
      position_ = before;
      tokens_.resize(static_cast<size_t>(before));
      return status;
    }
    position_ += chunk;
    const auto first = tokens.begin() + begin;
    tokens_.insert(tokens_.end(), first, first + chunk);
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
  if (!recordable()) {
    return absl::FailedPreconditionError(
        "the model, or its cache, is on two devices: between them the host waits");
  }
  Place place;
  place.positions[model_->device()] = numbers.position;
  place.length = numbers.length;
  place.tokens = 1;
  TANDEM_RETURN_IF_ERROR(RunTokens(numbers.token, place, 1, logits_));
  return logits_.view();
}

absl::Status Session::CountToken(int32_t token) {
  for (LayerCache& cache : caches_) TANDEM_RETURN_IF_ERROR(cache.whole()->Advance(1));
  ++position_;
  tokens_.push_back(token);
  return absl::OkStatus();
}

absl::Status Session::MoveResidual(DeviceKind from, DeviceKind to, int64_t begin, int64_t rows) {
  if (from == to || rows == 0) return absl::OkStatus();
  if (times_segments() && from == DeviceKind::kCuda) segment_.End(context_);
  TANDEM_RETURN_IF_ERROR(
      Copy(context_, Rows(on_[from].x, begin, rows), Rows(on_[to].x, begin, rows)));
  host_residual_in_use_ = to != DeviceKind::kCpu;
  if (to == DeviceKind::kCpu) return Synchronize(context_, from);
  if (times_segments()) segment_.Begin(context_);
  return absl::OkStatus();
}

absl::Status Session::CopySequence(const Session& from) {
  if (position_ != 0 || from.caches_.size() != caches_.size() || from.position_ > capacity_) {
    return InvalidArgument(
        "from: expected a session of the same model and capacity, and none here");
  }
  const int64_t length = from.position_;
  for (size_t i = 0; i < caches_.size(); ++i) {
    TANDEM_RETURN_IF_ERROR(caches_[i].CopyFrom(context_, from.caches_[i]));
  }
  if (context().device(DeviceKind::kCuda) != nullptr &&
      (model_->uses(DeviceKind::kCuda) || from.model_->uses(DeviceKind::kCuda))) {
    TANDEM_RETURN_IF_ERROR(Synchronize(context_, DeviceKind::kCuda));
  }
  position_ = length;
  tokens_ = from.tokens_;
  return absl::OkStatus();
}

}  // namespace tandem
