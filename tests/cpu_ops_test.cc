// The CPU kernels of the small ops over their shared cases: every kernel against the f64
// references, and the same bits at any number of threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "cpu/backend.h"
#include "cpu/kernels.h"
#include "tests/cases/all_cases.h"

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
  const std::vector<Machine> machines = Machines({1, 2, 3, 5});
  const auto kernels = Kernels<typename Case::Args>();
  std::vector<int64_t> passed(kernels.size(), 0);
  std::vector<Case> all = Case::Grid(cases::GridSize::kFull);
  cases::Rng rng(2024);
  for (int i = 0; i < 100; ++i) all.push_back(Case::Random(rng));
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

}  // namespace
}  // namespace tandem::cpu
