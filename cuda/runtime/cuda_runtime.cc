// The runtime on a GPU: each call is one of the CUDA runtime, with its error as a Status.
//
// The runtime's own state is per host thread: the current device (set before every call that
// depends on it) and the last error (cleared when it is reported, so that no later call reports it
// again).
#include <cudaTypedefs.h>
#include <cuda_runtime.h>
#include <nvtx3/nvToolsExt.h>

#include <array>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "cuda/blas/cublaslt.h"
#include "cuda/runtime/runtime.h"

namespace tandem::cuda {
namespace {

// Above this a kernel must be allowed its dynamic shared memory, bytes (CUDA C++ Programming
// Guide, "Shared Memory").
constexpr int64_t kSharedWithoutOptIn = 48 << 10;

// After these every call of the process fails: the context is lost.
bool IsSticky(cudaError_t error) {
  switch (error) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
    case cudaErrorContextIsDestroyed:
      return true;
    default:
      return false;
  }
}

absl::Status ToStatus(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return absl::OkStatus();
  (void)cudaGetLastError();
  const std::string text =
      absl::StrCat(call, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error));
  if (error == cudaErrorMemoryAllocation) return absl::ResourceExhaustedError(text);
  if (IsSticky(error)) {
    return absl::UnavailableError(absl::StrCat(text, " (the device is lost to this process)"));
  }
  return absl::InternalError(text);
}

CUtensorMapDataType TensorMapType(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::kBF16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kI8:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    case DType::kI32:
      return CU_TENSOR_MAP_DATA_TYPE_INT32;
    default:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  }
}

CUtensorMapSwizzle TensorMapSwizzle(Swizzle swizzle) {
  switch (swizzle) {
    case Swizzle::k32:
      return CU_TENSOR_MAP_SWIZZLE_32B;
    case Swizzle::k64:
      return CU_TENSOR_MAP_SWIZZLE_64B;
    case Swizzle::k128:
      return CU_TENSOR_MAP_SWIZZLE_128B;
    default:
      return CU_TENSOR_MAP_SWIZZLE_NONE;
  }
}

// What handles point to: launches need the device of their stream to be current.
struct GpuStream {
  cudaStream_t stream = nullptr;
  int device = 0;
};

GpuStream& Of(StreamHandle handle) { return *static_cast<GpuStream*>(handle.value); }
cudaEvent_t Of(EventHandle handle) { return static_cast<cudaEvent_t>(handle.value); }
cudaGraphExec_t Of(GraphHandle handle) { return static_cast<cudaGraphExec_t>(handle.value); }

// cudaErrorNotReady is an answer.
absl::StatusOr<bool> IsReady(const char* call, cudaError_t error) {
  if (error == cudaErrorNotReady) {
    (void)cudaGetLastError();
    return false;
  }
  TANDEM_RETURN_IF_ERROR(ToStatus(call, error));
  return true;
}

class CudaRuntime final : public Runtime {
 public:
  explicit CudaRuntime(std::string cublaslt_path) : cublaslt_path_(std::move(cublaslt_path)) {}

  bool emulated() const override { return false; }

  Probe Devices() override { return ProbeDevices(); }
  absl::StatusOr<MemoryInfo> Memory(int device) override {
    TANDEM_RETURN_IF_ERROR(SetDevice(device));
    size_t free = 0, total = 0;
    TANDEM_RETURN_IF_ERROR(ToStatus("cudaMemGetInfo", cudaMemGetInfo(&free, &total)));
    return MemoryInfo{static_cast<int64_t>(total), static_cast<int64_t>(free)};
  }

  absl::StatusOr<void*> Allocate(int device, int64_t bytes) override {
    TANDEM_RETURN_IF_ERROR(SetDevice(device));
    void* data = nullptr;
    if (absl::Status status = ToStatus("cudaMalloc", cudaMalloc(&data, static_cast<size_t>(bytes)));
        !status.ok()) {
      return absl::Status(status.code(), absl::StrCat(Message(status), " (", bytes, " bytes)"));
    }
    return data;
  }
  absl::Status Free(int device, void* data) override {
    TANDEM_RETURN_IF_ERROR(SetDevice(device));
    return ToStatus("cudaFree", cudaFree(data));
  }
  absl::StatusOr<TensorMap> EncodeTensorMap(const TensorMapSpec& spec) override {
    TANDEM_RETURN_IF_ERROR(Validate(spec));
    // The driver's function is asked for by name: the driver is no load-time dependency.
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    TANDEM_RETURN_IF_ERROR(
        ToStatus("cudaGetDriverEntryPointByVersion",
                 cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000,
                                                  cudaEnableDefault, &found)));
    if (found != cudaDriverEntryPointSuccess || entry == nullptr) {
      return absl::UnimplementedError("cuTensorMapEncodeTiled: the driver has no tensor maps");
    }
    std::array<cuuint64_t, 5> extent = {}, stride = {};
    std::array<cuuint32_t, 5> box = {}, step = {};
    for (size_t i = 0; i < static_cast<size_t>(spec.rank); ++i) {
      extent[i] = static_cast<cuuint64_t>(spec.extent[i]);
      if (i > 0) stride[i - 1] = static_cast<cuuint64_t>(spec.stride[i]);
      box[i] = static_cast<cuuint32_t>(spec.box[i]);
      step[i] = 1;
    }
    CUtensorMap encoded;
    static_assert(sizeof(encoded) == sizeof(TensorMap));
    const CUresult result = reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry)(
        &encoded, TensorMapType(spec.dtype), static_cast<cuuint32_t>(spec.rank),
        const_cast<void*>(spec.data), extent.data(), stride.data(), box.data(), step.data(),
        CU_TENSOR_MAP_INTERLEAVE_NONE, TensorMapSwizzle(spec.swizzle),
        CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) {
      return absl::InternalError(
          absl::StrCat("cuTensorMapEncodeTiled: error ", static_cast<int>(result)));
    }
    TensorMap map;
    std::memcpy(&map, &encoded, sizeof(map));
    return map;
  }
  absl::StatusOr<void*> AllocatePinned(int64_t bytes) override {
    void* data = nullptr;
    TANDEM_RETURN_IF_ERROR(ToStatus(
        "cudaHostAlloc", cudaHostAlloc(&data, static_cast<size_t>(bytes), cudaHostAllocPortable)));
    return data;
  }
  absl::Status FreePinned(void* data) override {
    return ToStatus("cudaFreeHost", cudaFreeHost(data));
  }

  absl::StatusOr<StreamHandle> CreateStream(int device) override {
    TANDEM_RETURN_IF_ERROR(SetDevice(device));
    auto stream = std::make_unique<GpuStream>();
    stream->device = device;
    // Not ordered with the legacy default stream, which we never use.
    TANDEM_RETURN_IF_ERROR(
        ToStatus("cudaStreamCreateWithFlags",
                 cudaStreamCreateWithFlags(&stream->stream, cudaStreamNonBlocking)));
    return StreamHandle{stream.release()};
  }
  absl::Status DestroyStream(StreamHandle handle) override {
    const std::unique_ptr<GpuStream> stream(&Of(handle));
    return ToStatus("cudaStreamDestroy", cudaStreamDestroy(stream->stream));
  }
  absl::Status Synchronize(StreamHandle handle) override {
    return ToStatus("cudaStreamSynchronize", cudaStreamSynchronize(Of(handle).stream));
  }
  absl::StatusOr<bool> Finished(StreamHandle handle) override {
    return IsReady("cudaStreamQuery", cudaStreamQuery(Of(handle).stream));
  }

  absl::Status Copy(StreamHandle handle, void* destination, const void* source,
                    int64_t bytes) override {
    // With one address space for host and devices the driver knows the direction.
    return ToStatus("cudaMemcpyAsync",
                    cudaMemcpyAsync(destination, source, static_cast<size_t>(bytes),
                                    cudaMemcpyDefault, Of(handle).stream));
  }
  absl::Status Fill(StreamHandle handle, void* destination, uint8_t byte, int64_t bytes) override {
    return ToStatus(
        "cudaMemsetAsync",
        cudaMemsetAsync(destination, byte, static_cast<size_t>(bytes), Of(handle).stream));
  }
  absl::Status Launch(StreamHandle handle, const KernelFunction& function,
                      const LaunchConfig& config, const void* params) override {
    if (function.gpu == nullptr) {
      return absl::InternalError(absl::StrCat("launch ", function.name, ": has no form for GPUs"));
    }
    TANDEM_RETURN_IF_ERROR(SetDevice(Of(handle).device));
    if (config.shared_bytes > kSharedWithoutOptIn) {
      TANDEM_RETURN_IF_ERROR(Named(
          function,
          ToStatus("cudaFuncSetAttribute",
                   cudaFuncSetAttribute(function.gpu, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(config.shared_bytes)))));
    }
    void* arguments[] = {const_cast<void*>(params)};
    return Named(function,
                 ToStatus("cudaLaunchKernel",
                          cudaLaunchKernel(function.gpu, ToDim3(config.grid), ToDim3(config.block),
                                           arguments, static_cast<size_t>(config.shared_bytes),
                                           Of(handle).stream)));
  }
  absl::Status HostFunction(StreamHandle handle, void (*function)(void*), void* data) override {
    return ToStatus("cudaLaunchHostFunc", cudaLaunchHostFunc(Of(handle).stream, function, data));
  }

  absl::StatusOr<EventHandle> CreateEvent(int device) override {
    TANDEM_RETURN_IF_ERROR(SetDevice(device));
    cudaEvent_t event = nullptr;
    TANDEM_RETURN_IF_ERROR(ToStatus("cudaEventCreate", cudaEventCreate(&event)));
    return EventHandle{event};
  }
  absl::Status DestroyEvent(EventHandle event) override {
    return ToStatus("cudaEventDestroy", cudaEventDestroy(Of(event)));
  }
  absl::Status Record(EventHandle event, StreamHandle stream) override {
    return ToStatus("cudaEventRecord", cudaEventRecord(Of(event), Of(stream).stream));
  }
  absl::Status Wait(StreamHandle stream, EventHandle event) override {
    return ToStatus("cudaStreamWaitEvent", cudaStreamWaitEvent(Of(stream).stream, Of(event), 0));
  }
  absl::Status Synchronize(EventHandle event) override {
    return ToStatus("cudaEventSynchronize", cudaEventSynchronize(Of(event)));
  }
  absl::StatusOr<bool> Finished(EventHandle event) override {
    return IsReady("cudaEventQuery", cudaEventQuery(Of(event)));
  }
  absl::StatusOr<double> Seconds(EventHandle start, EventHandle end) override {
    float milliseconds = 0.0f;
    TANDEM_RETURN_IF_ERROR(
        ToStatus("cudaEventElapsedTime", cudaEventElapsedTime(&milliseconds, Of(start), Of(end))));
    return static_cast<double>(milliseconds) * 1e-3;
  }

  absl::Status BeginCapture(StreamHandle stream) override {
    return ToStatus("cudaStreamBeginCapture",
                    cudaStreamBeginCapture(Of(stream).stream, cudaStreamCaptureModeThreadLocal));
  }
  absl::StatusOr<GraphHandle> EndCapture(StreamHandle stream) override {
    cudaGraph_t graph = nullptr;
    TANDEM_RETURN_IF_ERROR(
        ToStatus("cudaStreamEndCapture", cudaStreamEndCapture(Of(stream).stream, &graph)));
    cudaGraphExec_t executable = nullptr;
    const absl::Status status =
        ToStatus("cudaGraphInstantiate", cudaGraphInstantiate(&executable, graph, 0));
    const absl::Status destroyed = ToStatus("cudaGraphDestroy", cudaGraphDestroy(graph));
    TANDEM_RETURN_IF_ERROR(status);
    if (!destroyed.ok()) {
      (void)cudaGraphExecDestroy(executable);
      return destroyed;
    }
    return GraphHandle{executable};
  }
  absl::Status LaunchGraph(GraphHandle graph, StreamHandle stream) override {
    return ToStatus("cudaGraphLaunch", cudaGraphLaunch(Of(graph), Of(stream).stream));
  }
  absl::Status DestroyGraph(GraphHandle graph) override {
    return ToStatus("cudaGraphExecDestroy", cudaGraphExecDestroy(Of(graph)));
  }

  absl::StatusOr<std::unique_ptr<Blas>> MakeBlas(int device) override {
    TANDEM_RETURN_IF_ERROR(SetDevice(device));
    return MakeCublasLt(
        [](StreamHandle stream) -> absl::StatusOr<void*> {
          TANDEM_RETURN_IF_ERROR(SetDevice(Of(stream).device));
          return Of(stream).stream;
        },
        cublaslt_path_);
  }

  void PushRange(const char* name) override { nvtxRangePushA(name); }
  void PopRange() override { nvtxRangePop(); }

 private:
  static absl::Status SetDevice(int device) {
    return ToStatus("cudaSetDevice", cudaSetDevice(device));
  }
  static absl::Status Named(const KernelFunction& function, const absl::Status& status) {
    if (status.ok()) return status;
    return absl::Status(status.code(),
                        absl::StrCat("launch ", function.name, ": ", Message(status)));
  }
  static dim3 ToDim3(const Dim3& d) {
    return dim3(static_cast<unsigned>(d.x), static_cast<unsigned>(d.y), static_cast<unsigned>(d.z));
  }

  const std::string cublaslt_path_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Runtime>> MakeCudaRuntime(const std::string& cublaslt_path) {
  const Probe probe = ProbeDevices();
  if (probe.devices.empty()) return absl::FailedPreconditionError("cuda: " + probe.message);
  return std::make_unique<CudaRuntime>(cublaslt_path);
}

}  // namespace tandem::cuda
