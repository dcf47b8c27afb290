// Shared memory of one block: the pieces a kernel carves, guards between them, and two views of the
// contents.
//
// The generic view is what ordinary loads and stores see. The asynchronous units (bulk copies,
// wgmma) see the async view: it gets what the threads wrote only by fence.proxy.async. A unit that
// reads where the views differ reads what was not fenced.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace tandem::cuda::emulator {

class SharedArena {
 public:
  SharedArena() = default;
  ~SharedArena();
  SharedArena(const SharedArena&) = delete;
  SharedArena& operator=(const SharedArena&) = delete;

  // For a block that was launched with `bytes`. Nothing is left of the block before. Throws
  // bad_alloc.
  void Begin(int64_t bytes);
  // Piece `index`: `bytes` from `offset` of what was launched. The same for every thread of the
  // block; the first to take it gets it uninitialised. `error` says what is wrong, with nullptr.
  void* Take(int64_t offset, int64_t bytes, int index, int64_t alignment, std::string* error);
  // After the block: what was written between the pieces, or "".
  std::string CheckGuards();

  // Does [data, data + bytes) lie in one piece?
  bool Contains(const void* data, int64_t bytes) const;
  // Bytes from the start of the arena, which is aligned to 1024: what a shared-memory address is.
  int64_t Offset(const void* data) const { return static_cast<const std::byte*>(data) - base_; }
  const std::byte* At(int64_t offset) const { return base_ + offset; }
  // "96 bytes into piece 2", for reports.
  std::string Describe(const void* data) const;

  // fence.proxy.async of the running thread: the async view becomes what it sees.
  void Fence();
  // Of an asynchronous unit. Read: false where the views differ. Write: to both views.
  bool AsyncRead(void* destination, const void* shared, int64_t bytes);
  void AsyncWrite(void* shared, const void* source, int64_t bytes);
  void AsyncFill(void* shared, uint8_t byte, int64_t bytes);

 private:
  struct Piece {
    int64_t begin, end;  // in the arena
  };
  void EnsureAsyncView();

  std::byte* base_ = nullptr;
  int64_t mapped_ = 0;
  int64_t launched_ = 0;
  std::vector<Piece> pieces_;
  std::vector<std::byte> async_;  // empty until it is needed
};

}  // namespace tandem::cuda::emulator
