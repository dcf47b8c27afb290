#include "cuda/blas/cublaslt_library.h"

#include <dlfcn.h>

#include <filesystem>
#include <system_error>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/status.h"

namespace tandem::cuda {
namespace {

std::vector<std::string> FileNames() {
  std::vector<std::string> names = {absl::StrCat("libcublasLt.so.", CUBLAS_VER_MAJOR)};
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    if (names[0] != name) names.emplace_back(name);
  }
  return names;
}

std::vector<std::string> Candidates(const std::string& path) {
  std::error_code error;
  if (!path.empty() && !std::filesystem::is_directory(path, error)) return {path};
  std::vector<std::string> candidates;
  for (const char* folder : {"", "/usr/local/cuda/lib64/"}) {
    const std::string prefix = path.empty() ? std::string(folder) : path + "/";
    for (const std::string& name : FileNames()) candidates.push_back(prefix + name);
    if (!path.empty()) break;
  }
  return candidates;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CublasLtLibrary>> CublasLtLibrary::Load(const std::string& path) {
  std::unique_ptr<CublasLtLibrary> library(new CublasLtLibrary());
  std::string tried;
  for (const std::string& candidate : Candidates(path)) {
    // It stays loaded for good: it is not made to be unloaded and loaded again.
    library->handle_ = dlopen(candidate.c_str(), RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (library->handle_ != nullptr) {
      library->path_ = candidate;
      break;
    }
    const char* error = dlerror();
    absl::StrAppend(&tried, tried.empty() ? "" : "; ", error == nullptr ? candidate : error);
  }
  if (library->handle_ == nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuBLASLt was not found (TANDEM_CUBLASLT_PATH names it): ", tried));
  }
  const char* missing = nullptr;
#define TANDEM_CUBLASLT_FIND(name)                                                           \
  library->name = reinterpret_cast<decltype(library->name)>(dlsym(library->handle_, #name)); \
  if (library->name == nullptr) missing = #name;
  TANDEM_CUBLASLT_FUNCTIONS(TANDEM_CUBLASLT_FIND)
#undef TANDEM_CUBLASLT_FIND
  if (missing != nullptr) {
    return absl::FailedPreconditionError(
        absl::StrCat("cuBLASLt: ", library->path_, " has no function ", missing));
  }
  return library;
}

CublasLtLibrary::~CublasLtLibrary() {
  if (handle_ != nullptr) dlclose(handle_);
}

// cuBLAS encodes 13.1.0 as 130100.
std::string CublasLtLibrary::version() const {
  const size_t encoded = cublasLtGetVersion();
  return absl::StrCat(encoded / 10000, ".", encoded / 100 % 100, ".", encoded % 100);
}

absl::Status CublasLtLibrary::ToStatus(const char* call, cublasStatus_t status) const {
  if (status == CUBLAS_STATUS_SUCCESS) return absl::OkStatus();
  const std::string text = absl::StrCat(call, ": ", cublasLtGetStatusName(status), ": ",
                                        cublasLtGetStatusString(status));
  switch (status) {
    case CUBLAS_STATUS_ALLOC_FAILED:
      return absl::ResourceExhaustedError(text);
    case CUBLAS_STATUS_NOT_SUPPORTED:
      return absl::UnimplementedError(text);
    case CUBLAS_STATUS_NOT_INITIALIZED:
    case CUBLAS_STATUS_ARCH_MISMATCH:
      return absl::FailedPreconditionError(text);
    default:
      return absl::InternalError(text);
  }
}

}  // namespace tandem::cuda
