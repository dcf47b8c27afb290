#include "core/dtype.h"

#include <array>

namespace tandem {
namespace {

struct Traits {
  DType dtype;
  std::string_view name;
  int block_length;
  int block_bytes;
  int alignment;
};

constexpr std::array<Traits, 14> kTraits = {{
    {DType::kF32, "f32", 1, 4, 4},
    {DType::kF16, "f16", 1, 2, 2},
    {DType::kBF16, "bf16", 1, 2, 2},
    {DType::kI8, "i8", 1, 1, 1},
    {DType::kI32, "i32", 1, 4, 4},
    {DType::kI64, "i64", 1, 8, 8},
    {DType::kU32, "u32", 1, 4, 4},
    {DType::kBool, "bool", 1, 1, 1},
    {DType::kQ8_0, "q8_0", BlockQ8_0::kLength, sizeof(BlockQ8_0), 2},
    {DType::kQ4_0, "q4_0", BlockQ4_0::kLength, sizeof(BlockQ4_0), 2},
    {DType::kQ4_K, "q4_k", BlockQ4_K::kLength, sizeof(BlockQ4_K), 2},
    {DType::kQ5_K, "q5_k", BlockQ5_K::kLength, sizeof(BlockQ5_K), 2},
    {DType::kQ6_K, "q6_k", BlockQ6_K::kLength, sizeof(BlockQ6_K), 2},
    {DType::kTQ2_0, "tq2_0", BlockTQ2_0::kLength, sizeof(BlockTQ2_0), 2},
}};

const Traits* Find(DType dtype) {
  for (const Traits& traits : kTraits) {
    if (traits.dtype == dtype) return &traits;
  }
  return nullptr;
}

}  // namespace

bool IsKnown(DType dtype) { return Find(dtype) != nullptr; }

std::string_view Name(DType dtype) {
  const Traits* traits = Find(dtype);
  return traits ? traits->name : std::string_view("unknown");
}

std::optional<DType> ParseDType(std::string_view name) {
  for (const Traits& traits : kTraits) {
    if (traits.name == name) return traits.dtype;
  }
  return std::nullopt;
}

int BlockLength(DType dtype) {
  const Traits* traits = Find(dtype);
  return traits ? traits->block_length : 1;
}

int BlockBytes(DType dtype) {
  const Traits* traits = Find(dtype);
  return traits ? traits->block_bytes : 0;
}

int Alignment(DType dtype) {
  const Traits* traits = Find(dtype);
  return traits ? traits->alignment : 1;
}

}  // namespace tandem
