// The CUDA device's kernel lists, one per op: fastest first, a plain generic kernel last. This and
// backend.h are all that dispatch/ sees of CUDA. The lists are the same for a GPU and for the
// emulated device, and for builds without the CUDA toolkit (which have the emulated device only).
//
// An op gains its list by a specialisation here, as in cpu/kernels.h; without one it has no
// kernels.
#pragma once

#include "core/kernel.h"
#include "core/ops/add.h"
#include "core/ops/argmax.h"
#include "core/ops/attention.h"
#include "core/ops/cast.h"
#include "core/ops/embedding.h"
#include "core/ops/grouped_matmul.h"
#include "core/ops/kv_append.h"
#include "core/ops/mask.h"
#include "core/ops/matmul.h"
#include "core/ops/merge_attention.h"
#include "core/ops/rms_norm.h"
#include "core/ops/rope.h"
#include "core/ops/sample.h"
#include "core/ops/silu_mul.h"
#include "core/ops/softmax.h"

namespace tandem::cuda {

template <typename Args>
KernelList<Args> Kernels() {
  return {};
}

template <>
KernelList<AddArgs> Kernels<AddArgs>();
template <>
KernelList<ArgMaxArgs> Kernels<ArgMaxArgs>();
template <>
KernelList<SiluMulArgs> Kernels<SiluMulArgs>();
template <>
KernelList<SoftmaxArgs> Kernels<SoftmaxArgs>();
template <>
KernelList<RmsNormArgs> Kernels<RmsNormArgs>();
template <>
KernelList<RopeArgs> Kernels<RopeArgs>();
template <>
KernelList<EmbeddingArgs> Kernels<EmbeddingArgs>();
template <>
KernelList<CastArgs> Kernels<CastArgs>();
template <>
KernelList<MaskArgs> Kernels<MaskArgs>();
template <>
KernelList<SampleArgs> Kernels<SampleArgs>();
template <>
KernelList<MergeAttentionArgs> Kernels<MergeAttentionArgs>();
template <>
KernelList<KvAppendArgs> Kernels<KvAppendArgs>();
template <>
KernelList<MatMulArgs> Kernels<MatMulArgs>();
template <>
KernelList<GroupedMatMulArgs> Kernels<GroupedMatMulArgs>();
template <>
KernelList<AttentionArgs> Kernels<AttentionArgs>();

}  // namespace tandem::cuda
