// A kernel: one way of computing one op on one kind of device, as a plain struct of functions.
//
// Each device publishes, per op, one ordered list: fastest first, a plain reference kernel last.
//   supports         can: OK, or Unimplemented saying what it lacks. Looks at arguments and at what
//   the context's
//                    device allows (instruction set); no heuristics. Arguments are already
//                    validated.
//   applies          optional: a quick no without words, for kernels of particular arguments (a
//                    packed format) that stand before the everyday ones: a refusal by supports
//                    costs its message. false only where supports is not OK.
//   workspace_bytes  scratch that run() will take from context.workspace, for these arguments.
//   run              do: computes on context.stream, allocates nothing, does not synchronise.
// Choosing among kernels that can (want) belongs to the scheduler.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "core/device.h"
#include "core/op.h"
#include "core/stream.h"
#include "core/workspace.h"

namespace tandem {

// What a running kernel may use. The stream carries the device's own resources (for the CPU:
// threads and instruction set).
struct KernelContext {
  Stream* stream = nullptr;
  Workspace* workspace = nullptr;
};

template <typename Args>
struct Kernel {
  using ArgsType = Args;

  std::string_view
      name;  // unique within op and device, "decode_avx512"; refers to a string literal
  DeviceKind device = DeviceKind::kCpu;
  absl::Status (*supports)(const KernelContext& context, const Args& args) = nullptr;
  int64_t (*workspace_bytes)(const KernelContext& context, const Args& args) = nullptr;
  absl::Status (*run)(const KernelContext& context, const Args& args) = nullptr;
  bool (*applies)(const Args& args) = nullptr;
};

template <typename Args>
using KernelList = std::span<const Kernel<Args>>;

// For kernels that need no scratch.
template <typename Args>
int64_t NoWorkspace(const KernelContext&, const Args&) {
  return 0;
}
// For kernels that take every valid argument (reference kernels).
template <typename Args>
absl::Status SupportsAll(const KernelContext&, const Args&) {
  return absl::OkStatus();
}

}  // namespace tandem
