// What becomes of a call that failed on the GPU.
//
//   operands in host memory  it runs on the CPU: nothing had been written (dispatch/transfer.h)
//   operands in GPU memory   they are fetched, the call runs on the CPU, and what it wrote is put
//                            back; where the device is lost they are gone: Unavailable, saying so
//   out of memory            first all memory that is kept for later is given back, and the GPU
//                            tried once more
//   forced device or kernel  the caller gets the error
//   while a graph records    likewise: what was recorded so far must go with it
// Either way the event is in the context's health, its log and its trace.
#pragma once

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "dispatch/context.h"
#include "dispatch/scheduler.h"

namespace tandem {

// `status`: with which the call failed on the GPU. `again` tries it there once more, `on_cpu` runs
// it on the CPU. What the caller shall be told; `event`: the number of the event, 0 if it was no
// fault of the device.
absl::Status FallBack(Context& context, const OpFacts& facts, bool forced, absl::Status status,
                      absl::FunctionRef<absl::Status()> again,
                      absl::FunctionRef<absl::Status()> on_cpu, int64_t& event);

// An error that the GPU, not the caller, is to blame for: FallBack may help.
bool DeviceFailed(const absl::Status& status);

// Keeps the books of a call that succeeded while something was wrong.
void NoteSuccess(Context& context, const OpFacts& facts, const Decision& decision);

// For traces: waits until a call that succeeded is done. A wait that fails says nothing about the
// work: it is asked again.
absl::Status WaitForResult(Context& context, const OpFacts& facts);

}  // namespace tandem
