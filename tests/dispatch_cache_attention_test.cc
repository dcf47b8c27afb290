// Attention over a cache in two memories, both devices at once, is attention over the whole.
#include <gtest/gtest.h>

#include <algorithm>
#include <future>
#include <vector>

#include "cuda/stream.h"
#include "dispatch/cache_attention.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"
#include "tests/allocation_counter.h"
#include "tests/cases/attention_cases.h"
#include "tests/emulated_context.h"

namespace tandem::cases {
namespace {

// A random call that keeps the emulator busy for milliseconds, and whose cache can be in two
// memories.
AttentionCase SmallCase(Rng& rng) {
  AttentionCase c = AttentionCase::Random(rng);
  c.q_heads = c.q_heads / c.kv_heads;
  c.kv_heads = 1;
  if (c.q_heads % 2 == 0 && rng.Chance(0.5)) c.kv_heads = 2;
  c.q_len = std::min<int64_t>(c.q_len, 12);
  c.kv_len = std::min<int64_t>(c.kv_len, 150);
  c.head_dim = std::min<int64_t>(c.head_dim, 72);
  c.v_head_dim = std::min<int64_t>(c.v_head_dim, 40);
  c.keys_before = c.keys_after = c.new_after = 0;
  c.page_size = 0;
  if (c.kv_dtype == DType::kI8) c.kv_dtype = DType::kF16;
  c.lse = true;
  if (c.ragged_kv && c.new_len > 0) c.bias = c.mask = AttentionExtents::kAbsent;
  return c;
}

KvCacheShape ShapeOf(const AttentionArgs& args) {
  return {.batch = args.batch(),
          .kv_heads = args.kv_heads(),
          .capacity = args.cache_len(),
          .head_dim = args.head_dim(),
          .v_head_dim = args.v_head_dim(),
          .dtype = args.k.dtype};
}

class CacheAttentionTest : public testing::Test {
 protected:
  CacheAttentionTest() : context_(EmulatedContext(/*forced=*/false)), attention_(*context_) {}

  ContextDevice& device(DeviceKind kind) { return *context_->device(kind); }
  cuda::EmulatedRuntime& runtime() { return RuntimeOf(*context_); }
  cuda::StreamHandle stream() {
    return static_cast<cuda::CudaStream&>(*device(DeviceKind::kCuda).stream).handle();
  }

  // The case's keys and values in a cache of their own type.
  SplitKvCache Fill(const Prepared<AttentionCase>& prepared, int64_t gpu_rows) {
    const Views views(prepared.operands);
    const AttentionArgs args = prepared.c.Bind(views);
    SplitKvCache cache = SplitKvCache::Create(*context_, ShapeOf(args), gpu_rows).value();
    constexpr int64_t kChunk = 128;  // as prompts come, and sent through as little memory
    for (int64_t at = 0; at < args.cache_len(); at += kChunk) {
      const int64_t rows = std::min(kChunk, args.cache_len() - at);
      const absl::Status status =
          cache.Append({.k = Slice(args.k, 2, at, rows), .v = Slice(args.v, 2, at, rows)});
      EXPECT_TRUE(status.ok()) << status;
    }
    return cache;
  }

  static AttentionArgs WithoutCache(AttentionArgs args) {
    args.k = args.v = args.k_scale = args.v_scale = {};
    return args;
  }

  void Expect(const Prepared<AttentionCase>& prepared, DeviceOperands& operands, DeviceKind home) {
    ASSERT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
    const auto damage = operands.Download(*device(home).backend, *device(home).stream);
    ASSERT_TRUE(damage.ok()) << damage.status();
    EXPECT_EQ(damage->value_or(""), "");
    Outcome outcome;
    for (const Expectation& expectation : prepared.expectations) {
      EXPECT_EQ(Compare(expectation, operands.Result(expectation.operand), outcome), "")
          << expectation.operand;
    }
  }

  void Check(const Prepared<AttentionCase>& prepared, int64_t gpu_rows, DeviceKind home) {
    SCOPED_TRACE(absl::StrCat(CaseText(prepared.c), "; ", gpu_rows, " rows on the GPU, q on ",
                              std::string(Name(home))));
    auto operands =
        DeviceOperands::Upload(prepared.operands, *device(home).backend, *device(home).stream);
    ASSERT_TRUE(operands.ok()) << operands.status();
    SplitKvCache cache = Fill(prepared, gpu_rows);
    const AttentionArgs args = WithoutCache(prepared.c.Bind(operands->views()));
    const absl::Status status = attention_.Run(cache, args);
    ASSERT_TRUE(status.ok()) << status;
    Expect(prepared, *operands, home);
  }

  std::unique_ptr<Context> context_;
  CacheAttention attention_;
};

TEST_F(CacheAttentionTest, IsAttentionOverTheWhole) {
  Rng rng(1);
  int on_both = 0;
  for (int i = 0; i < 100; ++i) {
    const AttentionCase c = SmallCase(rng);
    if (c.kv_len == 0) continue;  // there are no caches without capacity
    const auto prepared = Prepare(c);
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    const int64_t gpu_rows = rng.Integer(0, c.kv_len);
    on_both += gpu_rows >= SplitKvCache::kRowStep && gpu_rows < c.kv_len;
    Check(*prepared, gpu_rows, rng.Chance(0.5) ? DeviceKind::kCpu : DeviceKind::kCuda);
    if (HasFatalFailure()) return;
  }
  EXPECT_GT(on_both, 20);
  EXPECT_EQ(attention_.fallbacks(), 0);
}

// One token of a decoder and a prompt, grouped heads, in all shares.
TEST_F(CacheAttentionTest, DecodeAndPrefill) {
  for (const int64_t q_len : {1, 40}) {
    for (const int64_t new_len : {-1, 1}) {
      const AttentionCase c = {.q_heads = 8,
                               .kv_heads = 2,
                               .q_len = q_len,
                               .kv_len = 200,
                               .new_len = new_len,
                               .head_dim = 64,
                               .kv_dtype = DType::kF16,
                               .sinks = new_len > 0,
                               .lse = true};
      const auto prepared = Prepare(c);
      ASSERT_TRUE(prepared.ok()) << prepared.status();
      for (const int64_t gpu_rows : {0, 32, 96, 160, 200}) {
        for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
          Check(*prepared, gpu_rows, home);
        }
      }
    }
  }
}

// int8 rows, quantised on the way in on whichever device they are: against the same rows in one
// cache.
TEST_F(CacheAttentionTest, QuantisedCache) {
  const AttentionCase c = {.q_heads = 4, .kv_heads = 2, .q_len = 3, .kv_len = 150, .lse = true};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const Views views(prepared->operands);
  const AttentionArgs floats = c.Bind(views);
  KvCacheShape shape = ShapeOf(floats);
  shape.dtype = DType::kI8;
  std::vector<std::vector<float>> results;
  for (const int64_t gpu_rows : {0, 64, 128, 150}) {
    SplitKvCache cache = SplitKvCache::Create(*context_, shape, gpu_rows).value();
    ASSERT_TRUE(cache.Append({.k = floats.k, .v = floats.v}).ok());
    Tensor out = AllocateOn(*context_, DeviceKind::kCpu, DType::kF32, floats.out.shape).value();
    AttentionArgs args = WithoutCache(floats);
    args.out = out;
    args.lse = {};
    const absl::Status status = attention_.Run(cache, args);
    ASSERT_TRUE(status.ok()) << status;
    results.emplace_back(out.As<float>(), out.As<float>() + out.view().num_elements());
  }
  // Kernels may round queries and weights to 16 bits here (docs/numerics.md): 2.1e-5 apart.
  for (const std::vector<float>& result : results) {
    for (size_t i = 0; i < result.size(); ++i) ASSERT_NEAR(result[i], results[0][i], 1e-4) << i;
  }
}

// The GPU's stream is held up before the call: the CPU does its part all the same, and finishes it
// while the GPU's work is still to come.
TEST_F(CacheAttentionTest, BothDevicesWorkAtTheSameTime) {
  const AttentionCase c = {.q_heads = 4, .kv_heads = 2, .kv_len = 150, .new_len = 1, .lse = true};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  SplitKvCache cache = Fill(*prepared, 64);
  auto operands = DeviceOperands::Upload(prepared->operands, *device(DeviceKind::kCpu).backend,
                                         *device(DeviceKind::kCpu).stream);
  ASSERT_TRUE(operands.ok()) << operands.status();
  const AttentionArgs args = WithoutCache(c.Bind(operands->views()));
  ASSERT_TRUE(attention_.Run(cache, args).ok());  // memory gets its size

  context_->trace().Enable(true);
  std::promise<void> gate;
  std::shared_future<void> open = gate.get_future().share();
  ASSERT_TRUE(runtime()
                  .HostFunction(
                      stream(),
                      [](void* data) { static_cast<std::shared_future<void>*>(data)->wait(); },
                      &open)
                  .ok());
  absl::Status status = attention_.Queue(cache, args);
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_FALSE(runtime().Finished(stream()).value());
  status = attention_.RunHost();
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_FALSE(runtime().Finished(stream()).value());
  gate.set_value();
  status = attention_.Finish();
  ASSERT_TRUE(status.ok()) << status;
  Expect(*prepared, *operands, DeviceKind::kCpu);

  // The trace shows it: the CPU's call lies within the GPU's.
  const TraceRecord *cpu = nullptr, *gpu = nullptr;
  for (const TraceRecord& record : context_->trace().records()) {
    if (record.facts.op != OpKind::kAttention) continue;
    (record.device.kind == DeviceKind::kCpu ? cpu : gpu) = &record;
  }
  ASSERT_NE(cpu, nullptr);
  ASSERT_NE(gpu, nullptr);
  EXPECT_LT(gpu->start_ns, cpu->start_ns);
  EXPECT_GE(gpu->start_ns + gpu->duration_ns, cpu->start_ns + cpu->duration_ns);
}

// q on the GPU: its part begins before the host's is asked for.
TEST_F(CacheAttentionTest, QueriesOnTheGpuGoToTheHostOnce) {
  const AttentionCase c = {.q_heads = 4, .kv_heads = 2, .kv_len = 150, .lse = true};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  SplitKvCache cache = Fill(*prepared, 64);
  auto operands = DeviceOperands::Upload(prepared->operands, *device(DeviceKind::kCuda).backend,
                                         *device(DeviceKind::kCuda).stream);
  ASSERT_TRUE(operands.ok()) << operands.status();
  const AttentionArgs args = WithoutCache(c.Bind(operands->views()));
  const int64_t launches = runtime().calls("Launch"), copies = runtime().calls("Copy");
  ASSERT_TRUE(attention_.Queue(cache, args).ok());
  EXPECT_GT(runtime().calls("Launch"), launches);
  EXPECT_EQ(runtime().calls("Copy"), copies + 1);
  ASSERT_TRUE(attention_.RunHost().ok());
  ASSERT_TRUE(attention_.Finish().ok());
  EXPECT_EQ(runtime().calls("Copy"), copies + 2);  // the host's out and lse
  Expect(*prepared, *operands, DeviceKind::kCuda);
}

TEST_F(CacheAttentionTest, OneSidedCachesMakePlainCalls) {
  const AttentionCase c = {.q_heads = 4, .kv_heads = 2, .kv_len = 96, .lse = true};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  context_->trace().Enable(true);
  for (const auto& [home, gpu_rows] : {std::pair(DeviceKind::kCpu, 0), {DeviceKind::kCuda, 96}}) {
    SplitKvCache cache = Fill(*prepared, gpu_rows);
    auto operands =
        DeviceOperands::Upload(prepared->operands, *device(home).backend, *device(home).stream);
    ASSERT_TRUE(operands.ok()) << operands.status();
    ASSERT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
    context_->trace().Clear();
    const int64_t copies = runtime().calls("Copy");
    ASSERT_TRUE(attention_.Run(cache, WithoutCache(c.Bind(operands->views()))).ok());
    EXPECT_EQ(runtime().calls("Copy"), copies);
    ASSERT_EQ(context_->trace().records().size(), 1u);  // no merge
    EXPECT_EQ(context_->trace().records()[0].device.kind, home);
    EXPECT_EQ(attention_.moved_bytes(), 0);
  }
}

// The point of it: the GPU's memory is full, and the cache four times as large.
TEST_F(CacheAttentionTest, CachesLargerThanTheMemoryOfTheGpu) {
  ContextOptions options;
  options.threads = 1;
  options.cuda_emulated = true;
  options.cuda_memory_limit = int64_t{1} << 20;
  options.kernel_profile = "off";
  context_ = Context::Create(options).value();
  CacheAttention attention(*context_);
  const AttentionCase c = {
      .q_heads = 4, .kv_heads = 4, .kv_len = 2048, .head_dim = 64, .lse = true};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  const Views views(prepared->operands);
  const KvCacheShape shape = ShapeOf(c.Bind(views));
  EXPECT_EQ(SplitKvCache::Create(*context_, shape, 2048).status().code(),
            absl::StatusCode::kResourceExhausted);
  SplitKvCache cache = Fill(*prepared, 320);
  EXPECT_GT(cache.bytes(DeviceKind::kCuda), options.cuda_memory_limit * 5 / 8 - 1);
  EXPECT_GT(cache.bytes(DeviceKind::kCpu) + cache.bytes(DeviceKind::kCuda),
            4 * options.cuda_memory_limit - 1);
  auto operands = DeviceOperands::Upload(prepared->operands, *device(DeviceKind::kCpu).backend,
                                         *device(DeviceKind::kCpu).stream);
  ASSERT_TRUE(operands.ok()) << operands.status();
  const absl::Status status = attention.Run(cache, WithoutCache(c.Bind(operands->views())));
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(cache.gpu_rows(), 320);
  EXPECT_EQ(attention.fallbacks(), 0);
  Expect(*prepared, *operands, DeviceKind::kCpu);
}

TEST_F(CacheAttentionTest, AllocatesNothingOnceItsMemoryHasItsSize) {
  const AttentionCase c = {.q_heads = 4, .kv_heads = 2, .kv_len = 150, .new_len = 1, .lse = true};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  for (const int64_t gpu_rows : {0, 64, 150}) {
    SplitKvCache cache = Fill(*prepared, gpu_rows);
    const Views views(prepared->operands);
    AttentionArgs args = WithoutCache(c.Bind(views));
    Tensor out = AllocateOn(*context_, DeviceKind::kCpu, DType::kF32, args.out.shape).value();
    args.out = out;
    args.lse = {};
    ASSERT_TRUE(attention_.Run(cache, args).ok());
    const cuda::EmulatedStats before = runtime().stats();
    const int64_t allocated = runtime().calls("Allocate") + runtime().calls("AllocatePinned");
    const int64_t host = context_->host_allocator().bytes_in_use();
    const int64_t operators = AllocationCount();
    ASSERT_TRUE(attention_.Run(cache, args).ok());
    const int64_t own = AllocationCount() - operators;
    EXPECT_TRUE(own == 0 || gpu_rows > 0) << own;  // the emulator itself allocates
    EXPECT_EQ(context_->host_allocator().bytes_in_use(), host);
    EXPECT_EQ(runtime().calls("Allocate") + runtime().calls("AllocatePinned"), allocated);
    EXPECT_EQ(runtime().stats(), before);
  }
}

// Whatever call of the GPU fails, the call is done all the same, by the GPU at the second try or by
// the CPU with the cache, wherever q is; but not with a device that is lost. It is an event of the
// context either way.
TEST_F(CacheAttentionTest, FallsBackToTheHost) {
  const AttentionCase c = {.q_heads = 4, .kv_heads = 2, .kv_len = 150, .new_len = 1, .lse = true};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  DeviceHealth& health = context_->health();
  health.SetLog({});
  for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    for (const int64_t gpu_rows : {int64_t{64}, c.kv_len}) {
      for (const auto kind : {cuda::Fault::Kind::kError, cuda::Fault::Kind::kOutOfMemory,
                              cuda::Fault::Kind::kDeviceLost}) {
        int64_t failures = 0, fallbacks = 0;
        bool happened = true;
        for (int64_t ordinal = 1; happened; ++ordinal) {
          ASSERT_LT(ordinal, 100);
          SCOPED_TRACE(absl::StrCat("call ", ordinal, ", kind ", static_cast<int>(kind), ", q on ",
                                    std::string(Name(home)), ", ", gpu_rows, " rows on the GPU"));
          SplitKvCache cache = Fill(*prepared, gpu_rows);
          auto operands = DeviceOperands::Upload(prepared->operands, *device(home).backend,
                                                 *device(home).stream);
          ASSERT_TRUE(operands.ok()) << operands.status();
          ASSERT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
          CacheAttention attention(*context_);
          const AttentionArgs args = WithoutCache(c.Bind(operands->views()));
          const FaultCounters before = health.counters();
          runtime().Inject({.ordinal = ordinal, .kind = kind});
          const absl::Status status = attention.Run(cache, args);
          happened = runtime().fault_happened();
          runtime().Heal();
          ASSERT_TRUE(context_->Revive(DeviceKind::kCuda).ok());
          const FaultCounters& after = health.counters();
          const int64_t events = after.all_faults() - before.all_faults();
          if (!happened) {
            EXPECT_TRUE(status.ok()) << status;
            EXPECT_EQ(events, 0);
            continue;
          }
          ++failures;
          if (kind == cuda::Fault::Kind::kDeviceLost) {
            // It may be lost at its very last call, and nobody needs it any more.
            if (status.ok()) continue;
            EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable) << status;
            EXPECT_EQ(after.failed - before.failed, 1);
            EXPECT_EQ(after.lost_devices - before.lost_devices, 1);
            EXPECT_EQ(health.events().back().remedy, FaultRemedy::kOperandsLost);
            EXPECT_EQ(cache.gpu_rows(), gpu_rows);
            ASSERT_TRUE(operands->Download(*device(home).backend, *device(home).stream).ok());
            EXPECT_EQ(operands->OutputHash(), operands->InitialHash());
            continue;
          }
          ASSERT_TRUE(status.ok()) << status;
          // (What failed may not have been needed: the allocator asks twice.)
          EXPECT_EQ(cache.gpu_rows(), attention.fallbacks() == 1 ? 0 : gpu_rows);
          EXPECT_EQ(after.all_fallbacks() - before.all_fallbacks(), attention.fallbacks());
          EXPECT_EQ(after.failed, before.failed);
          if (attention.fallbacks() == 1) {
            EXPECT_EQ(events, 1);
            EXPECT_EQ(health.events().back().what, "attention");
            EXPECT_EQ(health.events().back().remedy, FaultRemedy::kRanOnCpu);
          }
          fallbacks += attention.fallbacks();
          Expect(*prepared, *operands, home);
        }
        EXPECT_GT(failures, home == DeviceKind::kCuda && gpu_rows == c.kv_len ? 0 : 4);
        // Out of memory is survived by the second try.
        EXPECT_TRUE(fallbacks > 0 || kind != cuda::Fault::Kind::kError) << fallbacks;
      }
    }
  }
}

// Failures that do not pass: the CPU does it without any kernel of the GPU, and what is in its
// memory is fetched and put back.
TEST_F(CacheAttentionTest, FallsBackWhenEveryLaunchFails) {
  const AttentionCase c = {.q_heads = 4, .kv_heads = 2, .kv_len = 150, .new_len = 1, .lse = true};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  context_->health().SetLog({});
  for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    for (const auto kind : {cuda::Fault::Kind::kError, cuda::Fault::Kind::kOutOfMemory}) {
      SplitKvCache cache = Fill(*prepared, 64);
      auto operands =
          DeviceOperands::Upload(prepared->operands, *device(home).backend, *device(home).stream);
      ASSERT_TRUE(operands.ok()) << operands.status();
      CacheAttention attention(*context_);
      runtime().Inject({.call = "Launch", .kind = kind, .times = 1000});
      const absl::Status status = attention.Run(cache, WithoutCache(c.Bind(operands->views())));
      runtime().Heal();
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(cache.gpu_rows(), 0);
      EXPECT_EQ(context_->health().events().back().remedy, FaultRemedy::kRanOnCpu);
      ASSERT_TRUE(context_->Revive(DeviceKind::kCuda).ok());
      Expect(*prepared, *operands, home);
    }
  }
}

TEST_F(CacheAttentionTest, ForcedDevicesFailLoudly) {
  context_ = EmulatedContext(/*forced=*/true);
  context_->health().SetLog({});
  const AttentionCase c = {.q_heads = 4, .kv_heads = 2, .kv_len = 96};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  SplitKvCache cache = Fill(*prepared, 96);
  const Views views(prepared->operands);
  AttentionArgs args = WithoutCache(c.Bind(views));
  Tensor out = AllocateOn(*context_, DeviceKind::kCpu, DType::kF32, args.out.shape).value();
  args.out = out;
  bool happened = true;
  int64_t failures = 0;
  for (int64_t ordinal = 1; happened; ++ordinal) {
    ASSERT_LT(ordinal, 100);
    CacheAttention attention(*context_);
    const int64_t events = context_->health().counters().failed;
    runtime().Inject({.ordinal = ordinal});
    const absl::Status status = attention.Run(cache, args);
    happened = runtime().fault_happened();
    if (status.ok()) continue;  // what failed was not needed
    ++failures;
    EXPECT_EQ(status.code(), absl::StatusCode::kInternal);
    EXPECT_EQ(cache.gpu_rows(), 96);
    EXPECT_EQ(context_->health().counters().failed, events + 1);
    EXPECT_EQ(context_->health().events().back().remedy, FaultRemedy::kFailed);
  }
  EXPECT_GT(failures, 3);
}

TEST_F(CacheAttentionTest, BadArguments) {
  const AttentionCase c = {.q_heads = 4, .kv_heads = 2, .kv_len = 96, .lse = true};
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok()) << prepared.status();
  SplitKvCache cache = Fill(*prepared, 64);
  const Views views(prepared->operands);
  const AttentionArgs good = WithoutCache(c.Bind(views));
  const auto code = [&](auto change) {
    AttentionArgs args = good;
    change(args);
    return attention_.Run(cache, args).code();
  };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code([&](AttentionArgs& a) { a.k = c.Bind(views).k; }), kInvalid);
  EXPECT_EQ(code([&](AttentionArgs& a) { a.page_table = good.q; }), kInvalid);
  EXPECT_EQ(code([&](AttentionArgs& a) { a.keys_before = 3; }), kInvalid);
  EXPECT_EQ(code([&](AttentionArgs& a) { a.q = {}; }), kInvalid);
  EXPECT_EQ(code([&](AttentionArgs& a) { a.q = Slice(a.q, 3, 0, 32); }), kInvalid);
  EXPECT_EQ(code([&](AttentionArgs& a) { a.q = Slice(a.q, 1, 0, 3); }), kInvalid);
  EXPECT_EQ(code([&](AttentionArgs& a) { a.out = Slice(a.out, 3, 0, 32); }), kInvalid);
  EXPECT_EQ(code([&](AttentionArgs& a) { a.lse = Slice(a.lse, 1, 0, 3); }), kInvalid);
  EXPECT_EQ(code([&](AttentionArgs& a) { a.softcap = -1.0f; }), kInvalid);
  EXPECT_EQ(code([&](AttentionArgs& a) { a.k_new = good.q; }), kInvalid);
  EXPECT_EQ(code([&](AttentionArgs& a) { a.k_new = good.lse; }), kInvalid);
  // Columns that are not there.
  for (const DType dtype : {DType::kF32, DType::kBool, DType::kU32}) {
    for (const int64_t columns : {2, 95, 97}) {
      const Tensor narrow =
          AllocateOn(*context_, DeviceKind::kCpu, dtype, {1, 1, 1, columns}).value();
      EXPECT_EQ(code([&](AttentionArgs& a) { (dtype == DType::kF32 ? a.bias : a.mask) = narrow; }),
                kInvalid);
    }
  }
  EXPECT_EQ(cache.gpu_rows(), 64);
  EXPECT_EQ(attention_.fallbacks(), 0);
}

}  // namespace
}  // namespace tandem::cases
