// Every op's cases. A new op adds its header and its name here.
#pragma once

#include "tests/cases/attention_cases.h"
#include "tests/cases/elementwise_cases.h"
#include "tests/cases/grouped_matmul_cases.h"
#include "tests/cases/kv_append_cases.h"
#include "tests/cases/lookup_cases.h"
#include "tests/cases/mask_cases.h"
#include "tests/cases/matmul_cases.h"
#include "tests/cases/merge_attention_cases.h"
#include "tests/cases/rope_cases.h"

namespace tandem::cases {

// Calls fn.template operator()<Case>() for every op.
template <typename Fn>
void ForEachCaseType(Fn&& fn) {
  fn.template operator()<AttentionCase>();
  fn.template operator()<MaskCase>();
  fn.template operator()<MatMulCase>();
  fn.template operator()<SoftmaxCase>();
  fn.template operator()<RmsNormCase>();
  fn.template operator()<RopeCase>();
  fn.template operator()<SiluMulCase>();
  fn.template operator()<AddCase>();
  fn.template operator()<EmbeddingCase>();
  fn.template operator()<KvAppendCase>();
  fn.template operator()<CastCase>();
  fn.template operator()<ArgMaxCase>();
  fn.template operator()<SampleCase>();
  fn.template operator()<MergeAttentionCase>();
  fn.template operator()<GroupedMatMulCase>();
}

}  // namespace tandem::cases
