// Random numbers that are the same on every machine: integer arithmetic on the standard's
// mt19937_64, no library distribution (their algorithms are not specified) and no libm.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace tandem::cases {

class Rng {
 public:
  explicit Rng(uint64_t seed) : engine_(seed) {}

  // Close to normal(0, 1): the sum of twelve 16-bit uniforms (Irwin-Hall), exact in f64.
  double Normal() {
    int64_t sum = 0;
    for (int draw = 0; draw < 3; ++draw) {
      const uint64_t bits = engine_();
      for (int i = 0; i < 4; ++i) sum += static_cast<int64_t>((bits >> (16 * i)) & 0xFFFF);
    }
    return (static_cast<double>(sum) + 6.0) / 65536.0 - 6.0;
  }
  // In [0, 1), a multiple of 2^-24: exact in f32.
  double Uniform() { return static_cast<double>(engine_() >> 40) * 0x1p-24; }
  // In [low, high].
  int64_t Integer(int64_t low, int64_t high) {
    const auto span = static_cast<uint64_t>(high - low) + 1;
    return low + static_cast<int64_t>(span == 0 ? engine_() : engine_() % span);
  }
  bool Chance(double probability) { return Uniform() < probability; }
  template <typename T>
  T Pick(const std::vector<T>& options) {
    return options[static_cast<size_t>(Integer(0, static_cast<int64_t>(options.size()) - 1))];
  }

 private:
  std::mt19937_64 engine_;
};

}  // namespace tandem::cases
