// Attention whose cache moves to where it is fastest.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "dispatch/adaptive_attention.h"
#include "dispatch/copy.h"
#include "dispatch/facts.h"
#include "dispatch/ops.h"
#include "tests/append_keys.h"
#include "tests/cases/random.h"
#include "tests/emulated_context.h"

namespace tandem::cases {
namespace {

constexpr int64_t kQueryHeads = 4, kHeads = 2, kDim = 16, kCapacity = 256;

KvCacheShape ShapeOf(DType dtype) {
  return {.kv_heads = kHeads, .capacity = kCapacity, .head_dim = kDim, .dtype = dtype};
}

// A made-up machine: overheads and bandwidths.
struct Machine {
  double cpu_bandwidth = 1e9, gpu_bandwidth = 4e9, bus = 2e9;
  double cpu_start = 1e-6, gpu_start = 20e-6, bus_start = 5e-6;

  SplitCosts Costs() const {
    SplitCosts costs;
    costs.call = [m = *this](const OpFacts& facts, DeviceKind device) -> std::optional<double> {
      const auto bytes = static_cast<double>(facts.bytes);
      return device == DeviceKind::kCpu ? m.cpu_start + bytes / m.cpu_bandwidth
                                        : m.gpu_start + bytes / m.gpu_bandwidth;
    };
    costs.copy = [m = *this](DeviceKind, DeviceKind, int64_t bytes) {
      return m.bus_start + static_cast<double>(bytes) / m.bus;
    };
    return costs;
  }
};

class AdaptiveAttentionTest : public testing::Test {
 protected:
  AdaptiveAttentionTest() { Start({}); }

  void Start(ContextOptions options) {
    options.threads = 1;
    options.cuda_emulated = true;
    options.kernel_profile = "off";
    context_ = Context::Create(options).value();
  }

  Tensor Random(DeviceKind home, const Shape& shape) {
    const Tensor host = AllocateOn(*context_, DeviceKind::kCpu, DType::kF32, shape).value();
    for (int64_t i = 0; i < host.view().num_elements(); ++i) {
      host.As<float>()[i] = static_cast<float>(rng_.Normal());
    }
    return CopyTo(*context_, home, host).value();
  }
  std::vector<float> Values(const Tensor& tensor) {
    const Tensor host = CopyTo(*context_, DeviceKind::kCpu, tensor).value();
    EXPECT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
    return {host.As<float>(), host.As<float>() + host.view().num_elements()};
  }
  static AttentionArgs ArgsOf(const Tensor& q, const Tensor& out) {
    AttentionArgs args;
    args.q = q;
    args.out = out;
    return args;
  }

  // Appends `tokens` at once.
  void Prompt(AdaptiveAttention& layer, int64_t tokens) {
    const Tensor k = Random(DeviceKind::kCpu, {1, kHeads, tokens, kDim});
    const Tensor v = Random(DeviceKind::kCpu, {1, kHeads, tokens, kDim});
    const absl::Status status = layer.Append({.k = k, .v = v});
    ASSERT_TRUE(status.ok()) << status;
  }
  void Attend(AdaptiveAttention& layer, std::optional<int64_t> steps_left = std::nullopt,
              DeviceKind home = DeviceKind::kCpu) {
    const Tensor q = Random(home, {1, kQueryHeads, 1, kDim});
    const Tensor out = Random(home, {1, kQueryHeads, 1, kDim});
    const absl::Status status = layer.AttendInto(ArgsOf(q, out), steps_left);
    ASSERT_TRUE(status.ok()) << status;
  }

  std::unique_ptr<Context> context_;
  Rng rng_{1};
};

// The current token's k and v beside the cache, or appended first, with the cache in one memory,
// the other, or both, moving on the way.
TEST_F(AdaptiveAttentionTest, BesideTheCacheOrAppendedFirst) {
  for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    for (const int64_t gpu_bytes : {int64_t{0}, int64_t{96} * kHeads * kDim * 2 * 4}) {
      SCOPED_TRACE(absl::StrCat(std::string(Name(home)), ", ", gpu_bytes));
      AdaptiveOptions options;
      options.gpu_bytes = gpu_bytes;
      auto beside = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF32), options);
      auto first = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF32), options);
      ASSERT_TRUE(beside.ok()) << beside.status();
      ASSERT_TRUE(first.ok()) << first.status();
      KvCache whole = KvCache::Create(context_->host_allocator(), ShapeOf(DType::kF32)).value();
      for (const int64_t tokens : {40, 1, 1, 30, 1, 60, 1}) {
        const Tensor k = Random(home, {1, kHeads, tokens, kDim});
        const Tensor v = Random(home, {1, kHeads, tokens, kDim});
        const Tensor q = Random(home, {1, kQueryHeads, tokens, kDim});
        const Tensor out = Random(home, q.shape()), other = Random(home, q.shape());
        AttentionArgs args = ArgsOf(q, out);
        args.k_new = k;
        args.v_new = v;
        absl::Status status = (*beside)->AttendInto(args);
        ASSERT_TRUE(status.ok()) << status;
        ASSERT_TRUE((*beside)->Append({.k = k, .v = v}).ok());
        ASSERT_TRUE((*first)->Append({.k = k, .v = v}).ok());
        status = (*first)->AttendInto(ArgsOf(q, other));
        ASSERT_TRUE(status.ok()) << status;
        EXPECT_EQ((*beside)->length(), (*first)->length());

        // And both are attention to a cache in one piece.
        const auto host = [&](const Tensor& t) {
          Tensor copy = CopyTo(*context_, DeviceKind::kCpu, t).value();
          EXPECT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
          return copy;
        };
        const PlacedCalls placed(*context_);
        const Tensor host_k = host(k), host_v = host(v), host_q = host(q);
        ASSERT_TRUE(AppendKeys(*context_, whole, host_k, host_v).ok());
        const Tensor expected = Random(DeviceKind::kCpu, q.shape());
        AttentionArgs reference = ArgsOf(host_q, expected);
        reference.k = whole.Keys();
        reference.v = whole.Values();
        ASSERT_TRUE(AttentionInto(*context_, reference).ok());
        const std::vector<float> got = Values(out), got_other = Values(other),
                                 want = Values(expected);
        for (size_t i = 0; i < want.size(); ++i) {
          ASSERT_NEAR(got[i], want[i], 1e-5) << i;
          ASSERT_NEAR(got_other[i], want[i], 1e-5) << i;
        }
      }
      EXPECT_EQ((*first)->cache().gpu_rows(), gpu_bytes == 0 ? kCapacity : 96);
      EXPECT_GE((*first)->moves(), 1);
    }
  }
}

TEST_F(AdaptiveAttentionTest, ThresholdOfThePolicy) {
  auto layer = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF16)).value();
  EXPECT_EQ(Explain(layer->decision()), "nothing was asked for yet");
  Prompt(*layer, 63);
  Attend(*layer);
  EXPECT_EQ(Explain(layer->decision()), "63 keys < attention_min_kv_len 64: in host memory");
  Prompt(*layer, 1);
  Attend(*layer);
  EXPECT_TRUE(layer->decision().moved);
  EXPECT_EQ(Explain(layer->decision()),
            "64 keys >= attention_min_kv_len 64: its first 256 rows on the GPU");
  // Truncated a little it stays there; not for every length around the threshold to and fro.
  ASSERT_TRUE(layer->Truncate(40).ok());
  Attend(*layer);
  EXPECT_EQ(layer->cache().gpu_rows(), kCapacity);
  Prompt(*layer, 30);
  Attend(*layer);
  EXPECT_EQ(layer->moves(), 1);
  ASSERT_TRUE(layer->Truncate(31).ok());
  Attend(*layer);
  EXPECT_EQ(layer->cache().gpu_rows(), 0);
  EXPECT_EQ(layer->moves(), 2);
}

// Queries that come in GPU memory: the cache is there from the start.
TEST_F(AdaptiveAttentionTest, FollowsQueriesOnTheGpu) {
  auto layer = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF16)).value();
  Prompt(*layer, 3);
  Attend(*layer, std::nullopt, DeviceKind::kCuda);
  EXPECT_EQ(layer->cache().gpu_rows(), kCapacity);
}

TEST_F(AdaptiveAttentionTest, ForcedDevices) {
  for (const DeviceKind kind : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    ContextOptions options;
    options.device = kind;
    Start(options);
    AdaptiveOptions adaptive;
    adaptive.costs = Machine().Costs();
    auto layer = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF16), adaptive).value();
    Prompt(*layer, 200);
    Attend(*layer);
    EXPECT_EQ(layer->cache().gpu_rows(), kind == DeviceKind::kCpu ? 0 : kCapacity);
    EXPECT_EQ(layer->decision().rule, AdaptiveDecision::Rule::kForced);
    EXPECT_EQ(layer->moves(), 0);
  }
}

// By predicted times: where the bus is slow the cache stays; else it moves, once the calls to come
// pay for it.
TEST_F(AdaptiveAttentionTest, CostsDecide) {
  const auto run = [&](const Machine& machine, std::optional<int64_t> steps) {
    AdaptiveOptions options;
    options.costs = machine.Costs();
    auto layer = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF32), options).value();
    Prompt(*layer, 250);
    Attend(*layer, steps);
    return layer;
  };
  // 64 KB of keys and values: 64 us on the CPU, next to nothing on the GPU, and 128 us to move.
  const Machine fast = {.gpu_bandwidth = 1e12, .bus = 5e8, .gpu_start = 1e-6, .bus_start = 1e-6};
  EXPECT_EQ(run(fast, 100)->cache().gpu_rows(), kCapacity);
  EXPECT_EQ(run(fast, 1)->cache().gpu_rows(), 0);  // moving takes longer than it saves
  EXPECT_NE(Explain(run(fast, 1)->decision()).find("stays"), std::string::npos);
  const Machine far = {.gpu_bandwidth = 1e12, .bus_start = 1e-3};
  EXPECT_EQ(run(far, 100)->cache().gpu_rows(), 0);
  // As fast as each other: half of it each.
  const Machine equal = {
      .cpu_bandwidth = 1e8, .gpu_bandwidth = 1e8, .cpu_start = 0.0, .gpu_start = 0.0};
  const auto halves = run(equal, 1000);
  EXPECT_NEAR(static_cast<double>(halves->cache().gpu_rows()), 125.0, 32.0);
  EXPECT_NE(Explain(halves->decision()).find("rows on the GPU"), std::string::npos);

  // Nobody knows how many calls will follow: it moves when staying has cost as much.
  AdaptiveOptions options;
  options.costs = fast.Costs();
  auto layer = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF32), options).value();
  Prompt(*layer, 250);
  int calls = 0;
  while (layer->moves() == 0 && ++calls < 100) Attend(*layer);
  EXPECT_GT(calls, 0);
  EXPECT_LT(calls, 5);
  for (int i = 0; i < 20; ++i) Attend(*layer);
  EXPECT_EQ(layer->moves(), 1);

  options.allow_split = false;
  options.costs = equal.Costs();
  layer = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF32), options).value();
  Prompt(*layer, 250);
  Attend(*layer, 1000);
  EXPECT_TRUE(layer->cache().gpu_rows() == 0 || layer->cache().gpu_rows() == kCapacity);
}

// What the two parts are predicted to take together is what the parts are predicted to take, and
// the best share is that of all shares.
TEST_F(AdaptiveAttentionTest, SharesAreTheBestOfTheModel) {
  for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    for (const double gpu : {2e8, 1e9, 8e9, 1e11}) {
      Machine machine;
      machine.gpu_bandwidth = gpu;
      CacheCall call;
      call.cache = ShapeOf(DType::kF16);
      call.q_heads = kQueryHeads;
      for (const int64_t length : {40, 500, 4000, 30000}) {
        call.length = length;
        for (const int64_t most : {length, length / 3}) {
          SCOPED_TRACE(absl::StrCat(std::string(Name(home)), ", ", gpu, ", ", length, ", ", most));
          const auto choice = ChooseAttentionSplit(machine.Costs(), call, home, most);
          ASSERT_TRUE(choice.ok()) << choice.status();
          double best = AttentionSeconds(machine.Costs(), call, home, 0);
          for (int64_t rows = 32; rows <= most; rows += 32) {
            best = std::min(best, AttentionSeconds(machine.Costs(), call, home, rows));
          }
          if (most == length) {
            best = std::min(best, AttentionSeconds(machine.Costs(), call, home, length));
          }
          EXPECT_LE(choice->seconds, best * 1.01);
          EXPECT_NEAR(choice->seconds, AttentionSeconds(machine.Costs(), call, home, choice->gpu),
                      1e-12);
        }
      }
      ProductCall product = {.m = 4, .n = 4096, .k = 2048, .weights = DType::kQ8_0};
      const auto choice = ChooseMatMulSplit(machine.Costs(), product, home, product.n);
      ASSERT_TRUE(choice.ok()) << choice.status();
      double best = MatMulSeconds(machine.Costs(), product, home, 0);
      for (int64_t n = 16; n <= product.n; n += 16) {
        best = std::min(best, MatMulSeconds(machine.Costs(), product, home, n));
      }
      EXPECT_LE(choice->seconds, best * 1.01);
    }
  }
}

// No memory on the GPU: it stays in host memory, and does not try again at every call.
TEST_F(AdaptiveAttentionTest, StaysWhereThereIsNoMemory) {
  ContextOptions options;
  options.cuda_memory_limit = 1 << 20;
  Start(options);
  AdaptiveOptions adaptive;
  adaptive.gpu_bytes = int64_t{1} << 30;  // not true
  KvCacheShape shape = ShapeOf(DType::kF32);
  shape.capacity = 16384;
  auto layer = AdaptiveAttention::Create(*context_, shape, adaptive).value();
  Prompt(*layer, 100);
  Attend(*layer);
  EXPECT_EQ(layer->cache().gpu_rows(), 0);
  const int64_t asked = RuntimeOf(*context_).calls("Allocate");
  for (int i = 0; i < 3; ++i) Attend(*layer);
  EXPECT_EQ(RuntimeOf(*context_).calls("Allocate"), asked);
  // With what is true it takes what there is, and the rest stays with the CPU.
  adaptive.gpu_bytes = 0;
  layer = AdaptiveAttention::Create(*context_, shape, adaptive).value();
  Prompt(*layer, 100);
  Attend(*layer);
  EXPECT_GT(layer->cache().bytes(DeviceKind::kCuda), options.cuda_memory_limit * 3 / 4);
  EXPECT_GT(layer->cache().bytes(DeviceKind::kCpu), options.cuda_memory_limit);
}

// The GPU fails: the cache is the host's from then on.
TEST_F(AdaptiveAttentionTest, AfterAFailureTheHostHasIt) {
  auto layer = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF16)).value();
  Prompt(*layer, 100);
  Attend(*layer);
  ASSERT_EQ(layer->cache().gpu_rows(), kCapacity);
  RuntimeOf(*context_).Inject({.call = "Launch"});
  Attend(*layer);
  EXPECT_EQ(layer->cache().gpu_rows(), 0);
  EXPECT_EQ(layer->fallbacks(), 1);
  Attend(*layer);
  EXPECT_EQ(layer->cache().gpu_rows(), 0);
  EXPECT_EQ(Explain(layer->decision()), "the GPU failed, and the CPU took over: in host memory");
  EXPECT_EQ(context_->health().counters().all_fallbacks(), 1);

  // One that fails elsewhere is left alone for a while by caches in host memory, too.
  ASSERT_TRUE(context_->Revive(DeviceKind::kCuda).ok());
  layer = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF16)).value();
  Prompt(*layer, 100);
  context_->health().Failed(OpKind::kAttention, 1000, FaultCause::kError);
  Attend(*layer);
  EXPECT_EQ(layer->decision().rule, AdaptiveDecision::Rule::kFailed);
  EXPECT_EQ(context_->health().counters().avoided, 1);
  for (int64_t i = 0; i < DeviceHealth::kFirstBackOff; ++i) Attend(*layer);
  EXPECT_EQ(layer->cache().gpu_rows(), kCapacity);
}

// So it is when appending fails; and a move that fails is an event, and the host goes on.
TEST_F(AdaptiveAttentionTest, AfterAFailedAppendOrMoveTheHostHasIt) {
  context_->health().SetLog({});
  auto layer = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF16)).value();
  Prompt(*layer, 100);
  Attend(*layer);
  ASSERT_EQ(layer->cache().gpu_rows(), kCapacity);
  RuntimeOf(*context_).Inject({.call = "Launch"});
  Prompt(*layer, 1);
  EXPECT_EQ(layer->cache().gpu_rows(), 0);
  EXPECT_EQ(layer->length(), 101);
  EXPECT_EQ(layer->fallbacks(), 1);
  Attend(*layer);
  EXPECT_EQ(layer->decision().rule, AdaptiveDecision::Rule::kFailed);
  EXPECT_EQ(context_->health().events().back().what, "kv_append");

  ASSERT_TRUE(context_->Revive(DeviceKind::kCuda).ok());
  layer = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF16)).value();
  Prompt(*layer, 100);
  RuntimeOf(*context_).Inject({.call = "Copy"});
  Attend(*layer);
  EXPECT_EQ(layer->cache().gpu_rows(), 0);
  EXPECT_EQ(context_->health().events().back().what, "move of a cache");
  EXPECT_EQ(context_->health().counters().all_faults(), 2);
}

TEST_F(AdaptiveAttentionTest, BadArguments) {
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  AdaptiveOptions options;
  options.gpu_bytes = -1;
  EXPECT_EQ(AdaptiveAttention::Create(*context_, ShapeOf(DType::kF16), options).status().code(),
            kInvalid);
  EXPECT_EQ(AdaptiveAttention::Create(*context_, KvCacheShape()).status().code(), kInvalid);
  auto layer = AdaptiveAttention::Create(*context_, ShapeOf(DType::kF16)).value();
  EXPECT_EQ(layer->AttendInto({}).code(), kInvalid);
  EXPECT_EQ(layer->Append({}).code(), kInvalid);
  EXPECT_EQ(layer->Truncate(1).code(), kInvalid);
}

}  // namespace
}  // namespace tandem::cases
