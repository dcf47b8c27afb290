// What a session is made with; a model's placement has to know it, since caches take memory too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "core/dtype.h"
#include "core/status.h"

namespace tandem {

struct SessionOptions {
  int64_t capacity = 0;          // tokens of context; 0: the model's, at most kDefaultCapacity
  DType kv_dtype = DType::kF16;  // f32, f16, bf16 or i8
  int64_t ubatch = 512;          // most tokens computed at once
  static constexpr int64_t kDefaultCapacity = 4096;
  static constexpr int64_t kMaxCapacity = int64_t{1} << 30;

  // Tokens of context that a model trained for `context` gets.
  int64_t CapacityFor(int64_t context) const {
    return capacity != 0 ? capacity : std::min(context, kDefaultCapacity);
  }
};

inline absl::Status Validate(const SessionOptions& options) {
  constexpr int64_t kMost = SessionOptions::kMaxCapacity;
  if (options.capacity < 0 || options.capacity > kMost) {
    return InvalidArgument("capacity: expected 0..", kMost, " tokens, got ", options.capacity);
  }
  if (options.ubatch < 1) return InvalidArgument("ubatch: expected >= 1, got ", options.ubatch);
  if (!IsFloat(options.kv_dtype) && options.kv_dtype != DType::kI8) {
    return InvalidArgument("kv_dtype: expected f32, f16, bf16 or i8, got ",
                           std::string(Name(options.kv_dtype)));
  }
  return absl::OkStatus();
}

}  // namespace tandem
