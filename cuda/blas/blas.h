// Matrix products by a library: one thin virtual interface, two implementations.
//
//   MakeCublasLt()   cuBLASLt, loaded when it is first needed (cuda/blas/cublaslt.h)
//   MakeHostBlas()   for the emulated device: a stand-in on the host (cuda/blas/host_blas.h)
//
// Everything is column-major, as in BLAS; a row-major matrix is a transposed one. For each product
// of a batch
//
//   D[m,n] = act( alpha * sum_k op(A)[m,k] op(B)[k,n]  +  beta * C[m,n]  +  bias[m] )
//
// in f32 whatever the types of the operands, rounded once to the type of D. Sums that the library
// splits are added in f32 and in a fixed order: the same plan gives the same bits every time.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/dtype.h"
#include "cuda/runtime/runtime.h"

namespace tandem::cuda {

// Addresses are told apart up to this alignment, bytes: loads are no wider.
inline constexpr int32_t kMaxBlasAlignment = 16;

// One operand as it is stored.
struct BlasMatrix {
  DType dtype = DType::kF32;
  int32_t alignment = kMaxBlasAlignment;  // of the address, bytes
  int64_t ld = 0;                         // elements from one column to the next
  int64_t batch_stride = 0;               // elements; 0: the same matrix for every product

  friend bool operator==(const BlasMatrix&, const BlasMatrix&) = default;
};

// Everything about a product but addresses and factors: what a plan is made for.
struct BlasProblem {
  int64_t m = 0, n = 0, k = 0, batch = 1;
  bool transpose_a = false;  // A is stored [k, m]: k is the dimension of stride 1
  bool transpose_b = false;  // B is stored [n, k]
  BlasMatrix a, b, d;
  bool has_c = false;  // otherwise beta is not read
  BlasMatrix c;        // of the type of D; may be D itself if it is laid out as D
  bool bias = false;   // of the type of D, contiguous, aligned as D
  bool gelu = false;   // act: GELU in the tanh form
  int64_t max_workspace_bytes = 0;

  friend bool operator==(const BlasProblem&, const BlasProblem&) = default;
};

// InvalidArgument: extents or strides that cannot be; Unimplemented: types that are not multiplied.
absl::Status CheckProblem(const BlasProblem& problem);
// "f16 [64, 4096] x f16 [4096, 4096] -> f16, bias"
std::string ToString(const BlasProblem& problem);
// The largest power of two that divides an address, at most kMaxBlasAlignment.
int32_t AlignmentOf(const void* address);

// How a library computes a problem: immutable, used by any number of threads.
class BlasPlan {
 public:
  explicit BlasPlan(const BlasProblem& problem) : problem_(problem) {}
  virtual ~BlasPlan() = default;
  BlasPlan(const BlasPlan&) = delete;
  BlasPlan& operator=(const BlasPlan&) = delete;

  const BlasProblem& problem() const { return problem_; }
  int64_t workspace_bytes() const { return workspace_bytes_; }
  // The algorithm, for people.
  virtual std::string description() const = 0;

 protected:
  void set_workspace_bytes(int64_t bytes) { workspace_bytes_ = bytes; }

 private:
  const BlasProblem problem_;
  int64_t workspace_bytes_ = 0;
};

struct BlasOperands {
  const void* a = nullptr;
  const void* b = nullptr;
  const void* c = nullptr;
  void* d = nullptr;
  const void* bias = nullptr;
  float alpha = 1.0f;
  float beta = 0.0f;
  void* workspace = nullptr;  // 16-byte aligned, the plan's bytes
  int64_t workspace_bytes = 0;
};

// Internal, with what is wrong, unless the operands are those that the plan needs.
absl::Status CheckOperands(const BlasPlan& plan, const BlasOperands& operands);

// A library with its handle on one device. Thread-safe.
class Blas {
 public:
  virtual ~Blas() = default;
  // With its version: "cuBLASLt 13.1.0".
  virtual std::string name() const = 0;
  // Asks the library's heuristics. Unimplemented: it has no algorithm for this problem.
  virtual absl::StatusOr<std::shared_ptr<const BlasPlan>> MakePlan(const BlasProblem& problem) = 0;
  // Puts the product on the stream. Allocates nothing on the device.
  virtual absl::Status MatMul(StreamHandle stream, const BlasPlan& plan,
                              const BlasOperands& operands) = 0;
};

}  // namespace tandem::cuda
