// The asynchronous units of one block: cp.async queues, mbarriers, bulk copies. Internal to the
// emulator; semantics in async.h.
#pragma once

#include <array>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cuda/emulator/async.h"
#include "cuda/emulator/races.h"
#include "cuda/emulator/thread.h"

namespace tandem::cuda::emulator {

class Block;

inline constexpr uint8_t kNotYet = 0xFF;  // what is under way holds
// PTX: the range of an mbarrier's transaction count.
inline constexpr int64_t kMaxTransactionBytes = (int64_t{1} << 20) - 1;

inline bool IsAligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

class AsyncUnit {
 public:
  AsyncUnit(Block& block, int threads);

  // Of the running thread.
  void CopyAsync(void* shared, const void* global, int bytes, int valid, Site site);
  void CopyAsyncCommit();
  void CopyAsyncWait(int pending);
  void CopyAsyncArrive(void* barrier, Site site);
  void MbarrierInit(void* barrier, int count, Site site);
  void MbarrierInvalidate(void* barrier, Site site);
  void MbarrierArrive(void* barrier, int count, Site site);
  void MbarrierExpect(void* barrier, int64_t bytes, Site site);
  bool MbarrierTest(void* barrier, int parity, Site site);
  void MbarrierWait(void* barrier, int parity, Site site);
  void FenceMbarrierInit();
  void FenceProxyAsync();
  void TensorCopy(bool load, const void* map, int rank, const int32_t* at, void* shared,
                  void* barrier, Site site);
  void BulkCopy(bool load, void* global, void* shared, int64_t bytes, void* barrier, Site site);
  void BulkCommit();
  // `read`: it is enough that the sources have been read.
  void BulkWait(int pending, bool read);
  // The running thread ends: what is wrong with that, or "".
  std::string CheckExit();

  // Of the scheduler. Completes one piece of work that completes by itself; false if there is none.
  bool CompleteOne();
  // All threads have ended: completes the stores that have only read. What is wrong, or "".
  std::string Finish();
  // "mbarrier ... (phase 3, 1 arrival and 512 bytes missing)", for reports.
  std::string DescribeBarrier(const void* barrier) const;

  // Where an asynchronous copy is writing within [shared, shared + bytes): its place, or nullptr.
  const Site* PendingWrite(const void* shared, int64_t bytes) const;

 private:
  // cp.async
  struct SmallCopy {
    void* shared;
    const void* global;
    int bytes, valid;
    void* arrives_at;  // an mbarrier: this is an arrival, not a copy
    int64_t group;
    Site site;
  };
  struct SmallQueue {
    std::deque<SmallCopy> copies;
    int64_t group = 0;  // that copies issued now belong to
  };
  struct Mbarrier {
    int count = 0, pending = 0;
    int64_t missing_bytes = 0;
    uint32_t phase = 0;
    bool fenced = false;
    int initialised_by = -1;
    std::vector<std::pair<int, int>> waiting;  // thread, parity
    std::array<char, 2> order{};               // by parity: what arrivals happened before
  };
  struct Bulk {
    bool load;
    bool tensor;
    EmulatedTensorMap map;
    std::array<int32_t, 5> at;
    std::byte* global;
    std::byte* shared;
    int64_t bytes;
    void* barrier;
    int owner;
    int64_t group;
    Site site;
    std::unique_ptr<char> order;  // of the issue and what follows
    bool read;                    // a store's source has been, into `staged`
    std::vector<std::pair<std::byte*, std::vector<std::byte>>> staged;  // what goes where
  };

  Mbarrier& Find(void* barrier, const char* operation, Site site);
  void Arrived(void* barrier, Mbarrier& state);
  void Perform(const SmallCopy& copy);
  void Enqueue(Bulk bulk);
  // A load; of a store, the reading. "" or what is wrong with the kernel.
  std::string Perform(Bulk& bulk);
  std::string PerformRow(Bulk& bulk, int64_t at, std::byte* global, int64_t first, int64_t last);
  void PerformAt(size_t index);
  bool ReadSource(Bulk& store);
  void WriteBack(const Bulk& store);
  ProxyThread& proxy();
  bool Now();  // does work issued now complete at once?
  void Mark(const void* shared, int64_t bytes, bool pending, Site site);

  Block& block_;
  std::vector<SmallQueue> small_;
  std::map<void*, Mbarrier> barriers_;
  std::deque<Bulk> bulk_;
  std::vector<int64_t> bulk_group_;  // by thread
  std::unique_ptr<ProxyThread> proxy_;
  char reads_ = 0;   // what its stores' reading so far happened before
  char stores_ = 0;  // what their writing did
  // By 16 bytes of the arena: copies under way, and the place of the last.
  std::vector<uint16_t> pending_;
  std::vector<Site> pending_site_;
};

}  // namespace tandem::cuda::emulator
