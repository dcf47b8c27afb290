// Text generation: prompt, then one token after the other by greedy choice or sampling, until
// something stops it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/decode_step.h"
#include "model/decoder.h"
#include "model/recovery.h"
#include "model/tokenizer.h"

namespace tandem {

enum class StopReason : uint8_t {
  kEndToken,    // the model produced a token that ends the text
  kStopString,  // one of options.stop appeared; neither it nor what follows is in the text
  kMaxTokens,
  kContextFull,  // the session's capacity is used up
  kCancelled,    // on_text returned false
};
std::string_view Name(StopReason reason);  // "end_token", ...

struct GenerateOptions {
  int64_t max_tokens = 256;  // >= 0
  SamplingOptions sampling;
  std::vector<std::string> stop;  // none may be empty
  bool ignore_end_tokens = false;
  bool cuda_graph = true;     // on a GPU: a token is one graph (model/decode_step.h)
  bool parse_special = true;  // of the prompt, see EncodeOptions

  // Called with each piece of text as soon as it is certain: valid UTF-8, no part of a stop string.
  // Returning false ends the generation.
  std::function<bool(std::string_view text)> on_text;
  // Called after each chunk of the prompt.
  std::function<void(int64_t done, int64_t total)> on_prompt;
};

struct GenerateStats {
  int64_t prompt_tokens = 0;
  double prompt_seconds = 0.0;       // until the logits of the first new token are there
  int64_t generated_tokens = 0;      // an end token included
  int64_t forwarded_tokens = 0;      // of those, how many went through the model again
  double generation_seconds = 0.0;   // of those forwards, and of all sampling
  int64_t graph_captures = 0;        // graphs made for those forwards
  int64_t graph_launches = 0;        // forwards that were one launch of a graph
  std::vector<Recovery> recoveries;  // times that a GPU failed and the CPU went on
  std::string steps;                 // how forwards ran, and why: DecodeSteps::mode

  double PromptTokensPerSecond() const;
  double GenerationTokensPerSecond() const;  // forwarded tokens per second
};

struct Generation {
  std::vector<int32_t> tokens;
  std::string text;
  StopReason stop = StopReason::kMaxTokens;
  GenerateStats stats;
};

// Continues the session's sequence with `prompt` (the first one gets the BOS token if the file asks
// for one), then generates. InvalidArgument for bad options, for a prompt without tokens or longer
// than what is left of the session's capacity, and for a tokenizer of another vocabulary size; the
// session is then unchanged. A GPU that fails, and that nobody forced, does not end the generation:
// the session goes on with the CPU (model/recovery.h).
absl::StatusOr<Generation> Generate(Session& session, const Tokenizer& tokenizer,
                                    std::string_view prompt, const GenerateOptions& options);

}  // namespace tandem
