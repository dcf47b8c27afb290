// Accesses to memory that are more than a plain load or store: vectors, cache hints, atomics.
#pragma once

#include <atomic>
#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "cuda/device/target.h"

namespace tandem::cuda::TANDEM_CUDA_TARGET {

// What one access moves: 4, 8 or 16 bytes, from an address that is a multiple of them.
template <int kBytes>
struct alignas(kBytes) Packed {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16);
  uint32_t words[kBytes / 4];
};

enum class CacheHint : uint8_t {
  kNone,
  kReadOnly,   // loads: nobody writes there while the kernel runs (never of an op in place)
  kStreaming,  // not used again: the first to be evicted
};

// Who sees an atomic access as one step.
enum class Scope : uint8_t { kBlock, kDevice, kSystem };

// Atomic accesses are relaxed: they order nothing else (see the fences of sync.h).
template <typename T>
inline constexpr bool kIsAtomicInteger =
    std::is_same_v<T, int32_t> || std::is_same_v<T, uint32_t> || std::is_same_v<T, uint64_t>;

#if TANDEM_CUDA_EMULATED

namespace internal {

// A GPU ends the launch with an error.
template <int kBytes>
void CheckAligned(const void* address, emulator::Site site) {
  if (reinterpret_cast<uintptr_t>(address) % kBytes == 0) return;
  emulator::ReportBug(kBytes == 16  ? "a misaligned access of 16 bytes"
                      : kBytes == 8 ? "a misaligned access of 8 bytes"
                                    : "a misaligned access of 4 bytes",
                      site);
}

// Replaces what is there by update(what is there), and returns what was there.
template <typename T, typename Update>
T AtomicUpdate(T* address, emulator::Site site, Update update) {
  CheckAligned<sizeof(T)>(address, site);
  const std::atomic_ref<T> cell(*address);
  T old = cell.load(std::memory_order_relaxed);
  while (!cell.compare_exchange_weak(old, update(old), std::memory_order_relaxed)) {
  }
  return old;
}

}  // namespace internal

template <int kBytes, CacheHint kHint = CacheHint::kNone>
Packed<kBytes> LoadPacked(const void* address, emulator::Site site = emulator::Site::Here()) {
  internal::CheckAligned<kBytes>(address, site);
  Packed<kBytes> value;  // the memory may hold another type
  std::memcpy(&value, address, kBytes);
  return value;
}
template <CacheHint kHint = CacheHint::kNone, int kBytes>
void StorePacked(void* address, const Packed<kBytes>& value,
                 emulator::Site site = emulator::Site::Here()) {
  static_assert(kHint != CacheHint::kReadOnly);
  internal::CheckAligned<kBytes>(address, site);
  std::memcpy(address, &value, kBytes);
}

template <Scope kScope = Scope::kDevice, typename T>
T AtomicAdd(T* address, std::type_identity_t<T> value,
            emulator::Site site = emulator::Site::Here()) {
  static_assert(kIsAtomicInteger<T> || std::is_same_v<T, float>);
  return internal::AtomicUpdate(address, site, [=](T old) -> T {
    if constexpr (std::is_same_v<T, int32_t>) {  // wraps around
      return static_cast<int32_t>(static_cast<uint32_t>(old) + static_cast<uint32_t>(value));
    } else {
      return old + value;
    }
  });
}
template <Scope kScope = Scope::kDevice, typename T>
T AtomicMax(T* address, std::type_identity_t<T> value,
            emulator::Site site = emulator::Site::Here()) {
  static_assert(kIsAtomicInteger<T>);
  return internal::AtomicUpdate(address, site, [=](T old) { return old > value ? old : value; });
}
template <Scope kScope = Scope::kDevice, typename T>
T AtomicCompareExchange(T* address, std::type_identity_t<T> expected,
                        std::type_identity_t<T> desired,
                        emulator::Site site = emulator::Site::Here()) {
  static_assert(kIsAtomicInteger<T>);
  return internal::AtomicUpdate(address, site,
                                [=](T old) { return old == expected ? desired : old; });
}
template <Scope kScope = Scope::kDevice>
uint32_t AtomicInc(uint32_t* address, uint32_t limit,
                   emulator::Site site = emulator::Site::Here()) {
  // By it blocks count themselves in: what the others wait for.
  if (emulator::LeavesOut("AtomicInc", site)) return 0;
  return internal::AtomicUpdate(address, site,
                                [=](uint32_t old) { return old >= limit ? 0u : old + 1; });
}

#else

namespace internal {

template <int kBytes>
struct VectorWord;
template <>
struct VectorWord<4> {
  using Type = unsigned int;
};
template <>
struct VectorWord<8> {
  using Type = uint2;
};
template <>
struct VectorWord<16> {
  using Type = uint4;
};

// The type that CUDA's atomic functions have for T.
template <typename T>
using AtomicWord = std::conditional_t<
    std::is_same_v<T, uint64_t>, unsigned long long,
    std::conditional_t<std::is_same_v<T, uint32_t>, unsigned int,
                       std::conditional_t<std::is_same_v<T, int32_t>, int, float> > >;
template <typename T>
__device__ inline AtomicWord<T>* ToAtomic(T* address) {
  return reinterpret_cast<AtomicWord<T>*>(address);
}

}  // namespace internal

template <int kBytes, CacheHint kHint = CacheHint::kNone>
__device__ inline Packed<kBytes> LoadPacked(const void* address) {
  using Word = typename internal::VectorWord<kBytes>::Type;
  const Word* from = static_cast<const Word*>(address);
  Word word;
  if constexpr (kHint == CacheHint::kReadOnly) {
    word = __ldg(from);
  } else if constexpr (kHint == CacheHint::kStreaming) {
    word = __ldcs(from);
  } else {
    word = *from;
  }
  return std::bit_cast<Packed<kBytes> >(word);
}
template <CacheHint kHint = CacheHint::kNone, int kBytes>
__device__ inline void StorePacked(void* address, const Packed<kBytes>& value) {
  static_assert(kHint != CacheHint::kReadOnly);
  using Word = typename internal::VectorWord<kBytes>::Type;
  if constexpr (kHint == CacheHint::kStreaming) {
    __stcs(static_cast<Word*>(address), std::bit_cast<Word>(value));
  } else {
    *static_cast<Word*>(address) = std::bit_cast<Word>(value);
  }
}

// All return what was there. Sums of floats depend on the order of the threads: no kernel whose
// results must be the same every time adds floats so.
template <Scope kScope = Scope::kDevice, typename T>
__device__ inline T AtomicAdd(T* address, std::type_identity_t<T> value) {
  static_assert(kIsAtomicInteger<T> || std::is_same_v<T, float>);
  if constexpr (kScope == Scope::kBlock) return atomicAdd_block(internal::ToAtomic(address), value);
  if constexpr (kScope == Scope::kSystem) {
    return atomicAdd_system(internal::ToAtomic(address), value);
  }
  return atomicAdd(internal::ToAtomic(address), value);
}
template <Scope kScope = Scope::kDevice, typename T>
__device__ inline T AtomicMax(T* address, std::type_identity_t<T> value) {
  static_assert(kIsAtomicInteger<T>);
  if constexpr (kScope == Scope::kBlock) return atomicMax_block(internal::ToAtomic(address), value);
  if constexpr (kScope == Scope::kSystem) {
    return atomicMax_system(internal::ToAtomic(address), value);
  }
  return atomicMax(internal::ToAtomic(address), value);
}
// Stores `desired` where `expected` is.
template <Scope kScope = Scope::kDevice, typename T>
__device__ inline T AtomicCompareExchange(T* address, std::type_identity_t<T> expected,
                                          std::type_identity_t<T> desired) {
  static_assert(kIsAtomicInteger<T>);
  using Word = internal::AtomicWord<T>;
  Word* cell = internal::ToAtomic(address);
  const auto from = static_cast<Word>(expected), to = static_cast<Word>(desired);
  if constexpr (kScope == Scope::kBlock) return atomicCAS_block(cell, from, to);
  if constexpr (kScope == Scope::kSystem) return atomicCAS_system(cell, from, to);
  return atomicCAS(cell, from, to);
}
// Adds 1; from `limit` (or beyond) it goes back to 0.
template <Scope kScope = Scope::kDevice>
__device__ inline uint32_t AtomicInc(uint32_t* address, uint32_t limit) {
  if constexpr (kScope == Scope::kBlock) return atomicInc_block(address, limit);
  if constexpr (kScope == Scope::kSystem) return atomicInc_system(address, limit);
  return atomicInc(address, limit);
}

#endif

}  // namespace tandem::cuda::TANDEM_CUDA_TARGET
