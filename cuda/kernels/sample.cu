// Draws one token per row without moving the logits: one block per row sorts the row's tokens by
// falling logit (a stable radix sort of the ordered bits: ties stay in order of their index), then
// one thread walks the cumulative distribution. Weights and sums in f64, as on the CPU, so that
// both draw the same token.
//
// Sort: four passes of 8 bits over keys and tokens in scratch; each thread owns a contiguous span,
// so that the order of equal digits is kept. Reads and writes 16 bytes per token and pass, mostly
// from the L2 cache. The walk is sequential, and as long as the part of the distribution that the
// draw needs.
#include "core/ops/online_softmax.h"
#include "cuda/device/elements.h"
#include "cuda/device/math.h"
#include "cuda/device/shared.h"
#include "cuda/device/target.h"
#include "cuda/device/warp.h"
#include "cuda/kernels/sample.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace {

// Falls as the logit rises; NaN and -inf, which are never drawn, are last.
constexpr uint32_t kNeverDrawn = 0xFFFFFFFFu;
__device__ uint32_t SortKey(float logit) {
  if (IsNaN(logit) || logit == kNegInf) return kNeverDrawn;
  const uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);  // -0 as +0
  return bits >> 31 ? bits : 0x7FFFFFFFu - bits;
}
__device__ float LogitOf(uint32_t key) {
  return std::bit_cast<float>(key >> 31 ? key : 0x7FFFFFFFu - key);
}

// Sorts keys[0] and tokens[0] by rising key; back in place after four passes. `sums`: one number
// per thread, shared.
__device__ void SortRow(const SampleScratch& s, int64_t count, uint32_t* sums) {
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t span = (count + kSampleThreads - 1) / kSampleThreads;
  const int64_t begin = thread * span < count ? thread * span : count;
  const int64_t end = begin + span < count ? begin + span : count;
  for (int pass = 0; pass < 4; ++pass) {
    const uint32_t* keys = pass % 2 == 0 ? s.keys[0] : s.keys[1];
    const int32_t* tokens = pass % 2 == 0 ? s.tokens[0] : s.tokens[1];
    uint32_t* sorted_keys = pass % 2 == 0 ? s.keys[1] : s.keys[0];
    int32_t* sorted_tokens = pass % 2 == 0 ? s.tokens[1] : s.tokens[0];
    const int shift = 8 * pass;
    // positions[digit][thread]: how many keys of that digit the thread has, then where they go.
    for (int digit = 0; digit < kSampleDigits; ++digit) {
      s.positions[digit * kSampleThreads + thread] = 0;
    }
#pragma unroll 1
    for (int64_t i = begin; i < end; ++i) {
      ++s.positions[(keys[i] >> shift & 255u) * kSampleThreads + threadIdx.x];
    }
    SyncThreads();
    // Thread d adds up digit d, one thread adds up the digits, thread d writes the running sums.
    uint32_t total = 0;
#pragma unroll 1
    for (int i = 0; i < kSampleThreads; ++i) total += s.positions[thread * kSampleThreads + i];
    sums[thread] = total;
    SyncThreads();
    if (thread == 0) {
      uint32_t running = 0;
      for (int digit = 0; digit < kSampleDigits; ++digit) {
        const uint32_t here = sums[digit];
        sums[digit] = running;
        running += here;
      }
    }
    SyncThreads();
    uint32_t running = sums[thread];
#pragma unroll 1
    for (int i = 0; i < kSampleThreads; ++i) {
      uint32_t& position = s.positions[thread * kSampleThreads + i];
      const uint32_t here = position;
      position = running;
      running += here;
    }
    SyncThreads();
#pragma unroll 1
    for (int64_t i = begin; i < end; ++i) {
      const uint32_t at = s.positions[(keys[i] >> shift & 255u) * kSampleThreads + threadIdx.x]++;
      sorted_keys[at] = keys[i];
      sorted_tokens[at] = tokens[i];
    }
    SyncThreads();
  }
}

// Unnormalised probability relative to the largest logit. Infinite logits share all of it.
__device__ double Weight(float logit, float largest, float temperature) {
  if (logit == largest) return 1.0;
  return ExpF64((static_cast<double>(logit) - static_cast<double>(largest)) /
                static_cast<double>(temperature));
}

// The draw from `count` sorted tokens whose weights add up to `total`.
__device__ int32_t Draw(const SampleParams& p, const SampleScratch& s, int64_t count, double total,
                        double uniform) {
  const float largest = LogitOf(s.keys[0][0]);
  const auto weight = [&](int64_t i) {
    return Weight(LogitOf(s.keys[0][i]), largest, p.temperature);
  };
  int64_t kept = count;
  double kept_sum = total;
  if (p.top_p < 1.0f) {
    kept_sum = 0.0;
    kept = 0;
#pragma unroll 1
    while (kept < count && (kept == 0 || kept_sum < static_cast<double>(p.top_p) * total)) {
      kept_sum += weight(kept++);
    }
  }
  double running = 0.0;
#pragma unroll 1
  for (int64_t i = 0; i < kept; ++i) {
    running += weight(i);
    if (running > uniform * kept_sum) return s.tokens[0][i];
  }
  return s.tokens[0][kept - 1];  // beyond the last by rounding
}

__global__ void __launch_bounds__(kSampleThreads) SampleKernel(const SampleParams p) {
  SharedCarver shared;
  auto* sums = shared.Take<uint32_t>(kSampleThreads);
  auto* partial = shared.Take<double>(kWarpSize);
  auto* counts = shared.Take<int64_t>(kWarpSize);
  SampleScratch s = p.scratch;
  const int64_t block = blockIdx.x;
  for (int i = 0; i < 2; ++i) {
    s.keys[i] += block * p.columns;
    s.tokens[i] += block * p.columns;
  }
  s.positions += block * kSampleDigits * kSampleThreads;
#pragma unroll 1
  for (int64_t row = block; row < p.rows; row += gridDim.x) {
    int64_t drawable = 0;
#pragma unroll 1
    for (int64_t n = threadIdx.x; n < p.columns; n += kSampleThreads) {
      const uint32_t key =
          SortKey(LoadElement(p.logits, row * p.logits.strides[0] + n * p.logits.strides[1]));
      s.keys[0][n] = key;
      s.tokens[0][n] = static_cast<int32_t>(n);
      drawable += key != kNeverDrawn;
    }
    drawable = BlockSum(drawable, counts);
    SortRow(s, p.columns, sums);
    const bool greedy = p.temperature == 0.0f;
    int64_t count = drawable;
    if (p.top_k > 0 && p.top_k < count) count = p.top_k;
    double total = 0.0;
    if (!greedy && count > 0) {
      const float largest = LogitOf(s.keys[0][0]);
#pragma unroll 1
      for (int64_t n = threadIdx.x; n < count; n += kSampleThreads) {
        total += Weight(LogitOf(s.keys[0][n]), largest, p.temperature);
      }
    }
    total = BlockSum(total, partial);
    if (threadIdx.x == 0) {
      int32_t token = 0;
      if (count > 0) {
        const float uniform = p.uniform.As<const float>()[row * p.uniform.strides[0]];
        token = greedy ? s.tokens[0][0] : Draw(p, s, count, total, static_cast<double>(uniform));
      }
      p.out.As<int32_t>()[row * p.out.strides[0]] = token;
    }
    SyncThreads();
  }
}

}  // namespace

KernelFunction SampleFunction() { return MakeKernelFunction<&SampleKernel>("sample"); }

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
