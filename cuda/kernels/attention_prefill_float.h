// Attention of many queries in f32: the kernel `prefill_f32`. See attention_prefill_float.cu for
// how it works.
#pragma once

#include "cuda/kernels/attention_prefill.h"

namespace tandem::cuda {

inline constexpr int kPrefillFloatRows = 64;  // of a block; each of kPrefillWarps warps has 16
inline constexpr int kPrefillFloatKeys = 32;  // of a tile

// Rows in shared memory are 4 floats longer than they need be, so that vectors of neighbouring rows
// lie in different banks; those of weights 8.
struct PrefillFloatShape {
  int dim;  // most of both head sizes: 64, 128 or 256
  constexpr int stride() const { return dim + 4; }
  static constexpr int weight_stride() { return kPrefillFloatKeys + 8; }
};

// What a block keeps in shared memory; Carver is SharedCarver or SharedBytes.
struct PrefillFloatShared {
  float* q;        // [rows][stride]
  float* k;        // [keys][stride], scales multiplied in
  float* v;        // [keys][stride]
  float* weights;  // [rows][weight_stride]: a warp's own rows
  uint8_t* there;  // [2][keys]: the page table has the key; of even and of odd tiles
  PrefillBlock* block;
  PrefillRange* ranges;  // of each warp
  PrefillRow* rows;      // [rows]
};
template <typename Carver>
TANDEM_HOST_DEVICE inline PrefillFloatShared CarvePrefillFloat(Carver& carver,
                                                               const PrefillFloatShape& shape) {
  PrefillFloatShared shared;
  shared.q = carver.template Take<float>(kPrefillFloatRows * shape.stride(), 128);
  shared.k = carver.template Take<float>(kPrefillFloatKeys * shape.stride(), 128);
  shared.v = carver.template Take<float>(kPrefillFloatKeys * shape.stride(), 128);
  shared.weights = carver.template Take<float>(kPrefillFloatRows * shape.weight_stride(), 128);
  shared.there = carver.template Take<uint8_t>(2 * kPrefillFloatKeys);
  shared.block = carver.template Take<PrefillBlock>(1);
  shared.ranges = carver.template Take<PrefillRange>(kPrefillWarps);
  shared.rows = carver.template Take<PrefillRow>(kPrefillFloatRows);
  return shared;
}

// One block of kPrefillThreads per row tile and key/value head; `dim`: of PrefillFloatShape.
TANDEM_KERNEL_FUNCTION(AttentionPrefillFloatFunction, int dim)

}  // namespace tandem::cuda
