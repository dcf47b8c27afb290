// Attention mask creation.
//
// reference: asks the rule for every element.
#include "core/ops/mask.h"

#include <array>
#include <limits>

#include "cpu/kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

absl::Status RunReference(const KernelContext&, const MaskArgs& args) {
  const MaskRule& rule = args.rule;
  const TensorView& out = args.out;
  for (int64_t q = 0; q < rule.q_len; ++q) {
    const int64_t row = q * out.stride(0);
    if (out.dtype == DType::kU32) {
      for (int64_t word = 0; word < out.dim(1); ++word) {
        uint32_t bits = 0;
        for (int64_t bit = 0; bit < 32; ++bit) {
          if (rule.Visible(q, word * 32 + bit)) bits |= uint32_t{1} << bit;
        }
        *out.At<uint32_t>(row + word) = bits;
      }
    } else if (out.dtype == DType::kBool) {
      for (int64_t k = 0; k < rule.kv_len; ++k) {
        *out.At<uint8_t>(row + k) = rule.Visible(q, k) ? 1 : 0;
      }
    } else {
      for (int64_t k = 0; k < rule.kv_len; ++k) {
        StoreElement(out, row + k,
                     rule.Visible(q, k) ? 0.0f : -std::numeric_limits<float>::infinity());
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<MaskArgs> Kernels<MaskArgs>() {
  static constexpr std::array<Kernel<MaskArgs>, 1> kKernels = {{
      {"reference", DeviceKind::kCpu, SupportsAll<MaskArgs>, NoWorkspace<MaskArgs>, RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
