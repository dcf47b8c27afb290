// What a kernel source is compiled for: a GPU (nvcc) or the emulator (the host compiler).
//
//   namespace tandem::cuda::TANDEM_CUDA_TARGET { ... }    gpu or emulated
//
// The emulated build has no CUDA headers at all, so that it also works where no toolkit is
// installed; the words of CUDA C++ that kernels use are defined by cuda/emulator/.
#pragma once

#include "cuda/kernel_function.h"

#if defined(__CUDACC__)
#define TANDEM_CUDA_TARGET gpu
#define TANDEM_CUDA_EMULATED 0
#else
#define TANDEM_CUDA_TARGET emulated
#define TANDEM_CUDA_EMULATED 1
#include "cuda/emulator/keywords.h"
#endif

namespace tandem::cuda::TANDEM_CUDA_TARGET {
namespace internal {

template <auto kKernel>
struct KernelOf;

template <typename Params, void (*kKernel)(Params)>
struct KernelOf<kKernel> {
  static_assert(std::is_trivially_copyable_v<Params>);
  static constexpr size_t kBytes = sizeof(Params);
  static void RunThread(const void* params) { kKernel(*static_cast<const Params*>(params)); }
};

}  // namespace internal

// The handle of a kernel: MakeKernelFunction<&AddKernel<float>>("add").
template <auto kKernel>
KernelFunction MakeKernelFunction(const char* name) {
  KernelFunction function;
  function.name = name;
  function.params_bytes = internal::KernelOf<kKernel>::kBytes;
#if TANDEM_CUDA_EMULATED
  function.emulated = &internal::KernelOf<kKernel>::RunThread;
#else
  function.gpu = reinterpret_cast<const void*>(kKernel);
#endif
  return function;
}

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
