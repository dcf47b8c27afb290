#include "cpu/attention_kernels.h"

#include <array>
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

absl::Status CheckPlain(const AttentionArgs& args) {
  if (args.softcap != 0.0f) return Unimplemented("softcap");
  if (args.chunk != 0 || args.prefix_len != 0) return Unimplemented("chunk or prefix_len");
  if (args.k.dtype == DType::kI8) return Unimplemented("an i8 cache");
  for (const auto& [name, view] :
       {std::pair("alibi_slopes", &args.alibi_slopes), std::pair("bias", &args.bias),
        std::pair("mask", &args.mask), std::pair("sinks", &args.sinks),
        std::pair("q_lens", &args.q_lens), std::pair("q_offsets", &args.q_offsets),
        std::pair("kv_lens", &args.kv_lens), std::pair("kv_starts", &args.kv_starts),
        std::pair("page_table", &args.page_table)}) {
    if (view->present()) return Unimplemented(name);
  }
  return absl::OkStatus();
}

template <>
KernelList<AttentionArgs> Kernels<AttentionArgs>() {
  static const std::array<Kernel<AttentionArgs>, 8> kKernels = {
      AttentionDecode(Isa::kAvx512),  AttentionPrefillBf16Dot(),    AttentionPrefill(Isa::kAvx512),
      AttentionDecode(Isa::kAvx2),    AttentionPrefill(Isa::kAvx2), AttentionDecode(Isa::kScalar),
      AttentionPrefill(Isa::kScalar), AttentionReference(),
  };
  return kKernels;
}

}  // namespace tandem::cpu
