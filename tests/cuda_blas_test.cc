// The BLAS of the device: plans and their cache, the stand-in of the emulated device, faults.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>
#include <vector>

#include "core/status.h"
#include "cuda/blas/blas.h"
#include "cuda/blas/device_blas.h"
#include "cuda/blas/host_blas.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/runtime/handles.h"

namespace tandem::cuda {
namespace {

using ::testing::HasSubstr;

// D[m,n] = A[m,k] B[k,n], all f32 and dense.
BlasProblem Dense(int64_t m, int64_t n, int64_t k) {
  BlasProblem problem;
  problem.m = m;
  problem.n = n;
  problem.k = k;
  problem.a.ld = m;
  problem.b.ld = k;
  problem.d.ld = m;
  problem.max_workspace_bytes = 1 << 20;
  return problem;
}

class BlasTest : public testing::Test {
 protected:
  float* Floats(const std::vector<float>& values) {
    const auto bytes = static_cast<int64_t>(values.size() * sizeof(float));
    auto* data = static_cast<float*>(*runtime_->Allocate(kEmulatedDevice, bytes));
    EXPECT_TRUE(runtime_->Copy(stream_.get(), data, values.data(), bytes).ok());
    return data;
  }
  std::vector<float> Read(const float* data, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    EXPECT_TRUE(runtime_->Copy(stream_.get(), values.data(), data, count * 4).ok());
    return values;
  }

  std::unique_ptr<EmulatedRuntime> runtime_ = MakeEmulatedRuntime();
  UniqueStream stream_ = *MakeStream(*runtime_, kEmulatedDevice);
  std::unique_ptr<Blas> blas_ = *runtime_->MakeBlas(kEmulatedDevice);
};

TEST_F(BlasTest, SaysThatItIsAStandIn) {
  EXPECT_THAT(blas_->name(), HasSubstr("stand-in"));
  EXPECT_THAT((*blas_->MakePlan(Dense(2, 2, 2)))->description(), HasSubstr("stand-in"));
}

TEST_F(BlasTest, ProblemsThatNoLibraryTakesAreRefused) {
  const auto message = [&](auto change) {
    BlasProblem problem = Dense(4, 5, 6);
    change(problem);
    return blas_->MakePlan(problem).status().ToString();
  };
  EXPECT_THAT(message([](BlasProblem& p) { p.a.dtype = DType::kF16; }),
              HasSubstr("UNIMPLEMENTED: products of two f32, f16 or bf16 matrices of one type, got "
                        "f16 and f32"));
  EXPECT_THAT(message([](BlasProblem& p) { p.a.dtype = p.b.dtype = DType::kQ8_0; }),
              HasSubstr("got q8_0 and q8_0"));
  EXPECT_THAT(message([](BlasProblem& p) { p.d.dtype = DType::kF16; }),
              HasSubstr("UNIMPLEMENTED: results in f32 or in the type of the operands, f32"));
  EXPECT_THAT(message([](BlasProblem& p) {
                p.has_c = true;
                p.c = p.d;
                p.c.dtype = DType::kBF16;
              }),
              HasSubstr("UNIMPLEMENTED: c in the type of d, f32, got bf16"));
  EXPECT_THAT(message([](BlasProblem& p) { p.k = 0; }), HasSubstr("INVALID_ARGUMENT: k"));
  EXPECT_THAT(message([](BlasProblem& p) { p.n = int64_t{1} << 31; }),
              HasSubstr("UNIMPLEMENTED: n"));
  EXPECT_THAT(message([](BlasProblem& p) { p.b.ld = 5; }),
              HasSubstr("b: expected a leading dimension of at least 6, got 5"));
  EXPECT_THAT(message([](BlasProblem& p) { p.a.ld = int64_t{1} << 60; }),
              HasSubstr("beyond 64 bits"));
  EXPECT_THAT(message([](BlasProblem& p) { p.a.batch_stride = -1; }),
              HasSubstr("a: expected a bat"));
  EXPECT_THAT(message([](BlasProblem& p) { p.d.alignment = 2; }),
              HasSubstr("d: expected an alignment of 4..16 bytes, got 2"));
  EXPECT_THAT(message([](BlasProblem& p) { p.batch = 2; }),
              HasSubstr("d: expected a batch stride"));
  EXPECT_THAT(message([](BlasProblem& p) { p.max_workspace_bytes = 15; }),
              HasSubstr("needs a workspace of 16 bytes"));
  EXPECT_THAT(message([](BlasProblem& p) { p.max_workspace_bytes = -1; }),
              HasSubstr("INVALID_ARGUMENT: max_workspace_bytes"));
}

TEST_F(BlasTest, MultipliesInTheOrderOfTheStream) {
  float* a = Floats({1, 2, 3, 4});  // columns (1, 2) and (3, 4)
  float* b = Floats({5, 6});
  float* d = Floats({-1, -1});
  float* workspace = Floats({0, 0, 0, 0});
  const auto plan = *blas_->MakePlan(Dense(2, 1, 2));
  BlasOperands operands = {.a = a, .b = b, .d = d, .alpha = 2.0f, .workspace = workspace};
  operands.workspace_bytes = plan->workspace_bytes();
  std::mutex gate;
  gate.lock();
  const auto wait = [](void* data) {
    static_cast<std::mutex*>(data)->lock();
    static_cast<std::mutex*>(data)->unlock();
  };
  ASSERT_TRUE(runtime_->HostFunction(stream_.get(), wait, &gate).ok());
  ASSERT_TRUE(runtime_->Fill(stream_.get(), b, 0, 4).ok());  // b = (0, 6), before the product
  ASSERT_TRUE(blas_->MatMul(stream_.get(), *plan, operands).ok());
  EXPECT_EQ(d[0], -1.0f) << "it has not waited for the stream";
  gate.unlock();
  EXPECT_EQ(Read(d, 2), (std::vector<float>{36, 48}));
}

TEST_F(BlasTest, CapturedProductsOutliveTheirPlan) {
  float* a = Floats({3});
  float* b = Floats({5});
  float* d = Floats({0});
  float* workspace = Floats({0});
  auto plan = *blas_->MakePlan(Dense(1, 1, 1));
  ASSERT_TRUE(runtime_->BeginCapture(stream_.get()).ok());
  ASSERT_TRUE(blas_
                  ->MatMul(stream_.get(), *plan,
                           {.a = a, .b = b, .d = d, .workspace = workspace, .workspace_bytes = 4})
                  .ok());
  const UniqueGraph graph = *MakeGraph(*runtime_, stream_.get());
  plan.reset();
  EXPECT_EQ(Read(d, 1)[0], 0.0f);
  ASSERT_TRUE(runtime_->LaunchGraph(graph.get(), stream_.get()).ok());
  EXPECT_EQ(Read(d, 1)[0], 15.0f);
  ASSERT_TRUE(runtime_->Copy(stream_.get(), b, a, 4).ok());
  ASSERT_TRUE(runtime_->LaunchGraph(graph.get(), stream_.get()).ok());
  EXPECT_EQ(Read(d, 1)[0], 9.0f);
}

TEST_F(BlasTest, OperandsAreChecked) {
  float* a = Floats({1, 2, 3, 4});
  float* b = Floats({1, 2, 3, 4});
  float* d = Floats({0, 0, 0, 0});
  float* workspace = Floats({0, 0});
  std::vector<float> host(16);
  const auto plan = *blas_->MakePlan(Dense(2, 2, 2));
  const auto message = [&](auto change) {
    BlasOperands operands = {.a = a, .b = b, .d = d, .workspace = workspace, .workspace_bytes = 8};
    change(operands);
    return Message(blas_->MatMul(stream_.get(), *plan, operands));
  };
  EXPECT_EQ(message([](BlasOperands&) {}), "");
  EXPECT_THAT(message([](BlasOperands& o) { o.d = nullptr; }), HasSubstr("d is null"));
  EXPECT_THAT(message([&](BlasOperands& o) { o.a = a + 1; }),
              HasSubstr("a is aligned to 4 bytes, the plan needs 16"));
  EXPECT_THAT(message([](BlasOperands& o) { o.workspace_bytes = 4; }),
              HasSubstr("a workspace of 4 bytes, the plan needs 8"));
  EXPECT_THAT(message([](BlasOperands& o) { o.workspace = nullptr; }),
              HasSubstr("workspace is null"));
  EXPECT_THAT(
      message([&](BlasOperands& o) {
        o.b = reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(host.data()) + 15) / 16 * 16);
      }),
      HasSubstr("BlasMatMul: b is host memory"));
  EXPECT_THAT(message([&](BlasOperands& o) { o.d = workspace; }),
              HasSubstr("BlasMatMul: d is 16 bytes from byte 0 of an allocation of 8"));
  ASSERT_TRUE(runtime_->Free(kEmulatedDevice, a).ok());
  EXPECT_THAT(message([](BlasOperands&) {}), HasSubstr("a is an address of cuda:emulated that"));
}

TEST_F(BlasTest, CacheMakesEachPlanOnce) {
  BlasPlanCache cache;
  const auto first = *cache.Get(*blas_, Dense(4, 5, 6));
  EXPECT_EQ(*cache.Get(*blas_, Dense(4, 5, 6)), first);
  // Everything that the heuristics look at tells plans apart.
  std::vector<BlasProblem> others(14, Dense(4, 5, 6));
  others[0].m = 3;
  others[1].n = 3;
  others[2].k = 5;
  others[3].a.ld = 8;
  others[4].b.alignment = 4;
  others[5].d.alignment = 8;
  others[6].transpose_a = true;
  others[6].a.ld = 6;
  others[7].transpose_b = true;
  others[8].has_c = true;
  others[8].c.ld = 4;
  others[9].bias = true;
  others[10].gelu = true;
  others[11].batch = 2;
  others[11].d.batch_stride = 20;
  others[12].a.dtype = others[12].b.dtype = DType::kF16;
  others[13].max_workspace_bytes /= 2;
  for (const BlasProblem& problem : others) {
    const auto plan = cache.Get(*blas_, problem);
    ASSERT_TRUE(plan.ok()) << plan.status();
    EXPECT_NE(*plan, first) << ToString(problem);
    EXPECT_TRUE((*plan)->problem() == problem);
  }
  const BlasPlanCache::Stats stats = cache.stats();
  EXPECT_EQ(stats.hits, 1);
  EXPECT_EQ(stats.misses, 15);
  EXPECT_EQ(stats.size, 15);
  EXPECT_EQ(stats.evictions, 0);
  cache.Clear();
  EXPECT_EQ(cache.stats().size, 0);
}

TEST_F(BlasTest, CacheForgetsTheLeastRecentlyUsed) {
  BlasPlanCache cache(2);
  const std::shared_ptr<const BlasPlan> one = *cache.Get(*blas_, Dense(1, 1, 1));
  ASSERT_TRUE(cache.Get(*blas_, Dense(2, 1, 1)).ok());
  ASSERT_TRUE(cache.Get(*blas_, Dense(1, 1, 1)).ok());  // now 2 is the older one
  ASSERT_TRUE(cache.Get(*blas_, Dense(3, 1, 1)).ok());
  EXPECT_EQ(cache.stats().evictions, 1);
  EXPECT_EQ(cache.stats().size, 2);
  EXPECT_EQ(*cache.Get(*blas_, Dense(1, 1, 1)), one);
  ASSERT_TRUE(cache.Get(*blas_, Dense(2, 1, 1)).ok());  // made again
  EXPECT_EQ(cache.stats().misses, 4);
  ASSERT_TRUE(cache.Get(*blas_, Dense(3, 1, 1)).ok());
  EXPECT_EQ(cache.stats().evictions, 3);
  EXPECT_EQ(one->problem().m, 1) << "whoever holds a plan keeps it";
  EXPECT_EQ(runtime_->stats().library_objects, 1 + 2 + 1);
}

TEST_F(BlasTest, CacheKeepsThatThereIsNoPlanButNotOtherErrors) {
  BlasPlanCache cache;
  BlasProblem impossible = Dense(4, 4, 4);
  impossible.max_workspace_bytes = 0;
  EXPECT_TRUE(absl::IsUnimplemented(cache.Get(*blas_, impossible).status()));
  EXPECT_TRUE(absl::IsUnimplemented(cache.Get(*blas_, impossible).status()));
  EXPECT_EQ(cache.stats().hits, 1);
  runtime_->Inject({.call = "BlasPlan"});
  EXPECT_EQ(cache.Get(*blas_, Dense(4, 4, 4)).status().code(), absl::StatusCode::kInternal);
  EXPECT_TRUE(cache.Get(*blas_, Dense(4, 4, 4)).ok());
}

TEST_F(BlasTest, CacheIsSharedByThreads) {
  BlasPlanCache cache(4);
  std::vector<std::thread> threads;
  std::atomic<int64_t> wrong = 0;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 200; ++i) {
        const int64_t m = 1 + (i * (t + 1)) % 6;  // 6 problems, room for 4
        const auto plan = cache.Get(*blas_, Dense(m, 1, 1));
        if (!plan.ok() || (*plan)->problem().m != m || (*plan)->workspace_bytes() != 4 * m) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  const BlasPlanCache::Stats stats = cache.stats();
  EXPECT_EQ(stats.hits + stats.misses, 800);
  EXPECT_EQ(stats.misses, stats.evictions + stats.size);
  EXPECT_EQ(stats.size, 4);
}

TEST_F(BlasTest, EveryCallMayFailAndNothingIsLeft) {
  blas_.reset();
  ASSERT_EQ(runtime_->stats().library_objects, 0);
  float* a = Floats({2, 3, 4, 5});
  float* d = Floats({0});
  float* workspace = Floats({0});
  const EmulatedStats before = runtime_->stats();
  for (const auto kind :
       {Fault::Kind::kError, Fault::Kind::kOutOfMemory, Fault::Kind::kDeviceLost}) {
    for (const char* call : {"BlasCreate", "BlasPlan", "BlasMatMul", "BlasDestroy"}) {
      SCOPED_TRACE(call);
      ASSERT_TRUE(runtime_->Fill(stream_.get(), d, 0, 4).ok());
      runtime_->Inject({.call = call, .kind = kind});
      const auto run = [&]() -> absl::Status {
        DeviceInfo info;
        info.index = kEmulatedDevice;
        DeviceBlas device(*runtime_, info);
        TANDEM_ASSIGN_OR_RETURN(const auto plan, device.Plan(Dense(1, 1, 2)));
        TANDEM_ASSIGN_OR_RETURN(Blas * blas, device.library());
        return blas->MatMul(stream_.get(), *plan,
                            {.a = a, .b = a, .d = d, .workspace = workspace, .workspace_bytes = 4});
      };
      const absl::Status status = run();
      EXPECT_TRUE(runtime_->fault_happened());
      runtime_->Heal();
      EXPECT_TRUE(runtime_->stats() == before) << "something was left behind";
      const float result = Read(d, 1)[0];
      if (std::string(call) == "BlasDestroy") {
        EXPECT_TRUE(status.ok()) << status;
        EXPECT_EQ(result, 13.0f);
        continue;
      }
      EXPECT_EQ(status.code(), kind == Fault::Kind::kError ? absl::StatusCode::kInternal
                               : kind == Fault::Kind::kOutOfMemory
                                   ? absl::StatusCode::kResourceExhausted
                                   : absl::StatusCode::kUnavailable);
      EXPECT_THAT(Message(status), HasSubstr(call));
      EXPECT_EQ(result, 0.0f);
      ASSERT_TRUE(run().ok()) << "the next call works";
      EXPECT_EQ(Read(d, 1)[0], 13.0f);
    }
  }
}

TEST(DeviceBlas, ThatThereIsNoLibraryIsAskedOnce) {
  int asked = 0;
  EmulatedRuntimeOptions options;
  options.make_blas = [&](EmulatedRuntime&) {
    ++asked;
    return absl::FailedPreconditionError("nowhere to be found");
  };
  const auto runtime = MakeEmulatedRuntime(options);
  DeviceInfo info;
  info.index = kEmulatedDevice;
  DeviceBlas blas(*runtime, info);
  for (int i = 0; i < 3; ++i) {
    EXPECT_THAT(Message(blas.Plan(Dense(1, 1, 1)).status()), HasSubstr("nowhere to be found"));
  }
  EXPECT_EQ(asked, 1);
  blas.Reset();
  EXPECT_FALSE(blas.library().ok());
  EXPECT_EQ(asked, 2);
}

TEST(BlasText, DescribesAProblem) {
  BlasProblem problem = Dense(4, 5, 6);
  EXPECT_EQ(ToString(problem), "f32 [4, 6] x f32 [6, 5] -> f32");
  problem.batch = 3;
  problem.transpose_a = problem.bias = problem.gelu = problem.has_c = true;
  EXPECT_EQ(ToString(problem),
            "3 of f32 [4, 6] transposed x f32 [6, 5] -> f32, added to c, bias, gelu");
  EXPECT_EQ(AlignmentOf(reinterpret_cast<void*>(0x1000)), 16);
  EXPECT_EQ(AlignmentOf(reinterpret_cast<void*>(0x100a)), 2);
}

}  // namespace
}  // namespace tandem::cuda
