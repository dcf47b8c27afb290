#include "dispatch/registry.h"

namespace tandem {
namespace {

template <typename Args>
std::vector<std::string_view> Names(DeviceKind device) {
  std::vector<std::string_view> names;
  for (const Kernel<Args>& kernel : KernelsOf<Args>(device)) names.push_back(kernel.name);
  return names;
}

}  // namespace

std::vector<std::string_view> KernelNames(OpKind op, DeviceKind device) {
  switch (op) {
    case OpKind::kAttention:
      return Names<AttentionArgs>(device);
    case OpKind::kMask:
      return Names<MaskArgs>(device);
    case OpKind::kMatMul:
      return Names<MatMulArgs>(device);
    case OpKind::kSoftmax:
      return Names<SoftmaxArgs>(device);
    case OpKind::kRmsNorm:
      return Names<RmsNormArgs>(device);
    case OpKind::kRope:
      return Names<RopeArgs>(device);
    case OpKind::kSiluMul:
      return Names<SiluMulArgs>(device);
    case OpKind::kAdd:
      return Names<AddArgs>(device);
    case OpKind::kEmbedding:
      return Names<EmbeddingArgs>(device);
    case OpKind::kKvAppend:
      return Names<KvAppendArgs>(device);
    case OpKind::kCast:
      return Names<CastArgs>(device);
    case OpKind::kArgMax:
      return Names<ArgMaxArgs>(device);
    case OpKind::kSample:
      return Names<SampleArgs>(device);
    case OpKind::kMergeAttention:
      return Names<MergeAttentionArgs>(device);
    case OpKind::kGroupedMatMul:
      return Names<GroupedMatMulArgs>(device);
  }
  return {};
}

}  // namespace tandem
