// The functions of cuBLASLt, from the library where it is found at run time.
#pragma once

#include <cublasLt.h>

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace tandem::cuda {

// Every function that is used, by its name in the library.
#define TANDEM_CUBLASLT_FUNCTIONS(X)      \
  X(cublasLtCreate)                       \
  X(cublasLtDestroy)                      \
  X(cublasLtGetVersion)                   \
  X(cublasLtGetStatusName)                \
  X(cublasLtGetStatusString)              \
  X(cublasLtMatmul)                       \
  X(cublasLtMatmulAlgoGetHeuristic)       \
  X(cublasLtMatmulAlgoCapGetAttribute)    \
  X(cublasLtMatmulAlgoConfigGetAttribute) \
  X(cublasLtMatmulDescCreate)             \
  X(cublasLtMatmulDescDestroy)            \
  X(cublasLtMatmulDescSetAttribute)       \
  X(cublasLtMatmulPreferenceCreate)       \
  X(cublasLtMatmulPreferenceDestroy)      \
  X(cublasLtMatmulPreferenceSetAttribute) \
  X(cublasLtMatrixLayoutCreate)           \
  X(cublasLtMatrixLayoutDestroy)          \
  X(cublasLtMatrixLayoutSetAttribute)

class CublasLtLibrary {
 public:
  // FailedPrecondition, with what was tried.
  static absl::StatusOr<std::unique_ptr<CublasLtLibrary>> Load(const std::string& path);
  ~CublasLtLibrary();
  CublasLtLibrary(const CublasLtLibrary&) = delete;
  CublasLtLibrary& operator=(const CublasLtLibrary&) = delete;

  const std::string& path() const { return path_; }
  std::string version() const;  // "13.1.0"
  // With the call, the error's name and its text.
  absl::Status ToStatus(const char* call, cublasStatus_t status) const;

#define TANDEM_CUBLASLT_MEMBER(name) decltype(&::name) name = nullptr;
  TANDEM_CUBLASLT_FUNCTIONS(TANDEM_CUBLASLT_MEMBER)
#undef TANDEM_CUBLASLT_MEMBER

 private:
  CublasLtLibrary() = default;

  void* handle_ = nullptr;  // of dlopen
  std::string path_;
};

}  // namespace tandem::cuda
