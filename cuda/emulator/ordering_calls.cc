#include "cuda/emulator/ordering_calls.h"

#include "absl/strings/str_cat.h"
#include "cuda/emulator/block.h"

namespace tandem::cuda::emulator {

std::set<std::string> OrderingCalls::met() const {
  const Lock lock(busy_);
  return met_;
}

void OrderingCalls::LeaveOut(const std::string& call) {
  const Lock lock(busy_);
  left_out_ = call;
}

bool OrderingCalls::LeavesOut(const char* name, Site site) {
  const std::string call = absl::StrCat(name, " ", ToString(site));
  const Lock lock(busy_);
  met_.insert(call);
  return call == left_out_;
}

}  // namespace tandem::cuda::emulator
