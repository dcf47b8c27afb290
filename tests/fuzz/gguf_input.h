// What the fuzzer, and the test that runs its corpus, do with a file: open it and use everything
// that opening allows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/gguf.h"
#include "model/tokenizer.h"
#include "model/weights.h"

namespace tandem {

struct GgufInputResult {
  bool opened = false;
  bool has_tokenizer = false;
  bool has_decoder = false;  // config and weights
};

inline GgufInputResult UseGgufInput(std::span<const std::byte> input) {
  GgufInputResult result;
  // Exactly as long as the input, so that the sanitizer sees any byte read behind it.
  const std::unique_ptr<std::byte[]> copy(new std::byte[input.size() + (input.empty() ? 1 : 0)]);
  if (!input.empty()) std::memcpy(copy.get(), input.data(), input.size());
  const auto file = GgufFile::FromMemory({copy.get(), input.size()}, "input.gguf");
  if (!file.ok()) return result;
  result.opened = true;
  volatile int64_t sum = 0;  // the reads below must happen
  for (const GgufValue& value : (*file)->metadata()) {
    sum = sum + (*file)->Int(value.key, 0).value_or(0);
    sum = sum + static_cast<int64_t>((*file)->Float(value.key, 0.0).ok());
    if (const auto strings = (*file)->Strings(value.key); strings.ok()) {
      for (const std::string_view text : *strings) {
        if (!text.empty()) sum = sum + text.front() + text.back();
      }
    }
    if (const auto floats = (*file)->Floats(value.key); floats.ok()) {
      sum = sum + static_cast<int64_t>(floats->size());
    }
  }
  for (const GgufTensor& tensor : (*file)->tensors()) {
    if (!tensor.data.empty()) {
      sum = sum + std::to_integer<int>(tensor.data.front()) +
            std::to_integer<int>(tensor.data.back());
    }
    sum = sum + static_cast<int64_t>((*file)->Tensor(tensor.name).ok());
  }
  if (const auto tokenizer = Tokenizer::Load(*file); tokenizer.ok()) {
    result.has_tokenizer = true;
    for (const std::string_view text :
         {"Hello  world\n 123 it's", "\xE2\x96\x81<s>\xF0\x9F\x98\x80 \xFF", "aaaaaaaaaaaaaaaa"}) {
      const auto ids = (*tokenizer)->Encode(text);
      if (!ids.ok()) continue;
      StreamDecoder stream(**tokenizer);
      for (const int32_t id : *ids) sum = sum + static_cast<int64_t>(stream.Push(id)->size());
      sum = sum + static_cast<int64_t>((*tokenizer)->Decode(*ids)->size());
    }
    for (int32_t id = 0; id < std::min<int64_t>((*tokenizer)->size(), 1000); ++id) {
      sum = sum + static_cast<int64_t>((*tokenizer)->Piece(id, true)->size());
    }
  }
  if (const auto config = DecoderConfig::Load(**file); config.ok()) {
    const auto weights = DecoderWeights::Load(**file, *config);
    result.has_decoder = weights.ok();
    if (weights.ok()) sum = sum + weights->bytes();
  }
  return result;
}

}  // namespace tandem
