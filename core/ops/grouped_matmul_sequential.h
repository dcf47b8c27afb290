// A kernel of grouped_matmul that a device has for nothing: one product after the other, each by
// the first of the device's matmul kernels that takes it, and the device's silu_mul for the end.
//
// Memory: with silu_multiply gate and up are written to the workspace in f32 and read back: 16
// bytes an element of out more than a kernel that joins them in registers.
// Range: wherever matmul has a kernel for every product.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/kernel.h"
#include "core/ops/grouped_matmul.h"
#include "core/ops/silu_mul.h"
#include "core/status.h"

namespace tandem {

template <KernelList<MatMulArgs> (*kMatMuls)(), KernelList<SiluMulArgs> (*kSiluMuls)()>
class SequentialGroupedMatMul {
 public:
  static absl::Status Supports(const KernelContext& context, const GroupedMatMulArgs& args) {
    const Parts parts(args, AnyAddress(), AnyAddress());
    for (int i = 0; i < args.num_products; ++i) {
      if (Find(kMatMuls(), context, parts.products[i]) != nullptr) continue;
      return Unimplemented("no matmul kernel takes products[", i, "]");
    }
    if (args.gated() && Find(kSiluMuls(), context, parts.end) == nullptr) {
      return Unimplemented("no silu_mul kernel takes products[0].out");
    }
    return absl::OkStatus();
  }

  static int64_t WorkspaceBytes(const KernelContext& context, const GroupedMatMulArgs& args) {
    Workspace counting = Workspace::Counting();
    Carve(counting, context, args);
    return counting.bytes_used();
  }

  static absl::Status Run(const KernelContext& context, const GroupedMatMulArgs& args) {
    const Layout layout = Carve(*context.workspace, context, args);
    if (!context.workspace->ok()) {
      return absl::InternalError("grouped_matmul: the workspace is smaller than was asked for");
    }
    const Parts parts(args, layout.gate, layout.up);
    const auto run = [&](const auto& kernels, const auto& part) -> absl::Status {
      const auto* kernel = Find(kernels, context, part);
      if (kernel == nullptr) return absl::InternalError("grouped_matmul: no kernel for a part");
      Workspace inner(layout.inner, layout.inner_bytes);
      return kernel->run({.stream = context.stream, .workspace = &inner}, part);
    };
    for (int i = 0; i < args.num_products; ++i) {
      TANDEM_RETURN_IF_ERROR(run(kMatMuls(), parts.products[i]));
    }
    return args.gated() ? run(kSiluMuls(), parts.end) : absl::OkStatus();
  }

 private:
  // Stands for memory that is not there yet: as aligned as that will be.
  static void* AnyAddress() { return reinterpret_cast<void*>(uintptr_t{1} << 20); }

  struct Parts {
    MatMulArgs products[GroupedMatMulArgs::kMaxProducts];
    SiluMulArgs end;

    Parts(const GroupedMatMulArgs& args, void* gate, void* up) {
      for (int i = 0; i < args.num_products; ++i) products[i] = args.ProductArgs(i);
      if (!args.gated()) return;
      end.out = args.out(0);
      end.gate = MakeView(gate, DType::kF32, end.out.shape, end.out.device);
      end.up = MakeView(up, DType::kF32, end.out.shape, end.out.device);
      products[0].out = end.gate;
      products[1].out = end.up;
    }
  };

  template <typename Args>
  static const Kernel<Args>* Find(KernelList<Args> kernels, const KernelContext& context,
                                  const Args& args) {
    for (const Kernel<Args>& kernel : kernels) {
      if (kernel.applies != nullptr && !kernel.applies(args)) continue;
      if (kernel.supports(context, args).ok()) return &kernel;
    }
    return nullptr;
  }

  struct Layout {
    float* gate = nullptr;
    float* up = nullptr;
    char* inner = nullptr;  // workspace of one part after the other
    int64_t inner_bytes = 0;
  };
  static Layout Carve(Workspace& workspace, const KernelContext& context,
                      const GroupedMatMulArgs& args) {
    const Parts parts(args, AnyAddress(), AnyAddress());
    Layout layout;
    const auto count = [&](const auto& kernels, const auto& part) {
      if (const auto* kernel = Find(kernels, context, part)) {
        layout.inner_bytes = std::max(layout.inner_bytes, kernel->workspace_bytes(context, part));
      }
    };
    for (int i = 0; i < args.num_products; ++i) count(kMatMuls(), parts.products[i]);
    if (args.gated()) {
      count(kSiluMuls(), parts.end);
      layout.gate = workspace.Take<float>(args.m() * args.n(0));
      layout.up = workspace.Take<float>(args.m() * args.n(0));
    }
    layout.inner = workspace.Take<char>(layout.inner_bytes);
    return layout;
  }
};

}  // namespace tandem
