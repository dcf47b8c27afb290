// UTF-8 sequences, by the definition of Unicode: no overlong forms, no surrogates, at most
// U+10FFFF.
#pragma once

#include <string_view>

namespace tandem {

// The first sequence of a text that is not empty.
struct Utf8Sequence {
  // Its bytes; if not valid, the bytes to skip (or replace by one U+FFFD) before looking again.
  int length;
  bool valid;
  // Not valid yet: the text ends within a sequence that further bytes could complete.
  bool incomplete;
};

inline Utf8Sequence FirstUtf8Sequence(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {1, true, false};
  const int length = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (length == 0) return {1, false, false};
  // The second byte's range excludes overlong forms, surrogates and what lies above U+10FFFF.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) == text.size()) return {i, false, true};
    const unsigned char b = byte(static_cast<size_t>(i));
    if (b < (i == 1 ? low : 0x80) || b > (i == 1 ? high : 0xBF)) return {i, false, false};
  }
  return {length, true, false};
}

}  // namespace tandem
