// The fields of a case as text: one line that says everything about it, and back.
//
// A case lists its fields once:
//   template <typename Self, typename Visitor>
//   static void VisitFields(Self& self, Visitor&& visit) {
//     visit("rows", self.rows);
//     ...
//   }
// Its reproducer is the op's name and the fields that differ from their defaults:
//   "attention q_heads=8 kv_heads=2 kv_len=113 seed=7"
#pragma once

#include <array>
#include <charconv>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/dtype.h"
#include "core/ops/mask_rule.h"
#include "core/ops/matmul.h"
#include "core/ops/rope.h"
#include "core/status.h"

namespace tandem::cases {

// Names of an enumeration's values, in order. Specialise for each enumeration used as a field.
template <typename Enum>
inline constexpr std::array<std::string_view, 0> kEnumNames{};
template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<Causal> = {"none", "bottom_right",
                                                                       "top_left"};
template <>
inline constexpr std::array<std::string_view, 4> kEnumNames<Activation> = {"none", "silu", "gelu",
                                                                           "relu"};
template <>
inline constexpr std::array<std::string_view, 2> kEnumNames<RopePairing> = {"interleaved", "half"};

template <typename T>
std::string FieldText(const T& value) {
  if constexpr (std::is_same_v<T, DType>) {
    return std::string(Name(value));
  } else if constexpr (std::is_same_v<T, std::optional<float>>) {
    return value ? FieldText(*value) : "default";
  } else if constexpr (std::is_enum_v<T>) {
    return std::string(kEnumNames<T>[static_cast<size_t>(value)]);
  } else if constexpr (std::is_floating_point_v<T>) {
    return absl::StrFormat("%.9g", value);
  } else {
    static_assert(std::is_integral_v<T>);
    return std::to_string(value);
  }
}

// False when the text is not a value of the field's type.
template <typename T>
bool ParseField(std::string_view text, T& value) {
  if constexpr (std::is_same_v<T, DType>) {
    const auto dtype = ParseDType(text);
    if (dtype) value = *dtype;
    return dtype.has_value();
  } else if constexpr (std::is_same_v<T, std::optional<float>>) {
    value.reset();
    return text == "default" || ParseField(text, value.emplace());
  } else if constexpr (std::is_enum_v<T>) {
    for (size_t i = 0; i < kEnumNames<T>.size(); ++i) {
      if (kEnumNames<T>[i] == text) {
        value = static_cast<T>(i);
        return true;
      }
    }
    return false;
  } else if constexpr (std::is_same_v<T, bool>) {
    value = text == "1";
    return text == "0" || text == "1";
  } else {
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    return error == std::errc() && end == text.data() + text.size();
  }
}

template <typename Case>
std::string OpNameOf() {
  return std::string(Name(Case::Args::kOp));
}

// The case's reproducer.
template <typename Case>
std::string CaseText(const Case& c) {
  const Case defaults{};
  std::vector<std::string> default_texts;
  Case::VisitFields(defaults, [&](std::string_view, const auto& value) {
    default_texts.push_back(FieldText(value));
  });
  std::string text = OpNameOf<Case>();
  size_t i = 0;
  Case::VisitFields(c, [&](std::string_view name, const auto& value) {
    const std::string field = FieldText(value);
    if (field != default_texts[i++]) text += " " + std::string(name) + "=" + field;
  });
  return text;
}

// Splits at blanks.
std::vector<std::string> SplitWords(std::string_view text);

// Reads a reproducer. InvalidArgument names the field that is unknown or malformed.
template <typename Case>
absl::StatusOr<Case> ParseCase(std::string_view text) {
  const std::vector<std::string> words = SplitWords(text);
  if (words.empty() || words[0] != OpNameOf<Case>()) {
    return InvalidArgument("case: expected it to begin with \"", OpNameOf<Case>(), "\"");
  }
  Case c{};
  for (size_t i = 1; i < words.size(); ++i) {
    const size_t equals = words[i].find('=');
    const std::string name = words[i].substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : words[i].substr(equals + 1);
    bool known = false, good = false;
    Case::VisitFields(c, [&](std::string_view field_name, auto& field) {
      if (field_name != name) return;
      known = true;
      good = ParseField(value, field);
    });
    if (!known) return InvalidArgument("case: ", words[0], " has no field \"", name, "\"");
    if (!good) return InvalidArgument("case: \"", value, "\" is not a value of field ", name);
  }
  return c;
}

}  // namespace tandem::cases
