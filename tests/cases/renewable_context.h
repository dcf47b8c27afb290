// A context that is made anew when one of its devices is lost: after the error of a kernel a CUDA
// device refuses all work, and the runs that follow would be blamed for it.
#pragma once

#include <memory>
#include <utility>

#include "absl/status/statusor.h"
#include "core/status.h"
#include "dispatch/context.h"

namespace tandem::cases {

class RenewableContext {
 public:
  static absl::StatusOr<RenewableContext> Create(const ContextOptions& options) {
    TANDEM_ASSIGN_OR_RETURN(std::unique_ptr<Context> context, Context::Create(options));
    return RenewableContext(options, std::move(context));
  }

  Context& operator*() const { return *context_; }
  Context* operator->() const { return context_.get(); }

  // To be called after a run that failed; nothing of the context may be in use. True if it was made
  // anew. Where that cannot be done (a GPU is lost to the whole process) the context stays, and
  // later runs report the error themselves.
  bool RenewIfLost(DeviceKind kind) {
    if (context_->device(kind)->stream->Synchronize().ok()) return false;
    absl::StatusOr<std::unique_ptr<Context>> fresh = Context::Create(options_);
    if (!fresh.ok()) return false;
    context_ = *std::move(fresh);
    return true;
  }

 private:
  RenewableContext(const ContextOptions& options, std::unique_ptr<Context> context)
      : options_(options), context_(std::move(context)) {}

  ContextOptions options_;
  std::unique_ptr<Context> context_;
};

}  // namespace tandem::cases
