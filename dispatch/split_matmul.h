// Matrix products by both devices at the same time, cut along the output features: the first rows
// of the weights [N, K] in GPU memory, the others in host memory.
//
//   Queue    a and what else the GPU needs is copied there in one piece, its columns are computed
//            and copied back, all on its stream: the host does not wait
//   RunHost  the CPU computes its columns
//   Finish   the host waits for the GPU and puts its columns in place
//
// Where a and out are in GPU memory it is the other way round: a comes to the host before the GPU
// begins, the CPU's columns go to the GPU. Each part is what the device's kernel gives for these
// columns; nothing is added up across devices, so that cutting changes no bit of a column.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "core/ops/matmul.h"
#include "core/tensor.h"
#include "dispatch/context.h"
#include "dispatch/parcel.h"
#include "dispatch/run_here.h"

namespace tandem {

// Weights in two memories.
class SplitWeights {
 public:
  // Copies rows 0 .. gpu_columns-1 of weights [N, K] (host memory, contiguous, any type that a
  // product takes) to the GPU. The others stay where they are; `pack`: packed as well, where the
  // type allows (PackWeights). `weights` must outlive this, all of it: the GPU's rows are needed
  // again should it fail. InvalidArgument: bad weights or share, a device that is not there or that
  // the context does not let be used. ResourceExhausted: out of memory.
  static absl::StatusOr<SplitWeights> Create(Context& context, const TensorView& weights,
                                             int64_t gpu_columns, bool pack = false);

  int64_t n() const { return whole_.dim(0); }
  int64_t k() const { return whole_.dim(1); }
  int64_t gpu_columns() const { return gpu_columns_; }
  // The whole matrix, in host memory.
  const TensorView& whole() const { return whole_; }
  // Rows on the GPU, [gpu_columns, K]; and the others in host memory.
  const TensorView& on_gpu() const { return gpu_.view(); }
  TensorView on_host() const { return Slice(whole_, 0, gpu_columns_, n() - gpu_columns_); }
  // nullptr: not packed.
  const PackedWeights* packed() const { return packed_.get(); }

 private:
  TensorView whole_;
  Tensor gpu_;
  int64_t gpu_columns_ = 0;
  std::unique_ptr<PackedWeights> packed_;
};

// What weights will be used for.
struct ProductUse {
  int64_t m = 1;                       // rows of a
  DeviceKind home = DeviceKind::kCpu;  // where a and out will be
  DType input = DType::kF32;
  DType output = DType::kF32;
  bool packed = false;    // the host's part will be
  int64_t gpu_bytes = 0;  // most GPU memory that they may take; 0: what is free
};
// The columns that the GPU should have of weights [N, K]: by the context's predicted times (CostsOf
// in dispatch/split_costs.h) those with which both devices finish together; where it has none, all
// that fit or none, as its policy decides. InvalidArgument: not a matrix, m < 1.
absl::StatusOr<int64_t> BestGpuColumns(Context& context, const TensorView& weights,
                                       const ProductUse& use);

// Keeps the memory of partial results from call to call.
class SplitMatMul {
 public:
  explicit SplitMatMul(Context& context) : context_(context) {}

  // MatMul (core/ops/matmul.h) with these weights; args.b and b_packed must not be set, a is
  // [M, K]. When the GPU fails, the CPU computes its columns too, unless the context forces the GPU
  // (dispatch/fallback.h); where a is in GPU memory, it is fetched, and what is missing of out is
  // put there. While the GPU is lost or left alone, products with a in host memory are the CPU's.
  // InvalidArgument: as MatMulInto's. After an error of any other kind columns of out may have been
  // written.
  absl::Status Run(const SplitWeights& weights, const MatMulArgs& args);

  // The three steps of Run. The weights and the memory of args must stay as they are until Finish.
  // After an error the others are not called.
  absl::Status Queue(const SplitWeights& weights, const MatMulArgs& args);
  absl::Status RunHost();
  absl::Status Finish();

  // Calls whose GPU columns the CPU had to compute.
  int64_t fallbacks() const { return fallbacks_; }

 private:
  struct Side {
    bool runs = false;
    MatMulArgs args;
    TensorView columns;  // of out as given
  };
  Side& side(DeviceKind kind) { return sides_[static_cast<size_t>(kind)]; }
  MatMulArgs Columns(int64_t begin, int64_t columns) const;
  // Checks the arguments and sets both sides' but for what comes from the other device.
  absl::Status Prepare(const SplitWeights& weights, const MatMulArgs& args);
  absl::Status Steps(const SplitWeights& weights, const MatMulArgs& args);
  // By the CPU, what is missing after Steps failed, or after Prepare.
  absl::Status RunRest(const SplitWeights& weights);
  absl::Status Recover(const SplitWeights& weights, const MatMulArgs& args, absl::Status status);
  static int64_t BytesOnGpu(const SplitWeights& weights, const MatMulArgs& args);

  Context& context_;
  MatMulArgs whole_;
  DeviceKind home_ = DeviceKind::kCpu;
  DeviceKind away_ = DeviceKind::kCuda;
  std::array<Side, 2> sides_;
  Parcel parcel_;
  BlockPair results_;  // of the part that is away
  int64_t result_bytes_ = 0;
  double shared_seconds_ = 0.0;  // that both parts take at least
  std::unique_ptr<Event> sent_;
  bool host_done_ = false;   // its columns of out, in host memory, are written
  bool gpu_queued_ = false;  // the kernel that writes the GPU's
  QueuedPart queued_;
  int64_t fallbacks_ = 0;
};

}  // namespace tandem
