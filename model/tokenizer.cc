#include "model/tokenizer.h"

#include "core/status.h"
#include "model/bpe_tokenizer.h"
#include "model/spm_tokenizer.h"
#include "model/utf8.h"

namespace tandem {
namespace {

// Bounds the 32-bit symbol indices of the encoders.
constexpr size_t kMaxTextBytes = size_t{1} << 30;
constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> Tokenizer::Load(
    std::shared_ptr<const GgufFile> file) {
  TANDEM_ASSIGN_OR_RETURN(Vocabulary vocabulary, Vocabulary::Load(std::move(file)));
  return vocabulary.model() == "llama" ? LoadSpmTokenizer(std::move(vocabulary))
                                       : LoadBpeTokenizer(std::move(vocabulary));
}

absl::StatusOr<std::vector<int32_t>> Tokenizer::Encode(std::string_view text,
                                                       const EncodeOptions& options) const {
  if (text.size() > kMaxTextBytes) {
    return InvalidArgument("text: expected at most ", kMaxTextBytes, " bytes, got ", text.size());
  }
  std::vector<int32_t> ids;
  if (options.add_special && vocabulary_.add_bos()) ids.push_back(*vocabulary_.bos());
  bool after_special = true;
  for (const Vocabulary::Part& part : vocabulary_.Split(text, options.parse_special)) {
    if (part.special) {
      ids.push_back(*part.special);
    } else {
      TANDEM_RETURN_IF_ERROR(EncodeText(part.text, after_special, ids));
    }
    after_special = part.special.has_value();
  }
  if (options.add_special && vocabulary_.add_eos()) ids.push_back(*vocabulary_.eos());
  return ids;
}

absl::StatusOr<std::string> Tokenizer::Piece(int32_t id, bool special) const {
  if (!vocabulary_.Contains(id)) {
    return InvalidArgument("id: expected a token in 0..", size() - 1, ", got ", id);
  }
  switch (vocabulary_.Type(id)) {
    case TokenType::kUnknown:
    case TokenType::kControl:
      return special ? std::string(vocabulary_.Text(id)) : std::string();
    case TokenType::kUserDefined:
      return std::string(vocabulary_.Text(id));
    case TokenType::kUnused:
      return std::string();
    case TokenType::kNormal:
    case TokenType::kByte:
      break;
  }
  return TextOf(id);
}

absl::StatusOr<std::string> Tokenizer::Decode(std::span<const int32_t> ids, bool special) const {
  std::string text;
  bool after_special = true;
  for (const int32_t id : ids) {
    TANDEM_ASSIGN_OR_RETURN(const std::string piece, Piece(id, special));
    const TokenType type = vocabulary_.Type(id);
    const bool plain = type == TokenType::kNormal || type == TokenType::kByte;
    const bool strip =
        plain && after_special && adds_space_prefix() && !piece.empty() && piece[0] == ' ';
    text.append(piece, strip ? 1 : 0);
    after_special = !plain;
  }
  return text;
}

absl::StatusOr<std::string> StreamDecoder::Push(int32_t id) {
  TANDEM_ASSIGN_OR_RETURN(const std::string piece, tokenizer_.Piece(id, special_));
  waiting_ += piece;
  std::string certain;
  std::string_view rest = waiting_;
  while (!rest.empty()) {
    const Utf8Sequence sequence = FirstUtf8Sequence(rest);
    if (sequence.incomplete) break;
    const auto length = static_cast<size_t>(sequence.length);
    certain += sequence.valid ? rest.substr(0, length) : kReplacement;
    rest.remove_prefix(length);
  }
  waiting_ = std::string(rest);
  return certain;
}

std::string StreamDecoder::Finish() {
  const bool incomplete = !waiting_.empty();
  waiting_.clear();
  return incomplete ? std::string(kReplacement) : std::string();
}

}  // namespace tandem
