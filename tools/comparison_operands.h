// The operands of calls of the published grid (tools/comparison_grid.h), and the calls.
#pragma once

#include <algorithm>
#include <cstdint>

#include "absl/status/statusor.h"
#include "core/ops/attention.h"
#include "core/ops/mask.h"
#include "core/ops/matmul.h"
#include "core/tensor.h"
#include "dispatch/context.h"
#include "tools/comparison_grid.h"

namespace tandem::tools {

// Memory full of plausible numbers of one dtype, on one device, that views are cut from.
class OperandPool {
 public:
  static absl::StatusOr<OperandPool> Make(Context& context, DeviceKind where, DType dtype,
                                          int64_t bytes);
  // The copy-th tensor of this shape; the same again when there is no room for more.
  TensorView View(const Shape& shape, int64_t copy) const;

 private:
  DType dtype_ = DType::kF32;
  Tensor memory_;
};

// The operands of a series on one device, enough for its longest call.
struct GridOperands {
  OperandPool small, small_out, stored, stored_v, scales;
};
absl::StatusOr<GridOperands> MakeOperands(Context& context, DeviceKind where, const GridSeries& s,
                                          int64_t longest);
// How many copies of the operands calls at x rotate over, so that they are not in a cache.
int64_t CopiesOf(const GridSeries& s, int64_t x);

// Operands without memory: where only shapes, types and the device matter.
struct ShapePool {
  DType dtype = DType::kF32;
  Device device = {};
  TensorView View(const Shape& shape, int64_t) const {
    return MakeView(static_cast<void*>(nullptr), dtype, shape, device);
  }
};
struct ShapeOperands {
  ShapeOperands(const GridSeries& s, Device device)
      : small{s.activations, device},
        small_out{s.activations, device},
        stored{s.stored, device},
        stored_v{s.stored, device},
        scales{DType::kF32, device} {}
  ShapePool small, small_out, stored, stored_v, scales;
};

// Calls visit(args) with the arguments of one call at x, of GridOperands or ShapeOperands.
template <typename Operands, typename Visit>
auto WithArgs(const GridSeries& s, const Operands& operands, int64_t x, int64_t copy,
              const Visit& visit) {
  if (s.op == OpKind::kMask) {
    MaskArgs args;
    args.rule.q_len = args.rule.kv_len = x;
    args.out = operands.stored.View({x, MaskColumns(s.stored, x)}, 0);
    return visit(args);
  }
  if (s.op == OpKind::kMatMul) {
    MatMulArgs args;
    args.a = operands.small.View({x, s.k}, 0);
    args.b = operands.stored.View({s.n, s.k}, copy);
    args.out = operands.small_out.View({x, s.n}, 0);
    return visit(args);
  }
  AttentionArgs args;
  const Shape queries = {1, kGridHeads, s.prefill ? x : 1, kGridHeadDim};
  const Shape keys = {1, kGridKvHeads, x, kGridHeadDim};
  args.q = operands.small.View(queries, 0);
  args.out = operands.small_out.View(queries, 0);
  args.k = operands.stored.View(keys, copy);
  args.v = operands.stored_v.View(keys, copy);
  if (s.stored == DType::kI8) {
    args.k_scale = operands.scales.View({1, kGridKvHeads, x}, 0);
    args.v_scale = args.k_scale;
  }
  return visit(args);
}

}  // namespace tandem::tools
