// The token list of a model file, checked, and the search for special tokens in a text.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/status/statusor.h"
#include "model/gguf.h"

namespace tandem {

enum class TokenType : uint8_t {  // numbers of the file format
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

class Vocabulary {
 public:
  static absl::StatusOr<Vocabulary> Load(std::shared_ptr<const GgufFile> file);

  const GgufFile& file() const { return *file_; }
  const std::string& model() const { return model_; }  // "llama" or "gpt2"
  int64_t size() const { return static_cast<int64_t>(texts_.size()); }
  bool Contains(int32_t id) const { return id >= 0 && id < size(); }
  // As in the file; views of it.
  std::string_view Text(int32_t id) const { return texts_[static_cast<size_t>(id)]; }
  TokenType Type(int32_t id) const { return types_[static_cast<size_t>(id)]; }
  // The id of exactly this text; of the last one if several tokens have it, as in llama.cpp.
  std::optional<int32_t> Find(std::string_view text) const;

  std::optional<int32_t> bos() const { return bos_; }
  std::optional<int32_t> eos() const { return eos_; }
  std::optional<int32_t> unknown() const { return unknown_; }
  bool add_bos() const { return add_bos_; }
  bool add_eos() const { return add_eos_; }
  // Tokens at which generation ends: EOS, end of turn, end of message.
  bool EndsGeneration(int32_t id) const { return end_.contains(id); }

  // The parts of a text: special tokens found in it, and what lies between.
  struct Part {
    std::string_view text;
    std::optional<int32_t> special;
  };
  // User-defined tokens are always found, control and unknown ones if `parse_special`. Longer
  // tokens take precedence over shorter ones wherever they stand; among equals the first
  // occurrence. O(n * longest special token).
  std::vector<Part> Split(std::string_view text, bool parse_special) const;

 private:
  Vocabulary() = default;
  absl::Status LoadSpecialIds(bool defaults_of_llama);
  absl::Status LoadSpecialTexts();

  std::shared_ptr<const GgufFile> file_;
  std::string model_;
  std::vector<std::string_view> texts_;
  std::vector<TokenType> types_;
  absl::flat_hash_map<std::string_view, int32_t> ids_;
  std::optional<int32_t> bos_, eos_, unknown_;
  bool add_bos_ = false;
  bool add_eos_ = false;
  absl::flat_hash_set<int32_t> end_;
  // Tokens to be found in text, sorted by their bytes.
  std::vector<int32_t> special_;
};

}  // namespace tandem
