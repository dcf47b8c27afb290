// bf16 weights packed in pairs along K: what bf16 dot products and tiles multiply as it lies.
//
// All pair panels (matmul_panels.h) of a matrix one after the other: [N / kPanel rounded up]
// [PaddedPairDepth(K) / 2][kPanel][2], features beyond N and elements beyond K zero. Nothing is
// rounded or converted, and the bytes are those of the stored form where N is a multiple of 64 and
// K of 32: packed weights take the place of stored ones, so every M has kernels that read them:
//
//   pairs_*      few rows (matmul_pairs_simd.cc), in f32
//   onednn_pairs the panels are oneDNN's own format (onednn_matmul.cc); a is rounded to bf16
//   onednn_expand, gemm_*   panels are widened to f32 as they are needed
#pragma once

#include <memory>
#include <string_view>

#include "absl/status/statusor.h"
#include "core/buffer.h"
#include "core/ops/matmul.h"
#include "cpu/isa.h"
#include "cpu/thread_pool.h"

namespace tandem::cpu {

class PairWeights final : public PackedWeights {
 public:
  static constexpr std::string_view kFormat = "cpu_pairs_bf16";

  explicit PairWeights(std::shared_ptr<Buffer> buffer) : buffer_(std::move(buffer)) {}
  std::string_view format() const override { return kFormat; }
  int64_t bytes() const override { return buffer_->bytes(); }
  const BF16* panels() const { return static_cast<const BF16*>(buffer_->data()); }
  // That of output features n0 .. n0 + kPanel.
  const BF16* panel(int64_t n0) const;

 private:
  std::shared_ptr<Buffer> buffer_;
};

// nullptr: the weights are not packed so.
inline const PairWeights* PairsOf(const MatMulArgs& args) {
  const bool pairs = args.b_packed != nullptr && args.b_packed->format() == PairWeights::kFormat;
  return pairs ? static_cast<const PairWeights*>(args.b_packed) : nullptr;
}

// `weights`: a valid bf16 [N, K] with contiguous rows. InvalidArgument if its size overflows.
absl::StatusOr<std::unique_ptr<PackedWeights>> PackPairs(const TensorView& weights, Isa isa,
                                                         Allocator& allocator, ThreadPool& pool);

}  // namespace tandem::cpu
