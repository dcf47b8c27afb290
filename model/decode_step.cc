#include "model/decode_step.h"

#include <bit>
#include <cmath>
#include <utility>

#include "core/status.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"

namespace tandem {
namespace {

// What the host tells a step, and what it is told.
enum Slot : int64_t {
  kToken,
  kPosition,
  kLength,   // position + 1: keys that the token sees
  kUniform,  // bits of an f32
  kInputs,
  kChosen = kInputs,
  kLogit,  // of the chosen token, bits of an f32
  kSlots,
};

TensorView At(const Tensor& slots, Slot slot, DType dtype = DType::kI32) {
  TensorView view = Slice(slots.view(), 0, slot, 1);
  view.dtype = dtype;
  return view;
}

TensorView Range(const Tensor& slots, Slot begin, Slot end) {
  return Slice(slots.view(), 0, begin, end - begin);
}

}  // namespace

float UniformNumber(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return static_cast<float>(z >> 40) * 0x1p-24f;
}

absl::StatusOr<DecodeSteps> DecodeSteps::Create(Session& session, const SamplingOptions& sampling,
                                                bool use_graph) {
  DecodeSteps steps(session, sampling, use_graph);
  Context& context = session.context();
  const DeviceKind kind = session.model().device();
  TANDEM_ASSIGN_OR_RETURN(steps.device_, AllocateOn(context, kind, DType::kI32, {kSlots}));
  steps.host_ = steps.device_;
  if (!steps.on_gpu()) return steps;
  Allocator* pinned = context.device(kind)->backend->pinned_allocator();
  TANDEM_ASSIGN_OR_RETURN(steps.host_,
                          Tensor::Allocate(pinned != nullptr ? *pinned : context.host_allocator(),
                                           DType::kI32, {kSlots}));
  return steps;
}

std::string_view DecodeSteps::mode() const {
  if (!session_->model().on_one_device()) {
    return "call by call: the model is on two devices, between which the host waits";
  }
  if (!on_gpu()) return "call by call: the CPU has no graphs";
  if (!session_->recordable()) {
    return "call by call: the cache is on two devices, between which the host waits";
  }
  if (!use_graph_) return "call by call: graphs are off";
  if (session_->context().trace().enabled()) return "call by call: a trace times every op";
  return "one graph per token";
}

absl::Status DecodeSteps::QueueChoice(const TensorView& logits) {
  Context& context = session_->context();
  const PlacedCalls placed(context, !session_->model().on_one_device());
  const TensorView chosen = At(device_, kChosen);
  if (sampling_.temperature == 0.0f) {
    ArgMaxArgs args;
    args.x = logits;
    args.out = chosen;
    TANDEM_RETURN_IF_ERROR(ArgMaxInto(context, args));
  } else {
    SampleArgs args;
    args.logits = logits;
    args.uniform = At(device_, kUniform, DType::kF32);
    args.out = chosen;
    args.temperature = sampling_.temperature;
    args.top_k = sampling_.top_k;
    args.top_p = sampling_.top_p;
    TANDEM_RETURN_IF_ERROR(SampleInto(context, args));
  }
  // The logits as a table of one column: its row `chosen` is the token's logit.
  EmbeddingArgs pick;
  pick.table = Transpose(logits, 0, 1);
  pick.ids = chosen;
  pick.out = At(device_, kLogit, DType::kF32);
  pick.out.shape = {1, 1};
  pick.out.strides = {1, 1};
  TANDEM_RETURN_IF_ERROR(EmbeddingInto(context, pick));
  if (!on_gpu()) return absl::OkStatus();
  return Copy(context, Range(device_, kChosen, kSlots), Range(host_, kChosen, kSlots));
}

absl::Status DecodeSteps::QueueStep() {
  TANDEM_RETURN_IF_ERROR(
      Copy(session_->context(), Range(host_, kToken, kInputs), Range(device_, kToken, kInputs)));
  TANDEM_ASSIGN_OR_RETURN(
      const TensorView logits,
      session_->QueueToken({At(device_, kToken), At(device_, kPosition), At(device_, kLength)}));
  return QueueChoice(logits);
}

absl::Status DecodeSteps::RunStep() {
  const bool graphs = use_graph_ && !session_->context().trace().enabled();
  if (!graphs || !warm_) {
    warm_ = true;
    return QueueStep();
  }
  if (!graph_) {
    TANDEM_ASSIGN_OR_RETURN(graph_, Graph::Capture(session_->context(), session_->model().device(),
                                                   [this] { return QueueStep(); }));
    ++captures_;
  }
  TANDEM_RETURN_IF_ERROR(graph_.Launch());
  ++launches_;
  return absl::OkStatus();
}

absl::StatusOr<int32_t> DecodeSteps::Chosen() {
  TANDEM_RETURN_IF_ERROR(Synchronize(session_->context(), session_->model().device()));
  if (std::isnan(*At(host_, kLogit).At<float>(0))) {
    return absl::DataLossError("the model's logits are not numbers: its weights are damaged");
  }
  return *At(host_, kChosen).At<int32_t>(0);
}

absl::StatusOr<int32_t> DecodeSteps::Choose(const TensorView& logits, uint64_t index) {
  *At(host_, kUniform).At<float>(0) = UniformNumber(sampling_.seed, index);
  if (on_gpu()) {
    TANDEM_RETURN_IF_ERROR(Copy(session_->context(), Range(host_, kUniform, kInputs),
                                Range(device_, kUniform, kInputs)));
  }
  TANDEM_RETURN_IF_ERROR(QueueChoice(logits));
  return Chosen();
}

absl::StatusOr<int32_t> DecodeSteps::Next(int32_t token, uint64_t index) {
  if (!all_on_gpu()) {
    const int64_t before = session_->position();
    TANDEM_ASSIGN_OR_RETURN(const TensorView logits, session_->Forward({&token, 1}));
    absl::StatusOr<int32_t> chosen = Choose(logits, index);
    if (!chosen.ok() && !absl::IsDataLoss(chosen.status())) {
      TANDEM_RETURN_IF_ERROR(session_->Truncate(before));
    }
    return chosen;
  }
  TANDEM_RETURN_IF_ERROR(session_->CheckTokens({&token, 1}));
  // Nothing is under way that would still read these: every step has been waited for.
  auto* numbers = host_.As<int32_t>();
  numbers[kToken] = token;
  numbers[kPosition] = static_cast<int32_t>(session_->position());
  numbers[kLength] = static_cast<int32_t>(session_->position() + 1);
  numbers[kUniform] = std::bit_cast<int32_t>(UniformNumber(sampling_.seed, index));
  if (absl::Status status = RunStep(); !status.ok()) {
    // What was queued reads and writes our memory.
    Synchronize(session_->context(), session_->model().device()).IgnoreError();
    return status;
  }
  absl::StatusOr<int32_t> chosen = Chosen();
  if (!chosen.ok() && !absl::IsDataLoss(chosen.status())) return chosen;
  TANDEM_RETURN_IF_ERROR(session_->CountToken(token));
  return chosen;
}

}  // namespace tandem
