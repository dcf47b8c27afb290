#include "tests/reference/elements.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "tests/reference/super_blocks.h"

namespace tandem::reference {
namespace {

int8_t ToI8(double x) { return static_cast<int8_t>(std::lrint(std::clamp(x, -127.0, 127.0))); }

// Precision in bits, the implied leading one included.
int Precision(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return 24;
    case DType::kF16:
      return 11;
    case DType::kBF16:
      return 8;
    case DType::kQ8_0:
      return 7;
    case DType::kQ6_K:
      return 5;
    case DType::kQ5_K:
      return 4;
    case DType::kQ4_0:
    case DType::kQ4_K:
      return 3;
    case DType::kTQ2_0:
      return 1;
    default:
      return 64;
  }
}

int MinExponent(DType dtype) { return dtype == DType::kF16 ? -14 : -126; }

void WriteBlock(void* data, DType dtype, const std::vector<double>& values) {
  if (BlockLength(dtype) == 256) return WriteSuperBlock(dtype, values, data);
  double largest = 0.0;
  for (double v : values) largest = std::max(largest, std::fabs(v));
  if (dtype == DType::kQ8_0) {
    auto* block = static_cast<BlockQ8_0*>(data);
    block->d = ToF16(static_cast<float>(largest / 127.0));
    const double d = ToFloat(block->d);
    for (int i = 0; i < BlockQ8_0::kLength; ++i) block->q[i] = d > 0.0 ? ToI8(values[i] / d) : 0;
    return;
  }
  auto* block = static_cast<BlockQ4_0*>(data);
  block->d = ToF16(static_cast<float>(largest / 8.0));
  const double d = ToFloat(block->d);
  const auto nibble = [&](double v) {
    return static_cast<uint8_t>(d > 0.0 ? std::clamp(std::lrint(v / d) + 8, 0L, 15L) : 8);
  };
  for (int i = 0; i < BlockQ4_0::kLength / 2; ++i) {
    block->q[i] =
        static_cast<uint8_t>(nibble(values[i]) | nibble(values[i + BlockQ4_0::kLength / 2]) << 4);
  }
}

void WriteAt(const TensorView& view, int64_t offset, double value) {
  switch (view.dtype) {
    case DType::kF32:
      *view.At<float>(offset) = static_cast<float>(value);
      break;
    case DType::kF16:
      *view.At<F16>(offset) = ToF16(static_cast<float>(value));
      break;
    case DType::kBF16:
      *view.At<BF16>(offset) = ToBF16(static_cast<float>(value));
      break;
    case DType::kI8:
    case DType::kBool:
      *view.At<int8_t>(offset) = static_cast<int8_t>(value);
      break;
    case DType::kI32:
      *view.At<int32_t>(offset) = static_cast<int32_t>(value);
      break;
    case DType::kU32:
      *view.At<uint32_t>(offset) = static_cast<uint32_t>(value);
      break;
    case DType::kI64:
      *view.At<int64_t>(offset) = static_cast<int64_t>(value);
      break;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K:
    case DType::kTQ2_0:
      break;  // written by blocks
  }
}

}  // namespace

void ForEachOffset(const TensorView& view, const std::function<void(int64_t offset)>& fn) {
  const int rank = view.rank();
  if (rank == 0 || view.empty()) return;
  std::array<int64_t, kMaxRank> index{};
  while (true) {
    int64_t offset = 0;
    for (int i = 0; i < rank; ++i) offset += index[i] * view.strides[i];
    for (int64_t j = 0; j < view.dim(-1); ++j) fn(offset + j * view.stride(-1));
    int axis = rank - 2;
    while (axis >= 0 && ++index[axis] == view.dim(axis)) index[axis--] = 0;
    if (axis < 0) return;
  }
}

double ReadAt(const TensorView& view, int64_t offset) {
  switch (view.dtype) {
    case DType::kF32:
      return *view.At<float>(offset);
    case DType::kF16:
      return ToFloat(*view.At<F16>(offset));
    case DType::kBF16:
      return ToFloat(*view.At<BF16>(offset));
    case DType::kI8:
      return *view.At<int8_t>(offset);
    case DType::kBool:
      return *view.At<uint8_t>(offset);
    case DType::kI32:
      return *view.At<int32_t>(offset);
    case DType::kU32:
      return *view.At<uint32_t>(offset);
    case DType::kI64:
      return static_cast<double>(*view.At<int64_t>(offset));
    case DType::kQ8_0: {
      const BlockQ8_0& block = view.As<BlockQ8_0>()[offset / BlockQ8_0::kLength];
      return static_cast<double>(ToFloat(block.d)) * block.q[offset % BlockQ8_0::kLength];
    }
    case DType::kQ4_0: {
      const BlockQ4_0& block = view.As<BlockQ4_0>()[offset / BlockQ4_0::kLength];
      const int i = static_cast<int>(offset % BlockQ4_0::kLength);
      const int nibble = i < 16 ? block.q[i] & 15 : block.q[i - 16] >> 4;
      return static_cast<double>(ToFloat(block.d)) * (nibble - 8);
    }
    case DType::kQ4_K:
    case DType::kQ5_K:
    case DType::kQ6_K:
    case DType::kTQ2_0: {
      const int64_t block = offset / 256;
      const auto* data = static_cast<const char*>(view.data) + block * BlockBytes(view.dtype);
      return ReadSuperBlock(view.dtype, data, static_cast<int>(offset % 256));
    }
  }
  return std::numeric_limits<double>::quiet_NaN();
}

std::vector<double> ReadAll(const TensorView& view) {
  std::vector<double> values;
  if (!view.present()) return values;
  values.reserve(static_cast<size_t>(view.num_elements()));
  ForEachOffset(view, [&](int64_t offset) { values.push_back(ReadAt(view, offset)); });
  return values;
}

void WriteAll(const TensorView& view, const std::function<double(int64_t i)>& value) {
  int64_t i = 0;
  if (!IsBlockQuantized(view.dtype)) {
    ForEachOffset(view, [&](int64_t offset) { WriteAt(view, offset, value(i++)); });
    return;
  }
  std::vector<double> block;
  ForEachOffset(view, [&](int64_t offset) {
    block.push_back(value(i++));
    const int length = BlockLength(view.dtype);
    if (static_cast<int>(block.size()) < length) return;
    char* data = static_cast<char*>(view.data) + ByteOffset(view.dtype, offset - length + 1);
    WriteBlock(data, view.dtype, block);
    block.clear();
  });
}

double RoundTo(DType dtype, double value) {
  const auto x = static_cast<float>(value);
  return DispatchFloat(dtype, [&]<typename T>() -> double { return ToFloat(FromFloat<T>(x)); });
}

double HalfUlp(DType dtype, double value) {
  const double magnitude = std::fabs(value);
  if (!std::isfinite(magnitude)) return 0.0;
  const int exponent =
      magnitude > 0.0 ? std::max(std::ilogb(magnitude), MinExponent(dtype)) : MinExponent(dtype);
  return std::ldexp(1.0, exponent - Precision(dtype));
}

DType Coarser(DType a, DType b) { return Precision(a) <= Precision(b) ? a : b; }

}  // namespace tandem::reference
