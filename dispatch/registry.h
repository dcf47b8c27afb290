// The kernels of every op and device, and the choice among those of one device: the first that
// supports the arguments, in the order of the list or, where there are measurements of such calls
// (dispatch/kernel_choice.h), in the order of these. Reasons are gathered only when nobody does.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/kernel.h"
#include "core/status.h"
#include "cpu/kernels.h"
#include "cuda/kernels.h"

namespace tandem {

// The ordered list of one op on one device; empty if the device has none.
template <typename Args>
KernelList<Args> KernelsOf(DeviceKind device) {
  return device == DeviceKind::kCpu ? cpu::Kernels<Args>() : cuda::Kernels<Args>();
}

// First kernel that supports the arguments: of those at the positions in `preferred`, then of the
// whole list. Or, with `forced` non-empty, the kernel of that name and no other. Errors:
// Unimplemented listing every kernel with its reason; InvalidArgument for a forced name that does
// not exist; a forced kernel's own reason when it cannot.
template <typename Args>
absl::StatusOr<const Kernel<Args>*> Select(const KernelContext& context, DeviceKind device,
                                           const Args& args, std::string_view forced,
                                           std::span<const uint8_t> preferred = {}) {
  const KernelList<Args> kernels = KernelsOf<Args>(device);
  if (forced.empty()) {
    for (const uint8_t position : preferred) {
      if (position >= kernels.size()) continue;
      const Kernel<Args>& kernel = kernels[position];
      if (kernel.applies != nullptr && !kernel.applies(args)) continue;
      if (kernel.supports(context, args).ok()) return &kernel;
    }
  }
  for (const Kernel<Args>& kernel : kernels) {
    if (!forced.empty() && kernel.name != forced) continue;
    if (kernel.applies != nullptr && !kernel.applies(args)) continue;
    if (kernel.supports(context, args).ok()) return &kernel;
  }
  // Nobody accepted: ask again for the reasons.
  std::string reasons;
  bool known = forced.empty();
  for (const Kernel<Args>& kernel : kernels) {
    if (!forced.empty() && kernel.name != forced) continue;
    known = true;
    absl::StrAppend(&reasons, reasons.empty() ? "" : "; ", std::string(kernel.name), ": ",
                    Message(kernel.supports(context, args)));
  }
  const std::string op(Name(Args::kOp));
  if (!known) {
    return InvalidArgument("kernel: no ", op, " kernel named '", std::string(forced), "' on ",
                           std::string(Name(device)));
  }
  if (reasons.empty()) reasons = "there are none";
  return Unimplemented("no ", op, " kernel on ", std::string(Name(device)),
                       " accepts these arguments (", reasons, ")");
}

// Names of the kernels of an op on a device, in order.
std::vector<std::string_view> KernelNames(OpKind op, DeviceKind device);

}  // namespace tandem
