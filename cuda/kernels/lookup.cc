#include "cuda/kernels/lookup.h"

#include <algorithm>
#include <array>

#include "core/status.h"
#include "cuda/kernels.h"
#include "cuda/kernels/quantize_k.h"
#include "cuda/kernels/rotation.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/kernels/vector_rows.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

constexpr int64_t kThreads = 256;

LaunchConfig ElementConfig(const CudaStream& stream, int64_t elements) {
  LaunchConfig config;
  config.grid.x = ElementBlocks(stream, elements, kThreads);
  config.block.x = kThreads;
  return config;
}

absl::Status RunRope(const KernelContext& context, const RopeArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const RopeParams params = {ToDeviceTensor(args.x), ToDeviceTensor(args.out),
                             ToRotationParams(args.rotation())};
  return stream.Launch(RopeFunction(stream), ElementConfig(stream, args.x.num_elements()), params);
}

absl::Status RunEmbedding(const KernelContext& context, const EmbeddingArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const EmbeddingParams params = {ToDeviceTensor(args.table), ToDeviceTensor(args.ids),
                                  ToDeviceTensor(args.out)};
  return stream.Launch(EmbeddingFunction(stream), ElementConfig(stream, args.out.num_elements()),
                       params);
}

bool IsSuperBlock(DType dtype) {
  return dtype == DType::kQ4_K || dtype == DType::kQ5_K || dtype == DType::kQ6_K ||
         dtype == DType::kTQ2_0;
}

int64_t CastSharedBytes(DType out) {
  SharedBytes shared;
  if (IsSuperBlock(out) && out != DType::kTQ2_0) CarveQuantizeK(shared);
  return shared.total();
}

absl::Status CastSupports(const KernelContext& context, const CastArgs& args) {
  const int64_t needed = CastSharedBytes(args.out.dtype);
  const int64_t have = CudaStream::Of(context).info().shared_memory_per_block_bytes;
  if (needed <= have) return absl::OkStatus();
  return Unimplemented("quantising to ", std::string(Name(args.out.dtype)), " needs ", needed,
                       " bytes of shared memory, the device has ", have);
}

absl::Status RunCast(const KernelContext& context, const CastArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const CastParams params = {ToDeviceTensor(args.x), ToDeviceTensor(args.out), args.x.dim(0),
                             args.x.dim(1)};
  if (IsSuperBlock(args.out.dtype)) {
    LaunchConfig config;
    config.grid.x = ElementBlocks(stream, args.x.num_elements() / 8, kQuantizeKThreads);
    config.block.x = kQuantizeKThreads;
    config.shared_bytes = CastSharedBytes(args.out.dtype);
    return stream.Launch(QuantizeKFunction(stream, args.out.dtype), config, params);
  }
  return stream.Launch(CastFunction(stream, args.out.dtype),
                       ElementConfig(stream, args.x.num_elements()), params);
}

// ---- vector forms

absl::Status VectorRopeSupports(const KernelContext&, const RopeArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckRotatedRows("x", args.rotation(), args.x));
  return CheckVectorRows("out", args.out);
}

absl::Status RunRopeVector(const KernelContext& context, const RopeArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const RopeParams params = {ToDeviceTensor(args.x), ToDeviceTensor(args.out),
                             ToRotationParams(args.rotation())};
  const int64_t tokens = args.x.dim(0) * args.x.dim(2), heads = args.x.dim(1);
  // A block's cosines and sines serve at least 8 heads; more, where tokens alone fill the device.
  const bool full = tokens >= int64_t{8} * stream.info().multiprocessors;
  LaunchConfig config;
  config.grid.x = heads == 0 ? 0 : std::min<int64_t>(tokens, int64_t{1} << 20);
  config.grid.y = full ? 1 : std::clamp<int64_t>((heads + 7) / 8, 1, 65535);
  config.block.x = kVectorThreads;
  config.shared_bytes = RotationTableBytes(args.rotation());
  return stream.Launch(RopeVectorFunction(stream), config, params);
}

absl::Status VectorEmbeddingSupports(const KernelContext&, const EmbeddingArgs& args) {
  if (!IsFloat(args.table.dtype)) return Unimplemented("needs a table of a float type");
  TANDEM_RETURN_IF_ERROR(CheckWholeVectors("columns", args.out.dim(1)));
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("table", args.table));
  return CheckVectorRows("out", args.out);
}

absl::Status RunEmbeddingVector(const KernelContext& context, const EmbeddingArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const EmbeddingParams params = {ToDeviceTensor(args.table), ToDeviceTensor(args.ids),
                                  ToDeviceTensor(args.out)};
  LaunchConfig config = VectorConfig(stream, 1, args.out.dim(1));  // its block: for one row
  config.grid.x = std::min<int64_t>(args.out.dim(0), int64_t{1} << 20);
  return stream.Launch(EmbeddingVectorFunction(stream), config, params);
}

bool IsOneRun(const CastArgs& args) { return IsContiguous(args.x) && IsContiguous(args.out); }

absl::Status VectorCastSupports(const KernelContext&, const CastArgs& args) {
  for (const DType dtype : {args.x.dtype, args.out.dtype}) {
    if (IsFloat(dtype)) continue;
    if (dtype != DType::kQ8_0 && dtype != DType::kQ4_0) {
      return Unimplemented("float types, q8_0 and q4_0 only, got ", std::string(Name(dtype)));
    }
    if (!IsOneRun(args)) return Unimplemented("needs contiguous blocks");
  }
  const auto check = IsOneRun(args) ? CheckVectorRun : CheckVectorRows;
  TANDEM_RETURN_IF_ERROR(check("x", args.x));
  return check("out", args.out);
}

absl::Status RunCastVector(const KernelContext& context, const CastArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  CastParams params = {ToDeviceTensor(args.x), ToDeviceTensor(args.out), args.x.dim(0),
                       args.x.dim(1)};
  if (IsOneRun(args)) {
    params.columns *= params.rows;
    params.rows = 1;
  }
  LaunchConfig config = VectorConfig(stream, params.rows, params.columns);
  if (!IsFloat(args.x.dtype) || !IsFloat(args.out.dtype)) {
    const int block_bytes = BlockBytes(IsFloat(args.x.dtype) ? args.out.dtype : args.x.dtype);
    constexpr int64_t kBlocks = kVectorThreads / 4;  // four threads each
    SharedBytes shared;
    shared.Take<char>(kBlocks * block_bytes);
    config.block.x = kVectorThreads;
    config.grid.x = ElementBlocks(stream, params.columns / kVectorElements, kVectorThreads);
    config.shared_bytes = shared.total();
  }
  return stream.Launch(CastVectorFunction(stream, args.x.dtype, args.out.dtype), config, params);
}

constexpr std::array<Kernel<RopeArgs>, 2> kRope = {
    {{"vector", DeviceKind::kCuda, VectorRopeSupports, NoWorkspace<RopeArgs>, RunRopeVector},
     {"generic", DeviceKind::kCuda, SupportsAll<RopeArgs>, NoWorkspace<RopeArgs>, RunRope}}};
constexpr std::array<Kernel<EmbeddingArgs>, 2> kEmbedding = {
    {{"vector", DeviceKind::kCuda, VectorEmbeddingSupports, NoWorkspace<EmbeddingArgs>,
      RunEmbeddingVector},
     {"generic", DeviceKind::kCuda, SupportsAll<EmbeddingArgs>, NoWorkspace<EmbeddingArgs>,
      RunEmbedding}}};
constexpr std::array<Kernel<CastArgs>, 2> kCast = {
    {{"vector", DeviceKind::kCuda, VectorCastSupports, NoWorkspace<CastArgs>, RunCastVector},
     {"generic", DeviceKind::kCuda, CastSupports, NoWorkspace<CastArgs>, RunCast}}};

}  // namespace

template <>
KernelList<RopeArgs> Kernels<RopeArgs>() {
  return kRope;
}
template <>
KernelList<EmbeddingArgs> Kernels<EmbeddingArgs>() {
  return kEmbedding;
}
template <>
KernelList<CastArgs> Kernels<CastArgs>() {
  return kCast;
}

}  // namespace tandem::cuda
