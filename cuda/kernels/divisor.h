// Division of 64-bit indices by a number that a launch fixes. A GPU divides 64-bit integers in a
// subroutine, around which a kernel must save its registers; a multiplication by the reciprocal,
// put right by at most one, needs none.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace tandem::cuda {

class Divisor {
 public:
  Divisor() = default;
  // divisor >= 1; 0 is taken as 1, for extents of empty tensors.
  TANDEM_HOST_DEVICE explicit Divisor(int64_t divisor)
      : divisor_(divisor > 0 ? divisor : 1), reciprocal_(1.0 / static_cast<double>(divisor_)) {}

  struct Result {
    int64_t quotient, remainder;
  };
  // 0 <= x < 2^52: the product is then off by less than one.
  TANDEM_HOST_DEVICE Result Divide(int64_t x) const {
    int64_t quotient = static_cast<int64_t>(static_cast<double>(x) * reciprocal_);
    int64_t remainder = x - quotient * divisor_;
    if (remainder < 0) {
      --quotient;
      remainder += divisor_;
    } else if (remainder >= divisor_) {
      ++quotient;
      remainder -= divisor_;
    }
    return {quotient, remainder};
  }
  TANDEM_HOST_DEVICE int64_t value() const { return divisor_; }

 private:
  int64_t divisor_ = 1;
  double reciprocal_ = 1.0;
};

}  // namespace tandem::cuda
