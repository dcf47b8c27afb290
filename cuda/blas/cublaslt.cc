#include "cuda/blas/cublaslt.h"

#include <algorithm>
#include <array>
#include <mutex>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "cuda/blas/cublaslt_library.h"

namespace tandem::cuda {
namespace {

// Algorithms that the heuristics are asked for: the first that keeps the numerics contract is
// taken.
constexpr int kCandidates = 16;

cudaDataType_t ToCuda(DType dtype) {
  switch (dtype) {
    case DType::kF16:
      return CUDA_R_16F;
    case DType::kBF16:
      return CUDA_R_16BF;
    default:
      return CUDA_R_32F;
  }
}

// Owners of descriptors. kDestroy is a member of the library: the function that destroys them.
template <typename T, cublasStatus_t (*CublasLtLibrary::*kDestroy)(T)>
class Unique {
 public:
  explicit Unique(const CublasLtLibrary& library) : library_(library) {}
  ~Unique() {
    if (value_ != nullptr) (library_.*kDestroy)(value_);
  }
  Unique(const Unique&) = delete;
  Unique& operator=(const Unique&) = delete;

  T get() const { return value_; }
  T* out() { return &value_; }

 private:
  const CublasLtLibrary& library_;
  T value_ = nullptr;
};

using UniqueDesc = Unique<cublasLtMatmulDesc_t, &CublasLtLibrary::cublasLtMatmulDescDestroy>;
using UniqueLayout = Unique<cublasLtMatrixLayout_t, &CublasLtLibrary::cublasLtMatrixLayoutDestroy>;
using UniquePreference =
    Unique<cublasLtMatmulPreference_t, &CublasLtLibrary::cublasLtMatmulPreferenceDestroy>;

// A descriptor's attributes are set one call each; the first error counts.
class Setter {
 public:
  explicit Setter(const CublasLtLibrary& library) : library_(library) {}
  void Check(const char* call, cublasStatus_t status) {
    if (status_.ok()) status_ = library_.ToStatus(call, status);
  }
  template <typename T>
  void Set(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t attribute, const T& value) {
    Check("cublasLtMatmulDescSetAttribute",
          library_.cublasLtMatmulDescSetAttribute(desc, attribute, &value, sizeof(value)));
  }
  template <typename T>
  void Set(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t attribute,
           const T& value) {
    Check("cublasLtMatrixLayoutSetAttribute",
          library_.cublasLtMatrixLayoutSetAttribute(layout, attribute, &value, sizeof(value)));
  }
  template <typename T>
  void Set(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t attribute,
           const T& value) {
    Check("cublasLtMatmulPreferenceSetAttribute",
          library_.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value,
                                                        sizeof(value)));
  }
  const absl::Status& status() const { return status_; }

 private:
  const CublasLtLibrary& library_;
  absl::Status status_;
};

class CublasLtPlan final : public BlasPlan {
 public:
  CublasLtPlan(const CublasLtLibrary& library, const BlasProblem& problem)
      : BlasPlan(problem), library_(library) {}

  absl::Status Describe();
  absl::Status ChooseAlgorithm(cublasLtHandle_t handle);
  absl::Status Run(cublasLtHandle_t handle, cudaStream_t stream, const BlasOperands& o) const;
  std::string description() const override { return description_; }

 private:
  absl::Status DescribeMatrix(UniqueLayout& layout, const BlasMatrix& matrix, int64_t rows,
                              int64_t columns) const;
  // Does the algorithm keep the numerics contract?
  bool Acceptable(const cublasLtMatmulAlgo_t& algorithm) const;
  template <typename T>
  T Config(const cublasLtMatmulAlgo_t& algorithm,
           cublasLtMatmulAlgoConfigAttributes_t attribute) const {
    T value = {};
    size_t written = 0;
    if (library_.cublasLtMatmulAlgoConfigGetAttribute(&algorithm, attribute, &value, sizeof(value),
                                                      &written) != CUBLAS_STATUS_SUCCESS) {
      return T{};
    }
    return value;
  }

  const CublasLtLibrary& library_;
  UniqueDesc desc_{library_};
  UniqueLayout a_{library_}, b_{library_}, c_{library_}, d_{library_};
  cublasLtMatmulAlgo_t algorithm_ = {};
  std::string description_;
  // The address of the bias is a part of the descriptor: set and used by one thread at a time.
  mutable std::mutex bias_mutex_;
};

absl::Status CublasLtPlan::DescribeMatrix(UniqueLayout& layout, const BlasMatrix& matrix,
                                          int64_t rows, int64_t columns) const {
  TANDEM_RETURN_IF_ERROR(library_.ToStatus(
      "cublasLtMatrixLayoutCreate",
      library_.cublasLtMatrixLayoutCreate(layout.out(), ToCuda(matrix.dtype),
                                          static_cast<uint64_t>(rows),
                                          static_cast<uint64_t>(columns), matrix.ld)));
  Setter setter(library_);
  if (problem().batch > 1) {
    setter.Set(layout.get(), CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT,
               static_cast<int32_t>(problem().batch));
    setter.Set(layout.get(), CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, matrix.batch_stride);
  }
  return setter.status();
}

absl::Status CublasLtPlan::Describe() {
  const BlasProblem& p = problem();
  TANDEM_RETURN_IF_ERROR(library_.ToStatus(
      "cublasLtMatmulDescCreate",
      library_.cublasLtMatmulDescCreate(desc_.out(), CUBLAS_COMPUTE_32F, CUDA_R_32F)));
  Setter setter(library_);
  setter.Set(desc_.get(), CUBLASLT_MATMUL_DESC_TRANSA, p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
  setter.Set(desc_.get(), CUBLASLT_MATMUL_DESC_TRANSB, p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
  cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_DEFAULT;
  if (p.bias) epilogue = p.gelu ? CUBLASLT_EPILOGUE_GELU_BIAS : CUBLASLT_EPILOGUE_BIAS;
  if (p.gelu && !p.bias) epilogue = CUBLASLT_EPILOGUE_GELU;
  setter.Set(desc_.get(), CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue);
  TANDEM_RETURN_IF_ERROR(setter.status());
  TANDEM_RETURN_IF_ERROR(
      DescribeMatrix(a_, p.a, p.transpose_a ? p.k : p.m, p.transpose_a ? p.m : p.k));
  TANDEM_RETURN_IF_ERROR(
      DescribeMatrix(b_, p.b, p.transpose_b ? p.n : p.k, p.transpose_b ? p.k : p.n));
  TANDEM_RETURN_IF_ERROR(DescribeMatrix(c_, p.has_c ? p.c : p.d, p.m, p.n));
  return DescribeMatrix(d_, p.d, p.m, p.n);
}

bool CublasLtPlan::Acceptable(const cublasLtMatmulAlgo_t& algorithm) const {
  uint64_t flags = 0;
  size_t written = 0;
  if (library_.cublasLtMatmulAlgoCapGetAttribute(&algorithm, CUBLASLT_ALGO_CAP_NUMERICAL_IMPL_FLAGS,
                                                 &flags, sizeof(flags),
                                                 &written) != CUBLAS_STATUS_SUCCESS) {
    return false;
  }
  if ((flags & CUBLASLT_NUMERICAL_IMPL_FLAGS_ACCUMULATOR_16F) != 0) return false;
  constexpr uint64_t kRounded = CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_TF32 |
                                CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_16F |
                                CUBLASLT_NUMERICAL_IMPL_FLAGS_INPUT_16BF;
  if (problem().a.dtype == DType::kF32 && (flags & kRounded) != 0) return false;
  const auto scheme = Config<uint32_t>(algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME);
  return scheme == CUBLASLT_REDUCTION_SCHEME_NONE ||
         scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
}

absl::Status CublasLtPlan::ChooseAlgorithm(cublasLtHandle_t handle) {
  const BlasProblem& p = problem();
  UniquePreference preference(library_);
  TANDEM_RETURN_IF_ERROR(library_.ToStatus(
      "cublasLtMatmulPreferenceCreate", library_.cublasLtMatmulPreferenceCreate(preference.out())));
  Setter setter(library_);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    setter.Set(preference.get(), attribute, value);
  };
  set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, static_cast<uint64_t>(p.max_workspace_bytes));
  set(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
      static_cast<uint32_t>(CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, static_cast<uint32_t>(p.a.alignment));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, static_cast<uint32_t>(p.b.alignment));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
      static_cast<uint32_t>(p.has_c ? p.c.alignment : p.d.alignment));
  set(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, static_cast<uint32_t>(p.d.alignment));
  TANDEM_RETURN_IF_ERROR(setter.status());

  std::array<cublasLtMatmulHeuristicResult_t, kCandidates> results = {};
  int count = 0;
  const absl::Status status =
      library_.ToStatus("cublasLtMatmulAlgoGetHeuristic",
                        library_.cublasLtMatmulAlgoGetHeuristic(
                            handle, desc_.get(), a_.get(), b_.get(), c_.get(), d_.get(),
                            preference.get(), kCandidates, results.data(), &count));
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(Message(status), ": ", ToString(p)));
  }
  for (int i = 0; i < std::min(count, kCandidates); ++i) {
    const cublasLtMatmulHeuristicResult_t& result = results[static_cast<size_t>(i)];
    if (result.state != CUBLAS_STATUS_SUCCESS || !Acceptable(result.algo)) continue;
    if (result.workspaceSize > static_cast<size_t>(p.max_workspace_bytes)) continue;
    algorithm_ = result.algo;
    set_workspace_bytes(static_cast<int64_t>(result.workspaceSize));
    description_ =
        absl::StrCat("algorithm ", Config<int32_t>(algorithm_, CUBLASLT_ALGO_CONFIG_ID), ", tile ",
                     Config<uint32_t>(algorithm_, CUBLASLT_ALGO_CONFIG_TILE_ID), ", stages ",
                     Config<uint32_t>(algorithm_, CUBLASLT_ALGO_CONFIG_STAGES_ID), ", split of k ",
                     Config<int32_t>(algorithm_, CUBLASLT_ALGO_CONFIG_SPLITK_NUM), ", candidate ",
                     i + 1, " of ", count);
    return absl::OkStatus();
  }
  return Unimplemented("cuBLASLt has no algorithm with f32 sums for ", ToString(p), " (",
                       std::max(count, 0), " offered)");
}

absl::Status CublasLtPlan::Run(cublasLtHandle_t handle, cudaStream_t stream,
                               const BlasOperands& o) const {
  const BlasProblem& p = problem();
  const float beta = p.has_c ? o.beta : 0.0f;
  std::unique_lock<std::mutex> lock(bias_mutex_, std::defer_lock);
  if (p.bias) {
    lock.lock();
    Setter setter(library_);
    setter.Set(desc_.get(), CUBLASLT_MATMUL_DESC_BIAS_POINTER, o.bias);
    TANDEM_RETURN_IF_ERROR(setter.status());
  }
  return library_.ToStatus(
      "cublasLtMatmul",
      library_.cublasLtMatmul(handle, desc_.get(), &o.alpha, o.a, a_.get(), o.b, b_.get(), &beta,
                              p.has_c ? o.c : o.d, c_.get(), o.d, d_.get(), &algorithm_,
                              o.workspace, static_cast<size_t>(o.workspace_bytes), stream));
}

class CublasLt final : public Blas {
 public:
  CublasLt(std::unique_ptr<CublasLtLibrary> library, NativeStream native)
      : library_(std::move(library)), native_(std::move(native)) {}
  ~CublasLt() override {
    if (handle_ != nullptr) (void)library_->cublasLtDestroy(handle_);
  }

  absl::Status Create() {
    const cublasStatus_t status = library_->cublasLtCreate(&handle_);
    if (status != CUBLAS_STATUS_SUCCESS) handle_ = nullptr;
    return library_->ToStatus("cublasLtCreate", status);
  }

  std::string name() const override { return absl::StrCat("cuBLASLt ", library_->version()); }

  absl::StatusOr<std::shared_ptr<const BlasPlan>> MakePlan(const BlasProblem& problem) override {
    TANDEM_RETURN_IF_ERROR(CheckProblem(problem));
    auto plan = std::make_shared<CublasLtPlan>(*library_, problem);
    TANDEM_RETURN_IF_ERROR(plan->Describe());
    TANDEM_RETURN_IF_ERROR(plan->ChooseAlgorithm(handle_));
    return plan;
  }

  absl::Status MatMul(StreamHandle stream, const BlasPlan& plan,
                      const BlasOperands& operands) override {
    TANDEM_RETURN_IF_ERROR(CheckOperands(plan, operands));
    TANDEM_ASSIGN_OR_RETURN(void* const native, native_(stream));
    return static_cast<const CublasLtPlan&>(plan).Run(handle_, static_cast<cudaStream_t>(native),
                                                      operands);
  }

 private:
  const std::unique_ptr<CublasLtLibrary> library_;
  const NativeStream native_;
  cublasLtHandle_t handle_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Blas>> MakeCublasLt(NativeStream native, const std::string& path) {
  TANDEM_ASSIGN_OR_RETURN(auto library, CublasLtLibrary::Load(path));
  auto blas = std::make_unique<CublasLt>(std::move(library), std::move(native));
  TANDEM_RETURN_IF_ERROR(blas->Create());
  return blas;
}

}  // namespace tandem::cuda
