// A generation outlives its GPU: when a step fails there (out of memory, a launch that fails, a
// lost device) the session is brought to the CPU and goes on with the same tokens.
//
//   weights    from the mapped file, which is never given up
//   cache      copied back while the device answers; where it does not, or the copy fails, computed
//              again from the tokens so far, which the session knows
// Only where nobody forced the device (ContextOptions::device): then the error is the caller's.
// Single calls that fail are made good below, one by one (dispatch/fallback.h); a session most of
// whose calls go that way is brought to the CPU as well, for it fetches weights every time.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "dispatch/device_health.h"
#include "model/decode_step.h"
#include "model/decoder.h"

namespace tandem {

// Model::Load and Session::Create; where nobody forced the GPU and it fails, on the CPU.
absl::StatusOr<std::shared_ptr<const Model>> LoadModel(Context& context,
                                                       std::shared_ptr<const GgufFile> file,
                                                       const ModelOptions& options = {});
absl::StatusOr<std::unique_ptr<Session>> CreateSession(Context& context,
                                                       const std::shared_ptr<const Model>& model,
                                                       const SessionOptions& options = {});

struct Recovery {
  enum class Cache : uint8_t { kCopied, kComputed };
  FaultCause cause = FaultCause::kError;
  std::string device;    // that failed: "cuda:0"
  std::string error;     // its words
  int64_t position = 0;  // tokens of the sequence then
  Cache cache = Cache::kCopied;
  double seconds = 0.0;  // that it took
};
// "cuda:0: device lost after 37 tokens (...); went on with the CPU, the cache computed again, in
// 0.12 s"
std::string Describe(const Recovery& recovery);

// May a session that has failed with this error go on with the CPU? It must be (also) on a GPU,
// the error a fault of that device, and the device not forced.
bool MayRecover(const Session& session, const absl::Status& error);

// Brings the session and its sequence to the CPU. The session is unchanged if that fails.
absl::StatusOr<Recovery> RecoverOnCpu(Session& session, const absl::Status& error);

// DecodeSteps that recover.
class ResilientSteps {
 public:
  // Calls answered by the CPU for want of the GPU after which a session leaves it.
  static constexpr int64_t kMostFallbacks = 8;

  // The session must outlive it.
  static absl::StatusOr<ResilientSteps> Create(Session& session, const SamplingOptions& sampling,
                                               bool use_graph);

  // Runs `prompt`, which appends tokens to the session and returns the logits that follow, or
  // leaves the sequence as it was; on the CPU once more should the GPU fail.
  absl::StatusOr<TensorView> Prompt(const std::function<absl::StatusOr<TensorView>()>& prompt);
  // As those of DecodeSteps. `logits`: of the sequence as it is.
  absl::StatusOr<int32_t> Choose(const TensorView& logits, uint64_t index);
  absl::StatusOr<int32_t> Next(int32_t token, uint64_t index);

  const std::vector<Recovery>& recoveries() const { return recoveries_; }
  int64_t captures() const { return captures_ + steps_->captures(); }
  int64_t launches() const { return launches_ + steps_->launches(); }
  std::string_view mode() const { return steps_->mode(); }

 private:
  ResilientSteps(Session& session, const SamplingOptions& sampling, bool use_graph)
      : session_(&session), sampling_(sampling), use_graph_(use_graph) {}

  // Makes the session's steps, and the session ready for them. `error`: why it cannot stay.
  absl::Status Recover(const absl::Status& error);
  int64_t Fallbacks() const;

  Session* session_;
  SamplingOptions sampling_;
  bool use_graph_;
  int64_t fallbacks_before_ = 0;
  std::optional<DecodeSteps> steps_;
  std::vector<Recovery> recoveries_;
  int64_t captures_ = 0, launches_ = 0;  // of steps that are no more
};

}  // namespace tandem
