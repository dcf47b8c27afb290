#include "model/generate.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <utility>

#include "core/status.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"

namespace tandem {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Chooses one token from logits [1, vocabulary], which stay where they are: of a GPU's only the
// token and its logit come back.
class Chooser {
 public:
  static absl::StatusOr<Chooser> Create(Context& context, DeviceKind device) {
    Chooser chooser(context, device);
    for (auto& [tensor, dtype] :
         {std::pair(&chooser.token_, DType::kI32), std::pair(&chooser.uniform_, DType::kF32)}) {
      TANDEM_ASSIGN_OR_RETURN(*tensor, AllocateOn(context, device, dtype, {1}));
    }
    return chooser;
  }

  absl::StatusOr<int32_t> Choose(const TensorView& logits, const SamplingOptions& options,
                                 uint64_t index) {
    if (options.temperature == 0.0f) {
      ArgMaxArgs args;
      args.x = logits;
      args.out = token_;
      TANDEM_RETURN_IF_ERROR(ArgMaxInto(context_, args));
    } else {
      float uniform = UniformNumber(options.seed, index);
      TANDEM_RETURN_IF_ERROR(Copy(context_, MakeView(&uniform, DType::kF32, {1}), uniform_));
      SampleArgs args;
      args.logits = logits;
      args.uniform = uniform_;
      args.out = token_;
      args.temperature = options.temperature;
      args.top_k = options.top_k;
      args.top_p = options.top_p;
      TANDEM_RETURN_IF_ERROR(SampleInto(context_, args));
    }
    int32_t token = 0;
    TANDEM_RETURN_IF_ERROR(Copy(context_, token_, MakeView(&token, DType::kI32, {1})));
    TANDEM_RETURN_IF_ERROR(Synchronize(context_, device_));
    float logit = 0.0f;
    TANDEM_RETURN_IF_ERROR(Copy(context_, Slice(Select(logits, 0, 0), 0, token, 1),
                                MakeView(&logit, DType::kF32, {1})));
    TANDEM_RETURN_IF_ERROR(Synchronize(context_, device_));
    if (std::isnan(logit)) {
      return absl::DataLossError("the model's logits are not numbers: its weights are damaged");
    }
    return token;
  }

 private:
  Chooser(Context& context, DeviceKind device) : context_(context), device_(device) {}

  Context& context_;
  DeviceKind device_;
  Tensor token_, uniform_;  // [1]
};

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

float UniformNumber(uint64_t seed, uint64_t index) {
  uint64_t z = seed + (index + 1) * 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  z ^= z >> 31;
  return static_cast<float>(z >> 40) * 0x1p-24f;
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
  TANDEM_ASSIGN_OR_RETURN(Chooser chooser,
                          Chooser::Create(session.context(), session.model().device()));
  TANDEM_ASSIGN_OR_RETURN(TensorView logits, RunPrompt(session, ids, options));

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
  while (stats.generated_tokens < options.max_tokens) {
    TANDEM_ASSIGN_OR_RETURN(
        const int32_t token,
        chooser.Choose(logits, options.sampling, static_cast<uint64_t>(stats.generated_tokens)));
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
    TANDEM_ASSIGN_OR_RETURN(logits, session.Forward({&token, 1}));
    ++stats.forwarded_tokens;
  }
  if (!stopped) {  // what was held back can no longer become anything else
    bool found = false;
    const std::string last = filter.Push(stream.Finish(), found);
    if (found) result.stop = StopReason::kStopString;
    if (!emit(last) && !found) emit(filter.Finish());
  }
  stats.generation_seconds = SecondsSince(generation_begin);
  return result;
}

}  // namespace tandem
