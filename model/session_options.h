// What a session is made with; a model's placement has to know it, since caches take memory too.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace tandem {

struct SessionOptions {
  int64_t capacity = 0;          // tokens of context; 0: the model's, at most kDefaultCapacity
  DType kv_dtype = DType::kF16;  // f32, f16, bf16 or i8
  int64_t ubatch = 512;          // most tokens computed at once
  static constexpr int64_t kDefaultCapacity = 4096;
};

}  // namespace tandem
