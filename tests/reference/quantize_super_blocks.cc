// The search of ggml's reference quantisers for 256-element blocks, by its definition: every step
// in f32 and in the order of the elements, as the bytes depend on the roundings.
#include <algorithm>
#include <array>
#include <cmath>

#include "tests/reference/quantize.h"
#include "tests/reference/super_blocks.h"

namespace tandem::reference {
namespace {

using Floats = std::vector<float>;

// Ties to even. Within 2^22 this is what ggml's addition of 1.5 * 2^23 gives.
int Round(float x) { return static_cast<int>(std::nearbyintf(x)); }

Floats Part(const Floats& x, size_t begin, size_t count) {
  const auto from = x.begin() + static_cast<int64_t>(begin);
  return Floats(from, from + static_cast<int64_t>(count));
}

std::vector<int> Levels(const Floats& x, float inverse, float min, int low, int high) {
  std::vector<int> levels;
  for (float v : x) levels.push_back(std::clamp(Round(inverse * (v - min)), low, high));
  return levels;
}

struct Fit {
  float scale = 0.0f, min = 0.0f;
  std::vector<int> q;
};

// Weighted least squares of x ~ scale * q + min over the roundings q of a few steps.
Fit FitScaleAndMin(const Floats& x, int max, float first, int steps) {
  float square_sum = 0.0f, weight_sum = 0.0f, x_sum = 0.0f;
  for (float v : x) square_sum += v * v;
  Floats weight;
  for (float v : x) {
    weight.push_back(sqrtf(square_sum / static_cast<float>(x.size())) + fabsf(v));
    weight_sum += weight.back();
    x_sum += weight.back() * v;
  }
  const float top = *std::max_element(x.begin(), x.end());
  float min = std::min(0.0f, *std::min_element(x.begin(), x.end()));
  const auto max_quant = static_cast<float>(max);
  Fit best{0.0f, min, std::vector<int>(x.size(), 0)};
  if (top == min) return best;
  const auto squared_error = [&](const Fit& fit) {
    float sum = 0.0f;
    for (size_t i = 0; i < x.size(); ++i) {
      const float d = fit.scale * static_cast<float>(fit.q[i]) + fit.min - x[i];
      sum += weight[i] * (d * d);
    }
    return sum;
  };
  best.scale = 1.0f / (max_quant / (top - min));
  best.q = Levels(x, max_quant / (top - min), min, 0, max);
  float least = squared_error(best);
  for (int step = 0; step <= steps; ++step) {
    const float inverse = (first + 0.1f * static_cast<float>(step) + max_quant) / (top - min);
    Fit fit{0.0f, 0.0f, Levels(x, inverse, min, 0, max)};
    float q = 0.0f, qq = 0.0f, qx = 0.0f;
    for (size_t i = 0; i < x.size(); ++i) {
      const auto level = static_cast<float>(fit.q[i]);
      q += weight[i] * level;
      qq += weight[i] * level * level;
      qx += weight[i] * level * x[i];
    }
    const float determinant = weight_sum * qq - q * q;
    if (determinant <= 0.0f) continue;
    fit.scale = (weight_sum * qx - x_sum * q) / determinant;
    fit.min = (qq * x_sum - q * qx) / determinant;
    if (fit.min > 0.0f) {
      fit.min = 0.0f;
      fit.scale = qx / qq;
    }
    const float error = squared_error(fit);
    if (error < least) {
      least = error;
      min = fit.min;
      best = fit;
    }
  }
  return best;
}

// The same without a minimum, weighted by x^2.
Fit FitSignedScale(const Floats& x) {
  const float extreme =
      *std::max_element(x.begin(), x.end(), [](float a, float b) { return fabsf(a) < fabsf(b); });
  if (fabsf(extreme) < 1e-15f) return {0.0f, 0.0f, std::vector<int>(x.size(), -32)};
  Fit best;
  float merit = 0.0f;
  std::vector<int> order = {0};
  for (int step = -9; step <= 9; ++step) {
    if (step != 0) order.push_back(step);
  }
  for (int step : order) {
    const float inverse = -(32.0f + 0.1f * static_cast<float>(step)) / extreme;
    const std::vector<int> levels = Levels(x, inverse, 0.0f, -32, 31);
    float qx = 0.0f, qq = 0.0f;
    for (size_t i = 0; i < x.size(); ++i) {
      const auto level = static_cast<float>(levels[i]);
      qx += x[i] * x[i] * x[i] * level;
      qq += x[i] * x[i] * level * level;
    }
    if (step != 0 && !(qq > 0.0f && qx * qx > merit * qq)) continue;
    best = {qq != 0.0f ? qx / qq : 0.0f, 0.0f, levels};
    merit = best.scale * qx;
  }
  return best;
}

// Sets the `bits` bits of field i; see super_blocks.cc for the order of the fields.
void SetField(uint8_t* bytes, int bits, int lanes, size_t i, int value) {
  const size_t width = static_cast<size_t>(lanes), fields = 8 / static_cast<size_t>(bits);
  uint8_t& byte = bytes[i / (width * fields) * width + i % width];
  byte = static_cast<uint8_t>(byte | value << (i / width % fields * static_cast<size_t>(bits)));
}

template <typename Block>
Block QuantizeWithMin(const Floats& x) {
  constexpr bool kFive = std::is_same_v<Block, BlockQ5_K>;
  constexpr int kMax = kFive ? 31 : 15;
  std::array<Fit, 8> fits;
  float max_scale = 0.0f, max_min = 0.0f;
  for (size_t s = 0; s < 8; ++s) {
    fits[s] = FitScaleAndMin(Part(x, 32 * s, 32), kMax, kFive ? -0.5f : -1.0f, kFive ? 15 : 20);
    max_scale = std::max(max_scale, fits[s].scale);
    max_min = std::max(max_min, -fits[s].min);
  }
  Block block{};
  block.d = ToF16(max_scale / 63.0f);
  block.dmin = ToF16(max_min / 63.0f);
  for (size_t s = 0; s < 8; ++s) {
    const auto six_bits = [](float v, float largest) {
      const int level = largest > 0.0f ? Round(63.0f / largest * v) : 0;
      return std::min(63, static_cast<int>(static_cast<uint8_t>(level)));
    };
    const int scale = six_bits(fits[s].scale, max_scale), min = six_bits(-fits[s].min, max_min);
    if (s < 4) {
      block.scales[s] = static_cast<uint8_t>(scale);
      block.scales[s + 4] = static_cast<uint8_t>(min);
    } else {
      block.scales[s - 4] = static_cast<uint8_t>(block.scales[s - 4] + scale / 16 * 64);
      block.scales[s] = static_cast<uint8_t>(block.scales[s] + min / 16 * 64);
      block.scales[s + 4] = static_cast<uint8_t>(scale % 16 + min % 16 * 16);
    }
    const float step = ToFloat(block.d) * static_cast<float>(scale);
    const float offset = ToFloat(block.dmin) * static_cast<float>(min);
    for (size_t i = 0; i < 32; ++i) {
      int q = fits[s].q[i];
      if (step != 0.0f) q = std::clamp(Round((x[32 * s + i] + offset) / step), 0, kMax);
      SetField(block.q, 4, 32, 32 * s + i, q % 16);
      if constexpr (kFive) SetField(block.high, 1, 32, 32 * s + i, q / 16);
    }
  }
  return block;
}

BlockQ6_K QuantizeQ6(const Floats& x) {
  std::array<Fit, 16> fits;
  float extreme = 0.0f;
  for (size_t s = 0; s < 16; ++s) {
    fits[s] = FitSignedScale(Part(x, 16 * s, 16));
    if (fabsf(fits[s].scale) > fabsf(extreme)) extreme = fits[s].scale;
  }
  BlockQ6_K block{};
  if (fabsf(extreme) < 1e-15f) return block;
  const float inverse = -128.0f / extreme;
  block.d = ToF16(1.0f / inverse);
  for (size_t s = 0; s < 16; ++s) {
    block.scales[s] = static_cast<int8_t>(std::min(127, Round(inverse * fits[s].scale)));
    const float step = ToFloat(block.d) * static_cast<float>(block.scales[s]);
    for (size_t i = 0; i < 16; ++i) {
      int q = fits[s].q[i];
      if (step != 0.0f) q = std::clamp(Round(x[16 * s + i] / step), -32, 31);
      SetField(block.low, 4, 64, 16 * s + i, (q + 32) % 16);
      SetField(block.high, 2, 32, 16 * s + i, (q + 32) / 16);
    }
  }
  return block;
}

BlockTQ2_0 QuantizeTernary(const Floats& x) {
  float largest = 0.0f;
  for (float v : x) largest = std::max(largest, fabsf(v));
  BlockTQ2_0 block{};
  block.d = ToF16(largest);
  const float inverse = largest > 0.0f ? 1.0f / largest : 0.0f;
  for (size_t i = 0; i < x.size(); ++i) {
    SetField(block.q, 2, 32, i, static_cast<int>(std::lround(x[i] * inverse)) + 1);
  }
  return block;
}

template <typename Block>
void Append(std::vector<std::byte>& bytes, const Block& block) {
  const auto* from = reinterpret_cast<const std::byte*>(&block);
  bytes.insert(bytes.end(), from, from + sizeof(block));
}

}  // namespace

void AppendSuperBlock(std::vector<std::byte>& bytes, const std::vector<float>& x, DType format) {
  switch (format) {
    case DType::kQ4_K:
      return Append(bytes, QuantizeWithMin<BlockQ4_K>(x));
    case DType::kQ5_K:
      return Append(bytes, QuantizeWithMin<BlockQ5_K>(x));
    case DType::kQ6_K:
      return Append(bytes, QuantizeQ6(x));
    default:
      return Append(bytes, QuantizeTernary(x));
  }
}

}  // namespace tandem::reference
