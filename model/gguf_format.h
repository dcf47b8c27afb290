// Sizes of GGUF's metadata types and tensor element types, and quoting of names from a file.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "core/dtype.h"
#include "model/gguf.h"

namespace tandem {

// Bytes of one value; 0 for strings, arrays and unknown types, whose size the file states.
int GgufTypeBytes(GgufType type);

struct GgufTensorType {
  uint32_t number;        // in the file
  std::string_view name;  // ggml's
  int block_length;       // elements
  int block_bytes;
  std::optional<DType> dtype;  // if Tandem computes with it
};
// nullptr for unknown numbers.
const GgufTensorType* FindGgufTensorType(uint32_t number);
// nullptr for dtypes that no file has.
const GgufTensorType* FindGgufTensorType(DType dtype);

// A name from the file for an error message: escaped, shortened, in single quotes.
std::string Quote(std::string_view text);

}  // namespace tandem
