// What the attention tests share: tensors in guarded, NaN-padded memory, problems, a stream with
// its workspace, and attention as a plain fp64 loop.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/ops/attention.h"
#include "cpu/kernels.h"
#include "cpu/stream.h"

namespace tandem::cpu {

inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

// A tensor whose memory outside the view (padding between rows, guards at both ends) is NaN.
class TestTensor {
 public:
  TestTensor() = default;
  // `pad`: extra elements per row of the innermost dimension; `transpose_12`: dimensions 1 and 2
  // swapped in memory, as in [B, S, H, D].
  TestTensor(DType dtype, Shape shape, int64_t pad = 0, bool transpose_12 = false) : dtype_(dtype) {
    view_ = MakeView(static_cast<void*>(nullptr), dtype, shape);
    std::array<int, kMaxRank> order = {0, 1, 2, 3, 4};
    if (transpose_12) std::swap(order[1], order[2]);
    int64_t stride = 1;
    for (int i = shape.rank - 1; i >= 0; --i) {
      view_.strides[order[i]] = stride;
      stride *= std::max<int64_t>(shape[order[i]], 1);
      if (i == shape.rank - 1) stride += pad;
    }
    elements_ = stride;
    bytes_.resize(static_cast<size_t>((elements_ + 2 * kGuard) * BlockBytes(dtype)));
    for (int64_t i = -kGuard; i < elements_ + kGuard; ++i) SetRaw(i, kNan);
    view_.data = bytes_.data() + kGuard * BlockBytes(dtype);
    original_ = bytes_;
  }

  const TensorView& view() const { return view_; }
  void set_view(const TensorView& view) { view_ = view; }

  int64_t Offset(int64_t a, int64_t b, int64_t c, int64_t d = 0) const {
    return a * view_.strides[0] + b * view_.strides[1] + c * view_.strides[2] +
           d * view_.strides[3];
  }
  float Get(int64_t offset) const {
    return DispatchFloat(dtype_, [&]<typename T>() { return ToFloat(view_.As<T>()[offset]); });
  }
  void Set(int64_t offset, float x) {
    DispatchFloat(dtype_, [&]<typename T>() { view_.As<T>()[offset] = FromFloat<T>(x); });
  }
  template <typename Fn>
  void ForEach(Fn fn) const {
    const Shape& s = view_.shape;
    const int64_t last = s.rank > 3 ? s[3] : 1;
    for (int64_t a = 0; a < s[0]; ++a)
      for (int64_t b = 0; b < s[1]; ++b)
        for (int64_t c = 0; c < s[2]; ++c)
          for (int64_t d = 0; d < last; ++d) fn(Offset(a, b, c, d));
  }
  void Fill(uint32_t seed, float amplitude = 1.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, amplitude);
    ForEach([&](int64_t offset) { Set(offset, normal(random)); });
  }

  // Bytes outside the view that have changed since construction.
  int64_t DamagedElements() const {
    std::vector<uint8_t> expected = original_;
    const int64_t size = BlockBytes(dtype_);
    ForEach([&](int64_t offset) {
      const auto at = static_cast<size_t>((offset + kGuard) * size);
      std::copy_n(bytes_.begin() + static_cast<int64_t>(at), size,
                  expected.begin() + static_cast<int64_t>(at));
    });
    int64_t damaged = 0;
    for (size_t i = 0; i < bytes_.size(); ++i) damaged += bytes_[i] != expected[i];
    return damaged;
  }
  const std::vector<uint8_t>& bytes() const { return bytes_; }

 private:
  static constexpr int64_t kGuard = 64;
  void SetRaw(int64_t element, float x) {
    DispatchFloat(dtype_, [&]<typename T>() {
      reinterpret_cast<T*>(bytes_.data())[element + kGuard] = FromFloat<T>(x);
    });
  }
  DType dtype_ = DType::kF32;
  TensorView view_;
  int64_t elements_ = 0;
  std::vector<uint8_t> bytes_, original_;
};

struct Problem {
  int64_t batch = 1, q_heads = 4, kv_heads = 2, q_len = 1, cache = 100, fresh = 0;
  int64_t head_dim = 64, v_head_dim = 64;
  DType q_type = DType::kF32, kv_type = DType::kF32, new_type = DType::kF32;
  DType out_type = DType::kF32;
  Causal causal = Causal::kBottomRight;
  int64_t window_left = -1, window_right = -1;
  int64_t pad = 3;
  bool transposed = true;  // [B, S, H, D] in memory
  float amplitude = 1.0f;
  uint32_t seed = 1;

  std::string ToString() const {
    return absl::StrCat("B=", batch, " Hq=", q_heads, " Hkv=", kv_heads, " Sq=", q_len,
                        " Skv=", cache, " Snew=", fresh, " D=", head_dim, " Dv=", v_head_dim) +
           absl::StrCat(" q=", int(q_type), " kv=", int(kv_type), " new=", int(new_type),
                        " out=", int(out_type), " causal=", int(causal), " left=", window_left,
                        " right=", window_right, " seed=", seed);
  }
};

struct Tensors {
  TestTensor q, k, v, k_new, v_new, out, lse;

  explicit Tensors(const Problem& p)
      : q(p.q_type, {p.batch, p.q_heads, p.q_len, p.head_dim}, p.pad, p.transposed),
        k(p.kv_type, {p.batch, p.kv_heads, p.cache, p.head_dim}, p.pad, p.transposed),
        v(p.kv_type, {p.batch, p.kv_heads, p.cache, p.v_head_dim}, p.pad, p.transposed),
        k_new(p.new_type, {p.batch, p.kv_heads, p.fresh, p.head_dim}, p.pad),
        v_new(p.new_type, {p.batch, p.kv_heads, p.fresh, p.v_head_dim}, p.pad),
        out(p.out_type, {p.batch, p.q_heads, p.q_len, p.v_head_dim}, p.pad, p.transposed),
        lse(DType::kF32, {p.batch, p.q_heads, p.q_len}) {
    q.Fill(p.seed, p.amplitude);
    k.Fill(p.seed + 1, p.amplitude);
    v.Fill(p.seed + 2);
    k_new.Fill(p.seed + 3, p.amplitude);
    v_new.Fill(p.seed + 4);
  }

  AttentionArgs Args(const Problem& p) const {
    AttentionArgs args;
    args.q = q.view();
    args.k = k.view();
    args.v = v.view();
    if (p.fresh > 0) {
      args.k_new = k_new.view();
      args.v_new = v_new.view();
    }
    args.out = out.view();
    args.lse = lse.view();
    args.causal = p.causal;
    args.window_left = p.window_left;
    args.window_right = p.window_right;
    return args;
  }
};

class Machine {
 public:
  explicit Machine(int threads) : stream_(std::make_shared<ThreadPool>(threads), DetectCpu()) {}

  absl::Status Run(const Kernel<AttentionArgs>& kernel, const AttentionArgs& args) {
    KernelContext context{&stream_, nullptr};
    const int64_t bytes = kernel.workspace_bytes(context, args);
    if (static_cast<int64_t>(memory_.size()) < bytes + 64) {
      memory_.assign(static_cast<size_t>(bytes + 64), 0xFF);  // scratch starts as NaN
    }
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    Workspace workspace(memory_.data() + (64 - address % 64) % 64, bytes);
    context.workspace = &workspace;
    return kernel.run(context, args);
  }
  absl::Status Supports(const Kernel<AttentionArgs>& kernel, const AttentionArgs& args) {
    return kernel.supports({&stream_, nullptr}, args);
  }

 private:
  CpuStream stream_;
  std::vector<uint8_t> memory_;
};

struct Expected {
  std::vector<double> out;  // in ForEach order of out
  std::vector<double> lse;
};

// The equation of core/ops/attention.h in fp64, one softmax per row over the visible keys.
inline Expected Reference(const AttentionArgs& args) {
  const auto load = [](const TensorView& view, int64_t a, int64_t b, int64_t c, int64_t d) {
    const int64_t offset =
        a * view.stride(0) + b * view.stride(1) + c * view.stride(2) + d * view.stride(3);
    return DispatchFloat(view.dtype, [&]<typename T>() {
      return static_cast<double>(ToFloat(view.As<T>()[offset]));
    });
  };
  Expected expected;
  const int64_t cached = args.cache_len();
  for (int64_t b = 0; b < args.batch(); ++b) {
    for (int64_t h = 0; h < args.q_heads(); ++h) {
      const int64_t g = h / args.group();
      for (int64_t i = 0; i < args.q_len(); ++i) {
        std::vector<double> scores, weights;
        std::vector<int64_t> keys;
        double maximum = -std::numeric_limits<double>::infinity();
        for (int64_t j = 0; j < args.kv_len(); ++j) {
          if (!args.Rule().Visible(i, j)) continue;
          double s = 0.0;
          for (int64_t d = 0; d < args.head_dim(); ++d) {
            s += load(args.q, b, h, i, d) *
                 (j < cached ? load(args.k, b, g, j, d) : load(args.k_new, b, g, j - cached, d));
          }
          s *= args.Scale();
          scores.push_back(s);
          keys.push_back(j);
          maximum = std::max(maximum, s);
        }
        double sum = 0.0;
        for (double s : scores) {
          weights.push_back(std::exp(s - maximum));
          sum += weights.back();
        }
        for (int64_t d = 0; d < args.v_head_dim(); ++d) {
          double out = 0.0;
          for (size_t n = 0; n < keys.size(); ++n) {
            const int64_t j = keys[n];
            out += weights[n] / sum *
                   (j < cached ? load(args.v, b, g, j, d) : load(args.v_new, b, g, j - cached, d));
          }
          expected.out.push_back(out);
        }
        expected.lse.push_back(keys.empty() ? -std::numeric_limits<double>::infinity()
                                            : maximum + std::log(sum));
      }
    }
  }
  return expected;
}

inline double OutputTolerance(const AttentionArgs& args) {
  // Where everything that comes in is bf16 a kernel may keep the probabilities in bf16.
  const bool bf16 = args.q.dtype == DType::kBF16 && args.k.dtype == DType::kBF16 &&
                    (!args.k_new.present() || args.k_new.dtype == DType::kBF16);
  if (args.out.dtype == DType::kBF16 || bf16) return 5e-3;
  return args.out.dtype == DType::kF32 ? 4e-6 : 6e-4;
}

// Compares out and lse with the reference; NaN must be where the reference has it.
inline void ExpectMatches(const Tensors& tensors, const AttentionArgs& args,
                          const std::string& what) {
  const Expected expected = Reference(args);
  size_t n = 0;
  double worst = 0.0;
  int64_t nan_mismatches = 0;
  tensors.out.ForEach([&](int64_t offset) {
    const double actual = tensors.out.Get(offset);
    const double wanted = expected.out[n++];
    if (std::isnan(wanted) != std::isnan(actual)) {
      ++nan_mismatches;
    } else if (!std::isnan(wanted)) {
      worst = std::max(worst, std::abs(actual - wanted) / (1.0 + std::abs(wanted)));
    }
  });
  EXPECT_EQ(nan_mismatches, 0) << what;
  EXPECT_LE(worst, OutputTolerance(args)) << what;
  n = 0;
  if (!args.lse.present()) return;
  for (int64_t b = 0; b < args.batch(); ++b) {
    for (int64_t h = 0; h < args.q_heads(); ++h) {
      for (int64_t i = 0; i < args.q_len(); ++i) {
        const double actual = tensors.lse.Get(tensors.lse.Offset(b, h, i));
        const double wanted = expected.lse[n++];
        if (std::isinf(wanted) || std::isnan(wanted)) {
          EXPECT_EQ(std::isnan(actual), std::isnan(wanted)) << what;
          if (!std::isnan(wanted)) {
            EXPECT_EQ(actual, wanted) << what;
          }
        } else {
          EXPECT_NEAR(actual, wanted, 3e-6 * (1.0 + std::abs(wanted))) << what << " row " << i;
        }
      }
    }
  }
}

// Runs every kernel that can, and gives each a fresh set of tensors.
inline void CheckAllKernels(const Problem& problem, Machine& machine) {
  for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
    Tensors tensors(problem);
    const AttentionArgs args = tensors.Args(problem);
    ASSERT_EQ(Validate(args), absl::OkStatus()) << problem.ToString();
    if (!machine.Supports(kernel, args).ok()) continue;
    const std::string what = std::string(kernel.name) + " " + problem.ToString();
    ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus()) << what;
    ExpectMatches(tensors, args, what);
    EXPECT_EQ(tensors.out.DamagedElements(), 0) << what;
    EXPECT_EQ(tensors.lse.DamagedElements(), 0) << what;
  }
}

}  // namespace tandem::cpu
