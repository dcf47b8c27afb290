// Shares by measured costs: on simulated machines, calibrated with noise, the share chosen takes no
// longer than the best of all shares; a context's profile is what decides by default, and without
// one its policy does.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dispatch/adaptive_attention.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"
#include "dispatch/split_costs.h"
#include "dispatch/split_matmul.h"
#include "tests/allocation_counter.h"
#include "tests/cases/random.h"
#include "tests/emulated_context.h"
#include "tests/made_up_costs.h"

namespace tandem::cases {
namespace {

using simulated::Machine;
using simulated::Machines;
using simulated::MachineSpec;

struct Problem {
  std::string name;
  int64_t total = 0, step = 1;
  std::function<absl::StatusOr<SplitChoice>(const SplitCosts&, int64_t most)> choose;
  std::function<double(const SplitCosts&, int64_t gpu)> seconds;
};

std::vector<Problem> Problems(DeviceKind home) {
  std::vector<Problem> problems;
  for (const DType dtype : {DType::kF16, DType::kF32}) {
    for (const int64_t length : {500, 4000, 32000}) {
      for (const int64_t q_len : {1, 200}) {
        CacheCall call;
        call.cache = {.kv_heads = 8, .capacity = length, .head_dim = 128, .dtype = dtype};
        call.length = length;
        call.q_heads = 32;
        call.q_len = q_len;
        problems.push_back({absl::StrCat("attention, ", std::string(Name(dtype)), " cache of ",
                                         length, ", ", q_len, " queries"),
                            length, SplitKvCache::kRowStep,
                            [=](const SplitCosts& costs, int64_t most) {
                              return ChooseAttentionSplit(costs, call, home, most);
                            },
                            [=](const SplitCosts& costs, int64_t gpu) {
                              return AttentionSeconds(costs, call, home, gpu);
                            }});
      }
    }
  }
  for (const DType weights : {DType::kF16, DType::kQ8_0, DType::kQ4_K}) {
    for (const int64_t m : {1, 16, 500}) {
      const ProductCall call = {.m = m, .n = 14336, .k = 4096, .weights = weights};
      problems.push_back({absl::StrCat("product, ", std::string(Name(weights)), ", ", m, " rows"),
                          call.n, 16,
                          [=](const SplitCosts& costs, int64_t most) {
                            return ChooseMatMulSplit(costs, call, home, most);
                          },
                          [=](const SplitCosts& costs, int64_t gpu) {
                            return MatMulSeconds(costs, call, home, gpu);
                          }});
    }
  }
  return problems;
}

// Of all shares that fit, by these costs.
double BruteForce(const Problem& problem, const SplitCosts& costs, int64_t most) {
  double best = problem.seconds(costs, 0);
  // Every step of a fine grid; finer ones differ by less than the machine's own steps.
  const int64_t stride = std::max<int64_t>(1, problem.total / problem.step / 500) * problem.step;
  for (int64_t gpu = stride; gpu < std::min(most + 1, problem.total); gpu += stride) {
    best = std::min(best, problem.seconds(costs, gpu));
  }
  if (most == problem.total) best = std::min(best, problem.seconds(costs, problem.total));
  return best;
}

TEST(SplitCosts, TheShareIsThatOfBruteForceOnEveryMachine) {
  for (const MachineSpec& spec : Machines()) {
    Machine machine(spec, 1);
    const CostModel model = machine.Calibrate();
    const SplitCosts costs = CostsOf(model), truth = TruthOf(machine);
    double sum = 0.0, worst = 0.0;
    int count = 0, split = 0;
    std::string worst_name;
    for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
      for (const Problem& problem : Problems(home)) {
        for (const int64_t most : {problem.total, problem.total / 3}) {
          SCOPED_TRACE(absl::StrCat(spec.name, ": ", problem.name, ", at most ", most));
          const auto choice = problem.choose(costs, most);
          ASSERT_TRUE(choice.ok()) << choice.status();
          // By what is predicted it is the best there is, unless one device alone is as good but
          // for the margin,
          const bool alone = choice->gpu == 0 || choice->gpu == choice->total;
          EXPECT_LE(choice->seconds * (alone ? 1.0 - costs.margin : 1.0),
                    BruteForce(problem, costs, most) * 1.01);
          // and nearly so by the truth.
          const double best = BruteForce(problem, truth, most);
          const double regret = problem.seconds(truth, choice->gpu) / best - 1.0;
          sum += regret;
          ++count;
          split += choice->gpu > 0 && choice->gpu < choice->total;
          if (regret > worst) {
            worst = regret;
            worst_name = absl::StrCat(problem.name, ", at most ", most);
          }
        }
      }
    }
    EXPECT_LE(sum / count, 0.05) << spec.name;
    EXPECT_LE(worst, 0.25) << spec.name << ": " << worst_name;
    EXPECT_GT(split, 10) << spec.name;
  }
}

// Int8 caches are classes of their own; of profiles that do not have them, they are predicted from
// f16 ones.
TEST(SplitCosts, KnowInt8Caches) {
  for (const MachineSpec& spec : Machines()) {
    SCOPED_TRACE(spec.name);
    Machine machine(spec, 1);
    const CostModel model = machine.Calibrate();
    CacheCall call;
    call.cache = {.kv_heads = 8, .capacity = 8000, .head_dim = 128, .dtype = DType::kI8};
    call.length = 8000;
    call.q_heads = 32;
    CostProfile profile = model.profile();
    std::erase_if(profile.tables,
                  [](const CostTable& table) { return table.cost_class.weights == DType::kI8; });
    EXPECT_EQ(profile.tables.size() + 2, model.profile().tables.size());
    const CostModel without = CostModel::FromProfile(profile).value();
    for (const DeviceKind kind : kDeviceKinds) {
      const OpFacts facts = PartFacts(call, kind, kind == DeviceKind::kCuda ? 8000 : 0);
      OpFacts kin = facts;
      kin.weights = DType::kF16;
      EXPECT_NEAR(*model.CallSeconds(facts, kind) / machine.CallSeconds(facts, kind), 1.0, 0.15);
      EXPECT_EQ(without.CallSeconds(facts, kind), without.CallSeconds(kin, kind));
      EXPECT_LT(*model.CallSeconds(facts, kind), *without.CallSeconds(facts, kind));
    }
    const auto choice = ChooseAttentionSplit(CostsOf(model), call, DeviceKind::kCpu, 8000);
    ASSERT_TRUE(choice.ok()) << choice.status();
    const SplitCosts truth = TruthOf(machine);
    EXPECT_LE(AttentionSeconds(truth, call, DeviceKind::kCpu, choice->gpu),
              1.2 * std::min(AttentionSeconds(truth, call, DeviceKind::kCpu, 0),
                             AttentionSeconds(truth, call, DeviceKind::kCpu, 8000)))
        << spec.name;
  }
}

TEST(SplitCosts, FollowTheCorrection) {
  Machine machine(Machines()[1], 1);
  const CostModel model = machine.Calibrate();
  CostCorrection correction(model.num_tables());
  const SplitCosts plain = CostsOf(model), corrected = CostsOf(model, &correction);
  const ProductCall call = {.m = 1, .n = 4096, .k = 4096, .weights = DType::kF16};
  const auto seconds = [&](const SplitCosts& costs) {
    return MatMulSeconds(costs, call, DeviceKind::kCpu, 0);
  };
  EXPECT_EQ(seconds(plain), seconds(corrected));
  for (int table = 0; table < model.num_tables(); ++table) {
    correction.Observe(CostCorrection::SlotOf(table, /*moved=*/false), 1.0, 1.2);
    correction.Observe(CostCorrection::SlotOf(table, /*moved=*/true), 1.0, 100.0);
  }
  EXPECT_NEAR(seconds(corrected), seconds(plain) * (1.0 + 0.2 * CostCorrection::kRate),
              seconds(plain) * 1e-9);
}

// ---- By default, the context's ----

class DefaultCostsTest : public testing::Test {
 protected:
  // On a machine like the simulated one (its GPU being the emulated device).
  void Start(ContextOptions options, int machine) {
    Machine simulated(Machines()[static_cast<size_t>(machine)], 1);
    options.threads = 1;
    options.cuda_emulated = true;
    options.kernel_profile = "off";
    options.cost_profile = "off";
    if (machine_given_) {
      options.cost_model = std::make_shared<const CostModel>(simulated.Calibrate());
    }
    context_ = Context::Create(options).value();
  }

  std::unique_ptr<AdaptiveAttention> Layer(int64_t length, const AdaptiveOptions& options = {}) {
    const KvCacheShape shape = {.kv_heads = 2, .capacity = length, .head_dim = 64};
    auto layer = AdaptiveAttention::Create(*context_, shape, options).value();
    for (int64_t at = 0; at < length; at += 512) {
      const int64_t tokens = std::min<int64_t>(512, length - at);
      const Tensor k = Zeros({1, 2, tokens, 64}), v = Zeros({1, 2, tokens, 64});
      EXPECT_TRUE(layer->Append({.k = k, .v = v}).ok());
    }
    return layer;
  }
  Tensor Zeros(const Shape& shape) {
    Tensor tensor = AllocateOn(*context_, DeviceKind::kCpu, DType::kF32, shape).value();
    std::fill_n(tensor.As<float>(), tensor.view().num_elements(), 0.5f);
    return tensor;
  }
  void Attend(AdaptiveAttention& layer, std::optional<int64_t> steps = 1000000) {
    const Tensor q = Zeros({1, 4, 1, 64}), out = Zeros({1, 4, 1, 64});
    AttentionArgs args;
    args.q = q;
    args.out = out;
    const absl::Status status = layer.AttendInto(args, steps);
    ASSERT_TRUE(status.ok()) << status;
  }

  bool machine_given_ = true;
  std::unique_ptr<Context> context_;
};

TEST_F(DefaultCostsTest, ACacheGoesWhereTheContextsModelSays) {
  for (int machine = 0; machine < static_cast<int>(Machines().size()); ++machine) {
    SCOPED_TRACE(Machines()[static_cast<size_t>(machine)].name);
    Start({}, machine);
    // Far more keys than the fixed policy sends to the GPU.
    constexpr int64_t kLength = 2048;
    auto layer = Layer(kLength);
    Attend(*layer);
    EXPECT_EQ(layer->decision().rule, AdaptiveDecision::Rule::kCosts);
    CacheCall call;
    call.cache = layer->cache().shape();
    call.length = kLength;
    call.q_heads = 4;
    const SplitCosts costs = CostsOf(*context_->cost_model());
    double best = AttentionSeconds(costs, call, DeviceKind::kCpu, 0);
    for (int64_t rows = 32; rows <= kLength; rows += 32) {
      best = std::min(best, AttentionSeconds(costs, call, DeviceKind::kCpu, rows));
    }
    // With a million calls to come moving pays wherever anything is to be gained, but for margins.
    EXPECT_LE(AttentionSeconds(costs, call, DeviceKind::kCpu, layer->cache().gpu_rows()),
              best * 1.12)
        << Explain(layer->decision());
  }
}

// Given costs win over the context's; no profile, or a policy that does not ask for predictions:
// thresholds, as ever.
TEST_F(DefaultCostsTest, PoliciesWithoutPredictionsAreUnchanged) {
  using Rule = AdaptiveDecision::Rule;
  struct Run {
    bool profile;
    PolicyKind policy;
    Rule rule;
    int64_t short_rows, long_rows;  // of 63 and of 64 keys
  };
  for (const Run& run : {Run{false, PolicyKind::kAuto, Rule::kThreshold, 0, 64},
                         Run{false, PolicyKind::kFixed, Rule::kThreshold, 0, 64},
                         Run{true, PolicyKind::kFixed, Rule::kThreshold, 0, 64},
                         Run{true, PolicyKind::kCpu, Rule::kPolicy, 0, 0},
                         Run{false, PolicyKind::kCuda, Rule::kPolicy, 63, 64},
                         // A call of 64 keys is the CPU's on every machine.
                         Run{true, PolicyKind::kAuto, Rule::kCosts, 0, 0},
                         Run{true, PolicyKind::kCalibrated, Rule::kCosts, 0, 0}}) {
    SCOPED_TRACE(absl::StrCat(run.profile ? "with" : "without", " a profile, policy ",
                              std::string(Name(run.policy))));
    machine_given_ = run.profile;
    ContextOptions options;
    options.policy.kind = run.policy;
    Start(options, 1);
    EXPECT_EQ(CostsOf(*context_).has_value(), run.rule == Rule::kCosts);
    for (const int64_t length : {63, 64}) {
      auto layer = Layer(length);
      Attend(*layer);
      EXPECT_EQ(layer->decision().rule, run.rule) << Explain(layer->decision());
      EXPECT_EQ(layer->cache().gpu_rows(), length == 63 ? run.short_rows : run.long_rows)
          << Explain(layer->decision());
    }
  }
  machine_given_ = true;
  Start({}, 1);
  AdaptiveOptions given;
  given.costs.emplace();
  given.costs->call = [](const OpFacts&, DeviceKind device) {
    return std::optional<double>(device == DeviceKind::kCuda ? 1e-9 : 1.0);
  };
  given.costs->copy = [](DeviceKind, DeviceKind, int64_t) { return 0.0; };
  auto layer = Layer(10, given);
  Attend(*layer);
  EXPECT_EQ(layer->cache().gpu_rows(), 10) << Explain(layer->decision());
}

// A class of calls that was not measured is decided by the thresholds.
TEST_F(DefaultCostsTest, UnmeasuredCallsAreDecidedByTheThresholds) {
  Start({}, 1);
  CostProfile profile = context_->cost_model()->profile();
  std::erase_if(profile.tables, [](const CostTable& table) {
    return table.cost_class.op == OpKind::kAttention && table.device == DeviceKind::kCuda;
  });
  ContextOptions options = context_->options();
  options.cost_model =
      std::make_shared<const CostModel>(CostModel::FromProfile(std::move(profile)).value());
  context_ = Context::Create(options).value();
  auto layer = Layer(64);
  Attend(*layer);
  EXPECT_EQ(layer->decision().rule, AdaptiveDecision::Rule::kThreshold);
  EXPECT_EQ(layer->cache().gpu_rows(), 64);
}

TEST_F(DefaultCostsTest, WeightsAreSharedAsTheContextsModelSays) {
  std::vector<float> numbers(512 * 256, 0.5f);
  const TensorView weights = MakeView(numbers.data(), DType::kF32, {512, 256});
  for (int machine = 0; machine < static_cast<int>(Machines().size()); ++machine) {
    SCOPED_TRACE(Machines()[static_cast<size_t>(machine)].name);
    Start({}, machine);
    for (const int64_t m : {1, 64, 4000}) {
      for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
        const auto columns = BestGpuColumns(*context_, weights, {.m = m, .home = home});
        ASSERT_TRUE(columns.ok()) << columns.status();
        const ProductCall call = {.m = m, .n = 512, .k = 256};
        const SplitCosts costs = CostsOf(*context_->cost_model());
        double best = 1e30;
        for (int64_t n = 0; n <= 512; n += 16) {
          best = std::min(best, MatMulSeconds(costs, call, home, n));
        }
        EXPECT_LE(MatMulSeconds(costs, call, home, *columns), best * 1.12) << m;
        // What fits is a limit.
        const auto limited =
            BestGpuColumns(*context_, weights, {.m = m, .home = home, .gpu_bytes = 100 * 1024});
        ASSERT_TRUE(limited.ok()) << limited.status();
        EXPECT_LE(*limited, 100);
      }
    }
  }
  // Without a profile all or nothing, as the policy says.
  machine_given_ = false;
  Start({}, 0);
  EXPECT_EQ(*BestGpuColumns(*context_, weights, {.m = 1}), 0);
  EXPECT_EQ(*BestGpuColumns(*context_, weights, {.m = 2}), 512);
  EXPECT_EQ(*BestGpuColumns(*context_, weights, {.m = 2, .gpu_bytes = 100 * 1024}), 96);
  ContextOptions options;
  options.device = DeviceKind::kCuda;
  Start(options, 0);
  EXPECT_EQ(*BestGpuColumns(*context_, weights, {.m = 1}), 512);
  options.device = DeviceKind::kCpu;
  Start(options, 0);
  EXPECT_EQ(*BestGpuColumns(*context_, weights, {.m = 100}), 0);
  EXPECT_FALSE(BestGpuColumns(*context_, weights, {.m = 0}).ok());
}

// Deciding for a cache allocates nothing: it happens before every call.
TEST_F(DefaultCostsTest, ChoosingAShareAllocatesNothing) {
  Machine machine(Machines()[0], 1);
  const CostModel model = machine.Calibrate();
  const SplitCosts costs = CostsOf(model);
  CacheCall call;
  call.cache = {.kv_heads = 8, .capacity = 4000, .head_dim = 128};
  call.length = 4000;
  call.q_heads = 32;
  const int64_t before = AllocationCount();
  const auto choice = ChooseAttentionSplit(costs, call, DeviceKind::kCpu, call.length);
  EXPECT_EQ(AllocationCount(), before);
  EXPECT_TRUE(choice.ok());
}

}  // namespace
}  // namespace tandem::cases
