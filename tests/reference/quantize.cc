#include "tests/reference/quantize.h"

#include <algorithm>
#include <cmath>

#include "tests/reference/elements.h"

namespace tandem::reference {
namespace {

void AppendScale(std::vector<std::byte>& bytes, float d) {
  const uint16_t bits = ToF16(d).bits;
  bytes.push_back(static_cast<std::byte>(bits & 0xFF));
  bytes.push_back(static_cast<std::byte>(bits >> 8));
}

float Inverse(float d) { return d == 0.0f ? 0.0f : 1.0f / d; }

void AppendQ8_0(std::vector<std::byte>& bytes, const std::vector<float>& x) {
  float largest = 0.0f;
  for (float v : x) largest = std::max(largest, std::fabs(v));
  const float d = largest / 127.0f;
  AppendScale(bytes, d);
  for (float v : x) {
    bytes.push_back(static_cast<std::byte>(static_cast<int8_t>(std::lround(v * Inverse(d)))));
  }
}

void AppendQ4_0(std::vector<std::byte>& bytes, const std::vector<float>& x) {
  const float extreme = *std::max_element(
      x.begin(), x.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); });
  const float d = extreme / -8.0f;
  AppendScale(bytes, d);
  std::vector<int> q;
  // As GGUF's Python package writes the fused multiply-add: f64, then rounded to f32.
  for (float v : x) {
    const double sum = static_cast<double>(v) * static_cast<double>(Inverse(d)) + 8.5;
    q.push_back(std::min(15, static_cast<int>(static_cast<float>(sum))));
  }
  const size_t half = x.size() / 2;
  for (size_t i = 0; i < half; ++i)
    bytes.push_back(static_cast<std::byte>(q[i] | q[i + half] << 4));
}

}  // namespace

std::vector<std::byte> QuantizedBytes(const TensorView& x, DType format) {
  std::vector<std::byte> bytes;
  std::vector<float> block;
  ForEachOffset(x, [&](int64_t offset) {
    block.push_back(static_cast<float>(ReadAt(x, offset)));
    if (static_cast<int>(block.size()) < BlockLength(format)) return;
    if (format == DType::kQ8_0) {
      AppendQ8_0(bytes, block);
    } else if (format == DType::kQ4_0) {
      AppendQ4_0(bytes, block);
    } else {
      AppendSuperBlock(bytes, block, format);
    }
    block.clear();
  });
  return bytes;
}

}  // namespace tandem::reference
