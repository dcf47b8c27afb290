// What the cases of the conformance suite are made with.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "cuda/conformance/primitives.h"
#include "cuda/conformance/suite.h"

namespace tandem::cuda {

// One stream of numbers for all cases, taken in the order in which they are added.
using Random = std::mt19937;

template <typename T>
Bytes ToBytes(const std::vector<T>& values) {
  Bytes bytes(values.size() * sizeof(T));
  std::memcpy(bytes.data(), values.data(), bytes.size());
  return bytes;
}

template <typename T>
std::vector<T> FromBytes(const Bytes& bytes) {
  std::vector<T> values(bytes.size() / sizeof(T));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
  return values;
}

Bytes RandomBytes(Random& random, size_t count);
// In [-1, 1].
float RandomFloat(Random& random);

// Chunk of 16 bytes at which chunk `chunk` of row `row` is found, of rows of `swizzle` bytes in
// shared memory.
int64_t SwizzledChunk(int64_t row, int64_t chunk, int swizzle);

LaunchConfig Config(int64_t blocks, int64_t threads, int64_t shared_bytes);

// A kernel that reads up to three buffers and leaves `out_bytes` in another.
std::function<absl::StatusOr<Bytes>(ConformanceRunner&)> Simple(
    Primitive primitive, const LaunchConfig& config, const std::array<Bytes, 3>& inputs,
    size_t out_bytes, const std::array<int32_t, 12>& v = {});

// mma.sync; ldmatrix and stmatrix; wgmma.
void AddProducts(std::vector<ConformanceCase>& cases, Random& random);
void AddMatrixMoves(std::vector<ConformanceCase>& cases, Random& random);
void AddWarpgroups(std::vector<ConformanceCase>& cases, Random& random);
// cp.async and bulk copies of runs; of boxes of tensors.
void AddSmallCopies(std::vector<ConformanceCase>& cases, Random& random);
void AddTensorCopies(std::vector<ConformanceCase>& cases, Random& random);

}  // namespace tandem::cuda
