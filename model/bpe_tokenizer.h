// Byte-level BPE tokenizer: see tokenizer.h.
#pragma once

#include "model/tokenizer.h"

namespace tandem {

absl::StatusOr<std::shared_ptr<const Tokenizer>> LoadBpeTokenizer(Vocabulary vocabulary);

}  // namespace tandem
