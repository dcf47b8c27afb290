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

// Keeps the memory of partial results from call to call.
class SplitMatMul {
 public:
  explicit SplitMatMul(Context& context) : context_(context) {}

  // MatMul (core/ops/matmul.h) with these weights; args.b and b_packed must not be set, a is
  // [M, K]. When the GPU fails, the CPU computes its columns too, unless the context forces the
  // GPU. InvalidArgument: as MatMulInto's. After an error of any other kind columns of out may have
  // been written.
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

  Context& context_;
  MatMulArgs whole_;
  DeviceKind home_ = DeviceKind::kCpu;
  DeviceKind away_ = DeviceKind::kCuda;
  std::array<Side, 2> sides_;
  Parcel parcel_;
  BlockPair results_;  // of the part that is away
  int64_t result_bytes_ = 0;
  std::unique_ptr<Event> sent_;
  bool host_done_ = false;
  TraceRecord queued_;
  int64_t fallbacks_ = 0;
};

}  // namespace tandem
