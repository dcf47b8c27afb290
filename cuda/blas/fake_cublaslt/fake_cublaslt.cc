#include "cuda/blas/fake_cublaslt/fake_cublaslt.h"

#include <cublasLt.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/dtype.h"

namespace {

using tandem::BF16;
using tandem::F16;
using tandem::cuda::fake_cublaslt::Control;

Control control;

// What the library's opaque types hold here.
struct Layout {
  cudaDataType_t type;
  uint64_t rows, columns;
  int64_t ld, batch_stride;
  int32_t batch;
};
struct Desc {
  cublasOperation_t a, b;
  cublasLtEpilogue_t epilogue;
  const void* bias;
};
struct Preference {
  uint64_t max_workspace_bytes;
  uint32_t reduction_mask;
  uint32_t alignments[4];
};

cublasStatus_t Enter(const char* call) {
  ++control.calls;
  if (control.failing_call != call || --control.failing_ordinal > 0) return CUBLAS_STATUS_SUCCESS;
  control.failing_call.clear();
  return static_cast<cublasStatus_t>(control.failing_status);
}

template <typename Handle, typename T>
cublasStatus_t Create(const char* call, Handle* out, const T& value) {
  if (const cublasStatus_t status = Enter(call); status != CUBLAS_STATUS_SUCCESS) return status;
  *out = reinterpret_cast<Handle>(new T(value));
  ++control.live;
  return CUBLAS_STATUS_SUCCESS;
}
template <typename T, typename Handle>
cublasStatus_t Destroy(const char* call, Handle handle) {
  delete reinterpret_cast<T*>(handle);
  --control.live;
  return Enter(call);
}

template <typename T>
cublasStatus_t Store(T& to, const void* from, size_t bytes) {
  if (bytes != sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(&to, from, bytes);
  return CUBLAS_STATUS_SUCCESS;
}
template <typename T>
cublasStatus_t Load(const T& from, void* to, size_t bytes, size_t* written) {
  if (bytes < sizeof(T)) return CUBLAS_STATUS_INVALID_VALUE;
  std::memcpy(to, &from, sizeof(T));
  *written = sizeof(T);
  return CUBLAS_STATUS_SUCCESS;
}

float Element(const Layout& layout, const void* data, int64_t offset) {
  switch (layout.type) {
    case CUDA_R_16F:
      return tandem::ToFloat(static_cast<const F16*>(data)[offset]);
    case CUDA_R_16BF:
      return tandem::ToFloat(static_cast<const BF16*>(data)[offset]);
    default:
      return static_cast<const float*>(data)[offset];
  }
}
void SetElement(const Layout& layout, void* data, int64_t offset, float value) {
  switch (layout.type) {
    case CUDA_R_16F:
      static_cast<F16*>(data)[offset] = tandem::ToF16(value);
      return;
    case CUDA_R_16BF:
      static_cast<BF16*>(data)[offset] = tandem::ToBF16(value);
      return;
    default:
      static_cast<float*>(data)[offset] = value;
  }
}

const Layout& Of(cublasLtMatrixLayout_t layout) { return *reinterpret_cast<const Layout*>(layout); }

}  // namespace

extern "C" {

Control* fake_cublaslt_control() { return &control; }

size_t cublasLtGetVersion() { return 130742; }
const char* cublasLtGetStatusName(cublasStatus_t status) {
  return status == CUBLAS_STATUS_ALLOC_FAILED ? "CUBLAS_STATUS_ALLOC_FAILED" : "CUBLAS_STATUS_X";
}
const char* cublasLtGetStatusString(cublasStatus_t) { return "as the test wanted"; }

cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) {
  return Create("cublasLtCreate", handle, int{0});
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
  return Destroy<int>("cublasLtDestroy", handle);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t compute,
                                        cudaDataType_t scale) {
  if (scale != CUDA_R_32F) return CUBLAS_STATUS_INVALID_VALUE;
  control.compute_type = compute;
  return Create("cublasLtMatmulDescCreate", desc,
                Desc{CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT, nullptr});
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
  return Destroy<Desc>("cublasLtMatmulDescDestroy", desc);
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t handle,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void* value, size_t bytes) {
  if (const cublasStatus_t status = Enter("cublasLtMatmulDescSetAttribute")) return status;
  Desc& desc = *reinterpret_cast<Desc*>(handle);
  switch (attribute) {
    case CUBLASLT_MATMUL_DESC_TRANSA:
      return Store(desc.a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
      return Store(desc.b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
      return Store(desc.epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
      return Store(desc.bias, value, bytes);
    default:
      return CUBLAS_STATUS_INVALID_VALUE;
  }
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType type,
                                          uint64_t rows, uint64_t columns, int64_t ld) {
  if (ld < static_cast<int64_t>(rows)) return CUBLAS_STATUS_INVALID_VALUE;
  return Create("cublasLtMatrixLayoutCreate", layout, Layout{type, rows, columns, ld, 0, 1});
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
  return Destroy<Layout>("cublasLtMatrixLayoutDestroy", layout);
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t handle,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void* value, size_t bytes) {
  if (const cublasStatus_t status = Enter("cublasLtMatrixLayoutSetAttribute")) return status;
  Layout& layout = *reinterpret_cast<Layout*>(handle);
  switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
      return Store(layout.batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
      return Store(layout.batch_stride, value, bytes);
    default:
      return CUBLAS_STATUS_INVALID_VALUE;
  }
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
  return Create("cublasLtMatmulPreferenceCreate", preference, Preference{});
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
  return Destroy<Preference>("cublasLtMatmulPreferenceDestroy", preference);
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t handle,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void* value, size_t bytes) {
  if (const cublasStatus_t status = Enter("cublasLtMatmulPreferenceSetAttribute")) return status;
  Preference& preference = *reinterpret_cast<Preference*>(handle);
  switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
      return Store(preference.max_workspace_bytes, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
      return Store(preference.reduction_mask, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
      return Store(preference.alignments[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
      return Store(preference.alignments[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
      return Store(preference.alignments[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
      return Store(preference.alignments[3], value, bytes);
    default:
      return CUBLAS_STATUS_INVALID_VALUE;
  }
}

// An algorithm is its index.
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t handle, int requested,
                                              cublasLtMatmulHeuristicResult_t* results,
                                              int* count) {
  if (const cublasStatus_t status = Enter("cublasLtMatmulAlgoGetHeuristic")) return status;
  const auto& preference = *reinterpret_cast<const Preference*>(handle);
  control.max_workspace_bytes = preference.max_workspace_bytes;
  control.reduction_mask = preference.reduction_mask;
  std::copy_n(preference.alignments, 4, control.alignments);
  *count = std::min(requested, static_cast<int>(control.algorithms.size()));
  for (int i = 0; i < *count; ++i) {
    results[i] = {};
    results[i].algo.data[0] = static_cast<uint64_t>(i);
    results[i].workspaceSize =
        static_cast<size_t>(control.algorithms[static_cast<size_t>(i)].workspace_bytes);
    results[i].state = CUBLAS_STATUS_SUCCESS;
  }
  return *count == 0 ? CUBLAS_STATUS_NOT_SUPPORTED : CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoCapGetAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                                 cublasLtMatmulAlgoCapAttributes_t attribute,
                                                 void* value, size_t bytes, size_t* written) {
  if (const cublasStatus_t status = Enter("cublasLtMatmulAlgoCapGetAttribute")) return status;
  if (attribute != CUBLASLT_ALGO_CAP_NUMERICAL_IMPL_FLAGS) return CUBLAS_STATUS_INVALID_VALUE;
  return Load(control.algorithms[algorithm->data[0]].numerical_flags, value, bytes, written);
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t* algorithm,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void* value, size_t bytes, size_t* written) {
  if (const cublasStatus_t status = Enter("cublasLtMatmulAlgoConfigGetAttribute")) return status;
  const auto index = static_cast<uint32_t>(algorithm->data[0]);
  if (attribute == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME) {
    return Load(control.algorithms[index].reduction_scheme, value, bytes, written);
  }
  return Load(attribute == CUBLASLT_ALGO_CONFIG_ID ? 40 + index : uint32_t{1}, value, bytes,
              written);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc_handle, const void* alpha,
                              const void* a, cublasLtMatrixLayout_t a_handle, const void* b,
                              cublasLtMatrixLayout_t b_handle, const void* beta, const void* c,
                              cublasLtMatrixLayout_t c_handle, void* d,
                              cublasLtMatrixLayout_t d_handle,
                              const cublasLtMatmulAlgo_t* algorithm, void* workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
  if (const cublasStatus_t status = Enter("cublasLtMatmul")) return status;
  ++control.matmuls;
  control.used_algorithm = static_cast<int>(algorithm->data[0]);
  control.stream = stream;
  const auto& offered = control.algorithms[algorithm->data[0]];
  if (workspace_bytes < offered.workspace_bytes) return CUBLAS_STATUS_INVALID_VALUE;
  if (offered.workspace_bytes > 0) {
    std::memset(workspace, 0x5A, static_cast<size_t>(offered.workspace_bytes));
  }
  const Desc& desc = *reinterpret_cast<const Desc*>(desc_handle);
  const Layout &la = Of(a_handle), &lb = Of(b_handle), &lc = Of(c_handle), &ld = Of(d_handle);
  const bool ta = desc.a == CUBLAS_OP_T, tb = desc.b == CUBLAS_OP_T;
  const auto m = static_cast<int64_t>(ld.rows), n = static_cast<int64_t>(ld.columns);
  const auto k = static_cast<int64_t>(ta ? la.rows : la.columns);
  const auto agree = [](uint64_t x, int64_t y) { return static_cast<int64_t>(x) == y; };
  if (!agree(ta ? la.columns : la.rows, m) || !agree(tb ? lb.columns : lb.rows, k) ||
      !agree(tb ? lb.rows : lb.columns, n) || !agree(lc.rows, m) || !agree(lc.columns, n) ||
      la.batch != ld.batch || lb.batch != ld.batch || lc.batch != ld.batch || lc.type != ld.type) {
    return CUBLAS_STATUS_INVALID_VALUE;
  }
  float scale_ab = 0.0f, scale_c = 0.0f;
  std::memcpy(&scale_ab, alpha, sizeof(float));
  std::memcpy(&scale_c, beta, sizeof(float));
  const bool gelu =
      desc.epilogue == CUBLASLT_EPILOGUE_GELU || desc.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
  const bool bias =
      desc.epilogue == CUBLASLT_EPILOGUE_BIAS || desc.epilogue == CUBLASLT_EPILOGUE_GELU_BIAS;
  for (int64_t z = 0; z < ld.batch; ++z) {
    for (int64_t j = 0; j < n; ++j) {
      for (int64_t i = 0; i < m; ++i) {
        float sum = 0.0f;
        for (int64_t l = 0; l < k; ++l) {
          sum += Element(la, a, z * la.batch_stride + (ta ? i * la.ld + l : l * la.ld + i)) *
                 Element(lb, b, z * lb.batch_stride + (tb ? l * lb.ld + j : j * lb.ld + l));
        }
        float x = scale_ab * sum;
        if (scale_c != 0.0f) x += scale_c * Element(lc, c, z * lc.batch_stride + j * lc.ld + i);
        if (bias) x += Element(ld, desc.bias, i);
        if (gelu) x = 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
        SetElement(ld, d, z * ld.batch_stride + j * ld.ld + i, x);
      }
    }
  }
  return CUBLAS_STATUS_SUCCESS;
}

}  // extern "C"
