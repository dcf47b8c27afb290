#include "cuda/conformance/suite.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "cuda/runtime/handles.h"

namespace tandem::cuda {

ConformanceRunner::~ConformanceRunner() {
  runtime_.Synchronize(stream_).IgnoreError();
  for (void* data : memory_) runtime_.Free(device_, data).IgnoreError();
}

absl::StatusOr<void*> ConformanceRunner::Upload(const Bytes& bytes) {
  if (bytes.empty()) return nullptr;
  TANDEM_ASSIGN_OR_RETURN(void* const data,
                          runtime_.Allocate(device_, static_cast<int64_t>(bytes.size())));
  memory_.push_back(data);
  TANDEM_RETURN_IF_ERROR(
      runtime_.Copy(stream_, data, bytes.data(), static_cast<int64_t>(bytes.size())));
  TANDEM_RETURN_IF_ERROR(runtime_.Synchronize(stream_));  // `bytes` may go away
  return data;
}

absl::StatusOr<Bytes> ConformanceRunner::Download(const void* data, size_t bytes) {
  Bytes result(bytes);
  TANDEM_RETURN_IF_ERROR(runtime_.Copy(stream_, result.data(), data, static_cast<int64_t>(bytes)));
  TANDEM_RETURN_IF_ERROR(runtime_.Synchronize(stream_));
  return result;
}

absl::Status ConformanceRunner::Launch(const KernelFunction& gpu, const KernelFunction& emulated,
                                       const LaunchConfig& config, const void* params) {
  const KernelFunction& function = runtime_.emulated() ? emulated : gpu;
  if (!function) return absl::InternalError("the kernel is not built for this device");
  return runtime_.Launch(stream_, function, config, params);
}

std::string Difference(const ConformanceCase& c, const Bytes& expected, const Bytes& got) {
  if (expected.size() != got.size()) {
    return absl::StrCat(got.size(), " bytes, expected ", expected.size());
  }
  if (c.exact) {
    const auto at = std::mismatch(expected.begin(), expected.end(), got.begin());
    if (at.first == expected.end()) return "";
    return absl::StrCat("byte ", at.first - expected.begin(), " is ", static_cast<int>(*at.second),
                        ", expected ", static_cast<int>(*at.first));
  }
  std::vector<float> want(expected.size() / sizeof(float)), have(want.size());
  std::memcpy(want.data(), expected.data(), want.size() * sizeof(float));
  std::memcpy(have.data(), got.data(), have.size() * sizeof(float));
  for (size_t i = 0; i < want.size(); ++i) {
    const float bound = c.tolerance * std::max(1.0f, std::fabs(want[i]));
    if (!(std::fabs(want[i] - have[i]) <= bound)) {
      return absl::StrCat("element ", i, " is ", have[i], ", expected ", want[i], " +- ", bound);
    }
  }
  return "";
}

ConformanceResult RunConformanceCase(const ConformanceCase& c, Runtime& runtime,
                                     const DeviceInfo& device) {
  ConformanceResult result;
  result.name = c.name;
  const int capability = 10 * device.compute_capability_major + device.compute_capability_minor;
  if (capability < c.capability) {
    result.skipped =
        absl::StrCat("needs compute capability ", c.capability / 10, ".", c.capability % 10,
                     ", the device has ", capability / 10, ".", capability % 10);
    return result;
  }
  if (c.name.rfind("wgmma", 0) == 0 && capability / 10 != 9) {
    result.skipped = "wgmma exists on compute capability 9.0 only";
    return result;
  }
  auto stream = MakeStream(runtime, device.index);
  if (!stream.ok()) {
    result.error = std::string(stream.status().message());
    return result;
  }
  absl::StatusOr<Bytes> output;
  {
    ConformanceRunner runner(runtime, device.index, stream->get());
    output = c.run(runner);
  }
  if (!output.ok()) {
    result.error = std::string(output.status().message());
    return result;
  }
  result.output = *std::move(output);
  result.error = Difference(c, c.expected, result.output);
  return result;
}

}  // namespace tandem::cuda
