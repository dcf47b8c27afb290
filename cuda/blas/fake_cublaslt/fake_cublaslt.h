// A libcublasLt of our own, for tests: what cuda/blas/cublaslt.cc does with the real one (which
// descriptors it makes, what it asks the heuristics, which algorithm it takes, what it does when a
// call fails) is tested without a GPU. Products are computed on the host, in f32; addresses are the
// host's. Loaded as the real one is, by its path.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace tandem::cuda::fake_cublaslt {

// An algorithm that the heuristics offer.
struct Algorithm {
  uint64_t numerical_flags = 0;
  uint32_t reduction_scheme = 0;
  uint64_t workspace_bytes = 0;
};

struct Control {
  // In.
  std::string failing_call;  // "cublasLtMatmul"; empty: none
  int failing_ordinal = 1;   // the how-manieth such call
  int failing_status = 0;    // a cublasStatus_t
  std::vector<Algorithm> algorithms = {{}};

  // Out.
  int live = 0;  // handles and descriptors
  int calls = 0;
  int matmuls = 0;
  int used_algorithm = -1;  // index
  uint64_t max_workspace_bytes = 0;
  uint32_t reduction_mask = 0;
  uint32_t alignments[4] = {};  // a, b, c, d
  int compute_type = 0;
  const void* stream = nullptr;
};

// extern "C" Control* fake_cublaslt_control(), in the library.
using GetControl = Control* (*)();

}  // namespace tandem::cuda::fake_cublaslt
