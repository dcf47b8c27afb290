#include "cuda/kernels/elementwise.h"

#include <array>

#include "cuda/kernels.h"
#include "cuda/kernels/to_device_tensor.h"
#include "cuda/kernels/vector_rows.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

constexpr int64_t kThreads = 256;

// The operands of both ops: out = f(a, b).
struct Operands {
  const TensorView &a, &b, &out;
};
Operands OperandsOf(const AddArgs& args) { return {args.a, args.b, args.out}; }
Operands OperandsOf(const SiluMulArgs& args) { return {args.gate, args.up, args.out}; }

BinaryParams ToParams(const Operands& o) {
  BinaryParams params = {ToDeviceTensor(o.a), ToDeviceTensor(o.b), ToDeviceTensor(o.out),
                         o.out.dim(0), o.out.dim(1)};
  if (o.b.dim(0) == 1) params.b.strides[0] = 0;
  return params;
}

absl::Status RunGeneric(CudaStream& stream, const KernelFunction& function, const Operands& o) {
  LaunchConfig config;
  config.grid.x = ElementBlocks(stream, o.out.num_elements(), kThreads);
  config.block.x = kThreads;
  return stream.Launch(function, config, ToParams(o));
}

bool IsOneRun(const Operands& o) {
  return IsContiguous(o.a) && IsContiguous(o.b) && IsContiguous(o.out) &&
         o.b.dim(0) == o.out.dim(0);
}

template <typename Args>
absl::Status VectorSupports(const KernelContext&, const Args& args) {
  const Operands o = OperandsOf(args);
  const auto check = IsOneRun(o) ? CheckVectorRun : CheckVectorRows;
  TANDEM_RETURN_IF_ERROR(check("first input", o.a));
  TANDEM_RETURN_IF_ERROR(check("second input", o.b));
  return check("out", o.out);
}

absl::Status RunVector(CudaStream& stream, const KernelFunction& function, const Operands& o) {
  BinaryParams params = ToParams(o);
  if (IsOneRun(o)) {
    params.columns *= params.rows;
    params.rows = 1;
  }
  return stream.Launch(function, VectorConfig(stream, params.rows, params.columns), params);
}

absl::Status RunAdd(const KernelContext& context, const AddArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  return RunGeneric(stream, AddFunction(stream), OperandsOf(args));
}
absl::Status RunAddVector(const KernelContext& context, const AddArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  return RunVector(stream, AddVectorFunction(stream), OperandsOf(args));
}
absl::Status RunSiluMul(const KernelContext& context, const SiluMulArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  return RunGeneric(stream, SiluMulFunction(stream), OperandsOf(args));
}
absl::Status RunSiluMulVector(const KernelContext& context, const SiluMulArgs& args) {
  CudaStream& stream = CudaStream::Of(context);
  return RunVector(stream, SiluMulVectorFunction(stream), OperandsOf(args));
}

constexpr std::array<Kernel<AddArgs>, 2> kAdd = {
    {{"vector", DeviceKind::kCuda, VectorSupports<AddArgs>, NoWorkspace<AddArgs>, RunAddVector},
     {"generic", DeviceKind::kCuda, SupportsAll<AddArgs>, NoWorkspace<AddArgs>, RunAdd}}};
constexpr std::array<Kernel<SiluMulArgs>, 2> kSiluMul = {
    {{"vector", DeviceKind::kCuda, VectorSupports<SiluMulArgs>, NoWorkspace<SiluMulArgs>,
      RunSiluMulVector},
     {"generic", DeviceKind::kCuda, SupportsAll<SiluMulArgs>, NoWorkspace<SiluMulArgs>,
      RunSiluMul}}};

}  // namespace

template <>
KernelList<AddArgs> Kernels<AddArgs>() {
  return kAdd;
}
template <>
KernelList<SiluMulArgs> Kernels<SiluMulArgs>() {
  return kSiluMul;
}

}  // namespace tandem::cuda
