#include "dispatch/ops.h"

#include "cpu/backend.h"
#include "dispatch/run.h"

namespace tandem {
namespace {

// Allocates args.out with this type and shape next to `like`, runs the op, returns the tensor. The
// inputs are validated by RunOp once out is there; the shape is derived from them only after
// `inputs_ok` has shown that it can be.
template <typename Args>
absl::StatusOr<Tensor> RunValue(Context& context, Args& args, const absl::Status& inputs_ok,
                                const TensorView& like, DType dtype, auto shape_of) {
  TANDEM_RETURN_IF_ERROR(inputs_ok);
  ContextDevice* device = context.device(like.device.kind);
  if (device == nullptr) {
    return InvalidArgument("operands live on ", Name(like.device),
                           ", which this context does not have");
  }
  TANDEM_ASSIGN_OR_RETURN(Tensor out,
                          Tensor::Allocate(device->backend->allocator(), dtype, shape_of()));
  args.out = out.view();
  TANDEM_RETURN_IF_ERROR(RunOp(context, args));
  return out;
}

}  // namespace

absl::Status AttentionInto(Context& context, const AttentionArgs& args) {
  return RunOp(context, args);
}
absl::Status MaskInto(Context& context, const MaskArgs& args) { return RunOp(context, args); }
absl::Status MatMulInto(Context& context, const MatMulArgs& args) {
  if (context.options().quantize_activations || args.float_activations) {
    return RunOp(context, args);
  }
  MatMulArgs exact = args;
  exact.float_activations = true;
  return RunOp(context, exact);
}
absl::Status GroupedMatMulInto(Context& context, const GroupedMatMulArgs& args) {
  if (context.options().quantize_activations || args.float_activations) {
    return RunOp(context, args);
  }
  GroupedMatMulArgs exact = args;
  exact.float_activations = true;
  return RunOp(context, exact);
}
absl::Status SoftmaxInto(Context& context, const SoftmaxArgs& args) { return RunOp(context, args); }
absl::Status RmsNormInto(Context& context, const RmsNormArgs& args) { return RunOp(context, args); }
absl::Status RopeInto(Context& context, const RopeArgs& args) { return RunOp(context, args); }
absl::Status SiluMulInto(Context& context, const SiluMulArgs& args) { return RunOp(context, args); }
absl::Status AddInto(Context& context, const AddArgs& args) { return RunOp(context, args); }
absl::Status EmbeddingInto(Context& context, const EmbeddingArgs& args) {
  return RunOp(context, args);
}
absl::Status KvAppendInto(Context& context, const KvAppendArgs& args) {
  return RunOp(context, args);
}
absl::Status CastInto(Context& context, const CastArgs& args) { return RunOp(context, args); }
absl::Status ArgMaxInto(Context& context, const ArgMaxArgs& args) { return RunOp(context, args); }
absl::Status SampleInto(Context& context, const SampleArgs& args) { return RunOp(context, args); }
absl::Status MergeAttentionInto(Context& context, const MergeAttentionArgs& args) {
  return RunOp(context, args);
}

absl::StatusOr<Tensor> Attention(Context& context, AttentionArgs args) {
  absl::Status ok = ValidateView("q", args.q, 4);
  if (ok.ok()) ok = ValidateView("v", args.v, 4);
  return RunValue(context, args, ok, args.q, args.q.dtype, [&] {
    return Shape{args.q.dim(0), args.q.dim(1), args.q.dim(2), args.v.dim(3)};
  });
}

absl::StatusOr<Tensor> Mask(Context& context, const MaskRule& rule, DType dtype) {
  return BatchMask(context, MaskArgs{.rule = rule}, dtype);
}

absl::StatusOr<Tensor> BatchMask(Context& context, MaskArgs args, DType dtype) {
  TANDEM_RETURN_IF_ERROR(ValidateRule("rule.", args.rule));
  if (args.previous) return InvalidArgument("previous: only for MaskInto, got one for a new mask");
  if (args.first_row < 0 || args.first_row > args.rule.q_len) {
    return InvalidArgument("first_row: expected 0..q_len (", args.rule.q_len, "), got ",
                           args.first_row);
  }
  const TensorView host;
  const TensorView* list = &host;
  for (const TensorView* candidate : {&args.q_lens, &args.kv_lens, &args.kv_starts}) {
    if (!candidate->present()) continue;
    TANDEM_RETURN_IF_ERROR(ValidateView("q_lens, kv_lens, kv_starts", *candidate, 1));
    list = candidate;
  }
  return RunValue(context, args, absl::OkStatus(), *list, dtype, [&] {
    const int64_t rows = args.num_rows(), columns = MaskColumns(dtype, args.rule.kv_len);
    return list->present() ? Shape{list->dim(0), 1, rows, columns} : Shape{rows, columns};
  });
}

absl::StatusOr<Tensor> MatMul(Context& context, MatMulArgs args) {
  absl::Status ok = ValidateView("a", args.a);
  if (ok.ok() && args.a.rank() != 2 && args.a.rank() != 3) {
    ok = InvalidArgument("a: expected rank 2 or 3, got ", args.a.rank());
  }
  if (ok.ok() && !args.b.present() && args.b_packed == nullptr) {
    ok = InvalidArgument("b: expected a matrix or b_packed, got neither");
  }
  if (ok.ok() && args.b.present()) {
    ok = ValidateView("b", args.b);
    if (ok.ok() && args.b.rank() != 2 && args.b.rank() != 3) {
      ok = InvalidArgument("b: expected rank 2 or 3, got ", args.b.rank());
    }
  }
  if (!context.options().quantize_activations) args.float_activations = true;
  return RunValue(context, args, ok, args.a, args.a.dtype, [&] {
    const int64_t n = args.b.present() ? args.b.dim(-2) : args.b_packed->n;
    if (args.a.rank() == 2) return Shape{args.a.dim(0), n};
    const int64_t b_batch = args.b.rank() == 3 ? args.b.dim(0) : 1;
    return Shape{args.a.dim(0) == 1 ? b_batch : args.a.dim(0), args.a.dim(1), n};
  });
}

absl::StatusOr<std::vector<Tensor>> GroupedMatMul(Context& context, GroupedMatMulArgs args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("a", args.a, 2));
  if (args.num_products < 1 || args.num_products > GroupedMatMulArgs::kMaxProducts) {
    return InvalidArgument("num_products: expected 1..", GroupedMatMulArgs::kMaxProducts, ", got ",
                           args.num_products);
  }
  ContextDevice* device = context.device(args.a.device.kind);
  if (device == nullptr) {
    return InvalidArgument("operands live on ", Name(args.a.device),
                           ", which this context does not have");
  }
  std::vector<Tensor> outs;
  for (int i = 0; i < args.num_products; ++i) {
    GroupedMatMulArgs::Product& product = args.products[static_cast<size_t>(i)];
    product.out = {};
    if (args.gated() && i > 0) continue;
    if (product.b.present()) {
      const std::string name = absl::StrCat("products[", i, "].b");
      TANDEM_RETURN_IF_ERROR(ValidateView(name, product.b, 2));
    } else if (product.b_packed == nullptr) {
      return InvalidArgument("products[", i, "].b: expected a matrix or b_packed, got neither");
    }
    const int64_t n = product.b.present() ? product.b.dim(0) : product.b_packed->n;
    TANDEM_ASSIGN_OR_RETURN(Tensor out, Tensor::Allocate(device->backend->allocator(), args.a.dtype,
                                                         Shape{args.a.dim(0), n}));
    product.out = out.view();
    outs.push_back(std::move(out));
  }
  TANDEM_RETURN_IF_ERROR(GroupedMatMulInto(context, args));
  return outs;
}

absl::StatusOr<Tensor> Softmax(Context& context, SoftmaxArgs args) {
  return RunValue(context, args, ValidateView("x", args.x, 2), args.x, args.x.dtype,
                  [&] { return args.x.shape; });
}

absl::StatusOr<Tensor> RmsNorm(Context& context, RmsNormArgs args) {
  return RunValue(context, args, ValidateView("x", args.x), args.x, args.x.dtype,
                  [&] { return args.x.shape; });
}

absl::StatusOr<Tensor> Rope(Context& context, RopeArgs args) {
  return RunValue(context, args, ValidateView("x", args.x, 4), args.x, args.x.dtype,
                  [&] { return args.x.shape; });
}

absl::StatusOr<Tensor> SiluMul(Context& context, SiluMulArgs args) {
  return RunValue(context, args, ValidateView("gate", args.gate, 2), args.gate, args.gate.dtype,
                  [&] { return args.gate.shape; });
}

absl::StatusOr<Tensor> Add(Context& context, AddArgs args) {
  return RunValue(context, args, ValidateView("a", args.a, 2), args.a, args.a.dtype,
                  [&] { return args.a.shape; });
}

absl::StatusOr<Tensor> Embedding(Context& context, EmbeddingArgs args, DType dtype) {
  absl::Status ok = ValidateView("table", args.table, 2);
  if (ok.ok()) ok = ValidateView("ids", args.ids, 1);
  return RunValue(context, args, ok, args.table, dtype, [&] {
    return Shape{args.ids.dim(0), args.table.dim(1)};
  });
}

absl::StatusOr<Tensor> Cast(Context& context, CastArgs args, DType dtype) {
  return RunValue(context, args, ValidateView("x", args.x, 2), args.x, dtype,
                  [&] { return args.x.shape; });
}

absl::StatusOr<Tensor> ArgMax(Context& context, ArgMaxArgs args) {
  return RunValue(context, args, ValidateView("x", args.x, 2), args.x, DType::kI32,
                  [&] { return Shape{args.x.dim(0)}; });
}

absl::StatusOr<Tensor> Sample(Context& context, SampleArgs args) {
  return RunValue(context, args, ValidateView("logits", args.logits, 2), args.logits, DType::kI32,
                  [&] { return Shape{args.logits.dim(0)}; });
}

absl::StatusOr<Tensor> MergeAttention(Context& context, MergeAttentionArgs args) {
  if (args.out_parts.empty()) return InvalidArgument("out_parts: expected at least one part");
  const TensorView& first = args.out_parts[0];
  return RunValue(context, args, ValidateView("out_parts[0]", first, 4), first, first.dtype,
                  [&] { return first.shape; });
}

absl::StatusOr<std::unique_ptr<PackedWeights>> PackWeights(Context& context,
                                                           const TensorView& weights) {
  if (!context.has(weights.device)) {
    return InvalidArgument("weights live on ", Name(weights.device),
                           ", which this context does not have");
  }
  if (weights.device.kind != DeviceKind::kCpu) {
    return Unimplemented("weights: no packed layout on ", Name(weights.device));
  }
  return cpu::PackWeights(*context.device(DeviceKind::kCpu)->backend, weights,
                          !context.options().quantize_activations);
}

bool PacksInPlace(Context& context, DType dtype) {
  ContextDevice* host = context.device(DeviceKind::kCpu);
  return host != nullptr &&
         cpu::PacksInPlace(*host->backend, dtype, !context.options().quantize_activations);
}

}  // namespace tandem
