// What the parts of shared calls take corrects the times that their shares are chosen by: by a
// virtual clock on simulated machines, and as the classes that share calls do it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dispatch/cache_attention.h"
#include "dispatch/copy.h"
#include "dispatch/facts.h"
#include "dispatch/split_costs.h"
#include "dispatch/split_matmul.h"
#include "tests/emulated_context.h"
#include "tests/made_up_costs.h"

namespace tandem::cases {
namespace {

using simulated::Machine;
using simulated::Machines;
using simulated::MachineSpec;

// ---- By a virtual clock ----

// A call to be shared again and again, on a simulated machine.
struct SharedCall {
  std::string name;
  std::function<absl::StatusOr<SplitChoice>(const SplitCosts&)> choose;
  std::function<double(const SplitCosts&, int64_t gpu)> seconds;
  // Of the part that a device has if the GPU's share is this.
  std::function<OpFacts(DeviceKind, int64_t gpu)> part;
  int64_t total;
};

SharedCall LongAttention() {
  CacheCall call;
  call.cache = {.kv_heads = 8, .capacity = 32000, .head_dim = 128};
  call.length = 32000;
  call.q_heads = 32;
  return {"attention",
          [=](const SplitCosts& costs) {
            return ChooseAttentionSplit(costs, call, DeviceKind::kCpu, call.length);
          },
          [=](const SplitCosts& costs, int64_t gpu) {
            return AttentionSeconds(costs, call, DeviceKind::kCpu, gpu);
          },
          [=](DeviceKind kind, int64_t gpu) { return PartFacts(call, kind, gpu); }, call.length};
}

SharedCall WideProduct() {
  const ProductCall call = {.m = 1, .n = 65536, .k = 4096, .weights = DType::kF16};
  return {"product",
          [=](const SplitCosts& costs) {
            return ChooseMatMulSplit(costs, call, DeviceKind::kCpu, call.n);
          },
          [=](const SplitCosts& costs, int64_t gpu) {
            return MatMulSeconds(costs, call, DeviceKind::kCpu, gpu);
          },
          [=](DeviceKind kind, int64_t gpu) { return PartFacts(call, kind, gpu); }, call.n};
}

class Sharing {
 public:
  Sharing(const MachineSpec& spec, const SharedCall& call)
      : machine_(spec, 11),
        model_(machine_.Calibrate()),
        correction_(model_.num_tables()),
        costs_(CostsOf(model_, &correction_)),
        truth_(TruthOf(machine_)),
        call_(call) {}

  Machine& machine() { return machine_; }
  int64_t share() const { return call_.choose(costs_)->gpu; }
  // Both devices run their part, which teaches what is predicted of it.
  void Run(int calls) {
    for (int i = 0; i < calls; ++i) {
      const int64_t gpu = share();
      for (const DeviceKind kind : kDeviceKinds) {
        if ((kind == DeviceKind::kCuda ? gpu : call_.total - gpu) == 0) continue;
        const OpFacts facts = call_.part(kind, gpu);
        Prediction prediction = Predict(facts, kind, model_, &correction_);
        const double together = gpu > 0 && gpu < call_.total ? OneMemory(gpu) : 0.0;
        prediction.call_seconds = std::max(prediction.call_seconds, together);
        Learn(correction_, prediction, std::max(together, machine_.Run(facts, kind)));
      }
    }
  }
  // That both parts take at least where they read the same memory.
  double OneMemory(int64_t gpu) const {
    const double rate = machine_.spec().shared_bytes_per_second;
    const auto bytes = [&](DeviceKind kind) {
      return static_cast<double>(call_.part(kind, gpu).bytes);
    };
    return rate > 0.0 ? (bytes(DeviceKind::kCpu) + bytes(DeviceKind::kCuda)) / rate : 0.0;
  }
  // What the share takes, over what the best one would.
  double Regret() const {
    double best = HUGE_VAL;
    for (int64_t gpu = 0; gpu <= call_.total; gpu += call_.total / 125) {
      best = std::min(best, call_.seconds(truth_, gpu));
    }
    return call_.seconds(truth_, share()) / best - 1.0;
  }

 private:
  Machine machine_;
  const CostModel model_;
  CostCorrection correction_;
  SplitCosts costs_, truth_;
  SharedCall call_;
};

// A device becomes slower, the other gets more of the call: within ten calls as much as is best, by
// the truth. When it recovers, it is given its share back, for it is never without any.
TEST(SplitLearning, SharesFollowADeviceThatBecomesSlower) {
  for (const MachineSpec& spec : Machines()) {
    for (const SharedCall& call : {LongAttention(), WideProduct()}) {
      for (const DeviceKind slow : kDeviceKinds) {
        Sharing sharing(spec, call);
        const int64_t before = sharing.share();
        if (before == 0 || before == call.total) continue;  // not one to be shared
        SCOPED_TRACE(absl::StrCat(spec.name, ", ", call.name, ", slow ", std::string(Name(slow))));
        sharing.Run(10);
        EXPECT_LE(sharing.Regret(), 0.15);
        sharing.machine().Slow(slow, 3.0);
        const double unlearned = sharing.Regret();
        sharing.Run(10);
        const int64_t during = sharing.share();
        EXPECT_LE(sharing.Regret(), 0.15);
        EXPECT_LT(sharing.Regret(), 0.6 * unlearned);
        if (slow == DeviceKind::kCuda) {
          EXPECT_LT(during, before);
        } else {
          EXPECT_GT(during, before);
        }
        if (during == 0 || during == call.total) continue;
        sharing.machine().Slow(slow, 1.0);
        sharing.Run(15);
        EXPECT_LE(sharing.Regret(), 0.15);
        // Where both wait for one memory, many shares are equally good.
        if (spec.shared_bytes_per_second > 0.0) continue;
        EXPECT_NEAR(static_cast<double>(sharing.share()), static_cast<double>(before),
                    0.15 * static_cast<double>(call.total));
      }
    }
  }
}

TEST(SplitLearning, ManyOfTheSimulatedCallsAreShared) {
  int shared = 0;
  for (const MachineSpec& spec : Machines()) {
    for (const SharedCall& call : {LongAttention(), WideProduct()}) {
      const Sharing sharing(spec, call);
      shared += sharing.share() > 0 && sharing.share() < call.total;
    }
  }
  EXPECT_GE(shared, 4);
}

// ---- As the classes do it ----

// Every attention and every product takes so long on each device.
std::shared_ptr<const CostModel> Model(double cpu_seconds, double gpu_seconds) {
  return ConstantModel({OpKind::kMatMul, OpKind::kAttention}, cpu_seconds, gpu_seconds);
}

class SplitLearningTest : public testing::Test {
 protected:
  void Start(std::shared_ptr<const CostModel> model, ContextOptions options = {}) {
    context_ = QuietContext(std::move(model), std::move(options));
  }
  Tensor Ones(DeviceKind home, const Shape& shape) {
    Tensor host = AllocateOn(*context_, DeviceKind::kCpu, DType::kF32, shape).value();
    std::fill_n(host.As<float>(), host.view().num_elements(), 1.0f);
    Tensor tensor = CopyTo(*context_, home, host).value();
    EXPECT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
    return tensor;
  }
  // Attention to a cache of 96 rows, of which so many are on the GPU.
  absl::Status Attend(DeviceKind home, int64_t gpu_rows, int calls = 1) {
    const KvCacheShape shape = {
        .kv_heads = 2, .capacity = 96, .head_dim = 16, .dtype = DType::kF32};
    SplitKvCache cache = SplitKvCache::Create(*context_, shape, gpu_rows).value();
    const Tensor k = Ones(DeviceKind::kCpu, {1, 2, 96, 16});
    EXPECT_TRUE(cache.Append({.k = k, .v = k}).ok());
    CacheAttention attention(*context_);
    const Tensor q = Ones(home, {1, 4, 1, 16}), out = Ones(home, {1, 4, 1, 16});
    AttentionArgs args;
    args.q = q;
    args.out = out;
    absl::Status status;
    for (int i = 0; i < calls && status.ok(); ++i) {
      status = attention.Run(cache, args);
      EXPECT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
    }
    return status;
  }
  // A product of which the GPU has so many of 64 columns.
  absl::Status Multiply(DeviceKind home, int64_t columns, int calls = 1) {
    const Tensor weights = Ones(DeviceKind::kCpu, {64, 32});
    const SplitWeights split = SplitWeights::Create(*context_, weights, columns).value();
    SplitMatMul multiply(*context_);
    const Tensor a = Ones(home, {2, 32}), out = Ones(home, {2, 64});
    MatMulArgs args;
    args.a = a;
    args.out = out;
    absl::Status status;
    for (int i = 0; i < calls && status.ok(); ++i) {
      status = multiply.Run(split, args);
      EXPECT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
    }
    return status;
  }
  double Factor(OpKind op, DeviceKind device) {
    OpFacts facts;
    facts.op = op;
    facts.m = facts.n = facts.k = 1;
    const int table = context_->cost_model()->TableOf(facts, device);
    return context_->cost_correction().Factor(CostCorrection::SlotOf(table, /*moved=*/false));
  }
  std::vector<double> Factors() {
    std::vector<double> factors;
    for (const OpKind op : {OpKind::kAttention, OpKind::kMatMul}) {
      for (const DeviceKind kind : kDeviceKinds) factors.push_back(Factor(op, kind));
    }
    return factors;
  }

  std::unique_ptr<Context> context_;
};

constexpr double kUp = CostCorrection::kMaxStep;

// Said to take a nanosecond, parts take longer; said to take a day, less: each device is corrected
// by its own part, as far as one call may.
TEST_F(SplitLearningTest, EachPartTeachesItsOwnDevice) {
  for (const DeviceKind home : kDeviceKinds) {
    SCOPED_TRACE(std::string(Name(home)));
    // With q on the GPU its part is not waited for: it teaches at the next call.
    const int calls = home == DeviceKind::kCuda ? 2 : 1;
    const double cpu_up = std::pow(kUp, calls);
    Start(Model(1e-9, 1e5));
    ASSERT_TRUE(Attend(home, 32, calls).ok());
    EXPECT_DOUBLE_EQ(Factor(OpKind::kAttention, DeviceKind::kCpu), cpu_up);
    EXPECT_DOUBLE_EQ(Factor(OpKind::kAttention, DeviceKind::kCuda), 1.0 / kUp);
    EXPECT_EQ(Factor(OpKind::kMatMul, DeviceKind::kCpu), 1.0);
    EXPECT_EQ(Factor(OpKind::kMatMul, DeviceKind::kCuda), 1.0);
    Start(Model(1e5, 1e-9));
    ASSERT_TRUE(Multiply(home, 16, calls).ok());
    EXPECT_LT(Factor(OpKind::kMatMul, DeviceKind::kCpu), 0.81);
    EXPECT_DOUBLE_EQ(Factor(OpKind::kMatMul, DeviceKind::kCuda), kUp);
    EXPECT_EQ(Factor(OpKind::kAttention, DeviceKind::kCpu), 1.0);
  }
}

// However often: within the bounds of every correction.
TEST_F(SplitLearningTest, IsBounded) {
  Start(Model(1e-9, 1e5));
  ASSERT_TRUE(Attend(DeviceKind::kCpu, 32, 20).ok());
  EXPECT_EQ(Factor(OpKind::kAttention, DeviceKind::kCpu), CostCorrection::kMaxCorrection);
  EXPECT_EQ(Factor(OpKind::kAttention, DeviceKind::kCuda), 1.0 / CostCorrection::kMaxCorrection);
}

// All of it on one device: only that one learns.
TEST_F(SplitLearningTest, ADeviceWithoutAPartLearnsNothing) {
  Start(Model(1e-9, 1e-9));
  ASSERT_TRUE(Attend(DeviceKind::kCpu, 96).ok());
  EXPECT_EQ(Factor(OpKind::kAttention, DeviceKind::kCpu), 1.0);
  EXPECT_EQ(Factor(OpKind::kAttention, DeviceKind::kCuda), kUp);
  ASSERT_TRUE(Multiply(DeviceKind::kCpu, 0).ok());
  EXPECT_EQ(Factor(OpKind::kMatMul, DeviceKind::kCpu), kUp);
  EXPECT_EQ(Factor(OpKind::kMatMul, DeviceKind::kCuda), 1.0);
}

TEST_F(SplitLearningTest, NothingIsLearnedOnRequestOrFromFaults) {
  const std::vector<double> ones(4, 1.0);
  for (const int variant : {0, 1, 2}) {
    SCOPED_TRACE(variant);
    ContextOptions options;
    if (variant == 0) options.policy.correct_online = 0;
    if (variant == 1) options.policy.kind = PolicyKind::kFixed;
    if (variant == 2) options.device = DeviceKind::kCuda;
    Start(Model(1e-9, 1e-9), options);
    ASSERT_TRUE(Attend(DeviceKind::kCpu, variant == 2 ? 96 : 32).ok());
    ASSERT_TRUE(Multiply(DeviceKind::kCpu, variant == 2 ? 64 : 16).ok());
    EXPECT_EQ(Factors(), ones);
  }
  // The GPU's part fails: the CPU does all of it, and learns from that alone.
  Start(Model(1e-9, 1e-9));
  RuntimeOf(*context_).Inject({.call = "Launch"});
  ASSERT_TRUE(Multiply(DeviceKind::kCpu, 16).ok());
  EXPECT_EQ(context_->health().counters().all_fallbacks(), 1);
  EXPECT_EQ(Factor(OpKind::kMatMul, DeviceKind::kCuda), 1.0);
  // Marks on the stream that cannot be made: the call is done all the same, by both.
  Start(Model(1e-9, 1e-9));
  RuntimeOf(*context_).Inject({.call = "Record"});
  ASSERT_TRUE(Multiply(DeviceKind::kCpu, 16).ok());
  EXPECT_EQ(context_->health().counters().all_faults(), 0);
  EXPECT_EQ(Factor(OpKind::kMatMul, DeviceKind::kCuda), 1.0);
  EXPECT_EQ(Factor(OpKind::kMatMul, DeviceKind::kCpu), kUp);
}

// Predicted beside actual, for each part.
TEST_F(SplitLearningTest, TheTraceHasBothOfEachPart) {
  ContextOptions options;
  options.trace = true;
  Start(Model(2e-3, 3e-3), options);
  ASSERT_TRUE(Attend(DeviceKind::kCpu, 32).ok());
  ASSERT_TRUE(Multiply(DeviceKind::kCpu, 16).ok());
  PerDevice<int> parts;
  for (const TraceRecord& record : context_->trace().records()) {
    if (record.facts.op != OpKind::kAttention && record.facts.op != OpKind::kMatMul) continue;
    const DeviceKind kind = record.device.kind;
    ++parts[kind];
    EXPECT_EQ(record.decision.predicted[kind].call_seconds, kind == DeviceKind::kCpu ? 2e-3 : 3e-3);
    EXPECT_FALSE(record.decision.predicted[Other(kind)].known());
    EXPECT_GT(record.duration_ns, 0);
  }
  EXPECT_EQ(parts[DeviceKind::kCpu], 2);
  EXPECT_EQ(parts[DeviceKind::kCuda], 2);
  for (const double factor : Factors()) EXPECT_NE(factor, 1.0);
}

}  // namespace
}  // namespace tandem::cases
