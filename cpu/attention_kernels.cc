#include "cpu/attention_kernels.h"

#include <array>
#include <string>
#include <utility>

#include "core/status.h"
#include "cpu/kernels.h"

namespace tandem::cpu {

absl::Status CheckContiguousRows(const AttentionArgs& args) {
  for (const auto& [name, view] : {std::pair("q", &args.q), std::pair("k", &args.k),
                                   std::pair("v", &args.v), std::pair("k_new", &args.k_new),
                                   std::pair("v_new", &args.v_new), std::pair("out", &args.out)}) {
    if (!view->present() || view->dim(3) <= 1 || view->stride(3) == 1) continue;
    return Unimplemented(name, " stride 3: needs 1, got ", view->stride(3));
  }
  return absl::OkStatus();
}

bool AppliesBf16Pairs(const AttentionArgs& args) {
  return args.q.dtype == DType::kBF16 && args.k.dtype == DType::kBF16 &&
         (!args.k_new.present() || args.k_new.dtype == DType::kBF16);
}

absl::Status CheckBf16Pairs(const KernelContext& context, const AttentionArgs& args) {
  if (!CpuStream::Of(context).features().avx512_bf16) {
    return Unimplemented("needs a processor with bf16 dot products (AVX512_BF16)");
  }
  for (const auto& [name, view] :
       {std::pair("q", &args.q), std::pair("k", &args.k), std::pair("k_new", &args.k_new)}) {
    if (!view->present() || view->dtype == DType::kBF16) continue;
    return Unimplemented(name, ": needs bf16, got ", std::string(Name(view->dtype)));
  }
  return absl::OkStatus();
}

template <>
KernelList<AttentionArgs> Kernels<AttentionArgs>() {
  static const std::array<Kernel<AttentionArgs>, 11> kKernels = {
      AttentionDecodeInt8Dot(),       AttentionDecodeBf16Dot(),     AttentionDecode(Isa::kAvx512),
      AttentionPrefillAmx(),          AttentionPrefillBf16Dot(),    AttentionPrefill(Isa::kAvx512),
      AttentionDecode(Isa::kAvx2),    AttentionPrefill(Isa::kAvx2), AttentionDecode(Isa::kScalar),
      AttentionPrefill(Isa::kScalar), AttentionReference(),
  };
  return kKernels;
}

}  // namespace tandem::cpu
