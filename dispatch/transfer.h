// Running a call on a device that its operands are not on: they are copied there, and what was
// written is copied back.
//
//   host -> CUDA   elements only: in device memory every operand is dense (dimensions of stride 0
//                  stay so), what lies between the elements of an output is not touched
//   CUDA -> host   the whole address range, as it lies there
// Operands that are the same elements (in place, a matrix given twice) are copied once and stay the
// same elements. Results come to page-locked memory first and are put in place when all have
// arrived: a call that fails has written nothing. One that succeeds is complete: the host waits.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "core/buffer.h"
#include "core/tensor_view.h"
#include "dispatch/operands.h"

namespace tandem {

struct ContextDevice;

class Transfer {
 public:
  // Adds an operand, which must live until the end, and rewrites its view to what it will be on
  // `to`, except for the address.
  void Add(TensorView& view, Access access, Device to);
  // Allocates on `to`, sets the addresses, copies what is read. One of the devices is the host.
  absl::Status Upload(ContextDevice& from, ContextDevice& to);
  // Waits for the work, copies back what was written.
  absl::Status Download(ContextDevice& from, ContextDevice& to);
  // Of both directions.
  int64_t bytes() const { return bytes_; }

 private:
  struct Moved {
    TensorView original;
    TensorView staged;  // address null until Upload
    bool read = false;
    bool written = false;
    int64_t bytes = 0;
    std::shared_ptr<Buffer> buffer;
  };
  struct Use {
    TensorView* view;
    size_t moved;  // index
  };

  std::vector<Moved> moved_;
  std::vector<Use> uses_;
  int64_t bytes_ = 0;
};

}  // namespace tandem
