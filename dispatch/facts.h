// What the scheduler and the trace need to know of a call: sizes, bytes and operations, from its
// arguments. Bytes count each operand once; for attention only visible keys count as work.
#pragma once

#include "core/ops/add.h"
#include "core/ops/argmax.h"
#include "core/ops/attention.h"
#include "core/ops/cast.h"
#include "core/ops/embedding.h"
#include "core/ops/grouped_matmul.h"
#include "core/ops/kv_append.h"
#include "core/ops/mask.h"
#include "core/ops/matmul.h"
#include "core/ops/merge_attention.h"
#include "core/ops/rms_norm.h"
#include "core/ops/rope.h"
#include "core/ops/sample.h"
#include "core/ops/silu_mul.h"
#include "core/ops/softmax.h"
#include "dispatch/scheduler.h"

namespace tandem {

OpFacts FactsOf(const AttentionArgs& args);
OpFacts FactsOf(const MaskArgs& args);
OpFacts FactsOf(const MatMulArgs& args);
OpFacts FactsOf(const GroupedMatMulArgs& args);
OpFacts FactsOf(const SoftmaxArgs& args);
OpFacts FactsOf(const RmsNormArgs& args);
OpFacts FactsOf(const RopeArgs& args);
OpFacts FactsOf(const SiluMulArgs& args);
OpFacts FactsOf(const AddArgs& args);
OpFacts FactsOf(const EmbeddingArgs& args);
OpFacts FactsOf(const KvAppendArgs& args);
OpFacts FactsOf(const CastArgs& args);
OpFacts FactsOf(const ArgMaxArgs& args);
OpFacts FactsOf(const SampleArgs& args);
OpFacts FactsOf(const MergeAttentionArgs& args);

}  // namespace tandem
