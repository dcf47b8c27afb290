// A call described by its sizes and types alone: what calibration measures, what `tandem explain`
// is asked about, what the scheduler's tests decide.
#pragma once

#include <cstdint>
#include <string>
#include <utility>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "core/ops/add.h"
#include "core/ops/argmax.h"
#include "core/ops/attention.h"
#include "core/ops/cast.h"
#include "core/ops/mask.h"
#include "core/ops/matmul.h"
#include "core/ops/rms_norm.h"
#include "core/ops/rope.h"
#include "core/ops/silu_mul.h"
#include "core/ops/softmax.h"
#include "core/status.h"
#include "dispatch/scheduler.h"

namespace tandem {

struct CallShape {
  OpKind op = OpKind::kMatMul;
  DType input = DType::kF32;    // activations, the mask
  DType weights = DType::kF32;  // matmul: b; attention: k and v
  bool packed = false;          // matmul
  // matmul: [m, k] x [n, k]; the ops by rows: [m, n]
  int64_t m = 1, n = 1, k = 1;
  // attention; mask: the lengths
  int64_t batch = 1, q_heads = 1, kv_heads = 1, head_dim = 128, q_len = 1, kv_len = 1;
  Causal causal = Causal::kBottomRight;
};

// "matmul f32 x q8_0, 1 x 4096 x 4096", "attention f32 x f16, 32/8 heads of 128, 1 query, 4096
// keys"
std::string Describe(const CallShape& shape);

// What an operand is to a call.
enum class OperandRole : uint8_t {
  kActivation,
  kWeights,    // of a matrix product; keys and values: usually not in caches when they are read
  kPositions,  // i32, ascending
  kOutput,
};
using MakeOperand = absl::FunctionRef<absl::StatusOr<TensorView>(OperandRole, DType, const Shape&)>;

// Head dimension of the calls of rope.
inline constexpr int64_t kRopeHeadDim = 128;

// Makes the operands and calls visit(args) with the op's arguments, without packed weights. Errors
// are make's and visit's. Unimplemented: an op that is not described by sizes.
template <typename Visit>
absl::Status WithArgs(const CallShape& s, MakeOperand make, Visit&& visit) {
  absl::Status failed;
  const auto add = [&](TensorView& view, OperandRole role, DType dtype, const Shape& shape) {
    if (!failed.ok()) return;
    absl::StatusOr<TensorView> made = make(role, dtype, shape);
    failed = made.status();
    if (made.ok()) view = *made;
  };
  using Role = OperandRole;
  const Shape rows = {s.m, s.n};
  const auto finish = [&](auto& args) -> absl::Status {
    if (!failed.ok()) return failed;
    return visit(args);
  };
  switch (s.op) {
    case OpKind::kMatMul: {
      MatMulArgs args;
      add(args.a, Role::kActivation, s.input, {s.m, s.k});
      add(args.b, Role::kWeights, s.weights, {s.n, s.k});
      add(args.out, Role::kOutput, s.input, {s.m, s.n});
      return finish(args);
    }
    case OpKind::kAttention: {
      AttentionArgs args;
      args.causal = s.causal;
      add(args.q, Role::kActivation, s.input, {s.batch, s.q_heads, s.q_len, s.head_dim});
      add(args.k, Role::kWeights, s.weights, {s.batch, s.kv_heads, s.kv_len, s.head_dim});
      add(args.v, Role::kWeights, s.weights, {s.batch, s.kv_heads, s.kv_len, s.head_dim});
      if (s.weights == DType::kI8) {
        for (TensorView* scale : {&args.k_scale, &args.v_scale}) {
          add(*scale, Role::kActivation, DType::kF32, {s.batch, s.kv_heads, s.kv_len});
        }
      }
      add(args.out, Role::kOutput, s.input, {s.batch, s.q_heads, s.q_len, s.head_dim});
      return finish(args);
    }
    case OpKind::kMask: {
      MaskArgs args;
      args.rule.q_len = s.q_len;
      args.rule.kv_len = s.kv_len;
      args.rule.causal = s.causal;
      add(args.out, Role::kOutput, s.input, {s.q_len, MaskColumns(s.input, s.kv_len)});
      return finish(args);
    }
    case OpKind::kSoftmax: {
      SoftmaxArgs args;
      add(args.x, Role::kActivation, s.input, rows);
      add(args.out, Role::kOutput, s.input, rows);
      return finish(args);
    }
    case OpKind::kRmsNorm: {
      RmsNormArgs args;
      add(args.x, Role::kActivation, s.input, rows);
      add(args.weight, Role::kActivation, DType::kF32, {s.n});
      add(args.out, Role::kOutput, s.input, rows);
      return finish(args);
    }
    case OpKind::kRope: {
      RopeArgs args;
      const Shape heads = {1, s.n / kRopeHeadDim, s.m, kRopeHeadDim};
      add(args.x, Role::kActivation, s.input, heads);
      add(args.positions, Role::kPositions, DType::kI32, {s.m});
      add(args.inv_freq, Role::kActivation, DType::kF32, {kRopeHeadDim / 2});
      add(args.out, Role::kOutput, s.input, heads);
      return finish(args);
    }
    case OpKind::kSiluMul: {
      SiluMulArgs args;
      add(args.gate, Role::kActivation, s.input, rows);
      add(args.up, Role::kActivation, s.input, rows);
      add(args.out, Role::kOutput, s.input, rows);
      return finish(args);
    }
    case OpKind::kAdd: {
      AddArgs args;
      add(args.a, Role::kActivation, s.input, rows);
      add(args.b, Role::kActivation, s.input, rows);
      add(args.out, Role::kOutput, s.input, rows);
      return finish(args);
    }
    case OpKind::kCast: {
      CastArgs args;
      add(args.x, Role::kActivation, DType::kF32, rows);
      add(args.out, Role::kOutput, DType::kF16, rows);
      return finish(args);
    }
    case OpKind::kArgMax: {
      ArgMaxArgs args;
      add(args.x, Role::kActivation, s.input, rows);
      add(args.out, Role::kOutput, DType::kI32, {s.m});
      return finish(args);
    }
    default:
      return Unimplemented("calls of ", std::string(Name(s.op)), " are not described by sizes");
  }
}

// The facts of such a call whose operands live on `device`. InvalidArgument, Unimplemented: there
// is no such call.
absl::StatusOr<OpFacts> FactsOf(const CallShape& shape, Device device = {});

}  // namespace tandem
