// Thread pool, instruction-set choice, backend and measurement.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "cpu/backend.h"
#include "cpu/stream.h"
#include "cpu/thread_pool.h"

namespace tandem::cpu {
namespace {

TEST(ThreadPool, RunsEveryTaskOnceOnAKnownWorker) {
  for (int threads : {1, 2, 3, 8}) {
    ThreadPool pool(threads);
    for (int64_t tasks : {int64_t{0}, int64_t{1}, int64_t{2}, int64_t{7}, int64_t{1000}}) {
      std::vector<std::atomic<int>> runs(static_cast<size_t>(tasks));
      std::atomic<bool> good_worker{true};
      pool.ParallelFor(tasks, [&](int64_t task, int worker) {
        runs[static_cast<size_t>(task)].fetch_add(1);
        if (worker < 0 || worker >= threads) good_worker = false;
      });
      for (const auto& count : runs) ASSERT_EQ(count.load(), 1);
      EXPECT_TRUE(good_worker);
    }
  }
}

TEST(ThreadPool, ManyShortLoopsInARowSeeEachOthersWrites) {
  ThreadPool pool(3);
  std::vector<int64_t> values(64, 0);  // plain memory: the pool must order the loops
  constexpr int kLoops = 3000;
  for (int loop = 0; loop < kLoops; ++loop) {
    pool.ParallelFor(64, [&](int64_t task, int) { values[static_cast<size_t>(63 - task)] += 1; });
  }
  for (int64_t value : values) EXPECT_EQ(value, kLoops);
}

TEST(ThreadPool, AWorkerIsNeverInTwoTasksAtOnce) {
  ThreadPool pool(4);
  std::vector<std::atomic<int>> inside(4);
  std::atomic<bool> clash{false};
  pool.ParallelFor(2000, [&](int64_t, int worker) {
    if (inside[static_cast<size_t>(worker)].fetch_add(1) != 0) clash = true;
    inside[static_cast<size_t>(worker)].fetch_sub(1);
  });
  EXPECT_FALSE(clash);
}

// A thread that is stuck in one task keeps nobody from the rest of its range.
TEST(ThreadPool, ThreadsHelpTheOneThatIsBehind) {
  for (int threads : {2, 4}) {
    ThreadPool pool(threads);
    for (int64_t stuck : {0, 50, 99}) {
      std::atomic<int64_t> others{0};
      pool.ParallelFor(100, [&](int64_t task, int) {
        if (task != stuck) {
          others.fetch_add(1);
        } else {
          while (others.load() < 99) std::this_thread::yield();
        }
      });
      EXPECT_EQ(others.load(), 99);
    }
  }
}

TEST(ThreadPool, MillionsOfTasksRunOnceEach) {
  ThreadPool pool(3);
  constexpr int64_t kTasks = 2'500'003;
  std::vector<uint8_t> runs(kTasks, 0);
  pool.ParallelFor(kTasks, [&](int64_t task, int) { ++runs[static_cast<size_t>(task)]; });
  EXPECT_EQ(std::count(runs.begin(), runs.end(), 1), kTasks);
}

TEST(ThreadPool, SmallLoopsStayOnTheCallingThread) {
  ThreadPool pool(3);
  const std::thread::id caller = std::this_thread::get_id();
  int64_t done = 0;  // plain memory: no other thread may touch it
  pool.ParallelFor(
      100,
      [&](int64_t, int worker) {
        EXPECT_EQ(std::this_thread::get_id(), caller);
        EXPECT_EQ(worker, 0);
        ++done;
      },
      ThreadPool::kMinParallelBytes - 1);
  EXPECT_EQ(done, 100);
}

TEST(ThreadPool, PinnedPoolsWorkToo) {
  ThreadPool pool(2, /*pin=*/true);
  std::atomic<int64_t> sum{0};
  pool.ParallelFor(100, [&](int64_t task, int) { sum.fetch_add(task); });
  EXPECT_EQ(sum.load(), 4950);
}

TEST(Isa, RestrictDropsWhatIsAbove) {
  CpuFeatures all;
  all.isa = Isa::kAvx512;
  all.avx512_vnni = all.avx512_bf16 = all.avx512_fp16 = all.avx_vnni = true;
  all.amx_bf16 = all.amx_int8 = true;
  const CpuFeatures avx2 = Restrict(all, Isa::kAvx2);
  EXPECT_EQ(avx2.isa, Isa::kAvx2);
  EXPECT_FALSE(avx2.avx512_vnni || avx2.avx512_bf16 || avx2.avx512_fp16);
  EXPECT_FALSE(avx2.amx_bf16 || avx2.amx_int8);
  const CpuFeatures avx512 = Restrict(all, Isa::kAvx512);
  EXPECT_TRUE(avx512.amx_bf16 && avx512.amx_int8);
  EXPECT_TRUE(avx2.avx_vnni);
  EXPECT_FALSE(Restrict(all, Isa::kScalar).avx_vnni);
  // Restricting never adds.
  EXPECT_EQ(Restrict(CpuFeatures{}, Isa::kAvx512).isa, Isa::kScalar);
}

TEST(Isa, NamesParseBack) {
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) EXPECT_EQ(ParseIsa(Name(isa)), isa);
  EXPECT_EQ(ParseIsa("sse9"), std::nullopt);
}

TEST(CpuBackend, CopiesAllocatesAndTimes) {
  auto backend = MakeCpuBackend({.threads = 2});
  ASSERT_TRUE(backend.ok()) << backend.status();
  auto stream = (*backend)->CreateStream();
  ASSERT_TRUE(stream.ok());
  auto tensor = Tensor::Allocate((*backend)->allocator(), DType::kF32, {5, 7});
  ASSERT_TRUE(tensor.ok());
  EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor->As<void>()) % kBufferAlignment, 0u);
  EXPECT_EQ((*backend)->allocator().bytes_in_use(), 5 * 7 * 4);
  std::vector<float> source(35, 3.0f);
  ASSERT_TRUE((*backend)->Copy(**stream, tensor->As<void>(), source.data(), 140).ok());
  EXPECT_EQ(std::memcmp(tensor->As<void>(), source.data(), 140), 0);
  EXPECT_EQ((*backend)->Copy(**stream, tensor->As<void>(), source.data(), -1).code(),
            absl::StatusCode::kInvalidArgument);
  auto start = (*stream)->Record(), end = (*stream)->Record();
  ASSERT_TRUE(start.ok() && end.ok());
  EXPECT_GE((*end)->SecondsSince(**start).value(), 0.0);
  *tensor = Tensor();
  EXPECT_EQ((*backend)->allocator().bytes_in_use(), 0);
  const auto memory = (*backend)->memory();
  ASSERT_TRUE(memory.ok());
  EXPECT_GT(memory->free_bytes, 0);
  EXPECT_LE(memory->free_bytes, memory->total_bytes);
}

TEST(CpuBackend, ImpossibleAllocationsAreErrors) {
  const auto allocator = MakeHostAllocator();
  EXPECT_EQ(allocator->Allocate(-1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(allocator->Allocate(INT64_MAX).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(allocator->Allocate(INT64_MAX - 100).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(allocator->bytes_in_use(), 0);
  auto empty = allocator->Allocate(0);
  ASSERT_TRUE(empty.ok());
  EXPECT_EQ((*empty)->bytes(), 0);
}

TEST(CpuBackend, BadOptionsNameThemselves) {
  EXPECT_NE(Message(MakeCpuBackend({.threads = -2}).status()).find("threads"), std::string::npos);
  EXPECT_FALSE(MakeCpuBackend({.threads = 100000}).ok());
  if (DetectCpu().isa < Isa::kAvx512) {
    EXPECT_NE(Message(MakeCpuBackend({.isa = Isa::kAvx512}).status()).find("isa"),
              std::string::npos);
  }
}

TEST(CpuBackend, KernelsAboveTheAllowedIsaRefuse) {
  auto backend = MakeCpuBackend({.threads = 1, .isa = Isa::kScalar});
  ASSERT_TRUE(backend.ok());
  auto stream = (*backend)->CreateStream();
  ASSERT_TRUE(stream.ok());
  const KernelContext context{.stream = stream->get()};
  EXPECT_TRUE(CheckIsa(context, Isa::kScalar).ok());
  EXPECT_EQ(CheckIsa(context, Isa::kAvx2).code(), absl::StatusCode::kUnimplemented);
}

TEST(Measure, RatesArePositive) {
  EXPECT_GT(MeasureReadBandwidth(1, 1 << 20), 0.0);
  EXPECT_GT(MeasureFmaRate(1, Isa::kScalar), 0.0);
}

}  // namespace
}  // namespace tandem::cpu
