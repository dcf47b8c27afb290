// Quantised weights brought to f32 or bf16 in the workspace, panel by panel of N, each then a
// product of the library: for prompts, where the tensor cores bound the product, and for
// activations that must not be rounded.
//
// bf16, with the activations: an element and a weight are off by 2^-9 of their own magnitude, less
// than 8 bits per block of 32 make of an element (docs/numerics.md). f32 if nothing may be rounded.
#include <algorithm>
#include <array>

#include "core/status.h"
#include "cuda/kernels/matmul_cublaslt.h"
#include "cuda/kernels/matmul_int8.h"
#include "cuda/kernels/matmul_setup.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

// Up to so many rows the kernels that read the stored form take fewer bytes and about as long:
// docs/results/cuda_matmul.md. Without rounding there is only gemv for a few.
constexpr int64_t kFewRows = 256;
constexpr int64_t kPanelBytes = int64_t{64} << 20;  // within the L2 cache of large GPUs, or nearly
constexpr int64_t kPanelColumns = 64;               // N of a panel is a multiple of it

struct Panels {
  DType dtype;
  int64_t columns;  // of a panel, but for the last one
};
Panels PanelsOf(const MatMulArgs& args) {
  Panels panels;
  panels.dtype = args.float_activations ? DType::kF32 : DType::kBF16;
  const int64_t row_bytes = std::max<int64_t>(1, args.k() * BlockBytes(panels.dtype));
  const int64_t fitting = kPanelBytes / row_bytes / kPanelColumns * kPanelColumns;
  panels.columns = std::clamp<int64_t>(fitting, kPanelColumns, std::max(args.n(), kPanelColumns));
  return panels;
}

// The product of columns begin .. begin + count of out, by weights at `expanded`.
MatMulArgs PanelArgs(const MatMulArgs& args, const Panels& panels, int64_t begin, int64_t count,
                     void* expanded) {
  MatMulArgs panel = args;
  panel.b_packed = nullptr;
  panel.b = MakeView(expanded, panels.dtype, {count, args.k()}, args.b.device);
  panel.out = Slice(args.out, args.out.rank() - 1, begin, count);
  if (args.addend.present()) panel.addend = Slice(args.addend, args.out.rank() - 1, begin, count);
  if (args.bias.present()) panel.bias = Slice(args.bias, 0, begin, count);
  return panel;
}

// Every size of panel that there is: the whole ones, and the last.
std::array<int64_t, 2> PanelSizes(const MatMulArgs& args, const Panels& panels) {
  const int64_t whole = std::min(panels.columns, args.n());
  const int64_t last = args.n() % panels.columns;
  return {whole, last > 0 ? last : whole};
}

// Stands for memory that is not there yet: as aligned as that will be.
void* AnyAddress() { return reinterpret_cast<void*>(uintptr_t{1} << 20); }

struct Layout {
  void* expanded;
  void* library;
  int64_t library_bytes;
};
Layout Carve(const KernelContext& context, Workspace& workspace, const MatMulArgs& args,
             const Panels& panels) {
  Layout layout;
  layout.library_bytes = 0;
  // Panels begin on multiples of 128 bytes of out: all are planned like the first.
  for (const int64_t count : PanelSizes(args, panels)) {
    layout.library_bytes =
        std::max(layout.library_bytes,
                 CublasLtWorkspaceBytes(context, PanelArgs(args, panels, 0, count, AnyAddress())));
  }
  const int64_t columns = std::min(panels.columns, args.n());
  layout.expanded = workspace.Take<char>(columns * args.k() * BlockBytes(panels.dtype));
  layout.library = workspace.Take<char>(layout.library_bytes);
  return layout;
}

int64_t ExpandSharedBytes(DType weights) {
  return DispatchBlock(weights, []<typename Block>() {
    SharedBytes shared;
    CarveExpand<Block>(shared);
    return shared.total();
  });
}

absl::Status Expand(CudaStream& stream, const MatMulArgs& args, const TensorView& weights,
                    const TensorView& to, int64_t begin) {
  const DType dtype = weights.dtype;
  const auto bytes = [&](int64_t elements) {
    return elements / BlockLength(dtype) * BlockBytes(dtype);
  };
  ExpandParams params = {};
  params.row_bytes = bytes(weights.stride(0));
  params.used_bytes = bytes(args.k());
  params.weights = static_cast<const uint8_t*>(weights.data) + begin * params.row_bytes;
  params.rows = to.dim(0);
  params.blocks = args.k() / kInt8Block;
  params.out.data = to.data;
  params.out.dtype = to.dtype;
  params.out.strides[0] = to.stride(0);
  LaunchConfig config;
  config.grid.x = params.rows;
  config.grid.y = std::clamp<int64_t>(params.blocks / (32 * kExpandWarps), 1, 65535);
  config.block.x = kExpandWarps * 32;
  config.shared_bytes = ExpandSharedBytes(dtype);
  return stream.Launch(ExpandFunction(stream, dtype), config, params);
}

}  // namespace

bool ExpandedApplies(const MatMulArgs& args) {
  if (!args.b.present() || !IsBlockQuantized(args.b.dtype)) return false;
  return args.m() > (args.float_activations ? int64_t{kGemvMaxRows} : kFewRows);
}

absl::Status ExpandedSupports(const KernelContext& context, const MatMulArgs& args) {
  if (!args.b.present()) return Unimplemented("needs b itself, not only packed");
  if (!IsBlockQuantized(args.b.dtype)) {
    return Unimplemented("needs b in a block format, got ", std::string(Name(args.b.dtype)));
  }
  if (!ExpandedApplies(args)) {
    return Unimplemented("for more than ", args.float_activations ? kGemvMaxRows : kFewRows,
                         " rows, got ", args.m());
  }
  if (reinterpret_cast<uintptr_t>(args.b.data) % 16 != 0) {
    return Unimplemented("needs b to begin on 16 bytes");
  }
  if (args.b.rank() == 3 && args.b.dim(0) != 1) {
    return Unimplemented("needs one matrix of weights");
  }
  if (args.n() == 0) return Unimplemented("needs a product to compute");
  TANDEM_RETURN_IF_ERROR(CheckSharedBytes(context, ExpandSharedBytes(args.b.dtype)));
  const Panels panels = PanelsOf(args);
  for (const int64_t count : PanelSizes(args, panels)) {
    TANDEM_RETURN_IF_ERROR(
        CublasLtSupports(context, PanelArgs(args, panels, 0, count, AnyAddress())));
  }
  return absl::OkStatus();
}

int64_t ExpandedWorkspaceBytes(const KernelContext& context, const MatMulArgs& args) {
  Workspace workspace = Workspace::Counting();
  Carve(context, workspace, args, PanelsOf(args));
  return workspace.bytes_used();
}

absl::Status RunExpanded(const KernelContext& context, const MatMulArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const Panels panels = PanelsOf(args);
  const Layout layout = Carve(context, *context.workspace, args, panels);
  if (!context.workspace->ok()) {
    return absl::InternalError("matmul expanded: the workspace is smaller than was asked for");
  }
  const TensorView weights = args.b.rank() == 3 ? Select(args.b, 0, 0) : args.b;
  for (int64_t begin = 0; begin < args.n(); begin += panels.columns) {
    const int64_t count = std::min(panels.columns, args.n() - begin);
    const MatMulArgs panel = PanelArgs(args, panels, begin, count, layout.expanded);
    TANDEM_RETURN_IF_ERROR(Expand(stream, args, weights, panel.b, begin));
    Workspace library(layout.library, layout.library_bytes);
    TANDEM_RETURN_IF_ERROR(RunCublasLt({.stream = context.stream, .workspace = &library}, panel));
  }
  return absl::OkStatus();
}

}  // namespace tandem::cuda
