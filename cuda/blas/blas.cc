#include "cuda/blas/blas.h"

#include <algorithm>
#include <utility>

#include "core/status.h"

namespace tandem::cuda {
namespace {

// Extents that 32-bit arithmetic of any library holds.
constexpr int64_t kMaxExtent = INT32_MAX;

absl::Status CheckMatrix(const char* name, const BlasMatrix& matrix, int64_t rows,
                         int64_t columns) {
  if (matrix.ld < rows) {
    return InvalidArgument(name, ": expected a leading dimension of at least ", rows, ", got ",
                           matrix.ld);
  }
  if (matrix.batch_stride < 0) {
    return InvalidArgument(name, ": expected a batch stride >= 0, got ", matrix.batch_stride);
  }
  const int bytes = BlockBytes(matrix.dtype);
  if (matrix.alignment < bytes || matrix.alignment > kMaxBlasAlignment ||
      (matrix.alignment & (matrix.alignment - 1)) != 0) {
    return InvalidArgument(name, ": expected an alignment of ", bytes, "..", kMaxBlasAlignment,
                           " bytes, got ", matrix.alignment);
  }
  if (columns > 1 && matrix.ld > INT64_MAX / 8 / columns) {
    return InvalidArgument(name, ": leading dimension ", matrix.ld, " times ", columns,
                           " columns is beyond 64 bits");
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckProblem(const BlasProblem& p) {
  for (const auto& [name, extent] : {std::pair("m", p.m), std::pair("n", p.n), std::pair("k", p.k),
                                     std::pair("batch", p.batch)}) {
    if (extent < 1) return InvalidArgument(name, ": expected at least 1, got ", extent);
    if (extent > kMaxExtent) {
      return Unimplemented(name, ": at most ", kMaxExtent, ", got ", extent);
    }
  }
  if (!IsFloat(p.a.dtype) || p.a.dtype != p.b.dtype) {
    return Unimplemented("products of two f32, f16 or bf16 matrices of one type, got ",
                         std::string(Name(p.a.dtype)), " and ", std::string(Name(p.b.dtype)));
  }
  if (p.d.dtype != DType::kF32 && p.d.dtype != p.a.dtype) {
    return Unimplemented("results in f32 or in the type of the operands, ",
                         std::string(Name(p.a.dtype)), ", got ", std::string(Name(p.d.dtype)));
  }
  if (p.has_c && p.c.dtype != p.d.dtype) {
    return Unimplemented("c in the type of d, ", std::string(Name(p.d.dtype)), ", got ",
                         std::string(Name(p.c.dtype)));
  }
  TANDEM_RETURN_IF_ERROR(
      CheckMatrix("a", p.a, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k));
  TANDEM_RETURN_IF_ERROR(
      CheckMatrix("b", p.b, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n));
  TANDEM_RETURN_IF_ERROR(CheckMatrix("d", p.d, p.m, p.n));
  if (p.has_c) TANDEM_RETURN_IF_ERROR(CheckMatrix("c", p.c, p.m, p.n));
  if (p.batch > 1 && p.d.batch_stride == 0) {
    return InvalidArgument("d: expected a batch stride, for ", p.batch, " products");
  }
  if (p.max_workspace_bytes < 0) {
    return InvalidArgument("max_workspace_bytes: expected >= 0, got ", p.max_workspace_bytes);
  }
  return absl::OkStatus();
}

std::string ToString(const BlasProblem& p) {
  std::string text;
  if (p.batch > 1) text = absl::StrCat(p.batch, " of ");
  const auto matrix = [&](const BlasMatrix& operand, int64_t rows, int64_t columns,
                          bool transposed) {
    absl::StrAppend(&text, std::string(Name(operand.dtype)), " [", rows, ", ", columns, "]",
                    transposed ? " transposed" : "");
  };
  matrix(p.a, p.m, p.k, p.transpose_a);
  text += " x ";
  matrix(p.b, p.k, p.n, p.transpose_b);
  absl::StrAppend(&text, " -> ", std::string(Name(p.d.dtype)), p.has_c ? ", added to c" : "",
                  p.bias ? ", bias" : "", p.gelu ? ", gelu" : "");
  return text;
}

int32_t AlignmentOf(const void* address) {
  const auto value = reinterpret_cast<uintptr_t>(address);
  int32_t alignment = kMaxBlasAlignment;
  while (value % static_cast<uintptr_t>(alignment) != 0) alignment /= 2;
  return alignment;
}

absl::Status CheckOperands(const BlasPlan& plan, const BlasOperands& operands) {
  const BlasProblem& p = plan.problem();
  const auto check = [](const char* name, const void* data, int32_t alignment) {
    if (data == nullptr) return absl::InternalError(absl::StrCat("matmul: ", name, " is null"));
    if (AlignmentOf(data) < alignment) {
      return absl::InternalError(absl::StrCat("matmul: ", name, " is aligned to ",
                                              AlignmentOf(data), " bytes, the plan needs ",
                                              alignment));
    }
    return absl::OkStatus();
  };
  TANDEM_RETURN_IF_ERROR(check("a", operands.a, p.a.alignment));
  TANDEM_RETURN_IF_ERROR(check("b", operands.b, p.b.alignment));
  TANDEM_RETURN_IF_ERROR(check("d", operands.d, p.d.alignment));
  if (p.has_c) TANDEM_RETURN_IF_ERROR(check("c", operands.c, p.c.alignment));
  if (p.bias) TANDEM_RETURN_IF_ERROR(check("bias", operands.bias, p.d.alignment));
  if (operands.workspace_bytes < plan.workspace_bytes()) {
    return absl::InternalError(absl::StrCat("matmul: a workspace of ", operands.workspace_bytes,
                                            " bytes, the plan needs ", plan.workspace_bytes()));
  }
  if (plan.workspace_bytes() > 0) {
    TANDEM_RETURN_IF_ERROR(check("workspace", operands.workspace, kMaxBlasAlignment));
  }
  return absl::OkStatus();
}

}  // namespace tandem::cuda
