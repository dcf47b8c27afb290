// What kernel code calls of the emulator (thread.h, async.h, warpgroup.h, matrix.h), for the thread
// that is running.
#include <algorithm>
#include <array>

#include "absl/strings/str_cat.h"
#include "cuda/emulator/async.h"
#include "cuda/emulator/block.h"
#include "cuda/emulator/matrix.h"
#include "cuda/emulator/ordering_calls.h"
#include "cuda/emulator/races.h"
#include "cuda/emulator/thread.h"
#include "cuda/emulator/warpgroup.h"

namespace tandem::cuda::emulator {
namespace {

// Each of eight rows of 16 bytes takes four of the 32 banks: rows of one 8x8 matrix that take the
// same ones are moved one after the other.
void CountBankConflicts(void* const* lanes) {
  const int count = static_cast<const MatrixLane*>(lanes[0])->count;
  EmulatorStatistics& statistics = Block::Current().statistics();
  for (int j = 0; j < count; ++j) {
    std::array<std::array<const void*, 8>, 8> rows{};  // different addresses by banks
    std::array<int, 8> passes{};
    for (int r = 0; r < 8; ++r) {
      const void* row = static_cast<const MatrixLane*>(lanes[8 * j + r])->row;
      const auto banks = static_cast<size_t>(Block::Current().arena().Offset(row) / 16 % 8);
      auto& own = rows[banks];
      auto& n = passes[banks];
      if (std::find(own.begin(), own.begin() + n, row) == own.begin() + n) {
        own[static_cast<size_t>(n++)] = row;
      }
    }
    statistics.matrix_moves += 1;
    statistics.bank_conflicts += *std::max_element(passes.begin(), passes.end()) - 1;
  }
}

// Of calls made inside the emulator.
bool LeftOut(const char* call, Site site) {
  OrderingCalls* calls = Block::Current().options().ordering_calls;
  return calls != nullptr && calls->LeavesOut(call, site);
}

}  // namespace

// thread.h

bool LeavesOut(const char* call, Site site) {
  const InsideEmulator inside;
  return LeftOut(call, site);
}

void SyncBarrier(int id, int threads, bool same_site, Site site) {
  const InsideEmulator inside;
  if (LeftOut(id == 0 ? "SyncThreads" : "NamedBarrierSync", site)) return;
  Block::Current().SyncBarrier(id, threads, same_site, site);
}
void ArriveBarrier(int id, int threads, Site site) {
  const InsideEmulator inside;
  if (LeftOut("NamedBarrierArrive", site)) return;
  Block::Current().ArriveBarrier(id, threads, site);
}
void WarpCollective(const char* operation, uint32_t mask, void* data, CollectiveFn execute,
                    Site site) {
  const InsideEmulator inside;
  Block::Current().WarpCollective(operation, mask, data, execute, site);
}
void SyncWarp(uint32_t mask, Site site) {
  const InsideEmulator inside;
  if (LeftOut("SyncWarp", site)) return;
  Block::Current().SyncWarp(mask, site);
}
void* SharedPiece(int64_t offset, int64_t bytes, int index, int64_t alignment, Site site) {
  const InsideEmulator inside;
  return Block::Current().SharedPiece(offset, bytes, index, alignment, site);
}
void Fence(bool device, Site site) {
  const InsideEmulator inside;
  if (LeftOut(device ? "FenceDevice" : "FenceBlock", site)) return;
  Block::Current().Fence(device);
}
void Yield(Site site) {
  const InsideEmulator inside;
  Block::Current().Yield(site);
}
void ReportBug(const char* what, Site site) {
  const InsideEmulator inside;
  Block::Current().Report(absl::StrCat(what, " at ", ToString(site)));
}

// async.h

void CopyAsync(void* shared, const void* global, int bytes, int valid, Site site) {
  const InsideEmulator inside;
  AsyncUnit& async = Block::Current().async();
  async.CopyAsync(shared, global, bytes, valid, site);
}
void CopyAsyncCommit(Site site) {
  const InsideEmulator inside;
  if (LeftOut("CopyAsyncCommit", site)) return;
  Block::Current().async().CopyAsyncCommit();
}
void CopyAsyncWait(int pending, Site site) {
  const InsideEmulator inside;
  if (LeftOut("CopyAsyncWait", site)) return;
  Block::Current().async().CopyAsyncWait(pending);
}
void CopyAsyncArrive(void* barrier, Site site) {
  const InsideEmulator inside;
  if (LeftOut("CopyAsyncArrive", site)) return;
  Block::Current().async().CopyAsyncArrive(barrier, site);
}
void MbarrierInit(void* barrier, int count, Site site) {
  const InsideEmulator inside;
  Block::Current().async().MbarrierInit(barrier, count, site);
}
void MbarrierInvalidate(void* barrier, Site site) {
  const InsideEmulator inside;
  Block::Current().async().MbarrierInvalidate(barrier, site);
}
void MbarrierArrive(void* barrier, int count, Site site) {
  const InsideEmulator inside;
  if (LeftOut("MbarrierArrive", site)) return;
  Block::Current().async().MbarrierArrive(barrier, count, site);
}
void MbarrierExpect(void* barrier, int64_t bytes, Site site) {
  const InsideEmulator inside;
  if (LeftOut("MbarrierExpect", site)) return;
  Block::Current().async().MbarrierExpect(barrier, bytes, site);
}
bool MbarrierTest(void* barrier, int parity, Site site) {
  const InsideEmulator inside;
  return Block::Current().async().MbarrierTest(barrier, parity, site);
}
void MbarrierWait(void* barrier, int parity, Site site) {
  const InsideEmulator inside;
  if (LeftOut("MbarrierWait", site)) return;
  Block::Current().async().MbarrierWait(barrier, parity, site);
}
void FenceMbarrierInit(Site site) {
  const InsideEmulator inside;
  if (LeftOut("FenceMbarrierInit", site)) return;
  Block::Current().async().FenceMbarrierInit();
}
void FenceProxyAsync(Site site) {
  const InsideEmulator inside;
  if (LeftOut("FenceProxyAsync", site)) return;
  Block::Current().async().FenceProxyAsync();
}
void TensorLoad(void* shared, const void* map, int rank, const int32_t* at, void* barrier,
                Site site) {
  const InsideEmulator inside;
  Block::Current().async().TensorCopy(true, map, rank, at, shared, barrier, site);
}
void TensorStore(const void* map, int rank, const int32_t* at, const void* shared, Site site) {
  const InsideEmulator inside;
  Block::Current().async().TensorCopy(false, map, rank, at, const_cast<void*>(shared), nullptr,
                                      site);
}
void BulkLoad(void* shared, const void* global, int64_t bytes, void* barrier, Site site) {
  const InsideEmulator inside;
  Block::Current().async().BulkCopy(true, const_cast<void*>(global), shared, bytes, barrier, site);
}
void BulkStore(void* global, const void* shared, int64_t bytes, Site site) {
  const InsideEmulator inside;
  Block::Current().async().BulkCopy(false, global, const_cast<void*>(shared), bytes, nullptr, site);
}
void BulkCommit(Site site) {
  const InsideEmulator inside;
  if (LeftOut("BulkCommit", site)) return;
  Block::Current().async().BulkCommit();
}
void BulkWait(int pending, bool read, Site site) {
  const InsideEmulator inside;
  if (LeftOut("BulkWait", site)) return;
  Block::Current().async().BulkWait(pending, read);
}

// warpgroup.h

void WarpgroupFence(Site site) {
  const InsideEmulator inside;
  if (LeftOut("WarpgroupFence", site)) return;
  Block::Current().warpgroups().Fence();
}
void WarpgroupMultiply(const WarpgroupProduct& product, Site site) {
  const InsideEmulator inside;
  Block::Current().warpgroups().Multiply(product, site);
}
void WarpgroupCommit(Site site) {
  const InsideEmulator inside;
  if (LeftOut("WarpgroupCommit", site)) return;
  Block::Current().warpgroups().Commit();
}
void WarpgroupWait(int pending, Site site) {
  const InsideEmulator inside;
  if (LeftOut("WarpgroupWait", site)) return;
  Block::Current().warpgroups().Wait(pending, site);
}
void SetMaxRegisters(int registers, bool increase, Site site) {
  const InsideEmulator inside;
  if (registers < 24 || registers > 256 || registers % 8 != 0) {
    Block::Current().Report(absl::StrCat("setmaxnreg at ", ToString(site), ": ", registers,
                                         " registers, expected 24..256 in steps of 8"));
  }
  WarpCollective(
      increase ? "setmaxnreg.inc" : "setmaxnreg.dec", 0xFFFFFFFFu, nullptr,
      [](void* const*, uint32_t) {}, site);
}
uint32_t SharedAddress(const void* shared, Site site) {
  const InsideEmulator inside;
  const SharedArena& arena = Block::Current().arena();
  if (!arena.Contains(shared, 16) || arena.Offset(shared) >= 1 << 18) {
    Block::Current().Report(absl::StrCat("matrix descriptor at ", ToString(site), ": ",
                                         arena.Describe(shared), ", expected 16 bytes of a piece"));
  }
  return static_cast<uint32_t>(arena.Offset(shared));
}

// matrix.h

void MoveMatrices(bool load, MatrixLane* lane, Site site) {
  const InsideEmulator inside;
  const char* name = load ? "ldmatrix" : "stmatrix";
  Block& block = Block::Current();
  if (CurrentThread().lane() < 8 * lane->count) {
    if (reinterpret_cast<uintptr_t>(lane->row) % 16 != 0) {
      block.Report(absl::StrCat(name, " at ", ToString(site),
                                ": misaligned, expected rows aligned to 16 bytes"));
    }
    if (!block.arena().Contains(lane->row, 16)) {
      block.Report(absl::StrCat(name, " at ", ToString(site),
                                ": a row beyond its piece: ", block.arena().Describe(lane->row)));
    }
    if (const Site* copy = block.async().PendingWrite(lane->row, 16)) {
      block.Report(absl::StrCat(name, " at ", ToString(site), ": ",
                                block.arena().Describe(lane->row), ", which the copy issued at ",
                                ToString(*copy), " is still writing"));
    }
    if (load) {
      NoteRead(lane->row, 16);
    } else {
      NoteWrite(lane->row, 16);
    }
  }
  WarpCollective(
      name, 0xFFFFFFFFu, lane,
      load ? [](void* const* lanes, uint32_t mask) {
        CountBankConflicts(lanes);
        LoadMatrices(lanes, mask);
      } : [](void* const* lanes, uint32_t mask) {
        CountBankConflicts(lanes);
        StoreMatrices(lanes, mask);
      },
      site);
}

}  // namespace tandem::cuda::emulator
