// tandem generate: continue a text with a model, streaming the tokens; then say how fast it was,
// and on request what ran where and why.
#include "model/generate.h"

#include <CLI/CLI.hpp>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "tools/command.h"
#include "tools/model_options.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

struct Options {
  ComputeOptions compute;
  ModelArguments model;
  GenerateOptions generate;
  std::string prompt;
  std::string prompt_file;
  std::string trace;
  bool explain = false;
  bool json = false;
  bool no_prompt = false;
};

absl::StatusOr<std::string> Prompt(const Options& o) {
  if (o.prompt_file.empty()) return o.prompt;
  std::ifstream file(o.prompt_file, std::ios::binary);
  if (!file) return absl::NotFoundError("--file: cannot read '" + o.prompt_file + "'");
  return std::string(std::istreambuf_iterator<char>(file), {});
}

nlohmann::json ExplainJson(Context& context) {
  nlohmann::json rows = nlohmann::json::array();
  for (const TraceSummary& s : context.trace().Summarize(context.options().policy)) {
    const double seconds = static_cast<double>(s.total_ns) * 1e-9;
    rows.push_back({{"op", std::string(Name(s.op))},
                    {"device", s.device},
                    {"kernel", s.kernel},
                    {"reason", s.reason},
                    {"calls", s.calls},
                    {"seconds", seconds},
                    {"bytes", s.bytes},
                    {"flops", s.flops}});
  }
  return rows;
}

void PrintExplain(Context& context) {
  const auto summaries = context.trace().Summarize(context.options().policy);
  int64_t all_ns = 0;
  for (const TraceSummary& s : summaries) all_ns += s.total_ns;
  Table table({"op", "device", "kernel", "calls", "ms", "share", "GB/s", "GFLOP/s", "why there"});
  for (const TraceSummary& s : summaries) {
    const double seconds = static_cast<double>(s.total_ns) * 1e-9;
    table.Row({std::string(Name(s.op)), s.device, s.kernel, absl::StrFormat("%d", s.calls),
               absl::StrFormat("%.2f", seconds * 1e3),
               absl::StrFormat("%.1f%%", 100.0 * static_cast<double>(s.total_ns) /
                                             static_cast<double>(std::max<int64_t>(all_ns, 1))),
               absl::StrFormat("%.1f", static_cast<double>(s.bytes) / seconds * 1e-9),
               s.flops > 0 ? absl::StrFormat("%.1f", s.flops / seconds * 1e-9) : "-", s.reason});
  }
  std::cout << "\n";
  table.Print(std::cout, UseColor(1));
}

// What failed on the GPU, and what became of it.
nlohmann::json FaultsJson(const Context& context, const GenerateStats& stats) {
  const FaultCounters& counters = context.health().counters();
  nlohmann::json events = nlohmann::json::array(), recoveries = nlohmann::json::array();
  for (const FaultEvent& event : context.health().events()) {
    events.push_back({{"number", event.number},
                      {"what", event.what},
                      {"device", Name(event.device)},
                      {"cause", std::string(Name(event.cause))},
                      {"error", event.text},
                      {"done", std::string(Name(event.remedy))}});
  }
  for (const Recovery& r : stats.recoveries) {
    recoveries.push_back({{"device", r.device},
                          {"cause", std::string(Name(r.cause))},
                          {"error", r.error},
                          {"position", r.position},
                          {"cache", r.cache == Recovery::Cache::kCopied ? "copied" : "computed"},
                          {"seconds", r.seconds}});
  }
  return {{"count", counters.all_faults()},
          {"calls_run_on_cpu", counters.all_fallbacks()},
          {"retries", counters.retries},
          {"retries_succeeded", counters.retries_succeeded},
          {"calls_kept_on_cpu", counters.avoided},
          {"lost_devices", counters.lost_devices},
          {"events", events},
          {"recoveries", recoveries}};
}

void PrintFaults(const Context& context, const GenerateStats& stats) {
  const FaultCounters& counters = context.health().counters();
  std::string line;
  for (const Recovery& recovery : stats.recoveries) {
    absl::StrAppend(&line, line.empty() ? "" : "; ", Describe(recovery));
  }
  const auto& events = context.health().events();
  if (line.empty() && !events.empty()) {
    line = counters.all_faults() == 1
               ? Describe(events.back())
               : absl::StrFormat(
                     "%d calls failed on the GPU, %d of them ran on the CPU instead; the "
                     "last: %s",
                     counters.all_faults(), counters.all_fallbacks(), Describe(events.back()));
  }
  if (line.empty() && context.options().prefer_cuda && !context.no_cuda().empty()) {
    line = "no GPU, everything ran on the CPU: " + context.no_cuda();
  }
  if (!line.empty()) std::cerr << Styled(line, Style::kYellow, UseColor(2)) << "\n";
}

absl::Status Run(const Options& o) {
  TANDEM_ASSIGN_OR_RETURN(const std::string prompt, Prompt(o));
  TANDEM_ASSIGN_OR_RETURN(ContextOptions context_options, ToContextOptions(o.compute, o.model));
  context_options.trace = o.explain || !o.trace.empty();
  // An unwritable path is better found before the work than after it.
  std::ofstream trace;
  if (!o.trace.empty()) {
    trace.open(o.trace);
    if (!trace) return InvalidArgument("--trace: cannot write '", o.trace, "'");
  }
  TANDEM_ASSIGN_OR_RETURN(auto context, OpenContext(context_options));
  context->health().SetLog(nullptr);  // told at the end, in one line
  TANDEM_ASSIGN_OR_RETURN(const auto model, OpenModel(*context, o.model));
  TANDEM_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(model->file()));
  TANDEM_ASSIGN_OR_RETURN(const SessionOptions session_options, ToSessionOptions(o.model));
  TANDEM_ASSIGN_OR_RETURN(auto session, CreateSession(*context, model, session_options));

  GenerateOptions generate = o.generate;
  Progress progress("prompt");
  generate.on_prompt = [&](int64_t done, int64_t total) { progress.Update(done, total); };
  if (!o.json) {
    bool first = true;
    generate.on_text = [&, first](std::string_view text) mutable {
      progress.Clear();
      if (first && !o.no_prompt) {
        std::cout << Styled(prompt, Style::kDim, UseColor(1));
      }
      first = false;
      std::cout << text << std::flush;
      return true;
    };
  }
  TANDEM_ASSIGN_OR_RETURN(const Generation result,
                          Generate(*session, *tokenizer, prompt, generate));
  progress.Clear();
  if (trace.is_open()) {
    context->trace().WriteChromeTrace(trace, context->options().policy);
    trace.close();
    if (!trace) return InvalidArgument("--trace: cannot write '", o.trace, "'");
  }

  const GenerateStats& stats = result.stats;
  if (o.json) {
    nlohmann::json json = {{"text", result.text},
                           {"tokens", result.tokens},
                           {"stop", std::string(Name(result.stop))},
                           {"prompt_tokens", stats.prompt_tokens},
                           {"prompt_tokens_per_second", stats.PromptTokensPerSecond()},
                           {"generated_tokens", stats.generated_tokens},
                           {"generation_tokens_per_second", stats.GenerationTokensPerSecond()},
                           {"graph_captures", stats.graph_captures},
                           {"graph_launches", stats.graph_launches},
                           {"steps", stats.steps}};
    json["faults"] = FaultsJson(*context, stats);
    if (context->options().hybrid) {
      json["placement"] = Describe(model->placement());
      json["placement_reason"] = model->placement().reason;
    }
    if (o.explain) json["ops"] = ExplainJson(*context);
    // A model may emit bytes that are not UTF-8 in special tokens: replace rather than fail.
    std::cout << json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) << "\n";
    return absl::OkStatus();
  }
  const std::string graphs =
      stats.graph_captures == 0
          ? ""
          : absl::StrFormat(", %d of them by %s", stats.graph_launches,
                            stats.graph_captures == 1
                                ? "one graph"
                                : absl::StrFormat("%d graphs", stats.graph_captures));
  std::cout << "\n" << std::flush;
  std::cerr << Styled(absl::StrFormat("prompt %d tokens, %.1f tokens/s; generation %d tokens, "
                                      "%.1f tokens/s%s; stopped by %s",
                                      stats.prompt_tokens, stats.PromptTokensPerSecond(),
                                      stats.generated_tokens, stats.GenerationTokensPerSecond(),
                                      graphs, std::string(Name(result.stop))),
                      Style::kDim, UseColor(2))
            << "\n";
  PrintFaults(*context, stats);
  if (o.explain) {
    if (context->options().hybrid) {
      std::cerr << "placement: " << Describe(model->placement()) << "; "
                << model->placement().reason << "\n";
    }
    std::cerr << "steps: " << stats.steps << "\n";
    PrintExplain(*context);
  }
  return absl::OkStatus();
}

}  // namespace

void AddGenerate(CLI::App& app, Action& action) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("generate", "Continue a text with a model");
  AddModelArguments(*command, o->model);
  auto* prompt = command->add_option("-p,--prompt", o->prompt, "text to continue");
  auto* file = command->add_option("-f,--file", o->prompt_file, "file with the text to continue");
  prompt->excludes(file);
  command->add_option("-n,--max-tokens", o->generate.max_tokens, "most tokens to generate")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--temperature", o->generate.sampling.temperature,
                   "randomness; 0 takes the most probable token")
      ->capture_default_str();
  command->add_option("--top-k", o->generate.sampling.top_k, "draw from this many tokens; 0: all")
      ->capture_default_str();
  command
      ->add_option("--top-p", o->generate.sampling.top_p,
                   "draw from the fewest tokens of this total probability")
      ->capture_default_str();
  command->add_option("-s,--seed", o->generate.sampling.seed, "seed of the draws")
      ->capture_default_str();
  command->add_option("--stop", o->generate.stop, "stop before this text (repeatable)");
  command->add_flag("--ignore-end", o->generate.ignore_end_tokens,
                    "go on when the model ends the text");
  command
      ->add_option_function<std::string>(
          "--cuda-graph", [o](const std::string& value) { o->generate.cuda_graph = value == "on"; },
          "on a GPU: launch each token as one graph: on (default) or off; not while tracing")
      ->check(CLI::IsMember({"on", "off"}));
  command->add_flag("--no-prompt", o->no_prompt, "print only what is generated");
  command->add_option("--trace", o->trace,
                      "write a Chrome/Perfetto trace of every op to this file");
  command->add_flag("--explain", o->explain,
                    "show which kernel on which device ran each op, and why");
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
