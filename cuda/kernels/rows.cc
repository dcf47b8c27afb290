#include "cuda/kernels/rows.h"

#include <algorithm>
#include <array>

#include "cuda/kernels.h"
#include "cuda/kernels/rows_vector.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/kernels/vector_rows.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

constexpr int64_t kWarps = 32;  // as many partial results as a block may have

template <typename Partial>
LaunchConfig RowConfig(int64_t rows) {
  SharedBytes shared;
  shared.Take<Partial>(kWarps);
  LaunchConfig config;
  config.grid.x = std::min<int64_t>(rows, 65535);
  config.block.x = kRowThreads;
  config.shared_bytes = shared.total();
  return config;
}

int64_t NumRows(const TensorView& view) {
  int64_t rows = 1;
  for (int i = 0; i + 1 < view.rank(); ++i) rows *= view.dim(i);
  return rows;
}

absl::Status RunSoftmax(const KernelContext& context, const SoftmaxArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const SoftmaxParams params = {ToDeviceRows(args.x), ToDeviceRows(args.out), args.x.dim(0),
                                args.x.dim(1), args.scale};
  return stream.Launch(SoftmaxFunction(stream), RowConfig<float>(params.rows), params);
}

absl::Status RunRmsNorm(const KernelContext& context, const RmsNormArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const RmsNormParams params = {ToDeviceRows(args.x),   ToDeviceTensor(args.weight),
                                ToDeviceRows(args.out), ToDeviceRows(args.residual),
                                ToDeviceRows(args.sum), NumRows(args.x),
                                args.x.dim(-1),         args.eps};
  return stream.Launch(RmsNormFunction(stream), RowConfig<float>(params.rows), params);
}

absl::Status RunArgMax(const KernelContext& context, const ArgMaxArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const ArgMaxParams params = {ToDeviceTensor(args.x), ToDeviceTensor(args.out), args.x.dim(0),
                               args.x.dim(1)};
  return stream.Launch(ArgMaxFunction(stream), RowConfig<uint64_t>(params.rows), params);
}

// ---- vector forms

// How the threads of the vector kernels share a row.
struct RowShare {
  int row_threads;
  int chunks;  // per thread
};
RowShare ShareOf(int64_t columns) {
  const int64_t in_row = columns / kVectorElements;
  const int threads = in_row <= kMaxRowChunks * 32               ? 32
                      : in_row <= kMaxRowChunks * kVectorThreads ? kVectorThreads
                                                                 : kMaxRowThreads;
  return {threads, in_row <= threads ? 1 : in_row <= 2 * threads ? 2 : 4};
}

// No more blocks than are resident at once several times over: the rest is a loop over rows.
LaunchConfig RegistersConfig(const CudaStream& stream, int64_t rows, const RowShare& share) {
  SharedBytes shared;
  shared.Take<float>(32);
  LaunchConfig config;
  config.block.x = std::max(kVectorThreads, share.row_threads);
  const int64_t rows_per_block = config.block.x / share.row_threads;
  config.grid.x = std::min<int64_t>((rows + rows_per_block - 1) / rows_per_block,
                                    int64_t{32} * stream.info().multiprocessors);
  config.shared_bytes = shared.total();
  return config;
}

absl::Status CheckRegisterRow(int64_t columns) {
  if (columns <= kMaxRegisterRow) return absl::OkStatus();
  return Unimplemented("rows of at most ", kMaxRegisterRow, " elements, got ", columns);
}

absl::Status OnlineSoftmaxSupports(const KernelContext&, const SoftmaxArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckWholeVectors("columns", args.x.dim(1)));
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("x", args.x));
  return CheckVectorRows("out", args.out);
}
absl::Status RegistersSoftmaxSupports(const KernelContext& context, const SoftmaxArgs& args) {
  TANDEM_RETURN_IF_ERROR(OnlineSoftmaxSupports(context, args));
  return CheckRegisterRow(args.x.dim(1));
}

SoftmaxVectorParams ToVectorParams(const SoftmaxArgs& args) {
  return {ToDeviceTensor(args.x), ToDeviceTensor(args.out),           args.x.dim(0),
          args.x.dim(1),          ShareOf(args.x.dim(1)).row_threads, args.scale};
}

absl::Status RunSoftmaxRegisters(const KernelContext& context, const SoftmaxArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const RowShare share = ShareOf(args.x.dim(1));
  return stream.Launch(SoftmaxRegistersFunction(stream, share.chunks),
                       RegistersConfig(stream, args.x.dim(0), share), ToVectorParams(args));
}

absl::Status RunSoftmaxOnline(const KernelContext& context, const SoftmaxArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const SoftmaxVectorParams params = ToVectorParams(args);
  return stream.Launch(SoftmaxOnlineFunction(stream),
                       RegistersConfig(stream, params.rows, {kVectorThreads, 1}), params);
}

absl::Status RegistersRmsNormSupports(const KernelContext&, const RmsNormArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckWholeVectors("columns", args.x.dim(-1)));
  TANDEM_RETURN_IF_ERROR(CheckRegisterRow(args.x.dim(-1)));
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("x", args.x));
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("weight", args.weight));
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("out", args.out));
  if (!args.residual.present()) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(CheckVectorRows("residual", args.residual));
  return CheckVectorRows("sum", args.sum);
}

absl::Status RunRmsNormRegisters(const KernelContext& context, const RmsNormArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const RowShare share = ShareOf(args.x.dim(-1));
  RmsNormVectorParams params = {};
  params.x = ToDeviceRows(args.x);
  params.weight = ToDeviceTensor(args.weight);
  params.out = ToDeviceRows(args.out);
  params.residual = ToDeviceRows(args.residual);
  params.sum = ToDeviceRows(args.sum);
  params.rows_of = {Divisor(params.x.dims[1]), Divisor(params.x.dims[2])};
  params.rows = NumRows(args.x);
  params.columns = static_cast<int>(args.x.dim(-1));
  params.row_threads = share.row_threads;
  params.eps = args.eps;
  return stream.Launch(RmsNormRegistersFunction(stream, share.chunks, args.residual.present()),
                       RegistersConfig(stream, params.rows, share), params);
}

// Enough pieces to fill the device four times, of at least two chunks per thread. Depends on the
// device; the result does not.
struct ArgMaxCut {
  int64_t piece_columns, splits;
};
ArgMaxCut CutOf(const KernelContext& context, const ArgMaxArgs& args) {
  const int64_t rows = std::max<int64_t>(args.x.dim(0), 1), columns = args.x.dim(1);
  const int64_t wanted =
      std::max<int64_t>(4 * CudaStream::Of(context).info().multiprocessors / rows, 1);
  constexpr int64_t kLeast = int64_t{2} * kVectorThreads * kVectorElements;
  int64_t piece = std::max((columns + wanted - 1) / wanted, kLeast);
  piece = (piece + kVectorElements - 1) / kVectorElements * kVectorElements;
  return {piece, (columns + piece - 1) / piece};
}

absl::Status SplitArgMaxSupports(const KernelContext&, const ArgMaxArgs& args) {
  return CheckVectorRows("x", args.x);
}

int64_t SplitArgMaxWorkspace(const KernelContext& context, const ArgMaxArgs& args) {
  Workspace workspace = Workspace::Counting();
  workspace.Take<uint64_t>(args.x.dim(0) * CutOf(context, args).splits);
  return workspace.bytes_used();
}

absl::Status RunArgMaxSplit(const KernelContext& context, const ArgMaxArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  const ArgMaxCut cut = CutOf(context, args);
  ArgMaxSplitParams params = {ToDeviceTensor(args.x),
                              ToDeviceTensor(args.out),
                              args.x.dim(0),
                              args.x.dim(1),
                              cut.piece_columns,
                              0,
                              nullptr};
  params.splits = static_cast<int>(cut.splits);
  params.keys = context.workspace->Take<uint64_t>(params.rows * params.splits);
  if (!context.workspace->ok()) return absl::InternalError("argmax: workspace too small");
  SharedBytes shared;
  shared.Take<uint64_t>(32);
  LaunchConfig pieces;
  pieces.grid.x = std::min<int64_t>(params.rows * params.splits, int64_t{1} << 20);
  pieces.block.x = kVectorThreads;
  pieces.shared_bytes = shared.total();
  TANDEM_RETURN_IF_ERROR(stream.Launch(ArgMaxPiecesFunction(stream), pieces, params));
  return stream.Launch(ArgMaxMergeFunction(stream), RegistersConfig(stream, params.rows, {32, 1}),
                       params);
}

constexpr std::array<Kernel<SoftmaxArgs>, 3> kSoftmax = {
    {{"registers", DeviceKind::kCuda, RegistersSoftmaxSupports, NoWorkspace<SoftmaxArgs>,
      RunSoftmaxRegisters},
     {"online", DeviceKind::kCuda, OnlineSoftmaxSupports, NoWorkspace<SoftmaxArgs>,
      RunSoftmaxOnline},
     {"generic", DeviceKind::kCuda, SupportsAll<SoftmaxArgs>, NoWorkspace<SoftmaxArgs>,
      RunSoftmax}}};
constexpr std::array<Kernel<RmsNormArgs>, 2> kRmsNorm = {
    {{"registers", DeviceKind::kCuda, RegistersRmsNormSupports, NoWorkspace<RmsNormArgs>,
      RunRmsNormRegisters},
     {"generic", DeviceKind::kCuda, SupportsAll<RmsNormArgs>, NoWorkspace<RmsNormArgs>,
      RunRmsNorm}}};
constexpr std::array<Kernel<ArgMaxArgs>, 2> kArgMax = {
    {{"split", DeviceKind::kCuda, SplitArgMaxSupports, SplitArgMaxWorkspace, RunArgMaxSplit},
     {"generic", DeviceKind::kCuda, SupportsAll<ArgMaxArgs>, NoWorkspace<ArgMaxArgs>, RunArgMax}}};

}  // namespace

template <>
KernelList<SoftmaxArgs> Kernels<SoftmaxArgs>() {
  return kSoftmax;
}
template <>
KernelList<RmsNormArgs> Kernels<RmsNormArgs>() {
  return kRmsNorm;
}
template <>
KernelList<ArgMaxArgs> Kernels<ArgMaxArgs>() {
  return kArgMax;
}

}  // namespace tandem::cuda
