#include "model/recovery.h"

#include <chrono>
#include <utility>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "dispatch/copy.h"

namespace tandem {
namespace {

// Fills an empty session with another's sequence. Copies the cache if the device lets it.
absl::StatusOr<Recovery::Cache> FillFrom(const Session& from, bool lost, Session& to) {
  if (from.position() == 0) return Recovery::Cache::kCopied;
  if (!lost && to.CopySequence(from).ok()) return Recovery::Cache::kCopied;
  TANDEM_RETURN_IF_ERROR(to.Feed(from.tokens()));
  return Recovery::Cache::kComputed;
}

// The error of a device that nobody forced?
bool MayGoOn(const Context& context, const absl::Status& error) {
  return CauseOf(error).has_value() && !context.options().device.has_value();
}

absl::StatusOr<std::shared_ptr<const Model>> LoadOnCpu(Context& context,
                                                       std::shared_ptr<const GgufFile> file,
                                                       ModelOptions options) {
  options.device = DeviceKind::kCpu;
  options.placement.reset();
  return Model::Load(context, std::move(file), options);
}

void Report(Context& context, std::string what, const absl::Status& error) {
  context.ReportFault({std::move(what), context.device(DeviceKind::kCuda)->backend->device(),
                       CauseOf(error).value_or(FaultCause::kError), FaultRemedy::kMovedToCpu,
                       Message(error)});
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Model>> LoadModel(Context& context,
                                                       std::shared_ptr<const GgufFile> file,
                                                       const ModelOptions& options) {
  absl::StatusOr<std::shared_ptr<const Model>> model = Model::Load(context, file, options);
  if (model.ok() || !MayGoOn(context, model.status()) ||
      context.device(DeviceKind::kCuda) == nullptr) {
    return model;
  }
  Report(context, "weights", model.status());
  return LoadOnCpu(context, std::move(file), options);
}

absl::StatusOr<std::unique_ptr<Session>> CreateSession(Context& context,
                                                       const std::shared_ptr<const Model>& model,
                                                       const SessionOptions& options) {
  absl::StatusOr<std::unique_ptr<Session>> session = Session::Create(context, model, options);
  if (session.ok() || !MayGoOn(context, session.status()) || !model->uses(DeviceKind::kCuda)) {
    return session;
  }
  Report(context, "session", session.status());
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<const Model> there,
                          LoadOnCpu(context, model->file(), model->options()));
  return Session::Create(context, std::move(there), options);
}

std::string Describe(const Recovery& r) {
  std::string_view cache;
  if (r.position > 0) {
    cache = r.cache == Recovery::Cache::kCopied ? ", the cache copied back"
                                                : ", the cache computed again";
  }
  return absl::StrFormat("%s: %s after %d tokens (%s); went on with the CPU%s, in %.2f s", r.device,
                         std::string(Name(r.cause)), r.position, r.error, std::string(cache),
                         r.seconds);
}

bool MayRecover(const Session& session, const absl::Status& error) {
  return session.model().uses(DeviceKind::kCuda) && MayGoOn(session.context(), error);
}

absl::StatusOr<Recovery> RecoverOnCpu(Session& session, const absl::Status& error) {
  const auto begin = std::chrono::steady_clock::now();
  Context& context = session.context();
  Recovery recovery;
  recovery.cause = CauseOf(error).value_or(FaultCause::kError);
  recovery.device = Name(context.device(DeviceKind::kCuda)->backend->device());
  recovery.error = Message(error);
  recovery.position = session.position();
  TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<const Model> model,
                          LoadOnCpu(context, session.model().file(), session.model().options()));
  TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Session> fresh,
                          Session::Create(context, std::move(model), session.options()));
  const bool lost = recovery.cause == FaultCause::kDeviceLost || context.health().lost();
  TANDEM_ASSIGN_OR_RETURN(recovery.cache, FillFrom(session, lost, *fresh));
  session.Become(std::move(*fresh));
  recovery.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  Report(context, "generation", error);
  return recovery;
}

absl::StatusOr<ResilientSteps> ResilientSteps::Create(Session& session,
                                                      const SamplingOptions& sampling,
                                                      bool use_graph) {
  ResilientSteps steps(session, sampling, use_graph);
  steps.fallbacks_before_ = steps.Fallbacks();
  absl::StatusOr<DecodeSteps> made = DecodeSteps::Create(session, sampling, use_graph);
  if (made.ok()) {
    steps.steps_.emplace(*std::move(made));
  } else {
    TANDEM_RETURN_IF_ERROR(steps.Recover(made.status()));
  }
  return steps;
}

int64_t ResilientSteps::Fallbacks() const {
  return session_->context().health().counters().resident_fallbacks;
}

absl::Status ResilientSteps::Recover(const absl::Status& error) {
  if (!MayRecover(*session_, error)) return error;
  absl::StatusOr<Recovery> recovery = RecoverOnCpu(*session_, error);
  if (!recovery.ok()) {
    return absl::Status(
        error.code(),
        absl::StrCat(Message(error), "; and the CPU cannot go on: ", Message(recovery.status())));
  }
  recoveries_.push_back(*std::move(recovery));
  TANDEM_ASSIGN_OR_RETURN(DecodeSteps steps, DecodeSteps::Create(*session_, sampling_, use_graph_));
  if (steps_) {
    captures_ += steps_->captures();
    launches_ += steps_->launches();
  }
  steps_.emplace(std::move(steps));
  return absl::OkStatus();
}

absl::StatusOr<TensorView> ResilientSteps::Prompt(
    const std::function<absl::StatusOr<TensorView>()>& prompt) {
  absl::StatusOr<TensorView> logits = prompt();
  if (logits.ok()) return logits;
  TANDEM_RETURN_IF_ERROR(Recover(logits.status()));
  return prompt();
}

absl::StatusOr<int32_t> ResilientSteps::Choose(const TensorView& logits, uint64_t index) {
  absl::StatusOr<int32_t> token = steps_->Choose(logits, index);
  if (token.ok() || absl::IsDataLoss(token.status())) return token;
  TANDEM_RETURN_IF_ERROR(Recover(token.status()));
  // The logits lay on the device: those of the last token, once more.
  const int64_t position = session_->position();
  const int32_t last = session_->tokens().back();
  TANDEM_RETURN_IF_ERROR(session_->Truncate(position - 1));
  TANDEM_ASSIGN_OR_RETURN(const TensorView again, session_->Forward({&last, 1}));
  return steps_->Choose(again, index);
}

absl::StatusOr<int32_t> ResilientSteps::Next(int32_t token, uint64_t index) {
  absl::StatusOr<int32_t> next = steps_->Next(token, index);
  if (next.ok()) {
    const absl::Status often =
        absl::InternalError("too many calls had to be run on the CPU instead");
    if (Fallbacks() - fallbacks_before_ >= kMostFallbacks && MayRecover(*session_, often)) {
      fallbacks_before_ = Fallbacks();
      const absl::Status status = Recover(often);
      // One that cannot leave can still go on.
      if (!status.ok() && !session_->model().uses(DeviceKind::kCuda)) return status;
    }
    return next;
  }
  if (absl::IsDataLoss(next.status())) return next;
  TANDEM_RETURN_IF_ERROR(Recover(next.status()));
  return steps_->Next(token, index);
}

}  // namespace tandem
