// The grouped_matmul kernels of the device, in order: those that share their loops with kernels of
// single products and are named after them, one launch for all products whose weights have one type
// (files may keep a projection or two in a finer format); last the one that launches one product
// after the other, by the best kernel for each.
//
// A launch of a group has about as many blocks as one of a product with all its features, each
// product as many as its share of them: docs/results/cuda_matmul.md.
#include "core/ops/grouped_matmul.h"

#include <algorithm>
#include <array>

#include "core/ops/grouped_matmul_sequential.h"
#include "core/status.h"
#include "cuda/kernels.h"
#include "cuda/kernels/matmul_gemv.h"
#include "cuda/kernels/matmul_group.h"
#include "cuda/kernels/matmul_int8.h"
#include "cuda/kernels/matmul_setup.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

using Args = GroupedMatMulArgs;
using Sequential = SequentialGroupedMatMul<Kernels<MatMulArgs>, Kernels<SiluMulArgs>>;

const TensorView& WeightsOf(const Args& args, int i) {
  return args.products[static_cast<size_t>(i)].b;
}

// What the single kernel takes, of every product. A gate and its up are one walk over memory.
template <absl::Status (*kSupports)(const KernelContext&, const MatMulArgs&)>
absl::Status Supports(const KernelContext& context, const Args& args) {
  for (int i = 0; i < args.num_products; ++i) {
    const absl::Status status = kSupports(context, args.ProductArgs(i));
    if (!status.ok()) return Unimplemented("products[", i, "]: ", Message(status));
  }
  if (!args.gated()) return absl::OkStatus();
  const TensorView &gate = WeightsOf(args, 0), &up = WeightsOf(args, 1);
  if (gate.dtype != up.dtype || gate.stride(0) != up.stride(0)) {
    return Unimplemented(
        "needs the weights of silu_multiply in one dtype, their rows as far apart");
  }
  return absl::OkStatus();
}

template <bool (*kApplies)(const MatMulArgs&)>
bool Applies(const Args& args) {
  for (int i = 0; i < args.num_products; ++i) {
    if (!kApplies(args.ProductArgs(i))) return false;
  }
  return true;
}

// Deals out blocks: `per_block` rows of weights for each, up to `most` blocks in all; from there on
// blocks do several rounds.
template <typename Params>
int64_t DealBlocks(GroupParams<Params>& group, int outs, int64_t per_block, int64_t most) {
  int64_t wanted = 0, total = 0;
  const auto blocks = [&](int i) { return (group.products[i].n + per_block - 1) / per_block; };
  for (int i = 0; i < outs; ++i) wanted += blocks(i);
  for (int i = 0; i < outs; ++i) {
    const int64_t own = blocks(i);
    total += wanted <= most || own == 0 ? own : std::max<int64_t>(1, own * most / wanted);
    group.ends[i] = total;
  }
  return total;
}

// launch(dtype, group, count) for the products of each type of weights.
template <typename Params, typename ToParams, typename Launch>
absl::Status ForEachType(const Args& args, ToParams to_params, Launch launch) {
  std::array<bool, Args::kMaxProducts> done = {};
  for (int i = 0; i < args.num_products; ++i) {
    if (done[static_cast<size_t>(i)]) continue;
    GroupParams<Params> group = {};
    group.gated = args.gated();
    int count = 0;
    for (int j = i; j < args.num_products; ++j) {
      if (WeightsOf(args, j).dtype != WeightsOf(args, i).dtype) continue;
      done[static_cast<size_t>(j)] = true;
      group.products[count++] = to_params(args.ProductArgs(j));
    }
    TANDEM_RETURN_IF_ERROR(launch(WeightsOf(args, i).dtype, group, args.gated() ? 1 : count));
  }
  return absl::OkStatus();
}

absl::Status RunInt8DotGroup(const KernelContext& context, const Args& args) {
  if (args.m() == 0) return absl::OkStatus();
  CudaStream& stream = CudaStream::Of(context);
  return ForEachType<Int8MatMulParams>(
      args, ToInt8Params, [&](DType dtype, GroupParams<Int8MatMulParams>& group, int outs) {
        LaunchConfig config;
        // 3 blocks fill a multiprocessor's registers. All at once: each rounds the activations.
        config.grid.x =
            DealBlocks(group, outs, kInt8DotWarps, int64_t{3} * stream.info().multiprocessors);
        config.block.x = kInt8DotWarps * 32;
        config.shared_bytes = Int8DotSharedBytes(dtype, args.m(), args.k());
        return stream.Launch(GroupedInt8DotFunction(stream, dtype, static_cast<int>(args.m())),
                             config, group);
      });
}

absl::Status RunGemvVectorGroup(const KernelContext& context, const Args& args) {
  if (args.m() == 0) return absl::OkStatus();
  CudaStream& stream = CudaStream::Of(context);
  const int rows = GemvVectorRows(args.m());
  return ForEachType<MatMulParams>(
      args, ToMatMulParams, [&](DType dtype, GroupParams<MatMulParams>& group, int outs) {
        LaunchConfig config;
        config.grid.x =
            DealBlocks(group, outs, int64_t{kGemvVectorWarps} * GemvVectorTogether(rows),
                       int64_t{4} * stream.info().multiprocessors);
        config.block.x = kGemvVectorWarps * 32;
        return stream.Launch(GroupedGemvVectorFunction(stream, dtype, rows), config, group);
      });
}

}  // namespace

template <>
KernelList<GroupedMatMulArgs> Kernels<GroupedMatMulArgs>() {
  static constexpr std::array<Kernel<GroupedMatMulArgs>, 3> kKernels = {
      {{"int8_dot", DeviceKind::kCuda, Supports<Int8DotSupports>, NoWorkspace<GroupedMatMulArgs>,
        RunInt8DotGroup, Applies<Int8DotApplies>},
       {"gemv_vector", DeviceKind::kCuda, Supports<GemvVectorSupports>,
        NoWorkspace<GroupedMatMulArgs>, RunGemvVectorGroup, Applies<GemvVectorApplies>},
       {"sequential", DeviceKind::kCuda, Sequential::Supports, Sequential::WorkspaceBytes,
        Sequential::Run}}};
  return kKernels;
}

}  // namespace tandem::cuda
