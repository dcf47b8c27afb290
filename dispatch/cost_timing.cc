// The devices of a context as a machine whose calls are timed.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

#include "core/tensor.h"
#include "dispatch/copy.h"
#include "dispatch/cost_calibration.h"
#include "dispatch/ops.h"
#include "dispatch/run.h"

namespace tandem {
namespace {

using Clock = std::chrono::steady_clock;

// Weights are taken in turn from several copies of together so many bytes: more than caches hold
// (most CPUs and GPUs have at most 64 MB).
constexpr int64_t kColdBytes = int64_t{128} << 20;
constexpr int64_t kMostCopies = 64;
// Packing takes longer than a product: fewer copies.
constexpr int64_t kColdPackedBytes = int64_t{32} << 20;
constexpr int64_t kMostPacked = 16;

double Since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Numbers in [-1, 1), ascending positions; block formats are all zero, which takes them as long.
void Fill(const TensorView& view, OperandRole role) {
  if (role == OperandRole::kPositions) {
    for (int64_t i = 0; i < view.num_elements(); ++i)
      view.As<int32_t>()[i] = static_cast<int32_t>(i);
    return;
  }
  if (role == OperandRole::kOutput || !IsFloat(view.dtype)) {
    std::memset(view.data, 0, static_cast<size_t>(ByteExtent(view)));
    return;
  }
  DispatchFloat(view.dtype, [&]<typename T>() {
    // A period of values is enough, and quick.
    constexpr int64_t kPeriod = 4096;
    uint32_t state = 1;
    const int64_t count = view.num_elements();
    for (int64_t i = 0; i < std::min(count, kPeriod); ++i) {
      state = state * 1664525u + 1013904223u;
      view.As<T>()[i] = FromFloat<T>(static_cast<float>(state >> 8) * 0x1p-23f - 1.0f);
    }
    for (int64_t i = kPeriod; i < count; i += kPeriod) {
      std::memcpy(view.As<T>() + i, view.As<T>(),
                  static_cast<size_t>(std::min(kPeriod, count - i)) * sizeof(T));
    }
  });
}

template <typename Args>
class ContextCall : public TimedCall {
 public:
  ContextCall(Context& context, DeviceKind device) : context_(context), device_(device) {}

  // Another set of operands. The first decides the kernel.
  absl::Status Add(const Args& args) {
    variants_.push_back(args);
    if (plan_.kernel != nullptr) return absl::OkStatus();
    plan_.decision.device = device_;
    plan_.preference = context_.kernel_preferences().Find(FactsOf(args), device_);
    TANDEM_ASSIGN_OR_RETURN(plan_.kernel,
                            internal::SelectOn(context_, device_, args, plan_.preference));
    return absl::OkStatus();
  }
  void Own(Tensor tensor) { tensors_.push_back(std::move(tensor)); }

  absl::Status Queue() override {
    return internal::RunThere(context_, plan_, variants_[next_++ % variants_.size()]);
  }
  absl::StatusOr<double> Run() override {
    const auto begin = Clock::now();
    TANDEM_RETURN_IF_ERROR(Queue());
    TANDEM_RETURN_IF_ERROR(context_.device(device_)->stream->Synchronize());
    return Since(begin);
  }

 private:
  Context& context_;
  DeviceKind device_;
  Plan<Args> plan_;
  std::vector<Args> variants_;
  std::vector<Tensor> tensors_;
  size_t next_ = 0;
};

class ContextMachine : public TimedMachine {
 public:
  explicit ContextMachine(Context& context) : context_(context) {}

  std::string key() const override { return context_.machine_key(); }
  std::string device_name(DeviceKind device) const override {
    const ContextDevice* found = context_.device(device);
    return found == nullptr ? "" : found->backend->description();
  }
  double Now() override { return Since(begin_); }

  absl::StatusOr<std::unique_ptr<TimedCall>> Prepare(const CallShape& shape,
                                                     DeviceKind device) override {
    if (context_.device(device) == nullptr) {
      return InvalidArgument("device: there is no ", std::string(Name(device)));
    }
    std::unique_ptr<TimedCall> call;
    std::vector<Tensor> tensors;
    const auto make = [&](OperandRole role, DType dtype,
                          const Shape& dims) -> absl::StatusOr<TensorView> {
      if (role == OperandRole::kWeights) return Weights(device, dtype, dims);
      TANDEM_ASSIGN_OR_RETURN(Tensor tensor, Make(device, role, dtype, dims));
      tensors.push_back(tensor);
      return tensor.view();
    };
    const absl::Status status = WithArgs(shape, make, [&](auto& args) -> absl::Status {
      using Args = std::remove_cvref_t<decltype(args)>;
      auto made = std::make_unique<ContextCall<Args>>(context_, device);
      for (Tensor& tensor : tensors) made->Own(std::move(tensor));
      if constexpr (std::is_same_v<Args, MatMulArgs>) {
        args.float_activations = !context_.options().quantize_activations;
        if (shape.packed) {
          TANDEM_RETURN_IF_ERROR(Pack(device, args.b));
          for (const auto& packed : packed_.matrices) {
            args.b_packed = packed.get();
            TANDEM_RETURN_IF_ERROR(made->Add(args));
          }
          call = std::move(made);
          return absl::OkStatus();
        }
      }
      TANDEM_RETURN_IF_ERROR(made->Add(args));
      const auto again = [&](int64_t bytes, auto... views) -> absl::Status {
        const int64_t copies = std::min(kMostCopies, kColdBytes / std::max<int64_t>(1, bytes));
        for (int64_t i = 1; i < copies; ++i) {
          for (TensorView* view : {views...}) {
            TANDEM_ASSIGN_OR_RETURN(*view, Weights(device, view->dtype, view->shape));
          }
          TANDEM_RETURN_IF_ERROR(made->Add(args));
        }
        return absl::OkStatus();
      };
      if constexpr (std::is_same_v<Args, MatMulArgs>) {
        TANDEM_RETURN_IF_ERROR(again(ByteExtent(args.b), &args.b));
      } else if constexpr (std::is_same_v<Args, AttentionArgs>) {
        TANDEM_RETURN_IF_ERROR(again(2 * ByteExtent(args.k), &args.k, &args.v));
      }
      call = std::move(made);
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    return call;
  }

  absl::StatusOr<double> RunBoth(TimedCall& on_cpu, int cpu_times, TimedCall& on_gpu,
                                 int gpu_times) override {
    const auto begin = Clock::now();
    for (int i = 0; i < gpu_times; ++i) TANDEM_RETURN_IF_ERROR(on_gpu.Queue());
    for (int i = 0; i < cpu_times; ++i) TANDEM_RETURN_IF_ERROR(on_cpu.Queue());
    TANDEM_RETURN_IF_ERROR(context_.device(DeviceKind::kCuda)->stream->Synchronize());
    return Since(begin);
  }

  absl::StatusOr<double> TimeCopy(DeviceKind to, int64_t bytes, bool pinned) override {
    ContextDevice& host = *context_.device(DeviceKind::kCpu);
    ContextDevice& gpu = *context_.device(DeviceKind::kCuda);
    Allocator* allocator = pinned ? gpu.backend->pinned_allocator() : nullptr;
    if (allocator == nullptr) allocator = &host.backend->allocator();
    TANDEM_ASSIGN_OR_RETURN(const std::shared_ptr<Buffer> here, allocator->Allocate(bytes));
    TANDEM_ASSIGN_OR_RETURN(const std::shared_ptr<Buffer> there,
                            gpu.backend->allocator().Allocate(bytes));
    std::memset(here->data(), 0, static_cast<size_t>(bytes));
    if (to == DeviceKind::kCpu) {  // device memory that has been written
      TANDEM_RETURN_IF_ERROR(gpu.backend->Copy(*gpu.stream, there->data(), here->data(), bytes));
    }
    TANDEM_RETURN_IF_ERROR(gpu.stream->Synchronize());
    const bool up = to == DeviceKind::kCuda;
    const auto begin = Clock::now();
    TANDEM_RETURN_IF_ERROR(gpu.backend->Copy(*gpu.stream, (up ? there : here)->data(),
                                             (up ? here : there)->data(), bytes));
    TANDEM_RETURN_IF_ERROR(gpu.stream->Synchronize());
    return Since(begin);
  }

 private:
  absl::StatusOr<Tensor> Make(DeviceKind device, OperandRole role, DType dtype, const Shape& dims) {
    TANDEM_ASSIGN_OR_RETURN(Tensor host, Tensor::Allocate(context_.host_allocator(), dtype, dims));
    Fill(host.view(), role);
    if (device == DeviceKind::kCpu) return host;
    TANDEM_ASSIGN_OR_RETURN(Tensor there, CopyTo(context_, device, host.view()));
    TANDEM_RETURN_IF_ERROR(Synchronize(context_, device));
    return there;
  }

  // The next part of a block of memory that holds more than caches do; filled once.
  absl::StatusOr<TensorView> Weights(DeviceKind device, DType dtype, const Shape& dims) {
    Pool& pool = pools_[device];  // a call on the other device may be in use
    const int64_t elements = NumElements(dims).value_or(0);
    const int64_t bytes = ByteOffset(dtype, elements);
    if (pool.dtype != dtype || ByteExtent(pool.tensor.view()) < 2 * bytes) {
      pool = Pool();
      const int64_t whole = 256;  // elements of any format's block, and enough to align
      const int64_t most = std::max(kColdBytes, 2 * bytes) / ByteOffset(dtype, whole) * whole;
      TANDEM_ASSIGN_OR_RETURN(
          pool.tensor, Make(device, OperandRole::kWeights, dtype, {std::max(most, 2 * elements)}));
      pool.dtype = dtype;
    }
    const int64_t step = (bytes + kBufferAlignment - 1) / kBufferAlignment * kBufferAlignment;
    if (pool.next + bytes > ByteExtent(pool.tensor.view())) pool.next = 0;
    TensorView view = pool.tensor.view();
    view = MakeView(static_cast<char*>(view.data) + pool.next, dtype, dims, view.device);
    pool.next += step;
    return view;
  }

  // packed_ holds copies of this matrix.
  absl::Status Pack(DeviceKind device, const TensorView& matrix) {
    if (device != DeviceKind::kCpu) return Unimplemented("weights are packed for the CPU only");
    if (packed_.dtype == matrix.dtype && packed_.shape == matrix.shape &&
        !packed_.matrices.empty()) {
      return absl::OkStatus();
    }
    packed_ = {matrix.dtype, matrix.shape, {}};
    int64_t bytes = 0;
    do {
      TANDEM_ASSIGN_OR_RETURN(packed_.matrices.emplace_back(), PackWeights(context_, matrix));
      bytes += packed_.matrices.back()->bytes();
    } while (bytes < kColdPackedBytes && std::ssize(packed_.matrices) < kMostPacked);
    return absl::OkStatus();
  }

  struct Pool {
    DType dtype = DType::kBool;
    Tensor tensor;
    int64_t next = 0;  // byte
  };
  struct Packed {
    DType dtype = DType::kBool;
    Shape shape;
    std::vector<std::unique_ptr<PackedWeights>> matrices;
  };

  Context& context_;
  PerDevice<Pool> pools_;
  Packed packed_;
  Clock::time_point begin_ = Clock::now();
};

}  // namespace

std::unique_ptr<TimedMachine> MakeTimedMachine(Context& context) {
  return std::make_unique<ContextMachine>(context);
}

}  // namespace tandem
