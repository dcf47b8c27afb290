// Text to token ids and back, with the vocabulary that the model file carries.
//
// Two kinds, by `tokenizer.ggml.model`:
//   llama   SentencePiece-style: pieces with scores, spaces as U+2581, bytes as <0xNN> tokens
//           (spm_tokenizer.cc)
//   gpt2    byte-level BPE: a regular expression cuts the text into words, ranked merges build
//           tokens within each (bpe_tokenizer.cc, pretokenizer.cc)
// Ids are those of llama.cpp for the same file and UTF-8 text.
//
// Text is bytes; UTF-8 is expected, anything else is encoded byte by byte and decodes to itself.
// Encoding takes O(n log n) time in the length of the text. A vocabulary from a file is not
// trusted: it is checked when loaded, and errors name the file and the key.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "model/gguf.h"
#include "model/vocabulary.h"

namespace tandem {

struct EncodeOptions {
  bool add_special = true;    // BOS first and EOS last, where the file asks for them
  bool parse_special = true;  // control tokens written out in the text become those tokens;
                              // user-defined tokens always do
};

class Tokenizer {
 public:
  static absl::StatusOr<std::shared_ptr<const Tokenizer>> Load(
      std::shared_ptr<const GgufFile> file);
  virtual ~Tokenizer() = default;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  int64_t size() const { return vocabulary_.size(); }

  // InvalidArgument when the text needs a byte for which the vocabulary has no token and there is
  // no unknown token.
  absl::StatusOr<std::vector<int32_t>> Encode(std::string_view text,
                                              const EncodeOptions& options = {}) const;

  // The bytes a token stands for: empty for control and unknown tokens, unless `special`.
  // InvalidArgument for an id outside the vocabulary.
  absl::StatusOr<std::string> Piece(int32_t id, bool special = false) const;

  // The text of whole token sequences. The space that encoding puts before the first word is taken
  // off again.
  absl::StatusOr<std::string> Decode(std::span<const int32_t> ids, bool special = false) const;

 protected:
  explicit Tokenizer(Vocabulary vocabulary) : vocabulary_(std::move(vocabulary)) {}

  // Appends the tokens of text without special tokens. `after_special`: at the beginning, or right
  // behind a special token.
  virtual absl::Status EncodeText(std::string_view text, bool after_special,
                                  std::vector<int32_t>& ids) const = 0;
  // Bytes of a normal or byte token.
  virtual std::string TextOf(int32_t id) const = 0;
  // Does encoding put a space before the first word, and behind special tokens?
  virtual bool adds_space_prefix() const { return false; }

  Vocabulary vocabulary_;
};

// Text of a token stream as it is generated: each call returns what is certain so far, as valid
// UTF-8. Bytes of an incomplete character wait for the next token; bytes that can no longer become
// one are replaced by U+FFFD.
class StreamDecoder {
 public:
  explicit StreamDecoder(const Tokenizer& tokenizer, bool special = false)
      : tokenizer_(tokenizer), special_(special) {}

  absl::StatusOr<std::string> Push(int32_t id);
  // The end of the stream: an incomplete character is replaced.
  std::string Finish();

 private:
  const Tokenizer& tokenizer_;
  bool special_;
  std::string waiting_;
};

}  // namespace tandem
