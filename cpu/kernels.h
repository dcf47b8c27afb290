// The CPU's kernel lists, one per op: fastest first, the plain reference last. This and backend.h
// are all that dispatch/ sees of the CPU.
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

namespace tandem::cpu {

template <typename Args>
KernelList<Args> Kernels() = delete;

template <>
KernelList<AttentionArgs> Kernels<AttentionArgs>();
template <>
KernelList<MaskArgs> Kernels<MaskArgs>();
template <>
KernelList<MatMulArgs> Kernels<MatMulArgs>();
template <>
KernelList<GroupedMatMulArgs> Kernels<GroupedMatMulArgs>();
template <>
KernelList<SoftmaxArgs> Kernels<SoftmaxArgs>();
template <>
KernelList<RmsNormArgs> Kernels<RmsNormArgs>();
template <>
KernelList<RopeArgs> Kernels<RopeArgs>();
template <>
KernelList<SiluMulArgs> Kernels<SiluMulArgs>();
template <>
KernelList<AddArgs> Kernels<AddArgs>();
template <>
KernelList<EmbeddingArgs> Kernels<EmbeddingArgs>();
template <>
KernelList<KvAppendArgs> Kernels<KvAppendArgs>();
template <>
KernelList<CastArgs> Kernels<CastArgs>();
template <>
KernelList<ArgMaxArgs> Kernels<ArgMaxArgs>();
template <>
KernelList<SampleArgs> Kernels<SampleArgs>();
template <>
KernelList<MergeAttentionArgs> Kernels<MergeAttentionArgs>();

}  // namespace tandem::cpu
