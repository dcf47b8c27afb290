// A tensor's extents: up to kMaxRank dimensions, 64-bit, outermost first.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

namespace tandem {

inline constexpr int kMaxRank = 5;

struct Shape {
  int32_t rank = 0;
  std::array<int64_t, kMaxRank> dims{};

  Shape() = default;
  // More than kMaxRank extents: the rank is kept as given and Validate* rejects the view.
  Shape(std::initializer_list<int64_t> extents) : rank(static_cast<int32_t>(extents.size())) {
    int i = 0;
    for (int64_t extent : extents) {
      if (i < kMaxRank) dims[i++] = extent;
    }
  }

  int64_t operator[](int i) const { return dims[i]; }
  int64_t& operator[](int i) { return dims[i]; }

  friend bool operator==(const Shape& a, const Shape& b) {
    if (a.rank != b.rank) return false;
    for (int i = 0; i < a.rank && i < kMaxRank; ++i) {
      if (a.dims[i] != b.dims[i]) return false;
    }
    return true;
  }
};

// a * b, or nullopt on signed 64-bit overflow.
inline std::optional<int64_t> CheckedMul(int64_t a, int64_t b) {
  int64_t product;
  if (__builtin_mul_overflow(a, b, &product)) return std::nullopt;
  return product;
}
inline std::optional<int64_t> CheckedAdd(int64_t a, int64_t b) {
  int64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return std::nullopt;
  return sum;
}

// Product of the extents (1 for rank 0); nullopt if an extent is negative or the product overflows.
std::optional<int64_t> NumElements(const Shape& shape);

// "[2, 8, 1, 64]"
std::string ToString(const Shape& shape);

}  // namespace tandem
