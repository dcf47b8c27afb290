// The cases: inputs, what the documentation says of them, and their launches. Those of matrices
// and copies have files of their own.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstdlib>
#include <cstring>

#include "core/dtype.h"
#include "core/status.h"
#include "cuda/conformance/case_helpers.h"

namespace tandem::cuda {
namespace {

void AddBarriers(std::vector<ConformanceCase>& cases) {
  constexpr int32_t kRounds = 20;
  std::vector<int32_t> sums(64);
  for (int32_t i = 0; i < 64; ++i) {
    sums[static_cast<size_t>(i)] = 64 * kRounds * (kRounds - 1) / 2 + kRounds * i;
  }
  ConformanceCase ring;
  ring.name = "mbarrier.ring";
  ring.capability = 80;
  ring.expected = ToBytes(sums);
  ring.run =
      Simple(Primitive::kMbarrierRing, Config(1, 96, 3 * 64 * 4 + 32 + 24), {}, 256, {kRounds});
  cases.push_back(std::move(ring));

  std::vector<uint32_t> board(128), out(128);
  for (uint32_t i = 0; i < 64; ++i) board[i] = i * 3;
  for (uint32_t i = 64; i < 128; ++i) out[i] = board[i] = board[(i + 5) % 64] + 1;
  for (uint32_t i = 0; i < 64; ++i) out[i] = board[64 + (i + 17) % 64];
  ConformanceCase named;
  named.name = "bar.named";
  named.capability = 80;
  named.expected = ToBytes(out);
  named.run = Simple(Primitive::kNamedBarriers, Config(1, 128, 512), {}, 512);
  cases.push_back(std::move(named));

  std::vector<uint32_t> warp(32 * 12);
  const auto x = [](uint32_t lane) { return lane * lane + 7; };
  uint32_t sum = 0, thirds = 0;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    sum += x(lane);
    thirds |= lane % 3 == 0 ? 1u << lane : 0;
  }
  for (uint32_t lane = 0; lane < 32; ++lane) {
    const std::array<uint32_t, 12> expected = {x(5),
                                               x(31 - lane),
                                               x(lane ^ 9),
                                               x(lane < 3 ? lane : lane - 3),
                                               x(lane + 4 > 31 ? lane : lane + 4),
                                               thirds,
                                               0,
                                               1,
                                               x(lane ^ 1),
                                               lane < 16 ? 0x00005555u : 0x55550000u,
                                               sum,
                                               31};
    std::copy(expected.begin(), expected.end(), warp.begin() + lane * 12);
  }
  ConformanceCase shuffles;
  shuffles.name = "shfl.vote";
  shuffles.capability = 80;
  shuffles.expected = ToBytes(warp);
  shuffles.run = Simple(Primitive::kWarp, Config(1, 32, 0), {}, shuffles.expected.size());
  cases.push_back(std::move(shuffles));
}

void AddMemory(std::vector<ConformanceCase>& cases, Random& random) {
  ConformanceCase vectors;
  vectors.name = "memory.vectors";
  vectors.capability = 80;
  vectors.expected = RandomBytes(random, 128 * 28);
  vectors.run = Simple(Primitive::kVectorAccesses, Config(1, 128, 0), {vectors.expected, {}, {}},
                       vectors.expected.size());
  cases.push_back(std::move(vectors));

  // Which thread exchanges first is open: its mark is set to 1.
  constexpr uint32_t kThreads = 32 * 128;
  std::vector<uint32_t> out(16);
  out[0] = 3 * kThreads;
  out[1] = static_cast<uint32_t>(-2 * static_cast<int32_t>(kThreads));
  out[2] = kThreads - 1;
  out[3] = kThreads - 1 - 4000;
  out[4] = kThreads % 100;
  out[5] = 1;
  out[6] = 1;
  out[7] = 128 * 127 / 2;
  const uint64_t sum = uint64_t{kThreads} << 33, largest = uint64_t{kThreads - 1} << 32;
  std::memcpy(&out[8], &sum, 8);
  std::memcpy(&out[10], &largest, 8);
  const float halves = 0.5f * kThreads;
  std::memcpy(&out[12], &halves, 4);
  ConformanceCase atomics;
  atomics.name = "memory.atomics";
  atomics.capability = 80;
  atomics.expected = ToBytes(out);
  atomics.run = [](ConformanceRunner& runner) -> absl::StatusOr<Bytes> {
    PrimitiveParams params;
    TANDEM_ASSIGN_OR_RETURN(params.out, runner.Upload(Bytes(64)));
    TANDEM_RETURN_IF_ERROR(runner.Launch(gpu::PrimitiveFunction(Primitive::kAtomics),
                                         emulated::PrimitiveFunction(Primitive::kAtomics),
                                         Config(32, 128, 0), &params));
    TANDEM_ASSIGN_OR_RETURN(const Bytes bytes, runner.Download(params.out, 64));
    std::vector<uint32_t> words = FromBytes<uint32_t>(bytes);
    if (words[5] >= 1 && words[5] <= kThreads) words[5] = 1;
    return ToBytes(words);
  };
  cases.push_back(std::move(atomics));
}

void AddMath(std::vector<ConformanceCase>& cases, Random& random) {
  constexpr size_t kCount = 1024;
  std::vector<float> in(kCount), out(kCount * 8);
  for (size_t i = 0; i < kCount; ++i) {
    in[i] = RandomFloat(random) * (i % 2 == 0 ? 1.0f : 8.0f);
    if (in[i] == 0.0f) in[i] = 0.5f;
    const double x = in[i];
    const std::array<double, 8> values = {std::exp(x),
                                          std::log(std::fabs(x)),
                                          std::tanh(x),
                                          std::sqrt(std::fabs(x)),
                                          std::sin(x * 3.14159265358979323846),
                                          std::cos(x * 3.14159265358979323846),
                                          ToFloat(ToF16(in[i])),
                                          ToFloat(ToBF16(in[i]))};
    for (size_t j = 0; j < 8; ++j) out[i * 8 + j] = static_cast<float>(values[j]);
  }
  ConformanceCase math;
  math.name = "math";
  math.capability = 80;
  math.exact = false;
  math.tolerance = 1e-6f;  // of values up to e^8 also relative: see Difference
  math.expected = ToBytes(out);
  math.run = Simple(Primitive::kMath, Config(kCount / 128, 128, 0), {ToBytes(in), {}, {}},
                    math.expected.size(), {static_cast<int32_t>(kCount)});
  cases.push_back(std::move(math));
}

void AddInteger(std::vector<ConformanceCase>& cases, Random& random) {
  constexpr size_t kCount = 128;
  std::vector<uint32_t> in(kCount * 3), out(kCount * 3);
  for (uint32_t& x : in) x = static_cast<uint32_t>(random());
  for (size_t i = 0; i < kCount; ++i) {
    const uint32_t x = in[i * 3], y = in[i * 3 + 1], z = in[i * 3 + 2];
    int64_t sum = z;
    for (int byte = 0; byte < 4; ++byte) {
      // As signed: 256 less from 128 on.
      const int64_t u = x >> (8 * byte) & 255u, v = y >> (8 * byte) & 255u;
      sum += (u < 128 ? u : u - 256) * (v < 128 ? v : v - 256);
    }
    out[i * 3] = static_cast<uint32_t>(sum);
    const uint32_t shift = z % 32;
    out[i * 3 + 1] = shift == 0 ? x : x >> shift | y << (32 - shift);
    out[i * 3 + 2] = std::bit_cast<uint32_t>(ToFloat(F16{static_cast<uint16_t>(x & 0xFBFFu)}));
  }
  ConformanceCase test;
  test.name = "integer";
  test.capability = 80;
  test.expected = ToBytes(out);
  test.run = Simple(Primitive::kInteger, Config(1, kCount, 0), {ToBytes(in), {}, {}},
                    test.expected.size());
  cases.push_back(std::move(test));
}

// A small integer as f16, put together from its bits.
uint32_t F16BitsOf(int x) {
  if (x == 0) return 0;
  const auto magnitude = static_cast<uint32_t>(std::abs(x));
  const auto exponent = static_cast<uint32_t>(std::bit_width(magnitude)) - 1;
  const uint32_t mantissa = (magnitude << (10 - exponent)) & 0x3FFu;
  return (x < 0 ? 0x8000u : 0u) | (exponent + 15) << 10 | mantissa;
}

// Every byte in every place.
void AddBytesToF16(std::vector<ConformanceCase>& cases) {
  constexpr uint32_t kCount = 256;
  std::vector<uint32_t> in(kCount * 2), out(kCount * 16);
  const auto byte_of = [](uint32_t i, uint32_t place) { return (i * 5 + place * 77 + 3) % 256; };
  for (uint32_t i = 0; i < kCount; ++i) {
    for (uint32_t place = 0; place < 8; ++place) {
      in[i * 2 + place / 4] |= byte_of(i, place) << (place % 4 * 8);
    }
    for (uint32_t pair = 0; pair < 16; ++pair) {
      const auto low = static_cast<int>(byte_of(i, pair / 4));
      const auto high = static_cast<int>(byte_of(i, 4 + pair % 4));
      out[i * 16 + pair] =
          F16BitsOf(low < 128 ? low : low - 256) | F16BitsOf(high < 128 ? high : high - 256) << 16;
    }
  }
  ConformanceCase test;
  test.name = "integer.bytes_to_f16";
  test.capability = 80;
  test.expected = ToBytes(out);
  test.run = Simple(Primitive::kBytesToF16, Config(kCount / 128, 128, 0), {ToBytes(in), {}, {}},
                    test.expected.size());
  cases.push_back(std::move(test));
}

}  // namespace

std::vector<ConformanceCase> ConformanceCases() {
  Random random(20251121);
  std::vector<ConformanceCase> cases;
  AddProducts(cases, random);
  AddMatrixMoves(cases, random);
  AddSmallCopies(cases, random);
  AddTensorCopies(cases, random);
  AddBarriers(cases);
  AddMemory(cases, random);
  AddMath(cases, random);
  AddInteger(cases, random);
  AddBytesToF16(cases);
  AddWarpgroups(cases, random);
  return cases;
}

}  // namespace tandem::cuda
