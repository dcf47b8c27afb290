#include "model/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "core/status.h"

namespace tandem {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Lets text through up to a stop string; holds back what may become one.
class StopFilter {
 public:
  explicit StopFilter(const std::vector<std::string>& stop) : stop_(stop) {}

  // Text that is now certain. `found` turns true at a stop string; it and the rest are dropped.
  std::string Push(std::string_view text, bool& found) {
    held_ += text;
    size_t end = std::string::npos;
    for (const std::string& stop : stop_) end = std::min(end, held_.find(stop));
    found = end != std::string::npos;
    if (!found) end = held_.size() - Undecided();
    std::string certain = held_.substr(0, end);
    held_.erase(0, found ? std::string::npos : end);
    return certain;
  }

  std::string Finish() { return std::move(held_); }

 private:
  // Length of the longest end of held_ that begins a stop string.
  size_t Undecided() const {
    size_t longest = 0;
    for (const std::string& stop : stop_) {
      for (size_t n = std::min(stop.size() - 1, held_.size()); n > longest; --n) {
        if (held_.compare(held_.size() - n, n, stop, 0, n) == 0) longest = n;
      }
    }
    return longest;
  }

  const std::vector<std::string>& stop_;
  std::string held_;
};

absl::Status CheckOptions(const GenerateOptions& options) {
  const SamplingOptions& s = options.sampling;
  if (options.max_tokens < 0) {
    return InvalidArgument("max_tokens: expected >= 0, got ", options.max_tokens);
  }
  if (!(s.temperature >= 0.0f) || !std::isfinite(s.temperature)) {
    return InvalidArgument("temperature: expected a finite number >= 0, got ", s.temperature);
  }
  if (s.top_k < 0) return InvalidArgument("top_k: expected >= 0, got ", s.top_k);
  if (!(s.top_p > 0.0f && s.top_p <= 1.0f)) {
    return InvalidArgument("top_p: expected a number in (0, 1], got ", s.top_p);
  }
  for (const std::string& stop : options.stop) {
    if (stop.empty()) return InvalidArgument("stop: expected strings that are not empty");
  }
  return absl::OkStatus();
}

// Runs the prompt in chunks; the logits behind its last token.
absl::StatusOr<TensorView> RunPrompt(Session& session, std::span<const int32_t> ids,
                                     const GenerateOptions& options) {
  const auto total = static_cast<int64_t>(ids.size());
  const int64_t before = session.position();
  if (total > session.capacity() - before) {
    return InvalidArgument("prompt: expected at most ", session.capacity() - before,
                           " tokens (what is left of the session's capacity of ",
                           session.capacity(), "), got ", total);
  }
  const auto chunk = static_cast<size_t>(session.ubatch());
  while (ids.size() > chunk) {
    if (absl::Status status = session.Feed(ids.first(chunk)); !status.ok()) {
      status.Update(session.Truncate(before));
      return status;
    }
    ids = ids.subspan(chunk);
    if (options.on_prompt) options.on_prompt(total - static_cast<int64_t>(ids.size()), total);
  }
  auto logits = session.Forward(ids);
  if (!logits.ok()) {
    absl::Status status = logits.status();
    status.Update(session.Truncate(before));
    return status;
  }
  if (options.on_prompt) options.on_prompt(total, total);
  return logits;
}

}  // namespace

std::string_view Name(StopReason reason) {
  switch (reason) {
    case StopReason::kEndToken:
      return "end_token";
    case StopReason::kStopString:
      return "stop_string";
    case StopReason::kMaxTokens:
      return "max_tokens";
    case StopReason::kContextFull:
      return "context_full";
    case StopReason::kCancelled:
      return "cancelled";
  }
  return "unknown";
}

double GenerateStats::PromptTokensPerSecond() const {
  return prompt_seconds > 0.0 ? static_cast<double>(prompt_tokens) / prompt_seconds : 0.0;
}

double GenerateStats::GenerationTokensPerSecond() const {
  return generation_seconds > 0.0 ? static_cast<double>(forwarded_tokens) / generation_seconds
                                  : 0.0;
}

absl::StatusOr<Generation> Generate(Session& session, const Tokenizer& tokenizer,
                                    std::string_view prompt, const GenerateOptions& options) {
  TANDEM_RETURN_IF_ERROR(CheckOptions(options));
  const int64_t vocabulary = session.model().config().vocabulary;
  if (tokenizer.size() != vocabulary) {
    return InvalidArgument("tokenizer: expected the model's ", vocabulary, " tokens, got ",
                           tokenizer.size());
  }
  const auto prompt_begin = std::chrono::steady_clock::now();
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int32_t> ids,
                          tokenizer.Encode(prompt, {.add_special = session.position() == 0,
                                                    .parse_special = options.parse_special}));
  if (ids.empty()) return InvalidArgument("prompt: expected text that gives at least one token");
  TANDEM_ASSIGN_OR_RETURN(ResilientSteps steps,
                          ResilientSteps::Create(session, options.sampling, options.cuda_graph));
  TANDEM_ASSIGN_OR_RETURN(const TensorView logits,
                          steps.Prompt([&] { return RunPrompt(session, ids, options); }));

  Generation result;
  GenerateStats& stats = result.stats;
  stats.prompt_tokens = static_cast<int64_t>(ids.size());
  stats.prompt_seconds = SecondsSince(prompt_begin);
  const auto generation_begin = std::chrono::steady_clock::now();
  StreamDecoder stream(tokenizer);
  StopFilter filter(options.stop);
  bool stopped = false;
  // Passes text on; true when it ends the generation.
  const auto emit = [&](std::string_view text) {
    if (text.empty()) return false;
    result.text += text;
    if (!options.on_text || options.on_text(text)) return false;
    result.stop = StopReason::kCancelled;
    return stopped = true;
  };
  int32_t token = 0;
  if (options.max_tokens > 0) {
    TANDEM_ASSIGN_OR_RETURN(token, steps.Choose(logits, 0));
  }
  while (stats.generated_tokens < options.max_tokens) {
    result.tokens.push_back(token);
    ++stats.generated_tokens;
    if (!options.ignore_end_tokens && tokenizer.vocabulary().EndsGeneration(token)) {
      result.stop = StopReason::kEndToken;
      break;
    }
    TANDEM_ASSIGN_OR_RETURN(const std::string text, stream.Push(token));
    bool found = false;
    const std::string certain = filter.Push(text, found);
    if (found) result.stop = StopReason::kStopString;
    if (emit(certain) || found) {
      stopped = true;
      break;
    }
    if (stats.generated_tokens == options.max_tokens) break;
    if (session.position() == session.capacity()) {
      result.stop = StopReason::kContextFull;
      break;
    }
    TANDEM_ASSIGN_OR_RETURN(token,
                            steps.Next(token, static_cast<uint64_t>(stats.generated_tokens)));
    ++stats.forwarded_tokens;
  }
  if (!stopped) {  // what was held back can no longer become anything else
    bool found = false;
    const std::string last = filter.Push(stream.Finish(), found);
    if (found) result.stop = StopReason::kStopString;
    if (!emit(last) && !found) emit(filter.Finish());
  }
  stats.generation_seconds = SecondsSince(generation_begin);
  stats.graph_captures = steps.captures();
  stats.graph_launches = steps.launches();
  stats.recoveries = steps.recoveries();
  stats.steps = std::string(steps.mode());
  return result;
}

}  // namespace tandem
