// Embedding lookup.
//
// All ids are checked before the first row is written. reference: one element, or one block of 32,
// at a time.
#include "core/ops/embedding.h"

#include <array>

#include "core/status.h"
#include "cpu/blocks.h"
#include "cpu/kernels.h"
#include "cpu/strided.h"

namespace tandem::cpu {
namespace {

absl::Status CheckIds(const EmbeddingArgs& args) {
  const int64_t vocabulary = args.table.dim(0);
  for (int64_t s = 0; s < args.ids.dim(0); ++s) {
    const int32_t id = *args.ids.At<int32_t>(s * args.ids.stride(0));
    if (id < 0 || id >= vocabulary) {
      return InvalidArgument("ids[", s, "]: expected 0..", vocabulary - 1, ", got ", id);
    }
  }
  return absl::OkStatus();
}

absl::Status RunReference(const KernelContext&, const EmbeddingArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIds(args));
  const TensorView& table = args.table;
  const TensorView& out = args.out;
  for (int64_t s = 0; s < args.ids.dim(0); ++s) {
    const int64_t id = *args.ids.At<int32_t>(s * args.ids.stride(0));
    const int64_t out_row = s * out.stride(0);
    if (IsBlockQuantized(table.dtype)) {
      DispatchBlock(table.dtype, [&]<typename Block>() {
        for (int64_t n = 0; n < table.dim(1); n += Block::kLength) {
          float values[Block::kLength];
          DequantizeBlock(BlockRow<Block>(table, id)[n / Block::kLength], values);
          for (int i = 0; i < Block::kLength; ++i) {
            StoreElement(out, out_row + (n + i) * out.stride(1), values[i]);
          }
        }
      });
    } else {
      for (int64_t n = 0; n < table.dim(1); ++n) {
        StoreElement(out, out_row + n * out.stride(1),
                     LoadElement(table, id * table.stride(0) + n * table.stride(1)));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

template <>
KernelList<EmbeddingArgs> Kernels<EmbeddingArgs>() {
  static constexpr std::array<Kernel<EmbeddingArgs>, 1> kKernels = {{
      {"reference", DeviceKind::kCpu, SupportsAll<EmbeddingArgs>, NoWorkspace<EmbeddingArgs>,
       RunReference},
  }};
  return kKernels;
}

}  // namespace tandem::cpu
