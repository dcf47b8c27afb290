// tandem logits: the raw logits behind a text or a list of tokens, for comparison with other
// implementations.
//
// Writes little-endian f32 [tokens, vocabulary]: row i is what follows token i.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <bit>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "core/status.h"
#include "model/decoder.h"
#include "model/tokenizer.h"
#include "tools/command.h"
#include "tools/model_options.h"

namespace tandem::tools {
namespace {

static_assert(std::endian::native == std::endian::little, "the output format is little-endian");

struct Options {
  ComputeOptions compute;
  ModelArguments model;
  std::string tokens;
  std::string prompt;
  std::string out;
  bool json = false;
  int top = 5;
};

absl::StatusOr<std::vector<int32_t>> Tokens(const Options& o, const Model& model) {
  if (o.tokens.empty()) {
    TANDEM_ASSIGN_OR_RETURN(const auto tokenizer, Tokenizer::Load(model.file()));
    return tokenizer->Encode(o.prompt);
  }
  std::vector<int32_t> ids;
  for (const auto part : absl::StrSplit(o.tokens, ',')) {
    int32_t id = 0;
    if (!absl::SimpleAtoi(part, &id)) {
      return InvalidArgument("--tokens: expected numbers separated by commas, got '", o.tokens,
                             "'");
    }
    ids.push_back(id);
  }
  return ids;
}

absl::Status Run(const Options& o) {
  TANDEM_ASSIGN_OR_RETURN(const ContextOptions context_options,
                          ToContextOptions(o.compute, o.model));
  TANDEM_ASSIGN_OR_RETURN(auto context, OpenContext(context_options));
  TANDEM_ASSIGN_OR_RETURN(const auto model, OpenModel(*context, o.model));
  TANDEM_ASSIGN_OR_RETURN(const std::vector<int32_t> ids, Tokens(o, *model));
  if (ids.empty()) return InvalidArgument("--prompt: no tokens");
  SessionOptions session_options;
  TANDEM_ASSIGN_OR_RETURN(session_options, ToSessionOptions(o.model));
  if (session_options.capacity == 0) session_options.capacity = static_cast<int64_t>(ids.size());
  TANDEM_ASSIGN_OR_RETURN(auto session, Session::Create(*context, model, session_options));
  const int64_t vocabulary = model->config().vocabulary;
  const int64_t rows = static_cast<int64_t>(ids.size());
  TANDEM_ASSIGN_OR_RETURN(
      Tensor logits, Tensor::Allocate(context->host_allocator(), DType::kF32, {rows, vocabulary}));
  TANDEM_RETURN_IF_ERROR(session->ForwardAll(ids, logits.view()));
  if (!o.out.empty()) {
    std::ofstream file(o.out, std::ios::binary);
    file.write(logits.As<char>(), static_cast<std::streamsize>(rows * vocabulary * 4));
    file.close();
    if (!file) return InvalidArgument("--out: cannot write '", o.out, "'");
  }
  // The most probable continuations of the last token.
  const float* last = logits.As<float>() + (rows - 1) * vocabulary;
  std::vector<int32_t> order(static_cast<size_t>(vocabulary));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  const size_t top = std::min(order.size(), static_cast<size_t>(std::max(o.top, 0)));
  std::partial_sort(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(top), order.end(),
                    [&](int32_t a, int32_t b) { return last[a] > last[b]; });
  nlohmann::json json = {
      {"tokens", ids}, {"vocabulary", vocabulary}, {"top", nlohmann::json::array()}};
  for (size_t i = 0; i < top; ++i) {
    json["top"].push_back({{"token", order[i]}, {"logit", last[order[i]]}});
    if (!o.json) std::cout << order[i] << "\t" << last[order[i]] << "\n";
  }
  if (o.json) std::cout << json.dump() << "\n";
  return absl::OkStatus();
}

}  // namespace

void AddLogits(CLI::App& app, Action& action) {
  auto o = std::make_shared<Options>();
  CLI::App* command =
      app.add_subcommand("logits", "Write the raw logits of a text or of token ids");
  AddModelArguments(*command, o->model);
  auto* tokens = command->add_option("--tokens", o->tokens, "token ids, separated by commas");
  auto* prompt = command->add_option("-p,--prompt", o->prompt, "text");
  tokens->excludes(prompt);
  command->add_option("-o,--out", o->out, "file for f32 little-endian [tokens, vocabulary]");
  command->add_option("--top", o->top, "show this many continuations")->capture_default_str();
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
