// Vector accesses, conversions and atomics of cuda/device/ on the emulated device: values, order of
// threads, misaligned addresses, atomicity between the host threads that run blocks.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "cuda/device/chunk.h"
#include "cuda/device/convert.h"
#include "cuda/device/memory.h"
#include "cuda/emulator/launch.h"

namespace tandem::cuda::emulated {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const std::vector<std::string> kSchedules = {"fifo", "lifo", "reverse", "random:1", "random:2"};

template <auto kKernel, typename Params>
absl::Status Launch(const Params& params, int64_t blocks, int64_t threads,
                    const std::string& schedule, int host_threads = 0) {
  auto options = emulator::EmulatorOptions::Parse(schedule);
  EXPECT_TRUE(options.ok()) << options.status();
  options->host_threads = host_threads;
  LaunchConfig config;
  config.grid.x = blocks;
  config.block.x = threads;
  return emulator::RunKernel(MakeKernelFunction<kKernel>("memory"), config, &params, *options);
}

struct CopyParams {
  const unsigned char* from;
  unsigned char* to;
};

// Thread i moves the i-th kBytes.
template <int kBytes, CacheHint kLoad, CacheHint kStore>
__global__ void CopyKernel(const CopyParams p) {
  const int64_t at = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kBytes;
  StorePacked<kStore>(p.to + at, LoadPacked<kBytes, kLoad>(p.from + at));
}

template <int kBytes, CacheHint kLoad, CacheHint kStore>
void ExpectCopies() {
  constexpr int64_t kBlocks = 3, kThreads = 64;
  constexpr size_t kTotal = size_t{kBlocks * kThreads} * kBytes;
  struct alignas(16) Memory {
    unsigned char bytes[kTotal];
  };
  const auto from = std::make_unique<Memory>(), to = std::make_unique<Memory>();
  for (size_t i = 0; i < kTotal; ++i) from->bytes[i] = static_cast<unsigned char>(i * 7 + i / 251);
  for (const std::string& schedule : kSchedules) {
    std::memset(to->bytes, 0, kTotal);
    const CopyParams params = {from->bytes, to->bytes};
    const absl::Status status =
        Launch<&CopyKernel<kBytes, kLoad, kStore>>(params, kBlocks, kThreads, schedule);
    ASSERT_TRUE(status.ok()) << status;
    EXPECT_EQ(std::memcmp(from->bytes, to->bytes, kTotal), 0) << kBytes << " " << schedule;
  }
}

TEST(CudaMemory, VectorsOfEveryWidthAndHintAreCopied) {
  ExpectCopies<4, CacheHint::kNone, CacheHint::kNone>();
  ExpectCopies<8, CacheHint::kNone, CacheHint::kNone>();
  ExpectCopies<16, CacheHint::kNone, CacheHint::kNone>();
  ExpectCopies<4, CacheHint::kReadOnly, CacheHint::kStreaming>();
  ExpectCopies<8, CacheHint::kReadOnly, CacheHint::kStreaming>();
  ExpectCopies<16, CacheHint::kStreaming, CacheHint::kStreaming>();
}

template <int kBytes>
__global__ void MisalignedLoad(const CopyParams p) {
  StorePacked(p.to, LoadPacked<kBytes>(p.from));
}

TEST(CudaMemory, MisalignedVectorsAreReported) {
  alignas(16) unsigned char from[48] = {}, to[48] = {};
  const auto message = [](const absl::Status& status) { return std::string(status.message()); };
  for (const std::string& schedule : kSchedules) {
    EXPECT_THAT(message(Launch<&MisalignedLoad<16>>(CopyParams{from + 8, to}, 1, 1, schedule)),
                AllOf(HasSubstr("misaligned access of 16 bytes"), HasSubstr("cuda_memory_test.cc:"),
                      HasSubstr("kernel memory")));
    EXPECT_THAT(message(Launch<&MisalignedLoad<16>>(CopyParams{from, to + 4}, 1, 1, schedule)),
                HasSubstr("misaligned access of 16 bytes"));
    EXPECT_THAT(message(Launch<&MisalignedLoad<8>>(CopyParams{from + 4, to}, 1, 1, schedule)),
                HasSubstr("misaligned access of 8 bytes"));
    EXPECT_THAT(message(Launch<&MisalignedLoad<4>>(CopyParams{from + 2, to}, 1, 1, schedule)),
                HasSubstr("misaligned access of 4 bytes"));
    // A whole number of words apart is enough for a narrower access.
    EXPECT_TRUE(Launch<&MisalignedLoad<8>>(CopyParams{from + 8, to + 24}, 1, 1, schedule).ok());
  }
}

struct ConvertParams {
  DeviceTensor from, to;
  bool fours;  // how elements are shared out
};
// Thread i converts chunk i.
__global__ void ConvertKernel(const ConvertParams p) {
  const ChunkPlace place = PlaceOf(threadIdx.x, blockDim.x * kChunk, p.fours);
  StoreChunk(p.to, 0, place, LoadChunk(p.from, 0, place));
}

// Every f16 number, and every bf16 number, to f32 and back; and f32 numbers between them.
template <typename T>
void ExpectConversionsAreExact() {
  constexpr size_t kCount = 65536;
  struct alignas(16) Memory {
    T narrow[kCount];
    float wide[kCount];
  };
  const auto memory = std::make_unique<Memory>();
  for (size_t i = 0; i < kCount; ++i) memory->narrow[i] = {static_cast<uint16_t>(i)};
  constexpr int64_t kPerLaunch = 512 * kChunk;
  const auto run = [&](bool widen, const std::string& schedule) {
    for (int64_t at = 0; at < static_cast<int64_t>(kCount); at += kPerLaunch) {
      DeviceTensor narrow, wide;
      narrow.data = memory->narrow + at;
      narrow.dtype = DTypeOf<T>::value;
      wide.data = memory->wide + at;
      wide.dtype = DType::kF32;
      const ConvertParams params =
          widen ? ConvertParams{narrow, wide, true} : ConvertParams{wide, narrow, at % 3 == 0};
      ASSERT_TRUE(Launch<&ConvertKernel>(params, 1, 512, schedule).ok());
    }
  };
  run(/*widen=*/true, "fifo");
  for (size_t i = 0; i < kCount; ++i) {
    const float expected = ToFloat(T{static_cast<uint16_t>(i)});
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(memory->wide[i]));
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(memory->wide[i]), std::bit_cast<uint32_t>(expected));
    }
  }
  // Just above, just below and at the middle of two neighbours: the rounding.
  for (const float offset : {-0x1p-20f, 0.0f, 0x1p-20f}) {
    std::vector<float> wide(kCount);
    for (size_t i = 0; i < kCount; ++i) {
      const float low = ToFloat(T{static_cast<uint16_t>(i)});
      const float high = ToFloat(T{static_cast<uint16_t>(i + 1)});
      wide[i] = memory->wide[i] = (low + (high - low) / 2.0f) * (1.0f + offset);
    }
    run(/*widen=*/false, "reverse");
    for (size_t i = 0; i < kCount; ++i) {
      const T expected = FromFloat<T>(wide[i]);
      if (std::isnan(wide[i])) {
        ASSERT_TRUE(std::isnan(ToFloat(memory->narrow[i])));
      } else {
        ASSERT_EQ(memory->narrow[i].bits, expected.bits) << wide[i];
      }
    }
    for (size_t i = 0; i < kCount; ++i) {
      memory->narrow[i] = {static_cast<uint16_t>(i)};
      memory->wide[i] = ToFloat(memory->narrow[i]);
    }
  }
}

TEST(CudaMemory, ChunksOfF16AreConvertedExactly) { ExpectConversionsAreExact<F16>(); }
TEST(CudaMemory, ChunksOfBF16AreConvertedExactly) { ExpectConversionsAreExact<BF16>(); }

// --- atomics

template <typename T>
struct Cells {
  T sum, largest, exchanged;
  uint32_t counter;
  float total;
};
template <typename T>
struct AtomicParams {
  Cells<T>* cells;
  uint32_t* tickets;  // what each thread saw of the counter
};

template <typename T>
__device__ T ValueOf(uint32_t i) {
  return static_cast<T>(i % 5 == 0 ? T{1} << (sizeof(T) * 8 - 4) : static_cast<T>(i));
}

template <typename T, Scope kScope>
__global__ void AtomicKernel(const AtomicParams<T> p) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  AtomicAdd<kScope>(&p.cells->sum, ValueOf<T>(i));
  AtomicMax<kScope>(&p.cells->largest, static_cast<T>(i));
  // A counter by compare and exchange.
  T seen = 0;
  for (;;) {
    const T before = AtomicCompareExchange<kScope>(&p.cells->exchanged, seen, seen + T{2});
    if (before == seen) break;
    seen = before;
  }
  p.tickets[i] = AtomicInc<kScope>(&p.cells->counter, 999);
  AtomicAdd<kScope>(&p.cells->total, 0.5f);
}

template <typename T, Scope kScope>
void ExpectAtomic() {
  constexpr int64_t kBlocks = 256, kThreads = 256, kAll = kBlocks * kThreads;
  for (const std::string& schedule : kSchedules) {
    Cells<T> cells = {};
    std::vector<uint32_t> tickets(kAll);
    // Enough threads that the blocks are spread over several host threads.
    const absl::Status status = Launch<&AtomicKernel<T, kScope>>(
        AtomicParams<T>{&cells, tickets.data()}, kBlocks, kThreads, schedule, /*host_threads=*/4);
    ASSERT_TRUE(status.ok()) << status;
    T sum = 0;  // modulo the size of T
    for (int64_t i = 0; i < kAll; ++i) {
      sum = static_cast<T>(static_cast<uint64_t>(sum) +
                           static_cast<uint64_t>(ValueOf<T>(static_cast<uint32_t>(i))));
    }
    EXPECT_EQ(cells.sum, sum);
    EXPECT_EQ(cells.largest, static_cast<T>(kAll - 1));
    EXPECT_EQ(cells.exchanged, static_cast<T>(2 * kAll));
    EXPECT_EQ(cells.total, 0.5f * kAll);  // exact in f32
    EXPECT_EQ(cells.counter, kAll % 1000);
    std::vector<int64_t> times(1000);
    for (const uint32_t ticket : tickets) {
      ASSERT_LT(ticket, 1000u);
      ++times[ticket];
    }
    for (int64_t t = 0; t < 1000; ++t) {
      ASSERT_EQ(times[static_cast<size_t>(t)], kAll / 1000 + (t < kAll % 1000)) << t;
    }
  }
}

TEST(CudaMemory, AtomicsOnInt32) { ExpectAtomic<int32_t, Scope::kDevice>(); }
TEST(CudaMemory, AtomicsOnUint32) { ExpectAtomic<uint32_t, Scope::kSystem>(); }
TEST(CudaMemory, AtomicsOnUint64) { ExpectAtomic<uint64_t, Scope::kDevice>(); }

struct MaxParams {
  int32_t* cell;
};
__global__ void MaxOfNegative(const MaxParams p) {
  AtomicMax<Scope::kBlock>(p.cell, -static_cast<int32_t>(threadIdx.x) - 1);
}
TEST(CudaMemory, AtomicMaxIsSigned) {
  for (const std::string& schedule : kSchedules) {
    int32_t cell = std::numeric_limits<int32_t>::min();
    ASSERT_TRUE(Launch<&MaxOfNegative>(MaxParams{&cell}, 1, 64, schedule).ok());
    EXPECT_EQ(cell, -1);
  }
}

__global__ void MisalignedAtomic(const CopyParams p) {
  AtomicAdd(reinterpret_cast<uint32_t*>(p.to + 2), 1);
}
TEST(CudaMemory, MisalignedAtomicsAreReported) {
  alignas(16) unsigned char to[16] = {};
  const absl::Status status = Launch<&MisalignedAtomic>(CopyParams{nullptr, to}, 1, 1, "fifo");
  EXPECT_THAT(std::string(status.message()), HasSubstr("misaligned access of 4 bytes"));
}

}  // namespace
}  // namespace tandem::cuda::emulated
