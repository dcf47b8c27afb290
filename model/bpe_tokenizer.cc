// Byte-level byte-pair encoding (Sennrich et al. 2016; GPT-2's byte alphabet), as in llama.cpp.
//
// Every byte is written as one printable character, so that tokens are texts and any input can be
// encoded. Within a word of the pre-tokenizer, adjacent tokens that a merge names are joined, the
// merge listed first being done first. Merges are kept by token ids, not texts.
#include "model/bpe_tokenizer.h"

#include <array>
#include <limits>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_format.h"
#include "core/status.h"
#include "model/gguf_format.h"
#include "model/merge_symbols.h"
#include "model/pretokenizer.h"

namespace tandem {
namespace {

// GPT-2's alphabet: printable bytes of Latin-1 stand for themselves, the others for U+0100, U+0101,
// and so on.
std::array<uint16_t, 256> ByteAlphabet() {
  std::array<uint16_t, 256> code{};
  uint16_t next = 0x100;
  for (int byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte != 0xAD);
    code[static_cast<size_t>(byte)] = printable ? static_cast<uint16_t>(byte) : next++;
  }
  return code;
}

// Code points below U+0800 only.
void AppendUtf8(std::string& text, uint16_t code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
  } else {
    text += static_cast<char>(0xC0 | (code >> 6));
    text += static_cast<char>(0x80 | (code & 0x3F));
  }
}

uint64_t PairKey(int32_t left, int32_t right) {
  return (static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32) | static_cast<uint32_t>(right);
}

class BpeTokenizer final : public Tokenizer {
 public:
  explicit BpeTokenizer(Vocabulary vocabulary) : Tokenizer(std::move(vocabulary)) {}

  absl::Status Init() {
    const GgufFile& file = vocabulary_.file();
    TANDEM_ASSIGN_OR_RETURN(const std::string_view pre,
                            file.String("tokenizer.ggml.pre", "default"));
    auto pretokenizer = PreTokenizer::Create(pre);
    if (!pretokenizer.ok()) {
      return absl::Status(pretokenizer.status().code(),
                          absl::StrCat(file.name(), ": ", Message(pretokenizer.status())));
    }
    pretokenizer_ = *std::move(pretokenizer);
    // Llama 3: a word that is a token is that token, whether merges lead to it or not.
    whole_words_ = pre == "llama-bpe" || pre == "llama3" || pre == "llama-v3";
    byte_of_code_.fill(-1);
    const auto alphabet = ByteAlphabet();
    for (size_t byte = 0; byte < 256; ++byte) {
      AppendUtf8(stand_in_[byte], alphabet[byte]);
      byte_ids_[byte] = vocabulary_.Find(stand_in_[byte]).value_or(-1);
      byte_of_code_[alphabet[byte]] = static_cast<int16_t>(byte);
    }
    return LoadMerges();
  }

 protected:
  absl::Status EncodeText(std::string_view text, bool, std::vector<int32_t>& ids) const override {
    absl::Status status;
    std::vector<Symbol> symbols;
    std::string spelled;
    const absl::Status split = pretokenizer_->Split(text, [&](std::string_view word) {
      if (status.ok()) status = EncodeWord(word, symbols, spelled, ids);
    });
    TANDEM_RETURN_IF_ERROR(split);
    return status;
  }

  std::string TextOf(int32_t id) const override {
    const std::string_view text = vocabulary_.Text(id);
    std::string bytes;
    for (size_t i = 0; i < text.size();) {
      const auto lead = static_cast<unsigned char>(text[i]);
      const bool two = lead >= 0xC0 && lead < 0xE0 && i + 1 < text.size();
      const size_t code =
          two ? ((lead & 0x1Fu) << 6) | (static_cast<unsigned char>(text[i + 1]) & 0x3Fu) : lead;
      const int16_t byte =
          (two || lead < 0x80) && code < byte_of_code_.size() ? byte_of_code_[code] : -1;
      if (byte >= 0) {
        bytes += static_cast<char>(byte);
        i += two ? 2 : 1;
      } else {  // outside the alphabet: stands for itself
        bytes += text[i++];
      }
    }
    return bytes;
  }

 private:
  absl::Status LoadMerges() {
    const GgufFile& file = vocabulary_.file();
    TANDEM_ASSIGN_OR_RETURN(const auto merges, file.Strings("tokenizer.ggml.merges"));
    if (merges.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
      return InvalidArgument(file.name(), ": tokenizer.ggml.merges: expected below 2^31 entries");
    }
    merges_.reserve(merges.size());
    std::string joined;
    for (size_t rank = 0; rank < merges.size(); ++rank) {
      const std::string_view merge = merges[rank];
      const auto error = [&](std::string_view problem, std::string_view what) {
        return InvalidArgument(file.name(), ": tokenizer.ggml.merges entry ", rank, " ",
                               Quote(merge), ": ", std::string(problem), Quote(what));
      };
      const size_t space = merge.find(' ', 1);
      if (space == std::string_view::npos || space + 1 == merge.size()) {
        return error("expected two tokens with a space between, got ", merge);
      }
      const std::string_view left_text = merge.substr(0, space),
                             right_text = merge.substr(space + 1);
      joined.assign(left_text).append(right_text);
      const auto left = vocabulary_.Find(left_text), right = vocabulary_.Find(right_text);
      const auto result = vocabulary_.Find(joined);
      if (!left) return error("the vocabulary has no token ", left_text);
      if (!right) return error("the vocabulary has no token ", right_text);
      if (!result) return error("the vocabulary has no token ", joined);
      merges_.emplace(PairKey(*left, *right), Merge{static_cast<double>(rank), *result});
    }
    return absl::OkStatus();
  }

  // `symbols` and `spelled` are scratch.
  absl::Status EncodeWord(std::string_view word, std::vector<Symbol>& symbols, std::string& spelled,
                          std::vector<int32_t>& ids) const {
    if (whole_words_) {
      spelled.clear();
      for (const char c : word) spelled += stand_in_[static_cast<unsigned char>(c)];
      if (const auto id = vocabulary_.Find(spelled)) {
        ids.push_back(*id);
        return absl::OkStatus();
      }
    }
    symbols.clear();
    for (size_t i = 0; i < word.size(); ++i) {
      const auto byte = static_cast<unsigned char>(word[i]);
      int32_t id = byte_ids_[byte];
      if (id < 0) id = vocabulary_.unknown().value_or(-1);
      if (id < 0) {
        return InvalidArgument(vocabulary_.file().name(), ": the vocabulary has no token for byte ",
                               absl::StrFormat("0x%02X", byte),
                               " of the text, and no unknown token");
      }
      symbols.push_back({static_cast<int64_t>(i), 1, id});
    }
    MergeSymbols(symbols, [&](const Symbol& a, const Symbol& b) -> std::optional<Merge> {
      const auto it = merges_.find(PairKey(a.id, b.id));
      if (it == merges_.end()) return std::nullopt;
      return it->second;
    });
    for (const Symbol& symbol : symbols) {
      if (symbol.length > 0) ids.push_back(symbol.id);
    }
    return absl::OkStatus();
  }

  std::unique_ptr<PreTokenizer> pretokenizer_;
  bool whole_words_ = false;
  std::array<std::string, 256> stand_in_;      // of each byte, UTF-8
  std::array<int32_t, 256> byte_ids_{};        // token of each byte, or -1
  std::array<int16_t, 0x200> byte_of_code_{};  // byte of each code point of the alphabet, or -1
  absl::flat_hash_map<uint64_t, Merge> merges_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadBpeTokenizer(Vocabulary vocabulary) {
  auto tokenizer = std::make_shared<BpeTokenizer>(std::move(vocabulary));
  TANDEM_RETURN_IF_ERROR(tokenizer->Init());
  return std::shared_ptr<const Tokenizer>(std::move(tokenizer));
}

}  // namespace tandem
