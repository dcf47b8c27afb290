// SentencePiece-style tokenizer (Kudo & Richardson 2018), as llama.cpp reads it from GGUF files.
//
// The text, with spaces written as U+2581 and one put in front, is cut into characters; adjacent
// symbols whose concatenation is a token are merged, the highest score first. A character that is
// no token is spelled out in byte tokens <0xNN>, or becomes the unknown token.
#include "model/spm_tokenizer.h"

#include <cmath>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "model/merge_symbols.h"
#include "model/utf8.h"

namespace tandem {
namespace {

constexpr std::string_view kSpace = "\xE2\x96\x81";  // U+2581

std::string Unescape(std::string_view text) {
  std::string result;
  result.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    if (text.substr(i, kSpace.size()) == kSpace) {
      result += ' ';
      i += kSpace.size();
    } else {
      result += text[i++];
    }
  }
  return result;
}

class SpmTokenizer final : public Tokenizer {
 public:
  explicit SpmTokenizer(Vocabulary vocabulary) : Tokenizer(std::move(vocabulary)) {}

  absl::Status Init() {
    const Vocabulary& v = vocabulary_;
    const GgufFile& file = v.file();
    TANDEM_ASSIGN_OR_RETURN(scores_, file.Floats("tokenizer.ggml.scores"));
    if (scores_.size() != static_cast<size_t>(v.size())) {
      return InvalidArgument(file.name(), ": tokenizer.ggml.scores: expected ", v.size(),
                             " entries, one per token, got ", scores_.size());
    }
    for (size_t i = 0; i < scores_.size(); ++i) {
      if (!std::isfinite(scores_[i])) {
        return InvalidArgument(file.name(), ": tokenizer.ggml.scores entry ", i,
                               ": expected a finite number");
      }
    }
    byte_value_.assign(static_cast<size_t>(v.size()), -1);
    for (int byte = 0; byte < 256; ++byte) {
      const std::string spelled = absl::StrFormat("<0x%02X>", byte);
      const char raw = static_cast<char>(byte);
      const auto id = v.Find(spelled);
      byte_ids_[static_cast<size_t>(byte)] = id ? id : v.Find(std::string_view(&raw, 1));
      if (id) byte_value_[static_cast<size_t>(*id)] = static_cast<int16_t>(byte);
    }
    for (int32_t id = 0; id < v.size(); ++id) {
      if (v.Type(id) == TokenType::kByte && byte_value_[static_cast<size_t>(id)] < 0) {
        return InvalidArgument(file.name(), ": tokenizer.ggml.tokens: byte token ", id,
                               ": expected a text from <0x00> to <0xFF> that occurs once");
      }
    }
    TANDEM_ASSIGN_OR_RETURN(add_space_prefix_, file.Bool("tokenizer.ggml.add_space_prefix", true));
    return absl::OkStatus();
  }

 protected:
  absl::Status EncodeText(std::string_view text, bool after_special,
                          std::vector<int32_t>& ids) const override {
    std::string escaped;
    escaped.reserve(text.size() + text.size() / 2 + kSpace.size());
    if (after_special && add_space_prefix_) escaped += kSpace;
    for (const char c : text) {
      if (c == ' ') {
        escaped += kSpace;
      } else {
        escaped += c;
      }
    }
    const std::string_view all = escaped;
    const auto part = [&](int64_t begin, int64_t length) {
      return all.substr(static_cast<size_t>(begin), static_cast<size_t>(length));
    };
    std::vector<Symbol> symbols;
    const auto size = static_cast<int64_t>(all.size());
    for (int64_t begin = 0; begin < size;) {
      const Utf8Sequence sequence = FirstUtf8Sequence(part(begin, size - begin));
      // What is not UTF-8 falls apart into byte tokens.
      const int64_t length = sequence.valid ? sequence.length : 1;
      symbols.push_back({begin, length, vocabulary_.Find(part(begin, length)).value_or(-1)});
      begin += length;
    }
    MergeSymbols(symbols, [&](const Symbol& a, const Symbol& b) -> std::optional<Merge> {
      const auto id = vocabulary_.Find(part(a.begin, a.length + b.length));
      if (!id) return std::nullopt;
      return Merge{-static_cast<double>(scores_[static_cast<size_t>(*id)]), *id};
    });
    for (const Symbol& symbol : symbols) {
      if (symbol.length == 0) continue;
      if (symbol.id >= 0) {
        ids.push_back(symbol.id);
        continue;
      }
      for (const char c : part(symbol.begin, symbol.length)) {
        const auto byte = static_cast<unsigned char>(c);
        const auto id = byte_ids_[byte] ? byte_ids_[byte] : vocabulary_.unknown();
        if (!id) {
          return InvalidArgument(
              vocabulary_.file().name(), ": the vocabulary has no token for byte ",
              absl::StrFormat("0x%02X", byte), " of the text, and no unknown token");
        }
        ids.push_back(*id);
      }
    }
    return absl::OkStatus();
  }

  std::string TextOf(int32_t id) const override {
    if (vocabulary_.Type(id) == TokenType::kByte) {
      return std::string(1, static_cast<char>(byte_value_[static_cast<size_t>(id)]));
    }
    return Unescape(vocabulary_.Text(id));
  }

  bool adds_space_prefix() const override { return add_space_prefix_; }

 private:
  std::vector<float> scores_;
  std::array<std::optional<int32_t>, 256> byte_ids_;
  std::vector<int16_t> byte_value_;  // per token: its byte, or -1
  bool add_space_prefix_ = true;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadSpmTokenizer(Vocabulary vocabulary) {
  auto tokenizer = std::make_shared<SpmTokenizer>(std::move(vocabulary));
  TANDEM_RETURN_IF_ERROR(tokenizer->Init());
  return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
}

}  // namespace tandem
