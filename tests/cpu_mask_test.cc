// Mask kernels where the shared cases do not reach: outputs beyond the last cache (non-temporal
// stores) and every misalignment of a row.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/ops/mask.h"
#include "cpu/kernels.h"
#include "cpu/stream.h"

namespace tandem::cpu {
namespace {

// An output with guard bytes and padding that must survive.
class GuardedMask {
 public:
  GuardedMask(DType dtype, const MaskRule& rule, int64_t padding, int64_t offset)
      : width_(BlockBytes(dtype)), rule_(rule) {
    columns_ = MaskColumns(dtype, rule.kv_len);
    stride_ = columns_ + padding;
    bytes_.assign(static_cast<size_t>((rule.q_len * stride_ + offset) * width_ + 2 * kGuard),
                  kPattern);
    view_ = MakeView(bytes_.data() + kGuard + offset * width_, dtype, {rule.q_len, columns_});
    view_.strides[0] = stride_;
  }

  const TensorView& view() const { return view_; }

  // The first wrong row, or -1.
  int64_t FirstWrongRow(uint32_t hidden, uint32_t visible) const {
    const auto* first = static_cast<const uint8_t*>(view_.data);
    std::vector<uint8_t> expected(static_cast<size_t>(stride_ * width_), kPattern);
    for (int64_t q = 0; q < rule_.q_len; ++q) {
      const KeyRange range = rule_.Range(q);
      switch (width_) {
        case 4:
          FillRow(reinterpret_cast<uint32_t*>(expected.data()), range, hidden, visible);
          break;
        case 2:
          FillRow(reinterpret_cast<uint16_t*>(expected.data()), range, hidden, visible);
          break;
        default:
          FillRow(expected.data(), range, hidden, visible);
      }
      if (std::memcmp(first + q * stride_ * width_, expected.data(), expected.size()) != 0) {
        return q;
      }
    }
    return -1;
  }
  bool GuardsIntact() const {
    const auto is_pattern = [](uint8_t byte) { return byte == kPattern; };
    const int64_t before = static_cast<const uint8_t*>(view_.data) - bytes_.data();
    return std::all_of(bytes_.begin(), bytes_.begin() + before, is_pattern) &&
           std::all_of(bytes_.end() - kGuard, bytes_.end(), is_pattern);
  }

 private:
  template <typename T>
  void FillRow(T* row, KeyRange range, uint32_t hidden, uint32_t visible) const {
    std::fill_n(row, columns_, static_cast<T>(hidden));
    std::fill(row + range.begin, row + range.end, static_cast<T>(visible));
  }

  static constexpr int64_t kGuard = 64;
  static constexpr uint8_t kPattern = 0xA5;
  int64_t width_;
  MaskRule rule_;
  int64_t columns_ = 0, stride_ = 0;
  std::vector<uint8_t> bytes_;
  TensorView view_;
};

struct Values {
  DType dtype;
  uint32_t hidden, visible;
};
const std::vector<Values> kValues = {{DType::kF32, 0xFF800000u, 0},
                                     {DType::kF16, 0xFC00u, 0},
                                     {DType::kBF16, 0xFF80u, 0},
                                     {DType::kBool, 0, 1}};

void ExpectRight(const MaskRule& rule, const Values& values, int64_t padding, int64_t offset) {
  CpuStream stream(std::make_shared<ThreadPool>(2), DetectCpu());
  const KernelContext context = {.stream = &stream, .workspace = nullptr};
  for (const Kernel<MaskArgs>& kernel : Kernels<MaskArgs>()) {
    GuardedMask mask(values.dtype, rule, padding, offset);
    const MaskArgs args = {.rule = rule, .out = mask.view()};
    ASSERT_TRUE(Validate(args).ok());
    if (kernel.name == "reference" || !kernel.supports(context, args).ok()) continue;
    ASSERT_TRUE(kernel.run(context, args).ok());
    ASSERT_EQ(mask.FirstWrongRow(values.hidden, values.visible), -1)
        << kernel.name << " " << Name(values.dtype) << " padding " << padding << " offset "
        << offset;
    ASSERT_TRUE(mask.GuardsIntact()) << kernel.name;
  }
}

TEST(CpuMask, EveryMisalignment) {
  for (const Values& values : kValues) {
    const int64_t line = 64 / BlockBytes(values.dtype);
    for (int64_t offset = 0; offset < line; ++offset) {
      ExpectRight({.q_len = 5, .kv_len = 3 * line + offset, .window_left = line + 3}, values,
                  offset % 3, offset);
    }
  }
}

// 3 MiB: between the caches of a core and the last one on most machines; 52 MiB: beyond 32 MiB.
TEST(CpuMask, LargerThanTheCaches) {
  for (const int64_t bytes : {int64_t{3} << 20, int64_t{52} << 20}) {
    for (const Values& values : kValues) {
      if (values.dtype == DType::kBF16) continue;  // as f16
      const auto rule = [&](int64_t columns) {
        const int64_t rows = bytes / (columns * BlockBytes(values.dtype)) + 1;
        return MaskRule{.q_len = rows, .kv_len = columns, .window_left = 1500};
      };
      ExpectRight(rule(5003), values, 1, 1);
      ExpectRight(rule(4992), values, 0, 0);  // every row begins at a cache line
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
