// Writes new keys and values into a cache, converting to its storage type; on the way it can rotate
// keys and queries (rotary embedding) and quantise to int8, so that a decoder layer reads and
// writes each of them once.
//
//   k_cache[b,h,p,:] = k[b,h,s,:]    v_cache[b,h,p,:] = v[b,h,s,:]    p = position + s
//
// Nothing else in the cache is touched.
//
// | name     | meaning                                                                 |
// |----------|-------------------------------------------------------------------------|
// | B, H     | sequences, key/value heads                                              |
// | S        | new tokens of each sequence                                             |
// | D, Dv    | head dimension of keys (and queries), of values                         |
// | Hq, Sq   | query heads; queries, those of the last Sq <= S tokens                   |
// | capacity | rows of the cache per sequence; paged: page_size * columns of page_table |
//
// Batches. With cache_lens, sequence b's tokens go to p = cache_lens[b] + s instead. Every p must
// be below the capacity.
//
// Paged cache. With page_table, k_cache and v_cache are pools of pages: row p of sequence b is row
// p % page_size of page page_table[b, p / page_size]. Only the entries of rows being written are
// read. No two tokens may fall on the same row (sequences share only pages that are full); if they
// do, it holds one of them or a mixture.
//
// Rotary embedding. With rope (core/ops/rope.h; positions [S] or [B, S]) keys are rotated first:
// the same bits as Rope in place on k, then this op. k itself is not written. With q too, its
// rotation goes to q_out: the same bits as Rope with the positions of the last Sq tokens.
//
// int8 cache. k_cache and v_cache are i8 with one f32 scale per row: scale = max_d |x[d]| / 127,
// k_cache[d] = x[d] / scale, both in f32, rounded to the nearest integer (ties to even). A row of
// zeros (or so small that its scale is 0) has scale 0 and zeros. A row with a NaN or an infinity
// has scale NaN and zeros: the whole row is NaN, so that attention's result is.
#pragma once

#include "absl/status/status.h"
#include "core/op.h"
#include "core/ops/rope.h"
#include "core/tensor_view.h"

namespace tandem {

struct KvAppendArgs {
  static constexpr OpKind kOp = OpKind::kKvAppend;

  TensorView k;        // [B, H, S, D]         f32, f16, bf16
  TensorView v;        // [B, H, S, Dv]        f32, f16, bf16
  TensorView k_cache;  // [B, H, capacity, D]  f32, f16, bf16, i8; paged: [pages, H, page_size, D]
  TensorView v_cache;  // [B, H, capacity, Dv] dtype of k_cache; paged: [pages, H, page_size, Dv]
  int64_t position = 0;

  TensorView cache_lens;  // [B]              optional, i32; position is then 0. These two: in host
  TensorView page_table;  // [B, max_pages]   optional, i32. memory or beside the cache
  TensorView k_scale;     // [B, H, capacity] iff k_cache is i8, f32; paged: [pages, H, page_size]
  TensorView v_scale;     // same

  RopeRotation rope;  // optional
  TensorView q;       // [B, Hq, Sq, D]  optional, with rope only; f32, f16, bf16
  TensorView q_out;   // shape of q      iff q; f32, f16, bf16; in place allowed

  bool paged() const { return page_table.present(); }
  bool quantized() const { return k_cache.dtype == DType::kI8; }
  int64_t capacity() const { return paged() ? page_table.dim(1) * k_cache.dim(2) : k_cache.dim(2); }
  int64_t FirstRow(int64_t b) const {
    return cache_lens.present() ? *cache_lens.At<int32_t>(b * cache_lens.stride(0)) : position;
  }
  // Where row p of sequence b lies: index into dimensions 0 and 2 of caches and scales.
  struct Place {
    int64_t batch, row;
  };
  Place PlaceOf(int64_t b, int64_t p) const {
    if (!paged()) return {b, p};
    const int64_t page_size = k_cache.dim(2);
    const int64_t entry = b * page_table.stride(0) + p / page_size * page_table.stride(1);
    return {*page_table.At<int32_t>(entry), p % page_size};
  }
};

// Also checks the contents of cache_lens and of the part of page_table that is read, if they are in
// host memory. Elsewhere a row outside the cache is not written.
absl::Status Validate(const KvAppendArgs& args);

}  // namespace tandem
