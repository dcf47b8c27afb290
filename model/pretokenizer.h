// Cuts text into the words within which byte-level BPE merges, by the regular expressions of the
// model families (`tokenizer.ggml.pre`).
#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"

namespace tandem {

class PreTokenizer {
 public:
  // Unimplemented, listing the known names, for another one.
  static absl::StatusOr<std::unique_ptr<PreTokenizer>> Create(std::string_view name);
  ~PreTokenizer();
  PreTokenizer(const PreTokenizer&) = delete;
  PreTokenizer& operator=(const PreTokenizer&) = delete;

  // Calls fn for each word, in order; together they are the text. Runs of bytes that are not UTF-8
  // are words of their own. Thread-safe. Linear time.
  absl::Status Split(std::string_view text, absl::FunctionRef<void(std::string_view)> fn) const;

 private:
  struct Pattern;
  PreTokenizer();

  std::vector<std::unique_ptr<Pattern>> patterns_;
};

}  // namespace tandem
