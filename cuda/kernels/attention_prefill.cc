#include "cuda/kernels/attention_prefill.h"

#include <string>

#include "core/ops/attention.h"
#include "core/status.h"
#include "cuda/kernels/attention_kernels.h"
#include "cuda/kernels/attention_prefill_float.h"
#include "cuda/kernels/attention_prefill_host.h"
#include "cuda/kernels/attention_setup.h"
#include "cuda/kernels/shared_bytes.h"
#include "cuda/stream.h"

namespace tandem::cuda {
namespace {

// --- prefill

// The type of the products: that of the keys; an int8 cache is expanded to the type of q.
DType TypeOf(const AttentionArgs& args) {
  return args.k.dtype == DType::kI8 ? args.q.dtype : args.k.dtype;
}

PrefillShape ShapeOf(const AttentionArgs& args) {
  return PrefillShapeOf(PrefillDimOf(args), !HasPlainScores(args));
}

int64_t SharedBytesOf(const AttentionArgs& args) {
  SharedBytes shared;
  CarvePrefill(shared, ShapeOf(args));
  return shared.total();
}

KernelFunction FunctionOf(const CudaStream& stream, const AttentionArgs& args) {
  const bool variants = !HasPlainScores(args);
  switch (PrefillDimOf(args)) {
    case 64:
      return AttentionPrefill64Function(stream, TypeOf(args), variants);
    case 128:
      return AttentionPrefill128Function(stream, TypeOf(args), variants);
    default:
      return AttentionPrefill256Function(stream, TypeOf(args), variants);
  }
}

// --- prefill_i8

int64_t I8SharedBytesOf(const AttentionArgs& args) {
  SharedBytes shared;
  CarvePrefill(shared, PrefillI8ShapeOf(PrefillDimOf(args)));
  return shared.total();
}

// --- prefill_f32

int64_t FloatSharedBytesOf(const AttentionArgs& args) {
  SharedBytes shared;
  CarvePrefillFloat(shared, PrefillFloatShape{PrefillDimOf(args)});
  return shared.total();
}

}  // namespace

absl::Status PrefillAttentionSupports(const KernelContext& context, const AttentionArgs& args) {
  if (args.k.dtype == DType::kF32) {
    return Unimplemented("keys are f32, this kernel multiplies 16-bit numbers");
  }
  if (!Is16Bit(TypeOf(args))) {
    return Unimplemented("keys are i8 and queries f32: 16 bits would lose what i8 keeps");
  }
  return CheckPrefillSize(context, args, ShapeOf(args).rows(), SharedBytesOf(args));
}

absl::Status RunPrefillAttention(const KernelContext& context, const AttentionArgs& args) {
  if (args.q.dim(0) * args.q.dim(1) * args.q.dim(2) == 0) return absl::OkStatus();
  CudaStream& stream = CudaStream::Of(context);
  const int rows = ShapeOf(args).rows();
  TANDEM_ASSIGN_OR_RETURN(const AttentionPrefillParams params,
                          MakePrefillParams(context, args, TypeOf(args), rows));
  return stream.Launch(FunctionOf(stream, args), PrefillConfig(args, rows, SharedBytesOf(args)),
                       params);
}

absl::Status PrefillI8AttentionSupports(const KernelContext& context, const AttentionArgs& args) {
  if (args.k.dtype != DType::kI8 || args.q.dtype != DType::kF32) {
    return Unimplemented("for keys of i8 with queries of f32, got ",
                         std::string(Name(args.k.dtype)), " and ", std::string(Name(args.q.dtype)));
  }
  if (args.new_len() > 0) {
    return Unimplemented("keys beside the cache, which are not of i8");
  }
  return CheckPrefillSize(context, args, PrefillI8ShapeOf(PrefillDimOf(args)).rows(),
                          I8SharedBytesOf(args));
}

absl::Status RunPrefillI8Attention(const KernelContext& context, const AttentionArgs& args) {
  if (args.q.dim(0) * args.q.dim(1) * args.q.dim(2) == 0) return absl::OkStatus();
  CudaStream& stream = CudaStream::Of(context);
  const int dim = PrefillDimOf(args), rows = PrefillI8ShapeOf(dim).rows();
  TANDEM_ASSIGN_OR_RETURN(const AttentionPrefillParams params,
                          MakePrefillParams(context, args, DType::kF16, rows));
  return stream.Launch(AttentionPrefillI8Function(stream, dim),
                       PrefillConfig(args, rows, I8SharedBytesOf(args)), params);
}

absl::Status PrefillFloatAttentionSupports(const KernelContext& context,
                                           const AttentionArgs& args) {
  if (Is16Bit(TypeOf(args))) {
    return Unimplemented("products of ", std::string(Name(TypeOf(args))),
                         " are what tensor cores are for, this kernel multiplies f32");
  }
  return CheckPrefillSize(context, args, kPrefillFloatRows, FloatSharedBytesOf(args));
}

absl::Status RunPrefillFloatAttention(const KernelContext& context, const AttentionArgs& args) {
  if (args.q.dim(0) * args.q.dim(1) * args.q.dim(2) == 0) return absl::OkStatus();
  CudaStream& stream = CudaStream::Of(context);
  TANDEM_ASSIGN_OR_RETURN(const AttentionPrefillParams params,
                          MakePrefillParams(context, args, DType::kF32, kPrefillFloatRows));
  return stream.Launch(AttentionPrefillFloatFunction(stream, PrefillDimOf(args)),
                       PrefillConfig(args, kPrefillFloatRows, FloatSharedBytesOf(args)), params);
}

}  // namespace tandem::cuda
