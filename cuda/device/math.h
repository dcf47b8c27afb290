// Arithmetic that has an instruction or a library function on the GPU. Accurate forms are those of
// CUDA's math library (a few units in the last place), as the host's are.
#pragma once

#include <cmath>

#include "core/dtype.h"
#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

__device__ inline float Exp(float x) { return expf(x); }
__device__ inline float Log(float x) { return logf(x); }
// 2^x by one instruction of the GPU: relative error up to 2^-22, results below 2^-126 are 0.
__device__ inline float Exp2Fast(float x) {
#if TANDEM_CUDA_EMULATED
  return exp2f(x);
#else
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}
// 1 / x by one instruction: off by at most one unit in the last place; of numbers that are normal.
__device__ inline float ReciprocalFast(float x) {
#if TANDEM_CUDA_EMULATED
  return 1.0f / x;
#else
  float result;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
#endif
}
__device__ inline float Tanh(float x) { return tanhf(x); }
__device__ inline float Sqrt(float x) { return sqrtf(x); }
__device__ inline double ExpF64(double x) { return exp(x); }
__device__ inline double LogF64(double x) { return log(x); }
// sin(pi x) and cos(pi x): without the reduction of large arguments that sin(x) does in local
// memory.
struct SinCosF64 {
  double sine, cosine;
};
__device__ inline SinCosF64 SinCosPiF64(double x) {
  SinCosF64 result;
#if TANDEM_CUDA_EMULATED
  const double angle = 3.14159265358979323846 * (x - 2.0 * rint(0.5 * x));
  result = {sin(angle), cos(angle)};
#else
  sincospi(x, &result.sine, &result.cosine);
#endif
  return result;
}
__device__ inline float Abs(float x) { return fabsf(x); }
__device__ inline bool IsNaN(float x) { return x != x; }
__device__ inline bool IsFinite(float x) { return fabsf(x) < HUGE_VALF; }
// Nearest integer, ties to even, whatever the rounding mode.
__device__ inline float RoundToEven(float x) { return rintf(x); }
// Nearest integer, ties away from zero.
__device__ inline float RoundAwayFromZero(float x) { return roundf(x); }

// x / (1 + exp(-x)). exp(-|x|) cannot overflow: far below 0 the result fades out instead of
// dropping to 0.
__device__ inline float Silu(float x) {
  const float e = Exp(-Abs(x));
  return (x < 0.0f ? x * e : x) / (1.0f + e);
}

// Separate roundings on both targets: nvcc would fuse a * b + c into one.
#if TANDEM_CUDA_EMULATED
inline float Multiply(float a, float b) { return a * b; }
inline float Add(float a, float b) { return a + b; }
inline float Subtract(float a, float b) { return a - b; }
inline float Divide(float a, float b) { return a / b; }
inline float MultiplyAdd(float a, float b, float c) { return fmaf(a, b, c); }
#else
__device__ inline float Multiply(float a, float b) { return __fmul_rn(a, b); }
__device__ inline float Add(float a, float b) { return __fadd_rn(a, b); }
__device__ inline float Subtract(float a, float b) { return __fsub_rn(a, b); }
__device__ inline float Divide(float a, float b) { return __fdiv_rn(a, b); }
// One rounding.
__device__ inline float MultiplyAdd(float a, float b, float c) { return __fmaf_rn(a, b, c); }
#endif

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
