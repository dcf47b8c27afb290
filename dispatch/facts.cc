#include "dispatch/facts.h"

#include <algorithm>

#include "dispatch/operands.h"

namespace tandem {
namespace {

int64_t Bytes(const TensorView& view) {
  return view.present() ? ByteOffset(view.dtype, view.num_elements()) : 0;
}

// Adds the bytes of every operand, where it is: what copying it moves, also where the op needs only
// part.
template <typename Args>
OpFacts WithOperands(OpFacts facts, const Args& args) {
  ForEachOperand(args, [&](const TensorView& view, Access access) {
    if (!view.present()) return;
    OperandBytes& there = facts.at[view.device.kind];
    const int64_t bytes = Bytes(view);
    if (access != Access::kWrite) {
      there.read += bytes;
      ++there.reads;
    }
    if (access != Access::kRead) {
      there.written += bytes;
      ++there.writes;
    }
  });
  facts.movable = !HasOnlyPackedWeights(args);
  return facts;
}

// Ops that read and write each element once.
template <typename Args>
OpFacts RowWise(const Args& args, const TensorView& out, int64_t bytes, double flops_per_element) {
  OpFacts facts;
  facts.op = Args::kOp;
  facts.elements = out.num_elements();
  facts.bytes = bytes;
  facts.flops = flops_per_element * static_cast<double>(facts.elements);
  facts.operands = out.device;
  return WithOperands(facts, args);
}

// Number of (query, key) pairs that the rule lets through: exact for few queries, from evenly
// spaced ones for many.
double VisiblePairs(const MaskRule& rule) {
  constexpr int64_t kRows = 64;
  const int64_t rows = std::min(rule.q_len, kRows);
  double pairs = 0.0;
  for (int64_t i = 0; i < rows; ++i) {
    // The middle of the i-th of `rows` equal parts.
    const double middle = (static_cast<double>(i) + 0.5) / static_cast<double>(rows);
    const KeyRange range =
        rule.Range(static_cast<int64_t>(middle * static_cast<double>(rule.q_len)));
    pairs += static_cast<double>(range.end - range.begin);
  }
  return rows == 0 ? 0.0 : pairs * static_cast<double>(rule.q_len) / static_cast<double>(rows);
}

}  // namespace

OpFacts FactsOf(const AttentionArgs& args) {
  OpFacts facts;
  facts.op = OpKind::kAttention;
  facts.batch_invariant = args.batch_invariant;
  facts.m = args.q_len();
  facts.n = args.q_heads();
  facts.k = args.head_dim();
  facts.kv_heads = args.kv_heads();
  facts.elements = args.out.num_elements();
  facts.operands = args.q.device;
  facts.bytes = Bytes(args.q) + Bytes(args.k_new) + Bytes(args.v_new) + Bytes(args.bias) +
                Bytes(args.mask) + Bytes(args.out) + Bytes(args.lse);
  double pairs = 0.0;
  // Lengths that are on another device count as full.
  if (args.ragged() && args.q.device.kind == DeviceKind::kCpu) {
    int64_t cached = 0;
    for (int64_t b = 0; b < args.batch(); ++b) {
      const AttentionSequence sequence = args.Sequence(b);
      pairs += VisiblePairs(sequence.rule);
      cached += sequence.cache_len;
      facts.kv_len = std::max(facts.kv_len, sequence.rule.kv_len);
    }
    const int64_t scale_bytes = args.k_scale.present() ? 2 * BlockBytes(DType::kF32) : 0;
    facts.bytes += cached * args.kv_heads() *
                   (ByteOffset(args.k.dtype, args.head_dim() + args.v_head_dim()) + scale_bytes);
  } else {
    pairs = static_cast<double>(args.batch()) * VisiblePairs(args.Rule());
    facts.kv_len = args.kv_len();
    facts.bytes += Bytes(args.k) + Bytes(args.v) + Bytes(args.k_scale) + Bytes(args.v_scale);
  }
  facts.flops = 2.0 * static_cast<double>(args.q_heads()) *
                static_cast<double>(args.head_dim() + args.v_head_dim()) * pairs;
  facts.input = args.q.dtype;
  facts.weights = args.k.dtype;
  return WithOperands(facts, args);
}

OpFacts FactsOf(const MaskArgs& args) {
  OpFacts facts = RowWise(args, args.out, Bytes(args.out), 0.0);
  facts.m = args.batch() * args.num_rows();
  facts.n = args.rule.kv_len;
  // The policy's threshold is in mask elements, whatever they are packed into.
  facts.elements = CheckedMul(facts.m, facts.n).value_or(INT64_MAX);
  if (args.previous) {  // old rows: their new columns, and a few elements where the range ends
    const MaskRule& old = *args.previous;
    const int64_t old_rows = std::clamp<int64_t>(old.q_len - args.first_row, 0, args.num_rows());
    const int64_t kept = std::clamp<int64_t>(std::min(old.kv_len, facts.n) - 2, 0, facts.n);
    const int64_t kept_elements =
        CheckedMul(args.batch() * old_rows, kept).value_or(facts.elements);
    facts.elements -= std::min(facts.elements, kept_elements);
    facts.bytes = std::min(facts.bytes, ByteOffset(args.out.dtype, facts.elements));
  }
  facts.input = args.out.dtype;
  return facts;
}

OpFacts FactsOf(const MatMulArgs& args) {
  OpFacts facts;
  facts.op = OpKind::kMatMul;
  facts.m = args.m();
  facts.n = args.n();
  facts.k = args.k();
  facts.elements = args.out.num_elements();
  const int64_t weights = args.b.present() ? Bytes(args.b) : args.b_packed->bytes();
  facts.bytes = Bytes(args.a) + weights + Bytes(args.bias) + Bytes(args.addend) + Bytes(args.out);
  facts.flops = 2.0 * static_cast<double>(facts.elements) * static_cast<double>(facts.k);
  facts.operands = args.a.device;
  facts.input = args.a.dtype;
  facts.weights = args.b.present() ? args.b.dtype : args.b_packed->dtype;
  facts.packed = args.b_packed != nullptr;
  return WithOperands(facts, args);
}

// As one product of all the features.
OpFacts FactsOf(const GroupedMatMulArgs& args) {
  OpFacts facts;
  facts.op = OpKind::kGroupedMatMul;
  facts.m = args.m();
  facts.k = args.k();
  facts.operands = args.a.device;
  facts.input = args.a.dtype;
  facts.bytes = Bytes(args.a);
  for (int i = 0; i < args.num_products; ++i) {
    const GroupedMatMulArgs::Product& product = args.products[static_cast<size_t>(i)];
    const OpFacts own = FactsOf(args.ProductArgs(i));
    facts.n += own.n;
    facts.flops += own.flops;
    if (product.out.present()) facts.elements += product.out.num_elements();
    facts.bytes += own.bytes - Bytes(args.a) - Bytes(args.out(i)) + Bytes(product.out);
    if (i == 0) facts.weights = own.weights;
    facts.packed = facts.packed || own.packed;
  }
  return WithOperands(facts, args);
}

OpFacts FactsOf(const SoftmaxArgs& args) {
  return RowWise(args, args.out, Bytes(args.x) + Bytes(args.out), 5.0);
}
OpFacts FactsOf(const RmsNormArgs& args) {
  return RowWise(
      args, args.out,
      Bytes(args.x) + Bytes(args.residual) + Bytes(args.weight) + Bytes(args.sum) + Bytes(args.out),
      args.residual.present() ? 5.0 : 4.0);
}
OpFacts FactsOf(const RopeArgs& args) {
  return RowWise(args, args.out, Bytes(args.x) + Bytes(args.out), 3.0);
}
OpFacts FactsOf(const SiluMulArgs& args) {
  return RowWise(args, args.out, Bytes(args.gate) + Bytes(args.up) + Bytes(args.out), 5.0);
}
OpFacts FactsOf(const AddArgs& args) {
  return RowWise(args, args.out, Bytes(args.a) + Bytes(args.b) + Bytes(args.out), 1.0);
}
OpFacts FactsOf(const EmbeddingArgs& args) {
  const int64_t rows_read =
      ByteOffset(args.table.dtype, args.ids.dim(0) * args.table.dim(1)) + Bytes(args.ids);
  return RowWise(args, args.out, rows_read + Bytes(args.out), 0.0);
}
OpFacts FactsOf(const KvAppendArgs& args) {
  OpFacts facts = RowWise(args, args.k, Bytes(args.k) + Bytes(args.v), 0.0);
  facts.elements = args.k.num_elements() + args.v.num_elements() + args.q.num_elements();
  facts.bytes += ByteOffset(args.k_cache.dtype, args.k.num_elements() + args.v.num_elements()) +
                 Bytes(args.q) + Bytes(args.q_out);
  facts.operands = args.k_cache.device;
  return facts;
}
OpFacts FactsOf(const CastArgs& args) {
  return RowWise(args, args.out, Bytes(args.x) + Bytes(args.out), 0.0);
}
OpFacts FactsOf(const ArgMaxArgs& args) {
  return RowWise(args, args.out, Bytes(args.x) + Bytes(args.out), 0.0);
}
OpFacts FactsOf(const SampleArgs& args) {
  return RowWise(args, args.out, Bytes(args.logits) + Bytes(args.out), 0.0);
}
OpFacts FactsOf(const MergeAttentionArgs& args) {
  int64_t bytes = Bytes(args.out) + Bytes(args.lse);
  for (int64_t p = 0; p < args.parts(); ++p) {
    bytes += Bytes(args.out_parts[static_cast<size_t>(p)]) +
             Bytes(args.lse_parts[static_cast<size_t>(p)]);
  }
  return RowWise(args, args.out, bytes, 2.0 * static_cast<double>(args.parts()));
}

}  // namespace tandem
