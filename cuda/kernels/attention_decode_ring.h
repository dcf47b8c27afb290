// The ring through which a decode kernel's block reads the cache: tiles of 64 keys, k and v in
// turn, by cp.async, `slots` - 1 of them under way. Rows that no query sees are not read: they are
// zeros.
//
// 8 threads copy a row, 128 bytes at a time; a warp has four rows. Where a row lies is found once
// per row of a tile for k and v: with pages the entries of the table are read one tile ahead.
#pragma once

#include "cuda/device/cp_async.h"
#include "cuda/device/target.h"
#include "cuda/kernels/attention_decode_block.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// Waits for all of this thread's groups but the `pending` last.
__device__ inline void CopyAsyncWaitFor(int pending) {
  if (pending >= 2) {
    CopyAsyncWait<2>();
  } else if (pending == 1) {
    CopyAsyncWait<1>();
  } else {
    CopyAsyncWait<0>();
  }
}

template <typename Stored>
class DecodeRing {
 public:
  static constexpr int kTile = static_cast<int>(kDecodeTile);
  static constexpr bool kScaled = std::is_same_v<Stored, int8_t>;
  static constexpr int kLanes = 8;  // that copy a row
  static constexpr int kMaxRows = kTile * kLanes / (kDecodeKeyWarps * kWarpSize);  // of a thread

  struct Slot {
    char* data;
    float* scales;   // [kTile], of int8 rows
    uint8_t* flags;  // [kTile], of k in a paged cache: the row is there
  };

  __device__ DecodeRing(const DecodeParams& p, const DecodeBlock& block, const DecodeShared& shared)
      : p_(p),
        block_(block),
        ring_(shared.ring),
        lane_(static_cast<int>(threadIdx.x) % kLanes),
        row_(static_cast<int>(threadIdx.x) / kLanes),
        step_(static_cast<int>(blockDim.x) / kLanes),
        next_(2 * block.first_tile),
        end_(2 * block.end_tile) {
    if (p.attention.paged) ReadPages();
    for (int i = 0; i < p.layout.slots - 1; ++i) Issue();
  }

  // The next tile, of k and v in turn; it is there for all threads. Everybody is done with the one
  // before.
  __device__ Slot Next() {
    CopyAsyncWaitFor(p_.layout.slots - 2);
    SyncThreads();
    Issue();
    const Slot slot = SlotAt(read_);
    if (++read_ == p_.layout.slots) read_ = 0;
    return slot;
  }
  // Nothing is under way, nobody reads: its memory can be used for something else.
  __device__ void Finish() {
    CopyAsyncWait<0>();
    SyncThreads();
  }

 private:
  __device__ Slot SlotAt(int i) const {
    char* data = ring_ + i * p_.layout.slot_bytes;
    char* scales = data + p_.layout.slot_bytes - kTile * 5;
    return {data, reinterpret_cast<float*>(scales), reinterpret_cast<uint8_t*>(scales + kTile * 4)};
  }

  // Where the rows of tile next_ / 2 lie: their pages, which copies will wait for.
  __device__ void ReadPages() {
    if (next_ >= end_) return;
    const auto size = static_cast<uint32_t>(p_.attention.page_size.value());
#pragma unroll
    for (int i = 0; i < kMaxRows; ++i) {
      const int j = block_.begin + next_ / 2 * kTile + row_ + i * step_;
      if (row_ + i * step_ >= kTile || j >= End()) continue;
      const uint32_t column = static_cast<uint32_t>(j) / size;
      pages_[i] = static_cast<int32_t>(p_.attention.page_table.At(block_.s.batch, column));
    }
  }
  __device__ int End() const {
    return block_.end < block_.cache_len ? block_.end : block_.cache_len;
  }

  __device__ void Issue() {
    if (next_ < end_) {
      const Slot slot = SlotAt(write_);
      const AttentionParams& a = p_.attention;
      if ((next_ & 1) == 0) {
        Copy(a.k, a.k_scale, slot, p_.layout.k_stride, p_.layout.k_chunks);
      } else {
        Copy(a.v, a.v_scale, slot, p_.layout.v_stride, p_.layout.v_chunks);
      }
      ++next_;
      if (++write_ == p_.layout.slots) write_ = 0;
      if (a.paged && (next_ & 1) == 0) ReadPages();
    }
    CopyAsyncCommit();
  }

  __device__ void Copy(const DeviceTensor& t, const DeviceTensor& scale, const Slot& slot,
                       int stride, int chunks) const {
    const int bytes = static_cast<int>(t.dims[3]) * static_cast<int>(sizeof(Stored));
#pragma unroll
    for (int i = 0; i < kMaxRows; ++i) {
      const int row = row_ + i * step_;
      if (row >= kTile) continue;
      const int j = block_.begin + next_ / 2 * kTile + row;
      int64_t plane = block_.s.batch, place = j;
      bool there = j < End();
      if (p_.attention.paged) {
        plane = pages_[i];
        place = static_cast<uint32_t>(j) % static_cast<uint32_t>(p_.attention.page_size.value());
        there = there && plane >= 0 && plane < t.dims[0];
        if (lane_ == 0) slot.flags[row] = there;
      }
      const Stored* from = t.As<const Stored>();
      if (there) {
        from += plane * t.strides[0] + block_.kv_head * t.strides[1] + place * t.strides[2];
      }
      char* to = slot.data + row * stride;
      for (int c = lane_; c < chunks; c += kLanes) {
        const int left = there ? bytes - c * 16 : 0;
        CopyAsync<16>(to + c * 16,
                      left > 0 ? reinterpret_cast<const char*>(from) + c * 16 : t.As<const char>(),
                      left < 0    ? 0
                      : left < 16 ? left
                                  : 16);
      }
      if (kScaled && lane_ == 0) {
        const float* s = scale.As<const float>();
        if (there) {
          s += plane * scale.strides[0] + block_.kv_head * scale.strides[1] +
               place * scale.strides[2];
        }
        CopyAsync<4>(slot.scales + row, s, there ? 4 : 0);
      }
    }
  }

  const DecodeParams& p_;
  const DecodeBlock& block_;
  char* ring_;
  int lane_, row_, step_;
  int next_, end_;  // half tiles: k, then v of each
  int read_ = 0, write_ = 0;
  int32_t pages_[kMaxRows] = {};  // of the tile next_ / 2
};

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
