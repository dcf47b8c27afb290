// SentencePiece-style tokenizer: see tokenizer.h.
#pragma once

#include "model/tokenizer.h"

namespace tandem {

absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadSpmTokenizer(Vocabulary vocabulary);

}  // namespace tandem
