// Attention kernels of the CPU against a plain fp64 loop: layouts, masks, dtypes, and the
// properties that a grid of random cases does not show (NaN handling, determinism, no allocation).
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <random>
#include <vector>

#include "core/ops/attention.h"
#include "core/ops/online_softmax.h"
#include "cpu/kernels.h"
#include "cpu/stream.h"
#include "tests/allocation_counter.h"

namespace {
std::atomic<int64_t> g_allocations{0};  // counts every operator new of this test binary
}  // namespace

__attribute__((noinline)) void* operator new(size_t bytes) {
  g_allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* p = std::malloc(bytes ? bytes : 1)) return p;
  std::abort();
}
__attribute__((noinline)) void operator delete(void* p) noexcept { std::free(p); }
__attribute__((noinline)) void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace tandem {
int64_t AllocationCount() { return g_allocations.load(std::memory_order_relaxed); }
}  // namespace tandem

namespace tandem::cpu {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

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
Expected Reference(const AttentionArgs& args) {
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

double OutputTolerance(DType dtype) {
  return dtype == DType::kF32 ? 4e-6 : dtype == DType::kF16 ? 6e-4 : 5e-3;
}

// Compares out and lse with the reference; NaN must be where the reference has it.
void ExpectMatches(const Tensors& tensors, const AttentionArgs& args, const std::string& what) {
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
  EXPECT_LE(worst, OutputTolerance(args.out.dtype)) << what;
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
void CheckAllKernels(const Problem& problem, Machine& machine) {
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

TEST(CpuAttention, RandomProblems) {
  Machine machine(2);
  std::mt19937 random(20240611);
  const auto pick = [&](auto... options) {
    const std::array values = {options...};
    return values[random() % values.size()];
  };
  for (int n = 0; n < 150; ++n) {
    Problem p;
    p.seed = random();
    p.batch = pick(1, 1, 2);
    p.kv_heads = pick(1, 2, 3);
    p.q_heads = p.kv_heads * pick(1, 2, 3, 4, 5, 7, 8, 12, 16);
    p.q_len = pick(1, 1, 1, 2, 3, 8, 9, 17, 70);
    p.cache = pick(0, 1, 2, 3, 7, 16, 33, 127, 128, 129, 200, 300, 700);
    p.fresh = pick(0, 0, 1, 5, 40);
    p.head_dim = pick(1, 5, 16, 32, 40, 63, 64, 80, 96, 128, 192);
    p.v_head_dim = pick(p.head_dim, p.head_dim, int64_t{1}, int64_t{17}, int64_t{72}, int64_t{96});
    p.q_type = pick(DType::kF32, DType::kF16, DType::kBF16);
    p.kv_type = pick(DType::kF32, DType::kF16, DType::kBF16);
    p.new_type = pick(DType::kF32, DType::kF16, DType::kBF16);
    p.out_type = pick(DType::kF32, DType::kF16, DType::kBF16);
    p.causal = pick(Causal::kNone, Causal::kBottomRight, Causal::kBottomRight, Causal::kTopLeft);
    p.window_left = pick(-1, -1, 0, 3, 20, 150);
    p.window_right = pick(-1, -1, 0, 2, 40);
    p.pad = pick(0, 1, 16);
    p.transposed = pick(false, true);
    CheckAllKernels(p, machine);
    if (HasFailure()) break;
  }
}

TEST(CpuAttention, LongCacheInManyChunks) {
  Machine machine(2);
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    Problem p;
    p.q_heads = 8;
    p.kv_heads = 1;
    p.cache = 5000;
    p.kv_type = dtype;
    CheckAllKernels(p, machine);
    p.q_len = 5;
    CheckAllKernels(p, machine);
  }
}

TEST(CpuAttention, EveryDecodeBlockShape) {
  Machine machine(1);
  for (int64_t group = 1; group <= 20; ++group) {
    Problem p;
    p.kv_heads = 2;
    p.q_heads = 2 * group;
    p.cache = 37;
    p.head_dim = 24;
    CheckAllKernels(p, machine);
  }
}

TEST(CpuAttention, BitIdenticalAtAnyThreadCount) {
  for (int64_t q_len : {int64_t{1}, int64_t{4}, int64_t{150}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      p.q_heads = 6;
      p.cache = 1500;
      p.fresh = 3;
      p.q_len = q_len;
      p.kv_type = DType::kF16;
      std::vector<uint8_t> first_out, first_lse;
      for (int threads : {1, 2, 3, 5}) {
        Machine machine(threads);
        Tensors tensors(p);
        const AttentionArgs args = tensors.Args(p);
        if (!machine.Supports(kernel, args).ok()) continue;
        ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
        if (threads == 1) {
          first_out = tensors.out.bytes();
          first_lse = tensors.lse.bytes();
        }
        EXPECT_EQ(tensors.out.bytes(), first_out) << kernel.name << " threads " << threads;
        EXPECT_EQ(tensors.lse.bytes(), first_lse) << kernel.name << " threads " << threads;
      }
    }
  }
}

TEST(CpuAttention, MaskedNanNeverLeaksAndVisibleNanPropagates) {
  Machine machine(2);
  for (int64_t q_len : {int64_t{1}, int64_t{6}, int64_t{100}}) {
    for (int64_t poisoned = 0; poisoned < 130; poisoned += q_len == 100 ? 13 : 9) {
      for (const bool in_k : {true, false}) {
        for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
          Problem p;
          p.q_len = q_len;
          p.cache = 130;
          p.window_left = 50;
          Tensors tensors(p);
          const AttentionArgs args = tensors.Args(p);
          if (!machine.Supports(kernel, args).ok()) continue;
          // One kv head only: the other one's rows must stay clean.
          TestTensor& t = in_k ? tensors.k : tensors.v;
          t.Set(t.Offset(0, 1, poisoned, 7), kNan);
          const std::string what =
              absl::StrCat(std::string(kernel.name), " key ", poisoned, in_k ? " k " : " v ") +
              p.ToString();
          ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus()) << what;
          ExpectMatches(tensors, args, what);
        }
      }
    }
  }
}

TEST(CpuAttention, NanInQueryMakesItsRowNan) {
  Machine machine(2);
  for (int64_t q_len : {int64_t{1}, int64_t{40}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      p.q_len = q_len;
      Tensors tensors(p);
      const AttentionArgs args = tensors.Args(p);
      if (!machine.Supports(kernel, args).ok()) continue;
      tensors.q.Set(tensors.q.Offset(0, 1, q_len - 1, 3), kNan);
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
      ExpectMatches(tensors, args, std::string(kernel.name));
      EXPECT_TRUE(std::isnan(tensors.out.Get(tensors.out.Offset(0, 1, q_len - 1, 0))));
      EXPECT_FALSE(std::isnan(tensors.out.Get(tensors.out.Offset(0, 0, q_len - 1, 0))));
    }
  }
}

TEST(CpuAttention, RowsThatSeeNothingAreZeroWithLseMinusInfinity) {
  Machine machine(2);
  for (int64_t cache : {int64_t{0}, int64_t{3}}) {
    for (int64_t q_len : {int64_t{6}, int64_t{30}}) {
      for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
        Problem p;
        p.cache = cache;
        p.q_len = q_len;  // more queries than keys: the first ones see none
        Tensors tensors(p);
        const AttentionArgs args = tensors.Args(p);
        if (!machine.Supports(kernel, args).ok()) continue;
        ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
        ExpectMatches(tensors, args, std::string(kernel.name));
        for (int64_t i = 0; i < q_len - cache; ++i) {
          EXPECT_EQ(std::bit_cast<uint32_t>(tensors.out.Get(tensors.out.Offset(0, 2, i, 5))), 0u);
          EXPECT_EQ(tensors.lse.Get(tensors.lse.Offset(0, 2, i)), kNegInf);
        }
      }
    }
  }
}

TEST(CpuAttention, ScoresBeyondTheRangeOfF16) {
  Machine machine(1);
  for (int64_t q_len : {int64_t{1}, int64_t{20}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      p.q_type = p.kv_type = DType::kF16;
      p.q_len = q_len;
      p.amplitude = 400.0f;  // scores of a few hundred thousand
      Tensors tensors(p);
      const AttentionArgs args = tensors.Args(p);
      if (!machine.Supports(kernel, args).ok()) continue;
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
      const Expected expected = Reference(args);
      size_t n = 0;
      double worst = 0.0;
      tensors.out.ForEach([&](int64_t offset) {
        worst = std::max(worst, std::abs(tensors.out.Get(offset) - expected.out[n++]));
      });
      // One score of 4e5 in f32 is good to 0.03, and so are the weights.
      EXPECT_LE(worst, 0.1) << kernel.name;
      EXPECT_GT(*std::max_element(expected.lse.begin(), expected.lse.end()), 70000.0);
    }
  }
}

TEST(CpuAttention, NewKeysBesideTheCacheEqualAppendedOnes) {
  Machine machine(2);
  for (int64_t q_len : {int64_t{1}, int64_t{4}, int64_t{33}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem beside;
      beside.cache = 300 - q_len;
      beside.fresh = q_len;
      beside.q_len = q_len;
      Tensors split(beside);
      Problem appended = beside;
      appended.cache = 300;
      appended.fresh = 0;
      Tensors whole(appended);
      for (auto [part, fresh, all] : {std::tuple(&split.k, &split.k_new, &whole.k),
                                      std::tuple(&split.v, &split.v_new, &whole.v)}) {
        for (int64_t h = 0; h < beside.kv_heads; ++h)
          for (int64_t j = 0; j < 300; ++j)
            for (int64_t d = 0; d < beside.head_dim; ++d)
              all->Set(all->Offset(0, h, j, d),
                       j < beside.cache ? part->Get(part->Offset(0, h, j, d))
                                        : fresh->Get(fresh->Offset(0, h, j - beside.cache, d)));
      }
      const AttentionArgs split_args = split.Args(beside);
      if (!machine.Supports(kernel, split_args).ok()) continue;
      ASSERT_EQ(machine.Run(kernel, split_args), absl::OkStatus());
      ASSERT_EQ(machine.Run(kernel, whole.Args(appended)), absl::OkStatus());
      double worst = 0.0;
      split.out.ForEach([&](int64_t offset) {
        worst = std::max(
            worst, static_cast<double>(std::abs(split.out.Get(offset) - whole.out.Get(offset))));
      });
      EXPECT_LE(worst, 2e-6) << kernel.name;
    }
  }
}

TEST(CpuAttention, BroadcastKeysAndQueries) {
  Machine machine(2);
  for (int64_t q_len : {int64_t{2}, int64_t{20}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      p.batch = 3;
      p.kv_heads = 2;
      p.q_len = q_len;
      Tensors tensors(p);
      AttentionArgs args = tensors.Args(p);
      args.k.strides[0] = 0;  // all sequences share one cache
      args.v.strides[0] = 0;
      args.q.strides[1] = 0;  // all heads ask the same
      ASSERT_EQ(Validate(args), absl::OkStatus());
      if (!machine.Supports(kernel, args).ok()) continue;
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
      ExpectMatches(tensors, args, std::string(kernel.name));
    }
  }
}

TEST(CpuAttention, StridedHeadDimensionOnlyByTheReference) {
  Machine machine(1);
  Problem p;
  p.head_dim = 2 * 64;  // every other element
  Tensors tensors(p);
  AttentionArgs args = tensors.Args(p);
  args.q.shape.dims[3] = args.k.shape.dims[3] = 64;
  args.q.strides[3] = args.k.strides[3] = 2;
  ASSERT_EQ(Validate(args), absl::OkStatus());
  for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
    const absl::Status can = machine.Supports(kernel, args);
    if (kernel.name == "reference") {
      ASSERT_EQ(can, absl::OkStatus());
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
      ExpectMatches(tensors, args, "reference");
    } else {
      EXPECT_EQ(can.code(), absl::StatusCode::kUnimplemented) << kernel.name;
      EXPECT_THAT(std::string(can.message()), testing::HasSubstr("stride")) << kernel.name;
    }
  }
}

TEST(CpuAttention, ExplicitScaleAndNoLse) {
  Machine machine(1);
  for (int64_t q_len : {int64_t{1}, int64_t{20}}) {
    for (float scale : {0.0f, -0.3f, 0.5f}) {
      for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
        Problem p;
        p.q_len = q_len;
        Tensors tensors(p);
        AttentionArgs args = tensors.Args(p);
        args.scale = scale;
        args.lse = {};
        if (!machine.Supports(kernel, args).ok()) continue;
        ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
        ExpectMatches(tensors, args, absl::StrCat(std::string(kernel.name), " scale ", scale));
      }
    }
  }
}

TEST(CpuAttention, EmptyDimensionsWriteNothing) {
  Machine machine(2);
  for (int which = 0; which < 4; ++which) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      if (which == 0) p.q_len = 0;
      if (which == 1) p.batch = 0;
      if (which == 2) p.q_heads = p.kv_heads = 0;
      if (which == 3) p.v_head_dim = 0;
      Tensors tensors(p);
      const AttentionArgs args = tensors.Args(p);
      ASSERT_EQ(Validate(args), absl::OkStatus());
      if (!machine.Supports(kernel, args).ok()) continue;
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus()) << kernel.name << which;
      EXPECT_EQ(tensors.out.DamagedElements(), 0);
      if (which == 3) ExpectMatches(tensors, args, std::string(kernel.name));
    }
  }
}

TEST(CpuAttention, RunAllocatesNothing) {
  Machine machine(2);
  for (int64_t q_len : {int64_t{1}, int64_t{64}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      p.q_len = q_len;
      p.cache = 700;
      Tensors tensors(p);
      const AttentionArgs args = tensors.Args(p);
      if (!machine.Supports(kernel, args).ok()) continue;
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());  // sizes the workspace
      const int64_t before = g_allocations.load();
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
      EXPECT_EQ(g_allocations.load(), before) << kernel.name;
    }
  }
}

TEST(CpuAttention, TooSmallWorkspaceIsAnError) {
  for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
    Problem p;
    p.q_len = 2;
    Tensors tensors(p);
    const AttentionArgs args = tensors.Args(p);
    CpuStream stream(std::make_shared<ThreadPool>(1), DetectCpu());
    if (!kernel.supports({&stream, nullptr}, args).ok()) continue;
    Workspace none;
    EXPECT_EQ(kernel.run({&stream, &none}, args).code(), absl::StatusCode::kInternal)
        << kernel.name;
    EXPECT_TRUE(std::isnan(tensors.out.Get(0)));
  }
}

TEST(CpuAttention, EachInstructionSetHasItsKernels) {
  Problem p;
  Tensors tensors(p);
  const AttentionArgs args = tensors.Args(p);
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (DetectCpu().isa < isa) continue;
    CpuStream stream(std::make_shared<ThreadPool>(1), Restrict(DetectCpu(), isa));
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      if (!kernel.supports({&stream, nullptr}, args).ok()) continue;
      EXPECT_EQ(std::string(kernel.name), "decode_" + std::string(Name(isa)));
      break;
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
