// The operands of every op: what a call reads and writes.
#pragma once

#include <cstdint>
#include <vector>

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

namespace tandem {

enum class Access : uint8_t {
  kRead,
  kWrite,      // every element
  kReadWrite,  // some elements may keep what they hold
};

// Calls fn(TensorView&, Access) for every operand that an op can have, present or not.
template <typename Fn>
void ForEachOperand(AttentionArgs& args, Fn&& fn) {
  for (TensorView* view :
       {&args.q, &args.k, &args.v, &args.k_new, &args.v_new, &args.alibi_slopes, &args.bias,
        &args.mask, &args.sinks, &args.q_lens, &args.q_offsets, &args.kv_lens, &args.kv_starts,
        &args.page_table, &args.k_scale, &args.v_scale}) {
    fn(*view, Access::kRead);
  }
  // Rows beyond a sequence's queries are left as they are.
  const Access access = args.ragged() ? Access::kReadWrite : Access::kWrite;
  fn(args.out, access);
  fn(args.lse, access);
}
template <typename Fn>
void ForEachOperand(MaskArgs& args, Fn&& fn) {
  for (TensorView* view : {&args.q_lens, &args.kv_lens, &args.kv_starts}) fn(*view, Access::kRead);
  fn(args.out, args.previous ? Access::kReadWrite : Access::kWrite);
}
template <typename Fn>
void ForEachOperand(MatMulArgs& args, Fn&& fn) {
  for (TensorView* view : {&args.a, &args.b, &args.bias, &args.addend}) fn(*view, Access::kRead);
  fn(args.out, Access::kWrite);
}
template <typename Fn>
void ForEachOperand(GroupedMatMulArgs& args, Fn&& fn) {
  fn(args.a, Access::kRead);
  for (int i = 0; i < args.num_products; ++i) {
    GroupedMatMulArgs::Product& product = args.products[static_cast<size_t>(i)];
    fn(product.b, Access::kRead);
    fn(product.bias, Access::kRead);
    fn(product.out, Access::kWrite);
  }
}
template <typename Fn>
void ForEachOperand(SoftmaxArgs& args, Fn&& fn) {
  fn(args.x, Access::kRead);
  fn(args.out, Access::kWrite);
}
template <typename Fn>
void ForEachOperand(RmsNormArgs& args, Fn&& fn) {
  for (TensorView* view : {&args.x, &args.weight, &args.residual}) fn(*view, Access::kRead);
  fn(args.sum, Access::kWrite);
  fn(args.out, Access::kWrite);
}
template <typename Fn>
void ForEachOperand(RopeArgs& args, Fn&& fn) {
  for (TensorView* view : {&args.x, &args.positions, &args.inv_freq}) fn(*view, Access::kRead);
  fn(args.out, Access::kWrite);
}
template <typename Fn>
void ForEachOperand(SiluMulArgs& args, Fn&& fn) {
  fn(args.gate, Access::kRead);
  fn(args.up, Access::kRead);
  fn(args.out, Access::kWrite);
}
template <typename Fn>
void ForEachOperand(AddArgs& args, Fn&& fn) {
  fn(args.a, Access::kRead);
  fn(args.b, Access::kRead);
  fn(args.out, Access::kWrite);
}
template <typename Fn>
void ForEachOperand(EmbeddingArgs& args, Fn&& fn) {
  fn(args.table, Access::kRead);
  fn(args.ids, Access::kRead);
  fn(args.out, Access::kWrite);
}
template <typename Fn>
void ForEachOperand(KvAppendArgs& args, Fn&& fn) {
  for (TensorView* view : {&args.k, &args.v, &args.cache_lens, &args.page_table,
                           &args.rope.positions, &args.rope.inv_freq, &args.q}) {
    fn(*view, Access::kRead);
  }
  for (TensorView* view : {&args.k_cache, &args.v_cache, &args.k_scale, &args.v_scale}) {
    fn(*view, Access::kReadWrite);
  }
  fn(args.q_out, Access::kWrite);
}
template <typename Fn>
void ForEachOperand(CastArgs& args, Fn&& fn) {
  fn(args.x, Access::kRead);
  fn(args.out, Access::kWrite);
}
template <typename Fn>
void ForEachOperand(ArgMaxArgs& args, Fn&& fn) {
  fn(args.x, Access::kRead);
  fn(args.out, Access::kWrite);
}
template <typename Fn>
void ForEachOperand(SampleArgs& args, Fn&& fn) {
  fn(args.logits, Access::kRead);
  fn(args.uniform, Access::kRead);
  fn(args.out, Access::kWrite);
}

// Packed weights are of one device: elsewhere the matrix itself is needed.
template <typename Args>
bool HasOnlyPackedWeights(const Args&) {
  return false;
}
inline bool HasOnlyPackedWeights(const MatMulArgs& args) { return !args.b.present(); }
inline bool HasOnlyPackedWeights(const GroupedMatMulArgs& args) {
  for (int i = 0; i < args.num_products; ++i) {
    if (!args.products[static_cast<size_t>(i)].b.present()) return true;
  }
  return false;
}
template <typename Args>
void DropPackedWeights(Args&) {}
inline void DropPackedWeights(MatMulArgs& args) { args.b_packed = nullptr; }
inline void DropPackedWeights(GroupedMatMulArgs& args) {
  for (GroupedMatMulArgs::Product& product : args.products) product.b_packed = nullptr;
}

// The same for who only looks: fn(const TensorView&, Access).
template <typename Args, typename Fn>
void ForEachOperand(const Args& args, Fn&& fn) {
  ForEachOperand(const_cast<Args&>(args),
                 [&fn](const TensorView& view, Access access) { fn(view, access); });
}
template <typename Fn>
void ForEachOperand(const MergeAttentionArgs& args, Fn&& fn) {
  for (const TensorView& part : args.out_parts) fn(part, Access::kRead);
  for (const TensorView& part : args.lse_parts) fn(part, Access::kRead);
  fn(args.out, Access::kWrite);
  fn(args.lse, Access::kWrite);
}

// A copy of a call's arguments whose operands can be replaced.
template <typename Args>
struct OwnedArgs {
  explicit OwnedArgs(const Args& given) : args(given) {}
  template <typename Fn>
  void ForEach(Fn&& fn) {
    ForEachOperand(args, fn);
  }
  Args args;
};

template <>
struct OwnedArgs<MergeAttentionArgs> {
  explicit OwnedArgs(const MergeAttentionArgs& given)
      : args(given),
        out_parts(given.out_parts.begin(), given.out_parts.end()),
        lse_parts(given.lse_parts.begin(), given.lse_parts.end()) {
    args.out_parts = out_parts;
    args.lse_parts = lse_parts;
  }
  OwnedArgs(const OwnedArgs&) = delete;
  OwnedArgs& operator=(const OwnedArgs&) = delete;
  template <typename Fn>
  void ForEach(Fn&& fn) {
    for (TensorView& part : out_parts) fn(part, Access::kRead);
    for (TensorView& part : lse_parts) fn(part, Access::kRead);
    fn(args.out, Access::kWrite);
    fn(args.lse, Access::kWrite);
  }
  MergeAttentionArgs args;
  std::vector<TensorView> out_parts, lse_parts;
};

}  // namespace tandem
