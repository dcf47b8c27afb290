#include "cuda/emulator/shared_arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <new>

#include "absl/strings/str_cat.h"
#include "cuda/emulator/memory_guard.h"
#include "cuda/emulator/races.h"

namespace tandem::cuda::emulator {
namespace {

constexpr int64_t kGuard = 128;  // bytes before, between and after the pieces
constexpr int kMaxPieces = 64;
constexpr int64_t kMaxAlignment = 1024;
constexpr uint8_t kGuardByte = 0xFA;
constexpr uint8_t kUninitialised = 0xFF;  // NaN in every float type

int64_t AlignUp(int64_t value, int64_t alignment) {
  return (value + alignment - 1) / alignment * alignment;
}

}  // namespace

SharedArena::~SharedArena() {
  if (base_ == nullptr) return;
  UnpoisonMemory(base_, static_cast<size_t>(mapped_));
  munmap(base_, static_cast<size_t>(mapped_));
}

void SharedArena::Begin(int64_t bytes) {
  pieces_.clear();
  async_.clear();
  launched_ = bytes;
  if (bytes == 0) return;
  const int64_t needed =
      AlignUp(bytes + (kMaxPieces + 1) * (kGuard + kMaxAlignment), int64_t{1} << 16);
  // Under ThreadSanitizer every block gets memory anew: what the block before did with it is no
  // race with this one.
  if (base_ != nullptr && (needed > mapped_ || kDetectsRaces)) {
    UnpoisonMemory(base_, static_cast<size_t>(mapped_));
    munmap(base_, static_cast<size_t>(mapped_));
    base_ = nullptr;
  }
  if (base_ == nullptr) {
    void* map = mmap(nullptr, static_cast<size_t>(needed), PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED) throw std::bad_alloc();  // caught by RunKernel
    base_ = static_cast<std::byte*>(map);
    mapped_ = needed;
  }
  RawFill(base_, kGuardByte, kGuard);
  PoisonMemory(base_, static_cast<size_t>(mapped_));
}

void* SharedArena::Take(int64_t offset, int64_t bytes, int index, int64_t alignment,
                        std::string* error) {
  if (index >= kMaxPieces || offset < 0 || bytes < 0 || offset + bytes > launched_) {
    *error = absl::StrCat("the kernel takes ", offset + bytes, " bytes in ", index + 1,
                          " pieces, it was launched with ", launched_);
    return nullptr;
  }
  if (alignment > kMaxAlignment) {
    *error = absl::StrCat("alignment ", alignment, ": expected at most ", kMaxAlignment);
    return nullptr;
  }
  if (launched_ == 0) {  // nothing of nothing
    alignas(kMaxAlignment) static std::byte nothing{};
    return &nothing;
  }
  const auto at = static_cast<size_t>(index);
  const int64_t before = index == 0 ? 0 : at <= pieces_.size() ? pieces_[at - 1].end : -1;
  const int64_t begin = AlignUp(before + kGuard, alignment), end = begin + bytes;
  if (at == pieces_.size()) {
    pieces_.push_back({begin, end});
    RawFill(base_ + before, kGuardByte, static_cast<size_t>(begin - before));
    RawFill(base_ + begin, kUninitialised, static_cast<size_t>(bytes));
    RawFill(base_ + end, kGuardByte, kGuard);
    UnpoisonMemory(base_ + begin, static_cast<size_t>(bytes));
    if (!async_.empty()) RawFill(async_.data() + begin, kUninitialised, static_cast<size_t>(bytes));
  } else if (before < 0 || at > pieces_.size() || pieces_[at].begin != begin ||
             pieces_[at].end != end) {
    *error = absl::StrCat("piece ", index, " is taken as ", bytes,
                          " bytes, differently by other threads");
    return nullptr;
  }
  return base_ + begin;
}

std::string SharedArena::CheckGuards() {
  if (launched_ == 0 || base_ == nullptr) return "";
  int64_t at = 0;
  for (size_t i = 0; i <= pieces_.size(); ++i) {
    const int64_t end =
        i < pieces_.size() ? pieces_[i].begin : (pieces_.empty() ? 0 : pieces_.back().end) + kGuard;
    for (; at < end; ++at) {
      if (base_[at] != std::byte{kGuardByte}) {
        const std::string where =
            i == 0 ? "before piece 0"
                   : absl::StrCat(at - pieces_[i - 1].end, " bytes behind piece ", i - 1);
        return absl::StrCat("a write beyond shared memory, ", where);
      }
    }
    if (i < pieces_.size()) at = pieces_[i].end;
  }
  return "";
}

bool SharedArena::Contains(const void* data, int64_t bytes) const {
  if (base_ == nullptr) return false;
  const int64_t begin = Offset(data);
  return std::any_of(pieces_.begin(), pieces_.end(), [&](const Piece& piece) {
    return begin >= piece.begin && begin + bytes <= piece.end;
  });
}

std::string SharedArena::Describe(const void* data) const {
  const int64_t at = base_ == nullptr ? -1 : Offset(data);
  for (size_t i = 0; i < pieces_.size(); ++i) {
    if (at >= pieces_[i].begin && at < pieces_[i].end + kGuard) {
      return absl::StrCat(at - pieces_[i].begin, " bytes into piece ", i, " of shared memory (",
                          pieces_[i].end - pieces_[i].begin, " bytes)");
    }
  }
  return "outside shared memory";
}

void SharedArena::EnsureAsyncView() {
  if (async_.empty()) async_.assign(static_cast<size_t>(mapped_), std::byte{kUninitialised});
}

void SharedArena::Fence() {
  if (pieces_.empty()) return;
  EnsureAsyncView();
  RawCopy(async_.data(), base_, static_cast<size_t>(pieces_.back().end));
}

bool SharedArena::AsyncRead(void* destination, const void* shared, int64_t bytes) {
  EnsureAsyncView();
  const std::byte* view = async_.data() + Offset(shared);
  const bool same =
      FirstDifference(view, shared, static_cast<size_t>(bytes)) == static_cast<size_t>(bytes);
  RawCopy(destination, view, static_cast<size_t>(bytes));
  return same;
}

void SharedArena::AsyncWrite(void* shared, const void* source, int64_t bytes) {
  EnsureAsyncView();
  RawCopy(shared, source, static_cast<size_t>(bytes));
  RawCopy(async_.data() + Offset(shared), source, static_cast<size_t>(bytes));
}

void SharedArena::AsyncFill(void* shared, uint8_t byte, int64_t bytes) {
  EnsureAsyncView();
  RawFill(shared, byte, static_cast<size_t>(bytes));
  RawFill(async_.data() + Offset(shared), byte, static_cast<size_t>(bytes));
}

}  // namespace tandem::cuda::emulator
