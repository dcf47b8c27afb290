// Fuzzes everything that reads a model file: container, tokenizer, hyperparameters, weights.
#include "tests/fuzz/gguf_input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  tandem::UseGgufInput({reinterpret_cast<const std::byte*>(data), size});
  return 0;
}
