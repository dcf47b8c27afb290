#include "dispatch/kernel_calibration.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "core/status.h"
#include "core/tensor.h"
#include "dispatch/facts.h"
#include "dispatch/ops.h"
#include "dispatch/registry.h"

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;

// A kernel this many times slower than the best so far is not run again.
constexpr double kHopeless = 4.0;

struct TypePair {
  DType input;
  DType weights;
};
constexpr TypePair kMatMulTypes[] = {{DType::kF32, DType::kF32},   {DType::kF32, DType::kF16},
                                     {DType::kF32, DType::kBF16},  {DType::kF16, DType::kF16},
                                     {DType::kBF16, DType::kBF16}, {DType::kF32, DType::kQ8_0},
                                     {DType::kF32, DType::kQ4_0},  {DType::kF32, DType::kQ4_K},
                                     {DType::kF32, DType::kQ5_K},  {DType::kF32, DType::kQ6_K}};
constexpr TypePair kAttentionTypes[] = {{DType::kF32, DType::kF32}, {DType::kF32, DType::kF16},
                                        {DType::kF32, DType::kI8},  {DType::kF32, DType::kBF16},
                                        {DType::kF16, DType::kF16}, {DType::kBF16, DType::kBF16}};

// The call that stands for its class.
struct MatMulShape {
  int64_t m, n, k;
};
MatMulShape MatMulOf(const KernelClass& c) {
  const int64_t m = int64_t{1} << c.rows;
  if (c.size == 0) return {m, 512, 1024};
  // Few rows read the matrix from memory, many compute.
  return m <= 4 ? MatMulShape{m, 4096, 4096} : MatMulShape{m, 2048, 2048};
}

struct AttentionShape {
  int64_t q_len, kv_len;
};
AttentionShape AttentionOf(const KernelClass& c) {
  constexpr int64_t kKeys[] = {256, 1024, 8192};
  return {int64_t{1} << c.rows, kKeys[c.size]};
}
constexpr int64_t kQueryHeads = 8, kKeyHeads = 2, kHeadDim = 128;
constexpr int64_t kMaxPairs = int64_t{1} << 19;  // queries * keys of one call: tens of milliseconds

std::vector<KernelClass> Classes(DeviceKind device) {
  std::vector<KernelClass> classes;
  for (const TypePair& types : kMatMulTypes) {
    for (const bool packed : {false, true}) {
      for (uint8_t size = 0; size < KernelClass::Sizes(OpKind::kMatMul); ++size) {
        for (uint8_t rows = 0; rows < KernelClass::kRows; ++rows) {
          classes.push_back(
              {OpKind::kMatMul, device, types.input, types.weights, packed, rows, size});
        }
      }
    }
  }
  for (const TypePair& types : kAttentionTypes) {
    for (uint8_t size = 0; size < KernelClass::Sizes(OpKind::kAttention); ++size) {
      for (uint8_t rows = 0; rows < KernelClass::kRows; ++rows) {
        const KernelClass c = {
            OpKind::kAttention, device, types.input, types.weights, false, rows, size};
        const AttentionShape shape = AttentionOf(c);
        if (shape.q_len <= shape.kv_len && shape.q_len * shape.kv_len <= kMaxPairs) {
          classes.push_back(c);
        }
      }
    }
  }
  return classes;
}

// Values in [-1, 1); block formats are all zero, which takes them as long.
void FillOperand(const TensorView& view) {
  if (!IsFloat(view.dtype)) {
    std::memset(view.data, 0, static_cast<size_t>(ByteExtent(view)));
    return;
  }
  DispatchFloat(view.dtype, [&]<typename T>() {
    uint32_t state = 1;
    for (int64_t i = 0; i < view.num_elements(); ++i) {
      state = state * 1664525u + 1013904223u;
      view.As<T>()[i] = FromFloat<T>(static_cast<float>(state >> 8) * 0x1p-23f - 1.0f);
    }
  });
}

// Operands in host memory that live as long as this.
class Arena {
 public:
  explicit Arena(Context& context) : context_(context) {}

  absl::StatusOr<TensorView> Make(DType dtype, const Shape& shape) {
    TANDEM_ASSIGN_OR_RETURN(Tensor tensor,
                            Tensor::Allocate(context_.host_allocator(), dtype, shape));
    tensors_.push_back(tensor);
    FillOperand(tensor.view());
    return tensor.view();
  }

 private:
  Context& context_;
  std::vector<Tensor> tensors_;
};

// Is there no point in timing it where others can run? Plain code beside vector code.
bool IsFallback(std::string_view name) {
  return name == "reference" || (name.size() > 7 && name.substr(name.size() - 7) == "_scalar");
}

// Least seconds of one call.
template <typename Args>
absl::StatusOr<double> TimeKernel(Context& context, DeviceKind kind, const Kernel<Args>& kernel,
                                  const Args& args, double best, double budget) {
  ContextDevice& device = *context.device(kind);
  KernelContext kernel_context;
  kernel_context.stream = device.stream.get();
  const int64_t bytes = kernel.workspace_bytes(kernel_context, args);
  TANDEM_RETURN_IF_ERROR(context.ReserveWorkspace(kind, bytes));
  double least = 0.0, spent = 0.0;
  // The first run prepares (caches of the kernel, pages of the output): it only shows whether there
  // is hope.
  for (int i = 0; i < 3 || spent < budget; ++i) {
    Workspace workspace(device.scratch ? device.scratch->data() : nullptr, bytes);
    kernel_context.workspace = &workspace;
    const auto begin = Clock::now();
    TANDEM_RETURN_IF_ERROR(kernel.run(kernel_context, args));
    TANDEM_RETURN_IF_ERROR(device.stream->Synchronize());
    const double seconds =
        std::max(1e-9, std::chrono::duration<double>(Clock::now() - begin).count());
    if (i == 1 || least == 0.0 || seconds < least) least = seconds;
    if (best > 0.0 && least > kHopeless * best && i > 0) break;
    if (i > 0) spent += seconds;
  }
  return least;
}

template <typename Args>
absl::StatusOr<std::vector<KernelTime>> TimeKernels(Context& context, DeviceKind device,
                                                    const Args& args, double budget) {
  TANDEM_RETURN_IF_ERROR(Validate(args));
  KernelContext kernel_context;
  kernel_context.stream = context.device(device)->stream.get();
  std::vector<const Kernel<Args>*> candidates;
  for (const Kernel<Args>& kernel : KernelsOf<Args>(device)) {
    if (kernel.supports(kernel_context, args).ok()) candidates.push_back(&kernel);
  }
  if (std::any_of(candidates.begin(), candidates.end(),
                  [](const auto* kernel) { return !IsFallback(kernel->name); })) {
    std::erase_if(candidates, [](const auto* kernel) { return IsFallback(kernel->name); });
  }
  std::vector<KernelTime> times;
  if (candidates.size() < 2) return times;  // nothing to choose
  double best = 0.0;
  for (const Kernel<Args>* kernel : candidates) {
    TANDEM_ASSIGN_OR_RETURN(const double seconds,
                            TimeKernel(context, device, *kernel, args, best, budget));
    best = best == 0.0 ? seconds : std::min(best, seconds);
    times.push_back({std::string(kernel->name), seconds});
  }
  return times;
}

absl::StatusOr<std::vector<KernelTime>> MeasureMatMul(Context& context, const KernelClass& c,
                                                      double budget) {
  const MatMulShape shape = MatMulOf(c);
  Arena arena(context);
  MatMulArgs args;
  TANDEM_ASSIGN_OR_RETURN(args.a, arena.Make(c.input, {shape.m, shape.k}));
  TANDEM_ASSIGN_OR_RETURN(args.b, arena.Make(c.weights, {shape.n, shape.k}));
  TANDEM_ASSIGN_OR_RETURN(args.out, arena.Make(c.input, {shape.m, shape.n}));
  args.float_activations = !context.options().quantize_activations;
  std::unique_ptr<PackedWeights> packed;
  if (c.packed) {
    absl::StatusOr<std::unique_ptr<PackedWeights>> result = PackWeights(context, args.b);
    if (absl::IsUnimplemented(result.status())) return std::vector<KernelTime>();
    TANDEM_RETURN_IF_ERROR(result.status());
    packed = *std::move(result);
    args.b_packed = packed.get();
  }
  return TimeKernels(context, c.device, args, budget);
}

absl::StatusOr<std::vector<KernelTime>> MeasureAttention(Context& context, const KernelClass& c,
                                                         double budget) {
  const AttentionShape shape = AttentionOf(c);
  Arena arena(context);
  AttentionArgs args;
  TANDEM_ASSIGN_OR_RETURN(args.q, arena.Make(c.input, {1, kQueryHeads, shape.q_len, kHeadDim}));
  TANDEM_ASSIGN_OR_RETURN(args.k, arena.Make(c.weights, {1, kKeyHeads, shape.kv_len, kHeadDim}));
  TANDEM_ASSIGN_OR_RETURN(args.v, arena.Make(c.weights, {1, kKeyHeads, shape.kv_len, kHeadDim}));
  if (c.weights == DType::kI8) {
    const Shape scales = {1, kKeyHeads, shape.kv_len};
    TANDEM_ASSIGN_OR_RETURN(args.k_scale, arena.Make(DType::kF32, scales));
    TANDEM_ASSIGN_OR_RETURN(args.v_scale, arena.Make(DType::kF32, scales));
  }
  TANDEM_ASSIGN_OR_RETURN(args.out, arena.Make(c.input, {1, kQueryHeads, shape.q_len, kHeadDim}));
  return TimeKernels(context, c.device, args, budget);
}

}  // namespace

absl::StatusOr<KernelProfile> CalibrateKernels(Context& context,
                                               const KernelCalibrationOptions& options) {
  KernelProfile profile;
  profile.machine = context.machine_key();
  std::vector<KernelClass> classes;
  // Operands are made in host memory; devices that cannot read it are measured by their own means.
  for (const KernelClass& c : Classes(DeviceKind::kCpu)) {
    if (!options.only || options.only(c)) classes.push_back(c);
  }
  int done = 0;
  for (const KernelClass& c : classes) {
    if (options.progress) {
      options.progress(done++, static_cast<int>(classes.size()), Describe(c));
    }
    KernelMeasurement measurement = {c, {}};
    if (c.op == OpKind::kMatMul) {
      TANDEM_ASSIGN_OR_RETURN(measurement.times,
                              MeasureMatMul(context, c, options.seconds_per_kernel));
    } else {
      TANDEM_ASSIGN_OR_RETURN(measurement.times,
                              MeasureAttention(context, c, options.seconds_per_kernel));
    }
    if (!measurement.times.empty()) profile.measurements.push_back(std::move(measurement));
  }
  return profile;
}

}  // namespace tandem
