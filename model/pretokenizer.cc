// Each pattern cuts every piece that the patterns before it left: what it matches and what lies
// between become pieces. Expressions as the families' tokenizer.json files and llama.cpp state
// them, with two changes of form only: contractions in both cases are spelled as classes
// (case-folding would also match U+017F for s), and white space is spelled out (PCRE2's \s includes
// U+180E).
#include "model/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <string>

#include "core/status.h"
#include "model/gguf_format.h"
#include "model/utf8.h"

namespace tandem {
namespace {

// White_Space of Unicode; the contents of a class.
#define TANDEM_WS \
  R"(\x09-\x0D\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})"
#define TANDEM_SPACE "[" TANDEM_WS "]"
#define TANDEM_NOT_SPACE "[^" TANDEM_WS "]"
#define TANDEM_OTHER "[^" TANDEM_WS R"(\p{L}\p{N}])"
#define TANDEM_CONTRACTIONS "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]"

constexpr char kGpt2[] =
    "'s|'t|'re|'ve|'m|'ll|'d"
    R"(| ?\p{L}+| ?\p{N}+)"
    "| ?" TANDEM_OTHER "+|" TANDEM_SPACE "+(?!" TANDEM_NOT_SPACE ")";
constexpr char kLlama3[] =
    TANDEM_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3})"
                        "| ?" TANDEM_OTHER R"(+[\r\n]*)"
                        "|" TANDEM_SPACE R"(*[\r\n]+)"
                        "|" TANDEM_SPACE "+(?!" TANDEM_NOT_SPACE ")|" TANDEM_SPACE "+";
constexpr char kQwen2[] =
    TANDEM_CONTRACTIONS R"(|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N})"
                        "| ?" TANDEM_OTHER R"(+[\r\n]*)"
                        "|" TANDEM_SPACE R"(*[\r\n]+)"
                        "|" TANDEM_SPACE "+(?!" TANDEM_NOT_SPACE ")|" TANDEM_SPACE "+";

#undef TANDEM_WS
#undef TANDEM_SPACE
#undef TANDEM_NOT_SPACE
#undef TANDEM_OTHER
#undef TANDEM_CONTRACTIONS

struct Family {
  std::string_view name;
  std::vector<const char*> patterns;
};

std::vector<Family> Families() {
  const std::vector<const char*> gpt2 = {kGpt2}, llama3 = {kLlama3}, qwen2 = {kQwen2};
  return {
      {"gpt-2", gpt2},
      {"llama-bpe", llama3},
      {"llama3", llama3},
      {"llama-v3", llama3},
      {"qwen2", qwen2},
      {"deepseek-r1-qwen", qwen2},
      {"smollm", {R"(\p{N})", kGpt2}},
      {"default", {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
  };
}

std::string ErrorText(int code) {
  char text[128];
  pcre2_get_error_message(code, reinterpret_cast<PCRE2_UCHAR*>(text), sizeof(text));
  return text;
}

}  // namespace

struct PreTokenizer::Pattern {
  ~Pattern() { pcre2_code_free(code); }

  pcre2_code* code = nullptr;
};

PreTokenizer::PreTokenizer() = default;
PreTokenizer::~PreTokenizer() = default;

absl::StatusOr<std::unique_ptr<PreTokenizer>> PreTokenizer::Create(std::string_view name) {
  std::string known;
  for (const Family& family : Families()) {
    if (family.name != name) {
      absl::StrAppend(&known, known.empty() ? "" : ", ", std::string(family.name));
      continue;
    }
    std::unique_ptr<PreTokenizer> result(new PreTokenizer());
    for (const char* expression : family.patterns) {
      auto pattern = std::make_unique<Pattern>();
      int error;
      PCRE2_SIZE offset;
      pattern->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(expression), PCRE2_ZERO_TERMINATED,
                                    PCRE2_UTF | PCRE2_UCP, &error, &offset, nullptr);
      if (pattern->code == nullptr) {
        return absl::InternalError(
            absl::StrCat("pre-tokenizer pattern, offset ", offset, ": ", ErrorText(error)));
      }
      // Where the system forbids executable memory the interpreter does the same, slower.
      pcre2_jit_compile(pattern->code, PCRE2_JIT_COMPLETE);
      result->patterns_.push_back(std::move(pattern));
    }
    return result;
  }
  return Unimplemented("pre-tokenizer: expected one of ", known, ", got ", Quote(name));
}

absl::Status PreTokenizer::Split(std::string_view text,
                                 absl::FunctionRef<void(std::string_view)> fn) const {
  // Pieces of valid UTF-8, which the expressions may cut, and others.
  struct Piece {
    std::string_view text;
    bool valid;
  };
  std::vector<Piece> pieces;
  for (size_t begin = 0, end = 0; end < text.size(); begin = end) {
    const bool valid = FirstUtf8Sequence(text.substr(begin)).valid;
    while (end < text.size()) {
      const Utf8Sequence sequence = FirstUtf8Sequence(text.substr(end));
      if (sequence.valid != valid) break;
      end += static_cast<size_t>(sequence.length);
    }
    pieces.push_back({text.substr(begin, end - begin), valid});
  }

  const std::unique_ptr<pcre2_match_data, void (*)(pcre2_match_data*)> match(
      pcre2_match_data_create(1, nullptr), pcre2_match_data_free);
  if (match == nullptr) return absl::ResourceExhaustedError("pre-tokenizer: out of memory");
  for (const auto& pattern : patterns_) {
    std::vector<Piece> cut;
    for (const Piece& piece : pieces) {
      if (!piece.valid) {
        cut.push_back(piece);
        continue;
      }
      size_t position = 0;
      while (position < piece.text.size()) {
        // The text is valid UTF-8; letting PCRE2 check it again at every match would take quadratic
        // time.
        const int found = pcre2_match(
            pattern->code, reinterpret_cast<PCRE2_SPTR>(piece.text.data()), piece.text.size(),
            position, PCRE2_NO_UTF_CHECK | PCRE2_NOTEMPTY, match.get(), nullptr);
        if (found == PCRE2_ERROR_NOMATCH) break;
        if (found < 0) {
          return absl::InternalError(absl::StrCat("pre-tokenizer: ", ErrorText(found)));
        }
        const PCRE2_SIZE* range = pcre2_get_ovector_pointer(match.get());
        if (range[0] > position) {
          cut.push_back({piece.text.substr(position, range[0] - position), true});
        }
        cut.push_back({piece.text.substr(range[0], range[1] - range[0]), true});
        position = range[1];
      }
      if (position < piece.text.size()) cut.push_back({piece.text.substr(position), true});
    }
    pieces = std::move(cut);
  }
  for (const Piece& piece : pieces) fn(piece.text);
  return absl::OkStatus();
}

}  // namespace tandem
