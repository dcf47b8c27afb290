// The ops of the system, by name. Each has core/ops/<name>.h with its arguments, equation and
// Validate.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace tandem {

enum class OpKind : uint8_t {
  kAttention,
  kMask,
  kMatMul,
  kSoftmax,
  kRmsNorm,
  kRope,
  kSiluMul,
  kAdd,
  kEmbedding,
  kKvAppend,
  kCast,
  kArgMax,
  kSample,
  kMergeAttention,
  kGroupedMatMul,
};
inline constexpr int kNumOps = 15;
// clang-format off
inline constexpr std::array<std::string_view, kNumOps> kOpNames = {
    "attention", "mask",      "matmul",    "softmax", "rms_norm", "rope",   "silu_mul",
    "add",       "embedding", "kv_append", "cast",    "argmax",   "sample", "merge_attention",
    "grouped_matmul"};
// clang-format on
inline std::string_view Name(OpKind op) { return kOpNames[static_cast<size_t>(op)]; }

}  // namespace tandem
