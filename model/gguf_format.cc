#include "model/gguf_format.h"

#include <array>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"

namespace tandem {
namespace {

struct MetadataType {
  const char* name;
  int bytes;
};
constexpr std::array<MetadataType, 13> kMetadataTypes = {{{"uint8", 1},
                                                          {"int8", 1},
                                                          {"uint16", 2},
                                                          {"int16", 2},
                                                          {"uint32", 4},
                                                          {"int32", 4},
                                                          {"float32", 4},
                                                          {"bool", 1},
                                                          {"string", 0},
                                                          {"array", 0},
                                                          {"uint64", 8},
                                                          {"int64", 8},
                                                          {"float64", 8}}};

// ggml.h, enum ggml_type; numbers that are left out were withdrawn or never occur in files.
constexpr GgufTensorType kTensorTypes[] = {
    {0, "F32", 1, 4, DType::kF32},          {1, "F16", 1, 2, DType::kF16},
    {2, "Q4_0", 32, 18, DType::kQ4_0},      {3, "Q4_1", 32, 20, std::nullopt},
    {6, "Q5_0", 32, 22, std::nullopt},      {7, "Q5_1", 32, 24, std::nullopt},
    {8, "Q8_0", 32, 34, DType::kQ8_0},      {10, "Q2_K", 256, 84, std::nullopt},
    {11, "Q3_K", 256, 110, std::nullopt},   {12, "Q4_K", 256, 144, DType::kQ4_K},
    {13, "Q5_K", 256, 176, DType::kQ5_K},   {14, "Q6_K", 256, 210, DType::kQ6_K},
    {16, "IQ2_XXS", 256, 66, std::nullopt}, {17, "IQ2_XS", 256, 74, std::nullopt},
    {18, "IQ3_XXS", 256, 98, std::nullopt}, {19, "IQ1_S", 256, 50, std::nullopt},
    {20, "IQ4_NL", 32, 18, std::nullopt},   {21, "IQ3_S", 256, 110, std::nullopt},
    {22, "IQ2_S", 256, 82, std::nullopt},   {23, "IQ4_XS", 256, 136, std::nullopt},
    {24, "I8", 1, 1, std::nullopt},         {25, "I16", 1, 2, std::nullopt},
    {26, "I32", 1, 4, std::nullopt},        {27, "I64", 1, 8, std::nullopt},
    {28, "F64", 1, 8, std::nullopt},        {29, "IQ1_M", 256, 56, std::nullopt},
    {30, "BF16", 1, 2, DType::kBF16},       {34, "TQ1_0", 256, 54, std::nullopt},
    {35, "TQ2_0", 256, 66, DType::kTQ2_0},  {39, "MXFP4", 32, 17, std::nullopt},
};

}  // namespace

std::string Name(GgufType type) {
  const auto number = static_cast<uint32_t>(type);
  if (number >= kMetadataTypes.size()) return absl::StrCat("type ", number);
  return kMetadataTypes[number].name;
}

int GgufTypeBytes(GgufType type) {
  const auto number = static_cast<uint32_t>(type);
  return number < kMetadataTypes.size() ? kMetadataTypes[number].bytes : 0;
}

const GgufTensorType* FindGgufTensorType(uint32_t number) {
  for (const GgufTensorType& type : kTensorTypes) {
    if (type.number == number) return &type;
  }
  return nullptr;
}

const GgufTensorType* FindGgufTensorType(DType dtype) {
  for (const GgufTensorType& type : kTensorTypes) {
    if (type.dtype == dtype) return &type;
  }
  return nullptr;
}

std::string GgufTensorTypeName(uint32_t type) {
  const GgufTensorType* known = FindGgufTensorType(type);
  return known ? std::string(known->name) : absl::StrCat("type ", type);
}

std::string Quote(std::string_view text) {
  constexpr size_t kShown = 80;  // bytes: enough for any real name
  const std::string shown(text.substr(0, kShown));
  return absl::StrCat("'", absl::CHexEscape(shown), text.size() > kShown ? "...'" : "'");
}

}  // namespace tandem
