#include "model/vocabulary.h"

#include <algorithm>

#include "core/status.h"
#include "model/gguf_format.h"

namespace tandem {
namespace {

// Bytes. Real special tokens have fewer than 100; the bound keeps the search linear in the text.
constexpr size_t kMaxSpecialLength = 512;

// Control tokens that end a turn in the model families we read; a file names only one of them.
constexpr std::string_view kEndTexts[] = {
    "</s>",    "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>",
    "<|end|>", "<|im_end|>",    "<end_of_turn>",   "<|eom_id|>",
};

}  // namespace

absl::StatusOr<Vocabulary> Vocabulary::Load(std::shared_ptr<const GgufFile> file) {
  Vocabulary v;
  v.file_ = std::move(file);
  const GgufFile& f = *v.file_;
  TANDEM_ASSIGN_OR_RETURN(const std::string_view model, f.String("tokenizer.ggml.model"));
  v.model_ = model;
  if (v.model_ != "llama" && v.model_ != "gpt2") {
    return Unimplemented(f.name(), ": tokenizer.ggml.model: expected 'llama' or 'gpt2', got ",
                         Quote(model));
  }
  TANDEM_ASSIGN_OR_RETURN(v.texts_, f.Strings("tokenizer.ggml.tokens"));
  if (v.texts_.empty() || v.texts_.size() > static_cast<size_t>(INT32_MAX)) {
    return InvalidArgument(f.name(), ": tokenizer.ggml.tokens: expected 1..2^31-1 tokens, got ",
                           v.texts_.size());
  }
  v.types_.assign(v.texts_.size(), TokenType::kNormal);
  if (f.FindValue("tokenizer.ggml.token_type") != nullptr) {
    TANDEM_ASSIGN_OR_RETURN(const auto types, f.Ints("tokenizer.ggml.token_type"));
    if (types.size() != v.texts_.size()) {
      return InvalidArgument(f.name(), ": tokenizer.ggml.token_type: expected ", v.texts_.size(),
                             " entries, one per token, got ", types.size());
    }
    for (size_t i = 0; i < types.size(); ++i) {
      // 0 (undefined) occurs in old files.
      if (types[i] < 0 || types[i] > static_cast<int64_t>(TokenType::kByte)) {
        return InvalidArgument(f.name(), ": tokenizer.ggml.token_type entry ", i,
                               ": expected 1..6, got ", types[i]);
      }
      if (types[i] != 0) v.types_[i] = static_cast<TokenType>(types[i]);
    }
  }
  v.ids_.reserve(v.texts_.size());
  for (size_t i = 0; i < v.texts_.size(); ++i) {
    if (!v.texts_[i].empty()) v.ids_[v.texts_[i]] = static_cast<int32_t>(i);
  }
  TANDEM_RETURN_IF_ERROR(v.LoadSpecialIds(v.model_ == "llama"));
  TANDEM_RETURN_IF_ERROR(v.LoadSpecialTexts());
  return v;
}

absl::Status Vocabulary::LoadSpecialIds(bool defaults_of_llama) {
  const auto find = [&](std::string_view key,
                        int64_t fallback) -> absl::StatusOr<std::optional<int32_t>> {
    if (file_->FindValue(key) == nullptr) {
      if (fallback < 0 || fallback >= size()) return std::nullopt;
      return std::optional<int32_t>(static_cast<int32_t>(fallback));
    }
    TANDEM_ASSIGN_OR_RETURN(const int64_t id, file_->Int(key));
    // Written by some converters for "none".
    if (id == -1 || id == int64_t{UINT32_MAX}) return std::nullopt;
    if (id < 0 || id >= size()) {
      return InvalidArgument(file_->name(), ": ", std::string(key), ": expected an id in 0..",
                             size() - 1, ", got ", id);
    }
    return std::optional<int32_t>(static_cast<int32_t>(id));
  };
  // SentencePiece models have these three first unless they say otherwise.
  const bool d = defaults_of_llama;
  TANDEM_ASSIGN_OR_RETURN(bos_, find("tokenizer.ggml.bos_token_id", d ? 1 : -1));
  TANDEM_ASSIGN_OR_RETURN(eos_, find("tokenizer.ggml.eos_token_id", d ? 2 : -1));
  TANDEM_ASSIGN_OR_RETURN(unknown_, find("tokenizer.ggml.unknown_token_id", d ? 0 : -1));
  TANDEM_ASSIGN_OR_RETURN(const auto eot, find("tokenizer.ggml.eot_token_id", -1));
  TANDEM_ASSIGN_OR_RETURN(const auto eom, find("tokenizer.ggml.eom_token_id", -1));
  for (const auto& id : {eos_, eot, eom}) {
    if (id) end_.insert(*id);
  }
  for (const std::string_view text : kEndTexts) {
    const auto id = Find(text);
    if (id && Type(*id) == TokenType::kControl) end_.insert(*id);
  }
  TANDEM_ASSIGN_OR_RETURN(const std::string_view pre, file_->String("tokenizer.ggml.pre", ""));
  const bool llama3 = !d && (pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3");
  TANDEM_ASSIGN_OR_RETURN(add_bos_, file_->Bool("tokenizer.ggml.add_bos_token", d || llama3));
  TANDEM_ASSIGN_OR_RETURN(add_eos_, file_->Bool("tokenizer.ggml.add_eos_token", false));
  if (add_bos_ && !bos_) {
    return InvalidArgument(file_->name(),
                           ": tokenizer.ggml.add_bos_token is true, but there is no BOS token");
  }
  if (add_eos_ && !eos_) {
    return InvalidArgument(file_->name(),
                           ": tokenizer.ggml.add_eos_token is true, but there is no EOS token");
  }
  return absl::OkStatus();
}

absl::Status Vocabulary::LoadSpecialTexts() {
  for (int32_t id = 0; id < size(); ++id) {
    const TokenType type = Type(id);
    if (Text(id).empty() || (type != TokenType::kControl && type != TokenType::kUnknown &&
                             type != TokenType::kUserDefined)) {
      continue;
    }
    if (Text(id).size() > kMaxSpecialLength) {
      return InvalidArgument(file_->name(), ": tokenizer.ggml.tokens: special token ", id,
                             ": expected at most ", kMaxSpecialLength, " bytes, got ",
                             Text(id).size());
    }
    special_.push_back(id);
  }
  std::sort(special_.begin(), special_.end(), [this](int32_t a, int32_t b) {
    return Text(a) != Text(b) ? Text(a) < Text(b) : a < b;
  });
  // Of tokens with the same text the first is found.
  const auto same = [this](int32_t a, int32_t b) { return Text(a) == Text(b); };
  special_.erase(std::unique(special_.begin(), special_.end(), same), special_.end());
  return absl::OkStatus();
}

std::optional<int32_t> Vocabulary::Find(std::string_view text) const {
  const auto it = ids_.find(text);
  if (it == ids_.end()) return std::nullopt;
  return it->second;
}

std::vector<Vocabulary::Part> Vocabulary::Split(std::string_view text, bool parse_special) const {
  struct Match {
    size_t begin;
    size_t length;
    int32_t id;
  };
  std::vector<Match> matches;
  for (size_t begin = 0; begin < text.size(); ++begin) {
    // Narrows the sorted list to the tokens that agree with the text in one more byte each time.
    auto first = special_.begin(), last = special_.end();
    for (size_t depth = 0; first != last && begin + depth < text.size(); ++depth) {
      const auto byte = static_cast<unsigned char>(text[begin + depth]);
      // Tokens shorter than depth + 1 sort before all bytes.
      const auto at = [&](int32_t id) {
        const std::string_view t = Text(id);
        return depth < t.size() ? static_cast<int>(static_cast<unsigned char>(t[depth])) : -1;
      };
      first = std::partition_point(first, last, [&](int32_t id) { return at(id) < byte; });
      last = std::partition_point(first, last, [&](int32_t id) { return at(id) == byte; });
      if (first == last || Text(*first).size() != depth + 1) continue;
      if (parse_special || Type(*first) == TokenType::kUserDefined) {
        matches.push_back({begin, depth + 1, *first});
      }
    }
  }
  std::sort(matches.begin(), matches.end(), [](const Match& a, const Match& b) {
    return a.length != b.length ? a.length > b.length : a.begin < b.begin;
  });
  // Longest first: an accepted match that overlaps a later, not longer one covers its first or its
  // last byte.
  std::vector<bool> covered(text.size());
  std::vector<Match> accepted;
  for (const Match& match : matches) {
    if (covered[match.begin] || covered[match.begin + match.length - 1]) continue;
    std::fill_n(covered.begin() + static_cast<std::ptrdiff_t>(match.begin), match.length, true);
    accepted.push_back(match);
  }
  std::sort(accepted.begin(), accepted.end(),
            [](const Match& a, const Match& b) { return a.begin < b.begin; });
  std::vector<Part> parts;
  size_t position = 0;
  for (const Match& match : accepted) {
    if (match.begin > position) {
      parts.push_back({text.substr(position, match.begin - position), std::nullopt});
    }
    parts.push_back({text.substr(match.begin, match.length), match.id});
    position = match.begin + match.length;
  }
  if (position < text.size()) parts.push_back({text.substr(position), std::nullopt});
  return parts;
}

}  // namespace tandem
