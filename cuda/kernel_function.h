// A device function as host code sees it: a name and two addresses, so that one host file launches
// the same kernel on a GPU and on the emulated device.
//
// Every kernel source (cuda/kernels/*.cu) is compiled twice: by nvcc into namespace gpu, and by the
// host compiler, on top of cuda/emulator/, into namespace emulated. All it exports are functions
// that return KernelFunctions, declared by TANDEM_KERNEL_FUNCTION. A kernel takes one parameter, a
// trivially copyable struct, by value.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace tandem::cuda {

struct KernelFunction {
  const char* name = nullptr;                      // of the kernel, for messages and traces
  const void* gpu = nullptr;                       // what cudaLaunchKernelExC takes
  void (*emulated)(const void* params) = nullptr;  // the body of one CUDA thread
  size_t params_bytes = 0;
  size_t address_bytes = SIZE_MAX;  // the first of them, which alone may hold addresses

  explicit operator bool() const { return gpu != nullptr || emulated != nullptr; }
};

class CudaStream;
// Does this stream belong to the emulated device?
bool IsEmulated(const CudaStream& stream);

}  // namespace tandem::cuda

// TANDEM_KERNEL_FUNCTION(RmsNormFunction, DType x, DType out) declares
//   KernelFunction RmsNormFunction(DType x, DType out)   in both target namespaces, to be defined
//   by
//                                                        the kernel source, and
//   KernelFunction RmsNormFunction(stream, x, out)       which picks that of the stream's device.
// In a build without the CUDA toolkit there is no gpu form (an empty KernelFunction).
#if TANDEM_HAVE_CUDA
#define TANDEM_INTERNAL_GPU_FUNCTION(name, ...) KernelFunction name(__VA_ARGS__);
#else
#define TANDEM_INTERNAL_GPU_FUNCTION(name, ...) \
  template <typename... Arguments>              \
  KernelFunction name(Arguments...) {           \
    return {};                                  \
  }
#endif
#define TANDEM_KERNEL_FUNCTION(name, ...)                                               \
  namespace gpu {                                                                       \
  TANDEM_INTERNAL_GPU_FUNCTION(name, __VA_ARGS__)                                       \
  }                                                                                     \
  namespace emulated {                                                                  \
  KernelFunction name(__VA_ARGS__);                                                     \
  }                                                                                     \
  template <typename... Arguments>                                                      \
  KernelFunction name(const CudaStream& stream, Arguments... arguments) {               \
    return IsEmulated(stream) ? emulated::name(arguments...) : gpu::name(arguments...); \
  }
