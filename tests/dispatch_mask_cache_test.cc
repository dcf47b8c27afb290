// The mask cache: what is shared, what is dropped, what is counted, and many threads at once.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "core/status.h"
#include "dispatch/mask_cache.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

std::unique_ptr<Context> MakeContext() {
  ContextOptions options;
  options.threads = 1;
  auto context = Context::Create(options);
  EXPECT_TRUE(context.ok()) << context.status();
  return std::move(context).value();
}

MaskRule Rule(int64_t q_len, int64_t kv_len) { return {.q_len = q_len, .kv_len = kv_len}; }

// Wrong elements of an f32 mask.
int64_t WrongElements(const Tensor& mask, const MaskRule& rule) {
  int64_t wrong = 0;
  for (int64_t q = 0; q < rule.q_len; ++q) {
    for (int64_t k = 0; k < rule.kv_len; ++k) {
      const float expected = rule.Visible(q, k) ? 0.0f : -std::numeric_limits<float>::infinity();
      wrong += mask.As<float>()[q * rule.kv_len + k] != expected;
    }
  }
  return wrong;
}

TEST(MaskCache, HitReturnsTheSameTensor) {
  auto context = MakeContext();
  MaskCache cache;
  const MaskRule rule = Rule(5, 9);
  const auto first = cache.Get(*context, rule, DType::kF32);
  const auto second = cache.Get(*context, rule, DType::kF32);
  ASSERT_TRUE(first.ok()) << first.status();
  EXPECT_EQ(first->get(), second->get());
  EXPECT_EQ((*first)->view().data, (*second)->view().data);
  EXPECT_EQ(WrongElements(**first, rule), 0);
  EXPECT_EQ(cache.stats().hits, 1);
  EXPECT_EQ(cache.stats().misses, 1);
  EXPECT_EQ(cache.stats().entries, 1);
  EXPECT_EQ(cache.stats().bytes, (*first)->buffer()->bytes());
  EXPECT_DOUBLE_EQ(cache.stats().HitRate(), 0.5);
}

TEST(MaskCache, EveryPartOfTheKeyCounts) {
  auto context = MakeContext();
  MaskCache cache;
  const MaskRule base = Rule(6, 8);
  std::vector<MaskRule> rules(9, base);
  rules[1].q_len = 5;
  rules[2].kv_len = 9;
  rules[3].causal = Causal::kTopLeft;
  rules[4].window_left = 2;
  rules[5].window_right = 1;
  rules[6].chunk = 3;
  rules[7].prefix_len = 4;
  rules[8].kv_begin = 2;
  for (const MaskRule& rule : rules) {
    const auto mask = cache.Get(*context, rule, DType::kF32);
    ASSERT_TRUE(mask.ok()) << mask.status();
    EXPECT_EQ(WrongElements(**mask, rule), 0);
  }
  for (DType dtype : {DType::kF16, DType::kBF16, DType::kBool, DType::kU32}) {
    const auto mask = cache.Get(*context, base, dtype);
    ASSERT_TRUE(mask.ok()) << mask.status();
    EXPECT_EQ((*mask)->dtype(), dtype);
  }
  EXPECT_EQ(cache.stats().hits, 0);
  EXPECT_EQ(cache.stats().misses, 13);
}

// A server: a few prompt lengths again and again, from several threads, now and then a new one.
TEST(MaskCache, HitsMostOfRepeatedLengths) {
  MaskCache cache;
  constexpr int kThreads = 4, kCalls = 2000;
  std::vector<int64_t> wrong(kThreads, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      auto context = MakeContext();
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int i = 0; i < kCalls; ++i) {
        const bool rare = random() % 50 == 0;
        const auto length = static_cast<int64_t>(rare ? random() % 500 + 1 : random() % 40 + 1);
        const MaskRule rule = {.q_len = 4, .kv_len = length, .window_left = 16};
        const auto mask = cache.Get(*context, rule, DType::kF32);
        wrong[t] += !mask.ok() || WrongElements(**mask, rule) != 0;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, testing::Each(0));
  EXPECT_GT(cache.stats().HitRate(), 0.9);
  EXPECT_LE(cache.stats().entries, 100);
}

TEST(MaskCache, LeastRecentlyUsedGoesFirst) {
  auto context = MakeContext();
  MaskCache cache({.max_entries = 3});
  const auto get = [&](int64_t length) {
    return *cache.Get(*context, Rule(length, length), DType::kF32);
  };
  for (int64_t length : {1, 2, 3}) get(length);
  get(1);                    // now 2 is the oldest
  const auto held = get(2);  // and now 3
  get(4);                    // drops 3
  EXPECT_EQ(cache.stats().evictions, 1);
  const int64_t hits = cache.stats().hits;
  get(1);
  get(2);
  get(4);
  EXPECT_EQ(cache.stats().hits, hits + 3);
  get(3);
  EXPECT_EQ(cache.stats().hits, hits + 3);
  EXPECT_EQ(cache.stats().entries, 3);
  EXPECT_EQ(WrongElements(*held, Rule(2, 2)), 0);
}

TEST(MaskCache, StaysWithinItsBytes) {
  auto context = MakeContext();
  MaskCache cache({.max_bytes = 10'000});
  for (int64_t length = 1; length <= 40; ++length) {
    ASSERT_TRUE(cache.Get(*context, Rule(length, length), DType::kF32).ok());
    EXPECT_LE(cache.stats().bytes, 10'000);
  }
  EXPECT_GT(cache.stats().entries, 0);
  EXPECT_GT(cache.stats().evictions, 0);
  // Larger than the whole budget: made, not kept, and nothing is dropped for it.
  const int64_t entries = cache.stats().entries;
  const auto large = cache.Get(*context, Rule(60, 60), DType::kF32);
  ASSERT_TRUE(large.ok());
  EXPECT_EQ(WrongElements(**large, Rule(60, 60)), 0);
  EXPECT_EQ(cache.stats().entries, entries);
}

TEST(MaskCache, LongMasksAreMadeButNotKept) {
  auto context = MakeContext();
  MaskCache cache;
  ASSERT_TRUE(cache.Get(*context, Rule(2048, 2048), DType::kBool).ok());
  EXPECT_EQ(cache.stats().entries, 1);
  const auto a = cache.Get(*context, Rule(1, 2049), DType::kF32);
  const auto b = cache.Get(*context, Rule(1, 2049), DType::kF32);
  ASSERT_TRUE(a.ok() && b.ok());
  EXPECT_NE(a->get(), b->get());
  EXPECT_EQ(WrongElements(**b, Rule(1, 2049)), 0);
  EXPECT_EQ(cache.stats().entries, 1);
  EXPECT_EQ(cache.stats().misses, 3);
}

TEST(MaskCache, RepeatedLengthsHitMoreThanNineTimesInTen) {
  auto context = MakeContext();
  MaskCache cache;
  std::mt19937 random(7);
  for (int i = 0; i < 2000; ++i) {
    const auto length = static_cast<int64_t>(random() % 64 + 1);
    ASSERT_TRUE(cache.Get(*context, Rule(length, length), DType::kF16).ok());
  }
  EXPECT_GT(cache.stats().HitRate(), 0.9);
}

TEST(MaskCache, BadRequestsAreErrorsAndKeepNothing) {
  auto context = MakeContext();
  MaskCache cache;
  const auto negative = cache.Get(*context, Rule(-1, 4), DType::kF32);
  EXPECT_EQ(negative.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(negative.status()), HasSubstr("q_len"));
  const auto huge = cache.Get(*context, Rule(int64_t{1} << 40, int64_t{1} << 40), DType::kF32);
  EXPECT_FALSE(huge.ok());
  const auto dtype = cache.Get(*context, Rule(4, 4), DType::kI32);
  EXPECT_EQ(dtype.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Message(dtype.status()), HasSubstr("dtype"));
  const auto device = cache.Get(*context, Rule(4, 4), DType::kF32, {DeviceKind::kCpu, 3});
  EXPECT_EQ(device.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(cache.stats().entries, 0);
}

TEST(MaskCache, MasksOutliveTheCacheAndTheContext) {
  std::shared_ptr<const Tensor> mask;
  {
    auto context = MakeContext();
    MaskCache cache;
    mask = *cache.Get(*context, Rule(7, 7), DType::kF32);
    cache.Clear();
    EXPECT_EQ(cache.stats().entries, 0);
    EXPECT_EQ(cache.stats().bytes, 0);
  }
  EXPECT_EQ(WrongElements(*mask, Rule(7, 7)), 0);
}

TEST(MaskCache, ManyThreads) {
  MaskCache cache({.max_entries = 8});
  constexpr int kThreads = 6, kCalls = 400;
  std::vector<int64_t> wrong(kThreads, 0);
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      auto context = MakeContext();
      std::mt19937 random(static_cast<uint32_t>(t));
      for (int i = 0; i < kCalls; ++i) {
        const auto length = static_cast<int64_t>(random() % 16 + 1);
        const auto mask = cache.Get(*context, Rule(3, length), DType::kF32);
        wrong[t] += !mask.ok() || WrongElements(**mask, Rule(3, length)) != 0;
        if (i % 100 == 99) cache.Clear();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_THAT(wrong, testing::Each(0));
  const MaskCacheStats stats = cache.stats();
  EXPECT_EQ(stats.hits + stats.misses, kThreads * kCalls);
  EXPECT_LE(stats.entries, 8);
}

}  // namespace
}  // namespace tandem
