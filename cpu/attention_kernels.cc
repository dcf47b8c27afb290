#include "cpu/attention_kernels.h"

#include <array>

#include "cpu/kernels.h"

namespace tandem::cpu {

template <>
KernelList<AttentionArgs> Kernels<AttentionArgs>() {
  static const std::array<Kernel<AttentionArgs>, 1> kKernels = {
      AttentionReference(),
  };
  return kKernels;
}

}  // namespace tandem::cpu
