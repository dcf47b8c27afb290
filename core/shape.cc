#include "core/shape.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace tandem {

std::optional<int64_t> NumElements(const Shape& shape) {
  if (shape.rank < 0 || shape.rank > kMaxRank) return std::nullopt;
  bool empty = false;
  for (int i = 0; i < shape.rank; ++i) {
    if (shape.dims[i] < 0) return std::nullopt;
    empty = empty || shape.dims[i] == 0;
  }
  if (empty) return 0;
  int64_t count = 1;
  for (int i = 0; i < shape.rank; ++i) {
    const auto product = CheckedMul(count, shape.dims[i]);
    if (!product) return std::nullopt;
    count = *product;
  }
  return count;
}

std::string ToString(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < std::min(shape.rank, kMaxRank); ++i) {
    absl::StrAppend(&text, i ? ", " : "", shape.dims[i]);
  }
  return text + "]";
}

}  // namespace tandem
