#include "cuda/emulator/matrix.h"

#include <array>
#include <cstring>

#include "core/dtype.h"

namespace tandem::cuda::emulator {
namespace {

float Half(uint32_t pair, int i, bool bf16) {
  const auto bits = static_cast<uint16_t>(pair >> (16 * i));
  return bf16 ? ToFloat(BF16{bits}) : ToFloat(F16{bits});
}
int Byte(uint32_t quad, int i) { return static_cast<int8_t>(quad >> (8 * i)); }

}  // namespace

void MultiplyFloat(void* const* lanes, uint32_t) {
  std::array<std::array<double, 16>, 16> a;
  std::array<std::array<double, 16>, 8> b;
  for (int t = 0; t < kWarpSize; ++t) {
    const auto& lane = *static_cast<const FloatProductLane*>(lanes[t]);
    const auto group = static_cast<size_t>(t / 4), pair = static_cast<size_t>(t % 4 * 2);
    for (size_t r = 0; r < 4; ++r) {
      for (int i = 0; i < 2; ++i) {
        a[group + r % 2 * 8][pair + r / 2 * 8 + static_cast<size_t>(i)] =
            Half(lane.a[r], i, lane.bf16);
      }
    }
    for (size_t r = 0; r < 2; ++r) {
      for (int i = 0; i < 2; ++i) {
        b[group][pair + r * 8 + static_cast<size_t>(i)] = Half(lane.b[r], i, lane.bf16);
      }
    }
  }
  for (int t = 0; t < kWarpSize; ++t) {
    const auto& lane = *static_cast<const FloatProductLane*>(lanes[t]);
    for (size_t i = 0; i < 4; ++i) {
      const auto& x = a[static_cast<size_t>(t / 4) + i / 2 * 8];
      const auto& y = b[static_cast<size_t>(t % 4 * 2) + i % 2];
      double sum = lane.d[i];
      for (size_t k = 0; k < 16; ++k) sum += x[k] * y[k];
      lane.d[i] = static_cast<float>(sum);
    }
  }
}

void MultiplyInteger(void* const* lanes, uint32_t) {
  std::array<std::array<int, 32>, 16> a;
  std::array<std::array<int, 32>, 8> b;
  for (int t = 0; t < kWarpSize; ++t) {
    const auto& lane = *static_cast<const IntegerProductLane*>(lanes[t]);
    const auto group = static_cast<size_t>(t / 4), quad = static_cast<size_t>(t % 4 * 4);
    for (size_t i = 0; i < 4; ++i) {
      for (size_t r = 0; r < 4; ++r) {
        a[group + r % 2 * 8][quad + r / 2 * 16 + i] = Byte(lane.a[r], static_cast<int>(i));
      }
      for (size_t r = 0; r < 2; ++r) {
        b[group][quad + r * 16 + i] = Byte(lane.b[r], static_cast<int>(i));
      }
    }
  }
  for (int t = 0; t < kWarpSize; ++t) {
    const auto& lane = *static_cast<const IntegerProductLane*>(lanes[t]);
    for (size_t i = 0; i < 4; ++i) {
      const auto& x = a[static_cast<size_t>(t / 4) + i / 2 * 8];
      const auto& y = b[static_cast<size_t>(t % 4 * 2) + i % 2];
      auto sum = static_cast<uint32_t>(lane.d[i]);  // wraps, as the instruction does
      for (size_t k = 0; k < 32; ++k) sum += static_cast<uint32_t>(x[k] * y[k]);
      lane.d[i] = static_cast<int32_t>(sum);
    }
  }
}

void LoadMatrices(void* const* lanes, uint32_t) {
  const int count = static_cast<const MatrixLane*>(lanes[0])->count;
  for (int j = 0; j < count; ++j) {
    std::array<std::array<uint16_t, 8>, 8> matrix;
    for (int r = 0; r < 8; ++r) {
      std::memcpy(matrix[static_cast<size_t>(r)].data(),
                  static_cast<const MatrixLane*>(lanes[8 * j + r])->row, 16);
    }
    for (int t = 0; t < kWarpSize; ++t) {
      const auto& lane = *static_cast<const MatrixLane*>(lanes[t]);
      const auto group = static_cast<size_t>(t / 4), pair = static_cast<size_t>(t % 4 * 2);
      const uint32_t low = lane.transposed ? matrix[pair][group] : matrix[group][pair];
      const uint32_t high = lane.transposed ? matrix[pair + 1][group] : matrix[group][pair + 1];
      lane.registers[j] = low | high << 16;
    }
  }
}

void StoreMatrices(void* const* lanes, uint32_t) {
  const int count = static_cast<const MatrixLane*>(lanes[0])->count;
  for (int j = 0; j < count; ++j) {
    std::array<std::array<uint16_t, 8>, 8> matrix;
    for (int t = 0; t < kWarpSize; ++t) {
      const auto& lane = *static_cast<const MatrixLane*>(lanes[t]);
      const auto group = static_cast<size_t>(t / 4), pair = static_cast<size_t>(t % 4 * 2);
      const auto low = static_cast<uint16_t>(lane.registers[j]);
      const auto high = static_cast<uint16_t>(lane.registers[j] >> 16);
      (lane.transposed ? matrix[pair][group] : matrix[group][pair]) = low;
      (lane.transposed ? matrix[pair + 1][group] : matrix[group][pair + 1]) = high;
    }
    for (int r = 0; r < 8; ++r) {
      std::memcpy(static_cast<const MatrixLane*>(lanes[8 * j + r])->row,
                  matrix[static_cast<size_t>(r)].data(), 16);
    }
  }
}

}  // namespace tandem::cuda::emulator
