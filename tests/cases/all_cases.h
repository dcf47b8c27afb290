// Every op's cases. A new op adds its header and its name here.
#pragma once

#include "tests/cases/attention_cases.h"
#include "tests/cases/matmul_cases.h"

namespace tandem::cases {

// Calls fn.template operator()<Case>() for every op.
template <typename Fn>
void ForEachCaseType(Fn&& fn) {
  fn.template operator()<AttentionCase>();
  fn.template operator()<MatMulCase>();
}

}  // namespace tandem::cases
