#include "tools/device_bench.h"

#include <algorithm>
#include <random>

#include "core/status.h"
#include "dispatch/copy.h"

namespace tandem::tools {

absl::StatusOr<Tensor> DeviceBench::Upload(const Tensor& host) {
  TANDEM_ASSIGN_OR_RETURN(Tensor tensor, CopyTo(context_, DeviceKind::kCuda, host));
  TANDEM_RETURN_IF_ERROR(Synchronize(context_, DeviceKind::kCuda));
  return tensor;
}

absl::StatusOr<Tensor> DeviceBench::Zeros(DType dtype, const Shape& shape) {
  TANDEM_ASSIGN_OR_RETURN(Tensor host, Tensor::Allocate(context_.host_allocator(), dtype, shape));
  std::fill_n(host.As<char>(), host.buffer()->bytes(), '\0');
  return Upload(host);
}

absl::StatusOr<Tensor> DeviceBench::Normals(DType dtype, const Shape& shape) {
  TANDEM_ASSIGN_OR_RETURN(Tensor host, Tensor::Allocate(context_.host_allocator(), dtype, shape));
  constexpr int64_t kPeriod = 1'000'003;  // prime: rows do not repeat each other
  std::mt19937_64 engine(1);
  std::normal_distribution<float> normal;
  const int64_t count = host.view().num_elements();
  DispatchFloat(dtype, [&]<typename T>() {
    T* data = host.As<T>();
    for (int64_t i = 0; i < count; ++i) {
      data[i] = i < kPeriod ? FromFloat<T>(normal(engine)) : data[i - kPeriod];
    }
  });
  return Upload(host);
}

absl::StatusOr<std::string> DeviceBench::WarmUp(const std::function<absl::Status()>& run) {
  Trace& trace = context_.trace();
  const bool enabled = trace.enabled();
  const size_t before = trace.records().size();
  trace.Enable(true);
  const absl::Status status = run();
  trace.Enable(enabled);
  TANDEM_RETURN_IF_ERROR(status);
  if (trace.records().size() == before) return std::string("-");
  return std::string(trace.records().back().kernel);
}

absl::StatusOr<DeviceBenchRow*> DeviceBench::Measure(const std::string& what, double bytes,
                                                     double flops,
                                                     const std::function<absl::Status()>& run) {
  TANDEM_ASSIGN_OR_RETURN(const std::string kernel, WarmUp(run));
  std::vector<double> seconds;
  for (int i = 0; i < repeats_; ++i) {
    TANDEM_ASSIGN_OR_RETURN(const auto start, device_.stream->Record());
    TANDEM_RETURN_IF_ERROR(run());
    TANDEM_ASSIGN_OR_RETURN(const auto end, device_.stream->Record());
    TANDEM_RETURN_IF_ERROR(end->Synchronize());
    TANDEM_ASSIGN_OR_RETURN(seconds.emplace_back(), end->SecondsSince(*start));
  }
  std::nth_element(seconds.begin(), seconds.begin() + repeats_ / 2, seconds.end());
  rows_.push_back({what, kernel, seconds[static_cast<size_t>(repeats_ / 2)], bytes, flops});
  return &rows_.back();
}

}  // namespace tandem::tools
