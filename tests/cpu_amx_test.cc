// Tiles (cpu/amx.h): layouts, partial tiles and signs, against sums in plain loops.
#include <random>
#include <thread>
#include <vector>

#include "core/dtype.h"
#include "cpu/amx.h"
#include "cpu/isa.h"
#include "gtest/gtest.h"

namespace tandem::cpu {
namespace {

TEST(Amx, FeaturesComeWithTheInstructionSetAndWithEveryCall) {
  const CpuFeatures features = DetectCpu();
  if (features.amx_bf16 || features.amx_int8) {
    EXPECT_EQ(features.isa, Isa::kAvx512);
    EXPECT_TRUE(TANDEM_HAVE_AMX);
  }
  CpuFeatures other;
  std::thread([&] { other = DetectCpu(); }).join();
  EXPECT_EQ(other.amx_bf16, features.amx_bf16);
  EXPECT_EQ(other.amx_int8, features.amx_int8);
}

#if TANDEM_HAVE_AMX

// Rows and columns of C; K, in elements, is a multiple of those that make 32 bits.
struct Extents {
  int m, n, k;
};

// tmm0 = C, tmm1 = A, tmm2 = B, each exactly as large as its matrix.
TileShapes ShapesOf(const Extents& e, int element_bytes) {
  return TileShapes()
      .Set(0, e.m, e.n * 4)
      .Set(1, e.m, e.k * element_bytes)
      .Set(2, e.k * element_bytes / 4, e.n * 4);
}

// b [k][n] with `group` neighbouring elements of K side by side.
template <typename T>
std::vector<T> Grouped(const std::vector<T>& b, const Extents& e, int group) {
  std::vector<T> to(b.size());
  for (int k = 0; k < e.k; ++k) {
    for (int n = 0; n < e.n; ++n) {
      to[static_cast<size_t>((k / group * e.n + n) * group + k % group)] =
          b[static_cast<size_t>(k * e.n + n)];
    }
  }
  return to;
}

constexpr Extents kBF16Extents[] = {{16, 16, 32}, {1, 1, 2}, {3, 16, 8}, {16, 5, 30}, {7, 11, 14}};
constexpr Extents kInt8Extents[] = {{16, 16, 64}, {1, 1, 4}, {3, 16, 32}, {16, 5, 60}, {7, 11, 28}};

TEST(Amx, BF16ProductsOfPartialTiles) {
  if (!DetectCpu().amx_bf16) GTEST_SKIP() << "this processor or system has none";
  std::mt19937 random(1);
  std::uniform_int_distribution<int> small(-16, 16);  // products and sums are exact
  for (const Extents& e : kBF16Extents) {
    SCOPED_TRACE(testing::Message() << e.m << " x " << e.n << " x " << e.k);
    std::vector<BF16> a(static_cast<size_t>(e.m * e.k)), b(static_cast<size_t>(e.k * e.n));
    for (BF16& x : a) x = FromFloat<BF16>(static_cast<float>(small(random)));
    for (BF16& x : b) x = FromFloat<BF16>(static_cast<float>(small(random)));
    const std::vector<BF16> pairs = Grouped(b, e, 2);
    std::vector<float> c(static_cast<size_t>(e.m * e.n), 1.0f);
    {
      const TileConfig config(ShapesOf(e, 2));
      TileLoad<0>(c.data(), e.n * 4);  // sums go on from there
      TileLoad<1>(a.data(), e.k * 2);
      TileLoad<2>(pairs.data(), e.n * 4);
      TileDotBF16<0, 1, 2>();
      TileStore<0>(c.data(), e.n * 4);
    }
    for (int m = 0; m < e.m; ++m) {
      for (int n = 0; n < e.n; ++n) {
        float sum = 1.0f;
        for (int k = 0; k < e.k; ++k) {
          sum += ToFloat(a[static_cast<size_t>(m * e.k + k)]) *
                 ToFloat(b[static_cast<size_t>(k * e.n + n)]);
        }
        EXPECT_EQ(c[static_cast<size_t>(m * e.n + n)], sum) << m << ", " << n;
      }
    }
  }
}

template <typename A, typename B, TileSigns kSigns>
void CheckBytes() {
  std::mt19937 random(2);
  std::uniform_int_distribution<int> bytes(0, 255);
  for (const Extents& e : kInt8Extents) {
    SCOPED_TRACE(testing::Message() << e.m << " x " << e.n << " x " << e.k);
    std::vector<A> a(static_cast<size_t>(e.m * e.k));
    std::vector<B> b(static_cast<size_t>(e.k * e.n));
    for (A& x : a) x = static_cast<A>(bytes(random));
    for (B& x : b) x = static_cast<B>(bytes(random));
    const std::vector<B> fours = Grouped(b, e, 4);
    std::vector<int32_t> c(static_cast<size_t>(e.m * e.n), -1);
    {
      const TileConfig config(ShapesOf(e, 1));
      TileZero<0>();
      TileLoad<1>(a.data(), e.k);
      TileLoad<2>(fours.data(), e.n * 4);
      TileDotInt8<0, 1, 2, kSigns>();
      TileStore<0>(c.data(), e.n * 4);
    }
    for (int m = 0; m < e.m; ++m) {
      for (int n = 0; n < e.n; ++n) {
        int32_t sum = 0;
        for (int k = 0; k < e.k; ++k) {
          sum += a[static_cast<size_t>(m * e.k + k)] * b[static_cast<size_t>(k * e.n + n)];
        }
        EXPECT_EQ(c[static_cast<size_t>(m * e.n + n)], sum) << m << ", " << n;
      }
    }
  }
}

TEST(Amx, Int8ProductsOfEachSign) {
  if (!DetectCpu().amx_int8) GTEST_SKIP() << "this processor or system has none";
  CheckBytes<int8_t, int8_t, TileSigns::kSignedSigned>();
  CheckBytes<int8_t, uint8_t, TileSigns::kSignedUnsigned>();
  CheckBytes<uint8_t, int8_t, TileSigns::kUnsignedSigned>();
}

TEST(Amx, TilesAreEachThreadsOwnAndStartWithZeros) {
  if (!DetectCpu().amx_int8) GTEST_SKIP() << "this processor or system has none";
  const std::vector<int32_t> ones(kTileRows * kTileRows, 1);
  std::vector<int32_t> elsewhere(ones.size(), -1), again(ones.size(), -1);
  {
    const TileConfig config(TileShapes::AllFull());
    TileLoad<7>(ones.data(), kTileRowBytes);
    std::thread([&] {
      const TileConfig own(TileShapes::AllFull());
      TileStore<7>(elsewhere.data(), kTileRowBytes);
    }).join();
  }
  {
    const TileConfig config(TileShapes::AllFull());
    TileStore<7>(again.data(), kTileRowBytes);
  }
  EXPECT_EQ(elsewhere, std::vector<int32_t>(ones.size(), 0));
  EXPECT_EQ(again, std::vector<int32_t>(ones.size(), 0));
}

#endif  // TANDEM_HAVE_AMX

}  // namespace
}  // namespace tandem::cpu
