// oneDNN matrix products, prepared once per shape and kept.
//
// Every stream owns one cache: creating a primitive generates code (0.2 to 10 ms), executing one
// costs about a microsecond. Thread-safe and bounded; the least recently used entry goes first.
//
// oneDNN never starts threads here. It fixes a primitive's thread count when it creates it, from
// the calling thread's OpenMP setting, which is 1 around every call (see SingleThreaded in the
// .cc): parallelism is the ThreadPool's alone.
#pragma once

#include <cstdint>
#include <list>
#include <memory>

#include "absl/base/thread_annotations.h"
#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "core/dtype.h"
#include "cpu/isa.h"

namespace tandem::cpu {

// tile[rows][kPanel] = a[rows][k] * panel, dense; the tile is f32, a and panel f32 or bf16 (panels
// as in matmul_panels.h).
class OneDnnTileProduct {
 public:
  // Unimplemented if oneDNN has only its reference implementation for the shape; Internal with
  // oneDNN's own status otherwise. workers: how many threads may call Execute.
  static absl::StatusOr<std::shared_ptr<const OneDnnTileProduct>> Create(int64_t rows, int64_t k,
                                                                         DType dtype, int workers);
  ~OneDnnTileProduct();
  OneDnnTileProduct(const OneDnnTileProduct&) = delete;
  OneDnnTileProduct& operator=(const OneDnnTileProduct&) = delete;

  // Bytes of scratch per worker, a multiple of 64.
  int64_t scratch_bytes() const { return scratch_bytes_; }
  // Concurrent calls need different workers. scratch: 64-byte aligned.
  absl::Status Execute(const void* a, const void* panel, float* tile, void* scratch,
                       int worker) const;

 private:
  struct Impl;
  OneDnnTileProduct();

  std::unique_ptr<Impl> impl_;
  int64_t scratch_bytes_ = 0;
};

class OneDnnCache {
 public:
  static constexpr size_t kCapacity = 128;  // about 50 KB each; a prompt length needs ten

  OneDnnCache();

  // The instruction set oneDNN uses: the processor's best, whatever a stream is limited to.
  Isa isa() const { return isa_; }

  absl::StatusOr<std::shared_ptr<const OneDnnTileProduct>> Get(int64_t rows, int64_t k, DType dtype,
                                                               int workers);
  size_t size() const;

 private:
  struct Key {
    int64_t rows, k;
    DType dtype;
    int workers;

    friend bool operator==(const Key&, const Key&) = default;
    template <typename H>
    friend H AbslHashValue(H h, const Key& key) {
      return H::combine(std::move(h), key.rows, key.k, key.dtype, key.workers);
    }
  };
  // `absl::StatusOr` because failures are kept too: asking again would cost as much.
  using Result = absl::StatusOr<std::shared_ptr<const OneDnnTileProduct>>;
  struct Entry {
    Key key;
    Result result;
  };

  Isa isa_;
  mutable absl::Mutex mutex_;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);  // most recently used first
  absl::flat_hash_map<Key, std::list<Entry>::iterator> index_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace tandem::cpu
