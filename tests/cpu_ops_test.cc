// The CPU kernels of the small ops over their shared cases: every kernel against the f64
// references, and the same bits at any number of threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "core/buffer.h"
#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "cpu/stream.h"
#include "tests/allocation_counter.h"
#include "tests/cases/all_cases.h"
#include "tests/sanitizers.h"

namespace tandem::cpu {
namespace {

struct Machine {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
};

// One CPU backend per thread count.
std::vector<Machine> Machines(const std::vector<int>& threads) {
  std::vector<Machine> machines;
  for (int count : threads) {
    CpuOptions options;
    options.threads = count;
    Machine machine;
    machine.backend = *MakeCpuBackend(options);
    machine.stream = *machine.backend->CreateStream();
    machines.push_back(std::move(machine));
  }
  return machines;
}

template <typename Case>
class CpuOps : public testing::Test {};

using Ops =
    testing::Types<cases::MaskCase, cases::SoftmaxCase, cases::RmsNormCase, cases::RopeCase,
                   cases::SiluMulCase, cases::AddCase, cases::EmbeddingCase, cases::KvAppendCase,
                   cases::CastCase, cases::ArgMaxCase, cases::SampleCase>;
struct OpName {
  template <typename Case>
  static std::string GetName(int) {
    return cases::OpNameOf<Case>();
  }
};
TYPED_TEST_SUITE(CpuOps, Ops, OpName);

TYPED_TEST(CpuOps, EveryKernelIsRightAtAnyThreadCount) {
  using Case = TypeParam;
  // Races show in every case and at every count of threads above one.
  const std::vector<Machine> machines =
      Machines(kThreadSanitized ? std::vector<int>{3} : std::vector<int>{1, 2, 3, 5});
  const auto kernels = Kernels<typename Case::Args>();
  std::vector<int64_t> passed(kernels.size(), 0);
  std::vector<Case> all =
      Case::Grid(kThreadSanitized ? cases::GridSize::kShort : cases::GridSize::kFull);
  cases::Rng rng(2024);
  for (int i = 0; i < (kThreadSanitized ? 10 : 100); ++i) all.push_back(Case::Random(rng));
  for (const Case& c : all) {
    const auto prepared = cases::Prepare(c);
    ASSERT_TRUE(prepared.ok()) << cases::CaseText(c) << ": " << prepared.status();
    for (size_t k = 0; k < kernels.size(); ++k) {
      uint64_t hash = 0;
      for (size_t m = 0; m < machines.size(); ++m) {
        const cases::Target target = {.backend = machines[m].backend.get(),
                                      .stream = machines[m].stream.get(),
                                      .pack = nullptr};
        const cases::Outcome outcome = cases::RunPrepared(*prepared, kernels[k], target);
        ASSERT_FALSE(outcome.failed()) << kernels[k].name << ": " << outcome.message;
        if (!outcome.passed()) continue;
        ++passed[k];
        if (m == 0) hash = outcome.output_hash;
        ASSERT_EQ(outcome.output_hash, hash)
            << kernels[k].name << " depends on the thread count: " << cases::CaseText(c);
      }
    }
  }
  const CpuFeatures features = DetectCpu();
  for (size_t k = 0; k < kernels.size(); ++k) {
    const bool listed_above =
        (kernels[k].name.ends_with("avx512") && features.isa < Isa::kAvx512) ||
        (kernels[k].name.ends_with("avx2") && features.isa < Isa::kAvx2);
    EXPECT_EQ(passed[k] == 0, listed_above) << kernels[k].name;
  }
  // The reference takes everything.
  EXPECT_EQ(passed.back(), static_cast<int64_t>(all.size() * machines.size()));
}

// With views of the case's own host memory, twice; the second run must not allocate.
TYPED_TEST(CpuOps, RunAllocatesNothing) {
  using Case = TypeParam;
  CpuStream stream(std::make_shared<ThreadPool>(2), DetectCpu());
  const std::vector<Case> all = Case::Grid(cases::GridSize::kFull);
  for (size_t i = 0; i < all.size(); i += 5) {
    if (cases::ExpectedCode(all[i]) != absl::StatusCode::kOk) continue;
    const auto prepared = cases::Prepare(all[i]);
    ASSERT_TRUE(prepared.ok());
    const cases::Views views(prepared->operands);
    const auto args = all[i].Bind(views);
    for (const auto& kernel : Kernels<typename Case::Args>()) {
      KernelContext context = {.stream = &stream, .workspace = nullptr};
      if (!kernel.supports(context, args).ok()) continue;
      std::vector<std::byte> memory(
          static_cast<size_t>(kernel.workspace_bytes(context, args) + kBufferAlignment));
      void* begin = memory.data();
      size_t space = memory.size();
      std::align(kBufferAlignment, space - kBufferAlignment, begin, space);
      for (int run = 0; run < 2; ++run) {
        Workspace workspace(begin, static_cast<int64_t>(space));
        context.workspace = &workspace;
        const int64_t before = AllocationCount();
        ASSERT_TRUE(kernel.run(context, args).ok());
        EXPECT_TRUE(run == 0 || AllocationCount() == before)
            << kernel.name << " allocates: " << cases::CaseText(all[i]);
      }
    }
  }
}

// Runs one kernel of an op on two threads; false if the machine cannot.
template <typename Args>
bool RunOn(const Kernel<Args>& kernel, const Args& args) {
  CpuStream stream(std::make_shared<ThreadPool>(2), DetectCpu());
  KernelContext context = {.stream = &stream, .workspace = nullptr};
  EXPECT_TRUE(Validate(args).ok()) << Validate(args);
  if (!kernel.supports(context, args).ok()) return false;
  const std::unique_ptr<Allocator> allocator = MakeHostAllocator();
  const auto memory = *allocator->Allocate(kernel.workspace_bytes(context, args));
  Workspace workspace(memory->data(), memory->bytes());
  context.workspace = &workspace;
  EXPECT_TRUE(kernel.run(context, args).ok());
  return true;
}

template <typename From, typename To>
void ExpectSameBitsAsCore(const std::vector<From>& x) {
  const auto n = static_cast<int64_t>(x.size());
  for (const Kernel<CastArgs>& kernel : Kernels<CastArgs>()) {
    std::vector<To> out(x.size());
    const CastArgs args = {.x = MakeView(x.data(), DTypeOf<From>::value, {1, n}),
                           .out = MakeView(out.data(), DTypeOf<To>::value, {1, n})};
    if (!RunOn(kernel, args)) continue;
    int64_t wrong = 0;
    size_t first = 0;
    for (size_t i = x.size(); i-- > 0;) {
      const To expected = FromFloat<To>(ToFloat(x[i]));
      if (std::memcmp(&out[i], &expected, sizeof(To)) == 0) continue;
      ++wrong;
      first = i;
    }
    EXPECT_EQ(wrong, 0) << kernel.name << ": first at " << first << ", value " << ToFloat(x[first]);
  }
}

TEST(CpuCast, EveryHalfAndBfloatConverts) {
  std::vector<F16> halves(65536);
  std::vector<BF16> bfloats(65536);
  for (uint32_t i = 0; i < 65536; ++i) {
    halves[i].bits = static_cast<uint16_t>(i);
    bfloats[i].bits = static_cast<uint16_t>(i);
  }
  ExpectSameBitsAsCore<F16, float>(halves);
  ExpectSameBitsAsCore<BF16, float>(bfloats);
  ExpectSameBitsAsCore<F16, BF16>(halves);
  ExpectSameBitsAsCore<BF16, F16>(bfloats);
}

TEST(CpuCast, FloatsRoundToNearestEven) {
  std::vector<float> x;
  // Every f16 and bf16, every midpoint between neighbours, and the floats next to each; NaN and
  // infinities among them.
  for (uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<uint16_t>(i);
    for (uint32_t half : {std::bit_cast<uint32_t>(ToFloat(F16{bits})), uint32_t{bits} << 16}) {
      for (uint32_t middle : {0u, 0x1000u, 0x8000u}) {
        for (int32_t step : {-1, 0, 1}) {
          x.push_back(std::bit_cast<float>(half + middle + static_cast<uint32_t>(step)));
        }
      }
    }
  }
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 8191) {
    x.push_back(std::bit_cast<float>(static_cast<uint32_t>(bits)));
  }
  ExpectSameBitsAsCore<float, F16>(x);
  ExpectSameBitsAsCore<float, BF16>(x);
}

uint64_t Fnv1a(const void* data, size_t bytes) {
  uint64_t hash = 14695981039346656037u;
  for (size_t i = 0; i < bytes; ++i) {
    hash = (hash ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
  }
  return hash;
}

// Hashes of what ggml (ggml_quantize_chunk, without weights) and GGUF's Python package (gguf 0.10
// and later, quants.dequantize) make of the same numbers.
TEST(CpuCast, QuantizesAsGgufDoes) {
  constexpr int64_t kCount = 32 * 4096;
  std::vector<float> x(kCount);
  uint32_t state = 12345;
  for (int64_t i = 0; i < kCount; ++i) {
    state = state * 1664525u + 1013904223u;
    x[i] = static_cast<float>((state >> 8) & 0xFFFF) / 4096.0f - 8.0f;
    if (i < 32 * 1024) x[i] *= 0.013f;
  }
  struct Golden {
    DType dtype;
    uint64_t quantized, dequantized;
  };
  for (const Golden& golden : {Golden{DType::kQ8_0, 0xf86ece7a8564bccc, 0x84200ddc7b6589c0},
                               Golden{DType::kQ4_0, 0x60c3af2e880948dd, 0x183f568c864ae128},
                               Golden{DType::kQ4_K, 0x69b988d2aa4606ff, 0x997338236b3ffeac},
                               Golden{DType::kQ5_K, 0xeeddf13a89d93844, 0x0b21921fc051e393},
                               Golden{DType::kQ6_K, 0xa4a7387a563b5c9e, 0x8e75ad0b0d74b798},
                               Golden{DType::kTQ2_0, 0x0c45ed4758cc024b, 0x5653997bb262694}}) {
    for (const Kernel<CastArgs>& kernel : Kernels<CastArgs>()) {
      std::vector<uint8_t> blocks(static_cast<size_t>(ByteOffset(golden.dtype, kCount)));
      std::vector<float> back(kCount);
      const TensorView quantized = MakeView(blocks.data(), golden.dtype, {1, kCount});
      if (!RunOn(kernel, {MakeView(x.data(), DType::kF32, {1, kCount}), quantized})) continue;
      EXPECT_EQ(Fnv1a(blocks.data(), blocks.size()), golden.quantized) << kernel.name;
      RunOn(kernel, {quantized, MakeView(back.data(), DType::kF32, {1, kCount})});
      EXPECT_EQ(Fnv1a(back.data(), back.size() * sizeof(float)), golden.dequantized) << kernel.name;
    }
  }
}

// What cannot be quantised must not be undefined.
TEST(CpuCast, QuantizingInfinitiesAndNanIsHarmless) {
  const float infinity = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  constexpr int64_t kCount = 3 * 256;
  std::vector<float> x(kCount, 1.0f);
  x[3] = infinity;
  x[9] = -infinity;
  x[40] = nan;
  x[41] = 1e-44f;
  std::fill_n(&x[64], 32, nan);
  std::fill_n(&x[256], 256, 1e-44f);
  x[512] = nan;
  x[544] = 3e38f;
  x[545] = -3e38f;
  for (DType dtype :
       {DType::kQ8_0, DType::kQ4_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K, DType::kTQ2_0}) {
    std::vector<std::vector<uint8_t>> results;
    for (const Kernel<CastArgs>& kernel : Kernels<CastArgs>()) {
      std::vector<uint8_t> blocks(static_cast<size_t>(ByteOffset(dtype, kCount)));
      if (!RunOn(kernel, {MakeView(x.data(), DType::kF32, {1, kCount}),
                          MakeView(blocks.data(), dtype, {1, kCount})})) {
        continue;
      }
      results.push_back(blocks);
    }
    EXPECT_THAT(results, testing::Each(results.back())) << Name(dtype);
  }
}

// Tokens come as often as their probabilities say.
TEST(CpuSample, FollowsTheDistribution) {
  constexpr int64_t kRows = 1000, kTokens = 5;
  const std::vector<double> probabilities = {0.1, 0.4, 0.05, 0.25, 0.2};
  std::vector<float> logits(kRows * kTokens), uniform(kRows);
  for (int64_t r = 0; r < kRows; ++r) {
    uniform[r] = (static_cast<float>(r) + 0.5f) / kRows;
    for (int64_t n = 0; n < kTokens; ++n) {
      logits[r * kTokens + n] = static_cast<float>(2.0 * std::log(probabilities[n]));
    }
  }
  for (const Kernel<SampleArgs>& kernel : Kernels<SampleArgs>()) {
    std::vector<int32_t> out(kRows, -1);
    SampleArgs args;
    args.logits = MakeView(logits.data(), DType::kF32, {kRows, kTokens});
    args.uniform = MakeView(uniform.data(), DType::kF32, {kRows});
    args.out = MakeView(out.data(), DType::kI32, {kRows});
    args.temperature = 2.0f;
    if (!RunOn(kernel, args)) continue;
    for (int32_t n = 0; n < kTokens; ++n) {
      const auto share = static_cast<double>(std::count(out.begin(), out.end(), n)) / kRows;
      EXPECT_NEAR(share, probabilities[n], 0.002) << kernel.name << " token " << n;
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
