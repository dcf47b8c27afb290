// tandem bench-model: prompt and generation speed of a model file, beside the read bandwidth
// measured in the same run.
//
// Prompt: `prompt-tokens` pseudo-random tokens at once, logits of the last. Generation:
// `gen-tokens` steps of one token from an empty cache (as llama-bench's pp and tg do). One warm-up
// (of `warm-up-tokens` each, if that is less), then `repetitions` of each in turn; medians. A
// generated token reads every weight and the cache once, so generation is bounded by read bandwidth
// over those bytes. The rates per CPU second (one thread: what a busy machine would show were it
// quiet) include threads that spin at a barrier. Memory: the most that was resident until then,
// beside what it must hold, weights and KV cache.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <ctime>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "cpu/backend.h"
#include "model/decoder.h"
#include "tools/command.h"
#include "tools/model_options.h"
#include "tools/process_memory.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

struct Options {
  ComputeOptions compute;
  ModelArguments model;
  int64_t prompt_tokens = 512;
  int64_t gen_tokens = 64;
  int64_t warm_up_tokens = 0;
  int repetitions = 3;
  bool json = false;
};

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double CpuSeconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return n % 2 ? values[n / 2] : 0.5 * (values[n / 2 - 1] + values[n / 2]);
}

absl::Status Run(const Options& o) {
  TANDEM_ASSIGN_OR_RETURN(const ContextOptions context_options,
                          ToContextOptions(o.compute, o.model));
  TANDEM_ASSIGN_OR_RETURN(auto context, OpenContext(context_options));
  TANDEM_ASSIGN_OR_RETURN(const auto model, OpenModel(*context, o.model));
  TANDEM_ASSIGN_OR_RETURN(SessionOptions session_options, ToSessionOptions(o.model));
  if (session_options.capacity == 0) {
    session_options.capacity = std::max(o.prompt_tokens, o.gen_tokens);
  }
  TANDEM_ASSIGN_OR_RETURN(auto session, Session::Create(*context, model, session_options));

  std::vector<int32_t> prompt(static_cast<size_t>(o.prompt_tokens));
  uint64_t state = 1;
  for (int32_t& id : prompt) {
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    id = static_cast<int32_t>((state >> 33) % static_cast<uint64_t>(model->config().vocabulary));
  }
  const auto prompt_seconds = [&](int64_t most) -> absl::StatusOr<double> {
    TANDEM_RETURN_IF_ERROR(session->Truncate(0));
    const auto tokens =
        std::span(prompt).first(static_cast<size_t>(std::min(o.prompt_tokens, most)));
    const double start = Seconds();
    if (!tokens.empty()) TANDEM_RETURN_IF_ERROR(session->Forward(tokens).status());
    return Seconds() - start;
  };
  const auto generation_seconds = [&](int64_t most) -> absl::StatusOr<double> {
    TANDEM_RETURN_IF_ERROR(session->Truncate(0));
    const double start = Seconds();
    for (int64_t i = 0; i < std::min(o.gen_tokens, most); ++i) {
      const int32_t id = static_cast<int32_t>(i % model->config().vocabulary);
      TANDEM_RETURN_IF_ERROR(session->Forward(std::span(&id, 1)).status());
    }
    return Seconds() - start;
  };

  Progress progress("bench-model");
  std::vector<double> prompt_rates, generation_rates, prompt_cpu_rates, generation_cpu_rates;
  for (int i = 0; i <= o.repetitions; ++i) {  // the first is the warm-up
    const int64_t most =
        i == 0 && o.warm_up_tokens > 0 ? o.warm_up_tokens : std::max(o.prompt_tokens, o.gen_tokens);
    const double cpu_start = CpuSeconds();
    TANDEM_ASSIGN_OR_RETURN(const double p, prompt_seconds(most));
    const double cpu_middle = CpuSeconds();
    progress.Update(2 * i + 1, 2 * o.repetitions + 2, "prompt");
    TANDEM_ASSIGN_OR_RETURN(const double g, generation_seconds(most));
    const double cpu_end = CpuSeconds();
    progress.Update(2 * i + 2, 2 * o.repetitions + 2, "generation");
    if (i == 0) continue;
    if (o.prompt_tokens > 0) {
      prompt_rates.push_back(static_cast<double>(o.prompt_tokens) / p);
      prompt_cpu_rates.push_back(static_cast<double>(o.prompt_tokens) / (cpu_middle - cpu_start));
    }
    if (o.gen_tokens > 0) {
      generation_rates.push_back(static_cast<double>(o.gen_tokens) / g);
      generation_cpu_rates.push_back(static_cast<double>(o.gen_tokens) / (cpu_end - cpu_middle));
    }
  }
  const int64_t peak_bytes =
      PeakResidentBytes();  // the bandwidth below is measured in a GiB of its own
  const cpu::CpuInfo info = cpu::DescribeCpu();
  const int threads = context_options.threads > 0 ? context_options.threads : info.cores;
  const double bandwidth = cpu::MeasureReadBandwidth(threads, int64_t{1} << 30);

  const DecoderConfig& config = model->config();
  // Of the embedding one row is read per token, unless the output matrix is the same tensor.
  const DecoderWeights& weights = model->weights();
  const int64_t embedding = ByteOffset(weights.embedding.dtype, weights.embedding.num_elements());
  const int64_t model_bytes = weights.bytes() - (weights.tied ? 0 : embedding);
  const int64_t kv_bytes =
      config.layers * ((config.k_dim() + config.v_dim()) * BlockBytes(session_options.kv_dtype) +
                       (session_options.kv_dtype == DType::kI8 ? 2 * config.kv_heads * 4 : 0));
  const int64_t must_bytes = weights.bytes() + kv_bytes * session_options.capacity;
  const double prompt_rate = prompt_rates.empty() ? 0.0 : Median(prompt_rates);
  const double generation_rate = generation_rates.empty() ? 0.0 : Median(generation_rates);
  // Mean cache length of the generation is half its tokens.
  const double bytes_per_token =
      static_cast<double>(model_bytes) +
      static_cast<double>(kv_bytes) * 0.5 * static_cast<double>(o.gen_tokens);
  const double prompt_cpu_rate = prompt_cpu_rates.empty() ? 0.0 : Median(prompt_cpu_rates);
  const double generation_cpu_rate =
      generation_cpu_rates.empty() ? 0.0 : Median(generation_cpu_rates);
  const double share = generation_rate * bytes_per_token * 1e-9 / bandwidth;

  if (o.json) {
    const nlohmann::json json = {
        {"model", o.model.path},
        {"cpu", info.model},
        {"threads", threads},
        {"prompt_tokens", o.prompt_tokens},
        {"generated_tokens", o.gen_tokens},
        {"prompt_tokens_per_second", prompt_rate},
        {"generation_tokens_per_second", generation_rate},
        {"prompt_tokens_per_cpu_second", prompt_cpu_rate},
        {"generation_tokens_per_cpu_second", generation_cpu_rate},
        {"model_bytes", model_bytes},
        {"kv_bytes_per_token", kv_bytes},
        {"weight_bytes", weights.bytes()},
        {"kv_cache_bytes", kv_bytes * session_options.capacity},
        {"peak_resident_bytes", peak_bytes > 0 ? nlohmann::json(peak_bytes) : nlohmann::json()},
        {"read_bandwidth_gbps", bandwidth},
        {"share_of_read_bandwidth", share}};
    std::cout << json.dump(2) << "\n";
    return absl::OkStatus();
  }
  std::cout << absl::StrFormat(
      "%s, %d threads\n"
      "prompt      %8.2f tokens/s (%d tokens)\n"
      "generation  %8.2f tokens/s (%d tokens): %.2f of the read bandwidth of %.1f GB/s over %s\n",
      info.model, threads, prompt_rate, o.prompt_tokens, generation_rate, o.gen_tokens, share,
      bandwidth, HumanBytes(bytes_per_token));
  if (peak_bytes > 0) {
    std::cout << absl::StrFormat("memory      peak %s: weights and KV cache %s, and %s\n",
                                 HumanBytes(static_cast<double>(peak_bytes)),
                                 HumanBytes(static_cast<double>(must_bytes)),
                                 HumanBytes(static_cast<double>(peak_bytes - must_bytes)));
  }
  return absl::OkStatus();
}

}  // namespace

void AddBenchModel(CLI::App& app, Action& action) {
  auto o = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("bench-model", "Measure prompt and generation tokens/s of a model file");
  AddModelArguments(*command, o->model);
  command->add_option("--prompt-tokens", o->prompt_tokens, "tokens of the prompt")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--gen-tokens", o->gen_tokens, "tokens to generate")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--warm-up-tokens", o->warm_up_tokens, "at most so many in the warm-up; 0: all")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("-r,--repetitions", o->repetitions, "runs after the warm-up; medians")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("--json", o->json, "machine-readable output");
  AddComputeOptions(*command, o->compute);
  command->callback([o, &action] {
    action = [o] {
      const absl::Status status = Run(*o);
      return status.ok() ? kExitOk : Report(status);
    };
  });
}

}  // namespace tandem::tools
