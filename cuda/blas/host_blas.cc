#include "cuda/blas/host_blas.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <utility>

#include "core/status.h"
#include "cuda/runtime/emulated_runtime.h"

namespace tandem::cuda {
namespace {

class HostPlan final : public BlasPlan {
 public:
  // One column of D in f32.
  HostPlan(EmulatedRuntime& runtime, const BlasProblem& problem)
      : BlasPlan(problem), runtime_(runtime) {
    set_workspace_bytes(problem.m * static_cast<int64_t>(sizeof(float)));
    runtime_.CountLibraryObjects(1);
  }
  ~HostPlan() override { runtime_.CountLibraryObjects(-1); }
  std::string description() const override { return "host stand-in, columns in order"; }

 private:
  EmulatedRuntime& runtime_;
};

float Gelu(float x) {
  constexpr float kSqrt2OverPi = 0.79788456080286536f;
  return 0.5f * x * (1.0f + std::tanh(kSqrt2OverPi * (x + 0.044715f * x * x * x)));
}

// One product of the batch; `column` holds m sums.
template <typename T, typename D>
void Multiply(const BlasProblem& p, const BlasOperands& o, const T* a, const T* b, const D* c,
              D* d) {
  auto* column = static_cast<float*>(o.workspace);
  const auto* bias = static_cast<const D*>(o.bias);
  // Elements from one k to the next, and from one m or n to the next.
  const int64_t a_k = p.transpose_a ? 1 : p.a.ld, a_m = p.transpose_a ? p.a.ld : 1;
  const int64_t b_k = p.transpose_b ? p.b.ld : 1, b_n = p.transpose_b ? 1 : p.b.ld;
  for (int64_t n = 0; n < p.n; ++n) {
    if (p.transpose_a) {
      for (int64_t m = 0; m < p.m; ++m) {
        float sum = 0.0f;
        for (int64_t k = 0; k < p.k; ++k) {
          sum += ToFloat(a[m * a_m + k]) * ToFloat(b[k * b_k + n * b_n]);
        }
        column[m] = sum;
      }
    } else {
      std::fill_n(column, p.m, 0.0f);
      for (int64_t k = 0; k < p.k; ++k) {
        const float factor = ToFloat(b[k * b_k + n * b_n]);
        for (int64_t m = 0; m < p.m; ++m) column[m] += ToFloat(a[k * a_k + m]) * factor;
      }
    }
    for (int64_t m = 0; m < p.m; ++m) {
      float x = o.alpha * column[m];
      if (p.has_c && o.beta != 0.0f) x += o.beta * ToFloat(c[n * p.c.ld + m]);
      if (p.bias) x += ToFloat(bias[m]);
      if (p.gelu) x = Gelu(x);
      d[n * p.d.ld + m] = FromFloat<D>(x);
    }
  }
}

void MultiplyAll(const BlasProblem& p, const BlasOperands& o) {
  DispatchFloat(p.a.dtype, [&]<typename T>() {
    DispatchFloat(p.d.dtype, [&]<typename D>() {
      for (int64_t z = 0; z < p.batch; ++z) {
        Multiply(p, o, static_cast<const T*>(o.a) + z * p.a.batch_stride,
                 static_cast<const T*>(o.b) + z * p.b.batch_stride,
                 p.has_c ? static_cast<const D*>(o.c) + z * p.c.batch_stride : nullptr,
                 static_cast<D*>(o.d) + z * p.d.batch_stride);
      }
    });
  });
}

class HostBlas final : public Blas {
 public:
  explicit HostBlas(EmulatedRuntime& runtime) : runtime_(runtime) {
    runtime_.CountLibraryObjects(1);
  }
  ~HostBlas() override {
    runtime_.CountLibraryObjects(-1);
    runtime_.Enter("BlasDestroy").IgnoreError();
  }

  std::string name() const override { return "host stand-in for cuBLASLt (emulated device)"; }

  absl::StatusOr<std::shared_ptr<const BlasPlan>> MakePlan(const BlasProblem& problem) override {
    TANDEM_RETURN_IF_ERROR(runtime_.Enter("BlasPlan"));
    TANDEM_RETURN_IF_ERROR(CheckProblem(problem));
    auto plan = std::make_shared<const HostPlan>(runtime_, problem);
    if (plan->workspace_bytes() > problem.max_workspace_bytes) {
      return Unimplemented("the host stand-in needs a workspace of ", plan->workspace_bytes(),
                           " bytes, at most ", problem.max_workspace_bytes, " are allowed");
    }
    return plan;
  }

  absl::Status MatMul(StreamHandle stream, const BlasPlan& plan,
                      const BlasOperands& operands) override {
    TANDEM_RETURN_IF_ERROR(runtime_.Enter("BlasMatMul"));
    TANDEM_RETURN_IF_ERROR(CheckOperands(plan, operands));
    const BlasProblem& p = plan.problem();
    const auto check = [&](const char* name, const void* data, const BlasMatrix& matrix,
                           int64_t rows, int64_t columns) {
      const int64_t elements =
          (p.batch - 1) * matrix.batch_stride + (columns - 1) * matrix.ld + rows;
      return runtime_.CheckMemory("BlasMatMul", name, data, elements * BlockBytes(matrix.dtype));
    };
    TANDEM_RETURN_IF_ERROR(
        check("a", operands.a, p.a, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k));
    TANDEM_RETURN_IF_ERROR(
        check("b", operands.b, p.b, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n));
    if (p.has_c) TANDEM_RETURN_IF_ERROR(check("c", operands.c, p.c, p.m, p.n));
    TANDEM_RETURN_IF_ERROR(check("d", operands.d, p.d, p.m, p.n));
    if (p.bias) {
      TANDEM_RETURN_IF_ERROR(
          runtime_.CheckMemory("BlasMatMul", "bias", operands.bias, p.m * BlockBytes(p.d.dtype)));
    }
    TANDEM_RETURN_IF_ERROR(runtime_.CheckMemory("BlasMatMul", "workspace", operands.workspace,
                                                operands.workspace_bytes));
    // By value: a captured product may outlive its plan.
    return runtime_.Enqueue("BlasMatMul", stream, [p, operands] { MultiplyAll(p, operands); });
  }

 private:
  EmulatedRuntime& runtime_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Blas>> MakeHostBlas(EmulatedRuntime& runtime) {
  TANDEM_RETURN_IF_ERROR(runtime.Enter("BlasCreate"));
  return std::make_unique<HostBlas>(runtime);
}

}  // namespace tandem::cuda
