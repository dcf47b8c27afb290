// The steps of generation: one token through the model, and the choice of the next.
//
// On a GPU a step is one graph (dispatch/graph.h): copy of the step's numbers to the device,
// embedding, layers, LM head, choice, copy of the chosen token back. All that changes from step to
// step are the numbers {token, position, length, uniform}, which the host writes to page-locked
// memory and the graph's first node copies; the layers read positions and lengths from there, and
// attention is called on the whole capacity of the cache. So a graph stays valid for as long as the
// sequence fits its cache: the first step runs call by call (the workspace gets its size), the
// second is captured, and from then on each is one launch and one wait, for the token.
//
// Steps run call by call, with the same calls and so the same bits, where that is asked for
// (use_graph = false), and where the context traces, since a trace waits for every op. On the CPU,
// and where the model is on two devices, between which the host waits, there is nothing to launch:
// Session::Forward and the choice.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "core/tensor.h"
#include "dispatch/graph.h"
#include "model/decoder.h"

namespace tandem {

struct SamplingOptions {
  float temperature = 0.0f;  // 0: greedy, the rest is ignored
  int64_t top_k = 0;         // 0: no limit
  float top_p = 1.0f;        // (0, 1]
  // The same seed gives the same text on every machine whose logits agree.
  uint64_t seed = 0;
};

// The `index`-th number of a seed's sequence, uniform in [0, 1), a multiple of 2^-24. A function of
// its arguments alone: the splitmix64 sequence (Steele, Lea, Flood 2014), its upper 24 bits.
float UniformNumber(uint64_t seed, uint64_t index);

class DecodeSteps {
 public:
  // The session must outlive it. ResourceExhausted when out of memory.
  static absl::StatusOr<DecodeSteps> Create(Session& session, const SamplingOptions& sampling,
                                            bool use_graph);

  // Chooses a token from logits [1, vocabulary] on the model's device(), f32, contiguous, with the
  // `index`-th random number. DataLoss: they are not numbers.
  absl::StatusOr<int32_t> Choose(const TensorView& logits, uint64_t index);
  // Appends `token` to the session's sequence and chooses the one that follows. After an error the
  // sequence is as before the call (but after DataLoss, when the token has been appended).
  absl::StatusOr<int32_t> Next(int32_t token, uint64_t index);

  int64_t captures() const { return captures_; }
  int64_t launches() const { return launches_; }  // of graphs
  // How steps run, and why: for people.
  std::string_view mode() const;

 private:
  DecodeSteps(Session& session, const SamplingOptions& sampling, bool use_graph)
      : session_(&session), sampling_(sampling), use_graph_(use_graph) {}

  // Are the logits, is everything?
  bool on_gpu() const { return session_->model().device() != DeviceKind::kCpu; }
  bool all_on_gpu() const { return on_gpu() && session_->recordable(); }
  // Calls of one step, and of its end.
  absl::Status QueueStep();
  absl::Status QueueChoice(const TensorView& logits);
  absl::Status RunStep();
  // Waits for the token.
  absl::StatusOr<int32_t> Chosen();

  Session* session_;
  SamplingOptions sampling_;
  bool use_graph_;
  // Numbers in 32 bits each (Slot in decode_step.cc); of the CPU the same memory.
  Tensor host_, device_;
  Graph graph_;
  bool warm_ = false;  // has a step run call by call?
  int64_t captures_ = 0;
  int64_t launches_ = 0;
};

}  // namespace tandem
