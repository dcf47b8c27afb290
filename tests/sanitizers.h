// Is this a sanitizer build? What sanitizers watch takes ten times as long or more, so the largest
// grids are reduced there; their results are checked by the plain build.
#pragma once

namespace tandem {

#if defined(__SANITIZE_ADDRESS__)  // gcc
inline constexpr bool kAddressSanitized = true;
#elif defined(__has_feature)  // clang
inline constexpr bool kAddressSanitized = __has_feature(address_sanitizer);
#else
inline constexpr bool kAddressSanitized = false;
#endif

#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitized = true;
#elif defined(__has_feature)
inline constexpr bool kThreadSanitized = __has_feature(thread_sanitizer);
#else
inline constexpr bool kThreadSanitized = false;
#endif

inline constexpr bool kSanitized = kAddressSanitized || kThreadSanitized;

}  // namespace tandem
