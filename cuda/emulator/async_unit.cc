// Asynchronous copies of single threads, and mbarriers, of one block. A cp.async belongs to its
// thread and completes when that thread waits for it. Bulk copies: bulk_copies.cc.
#include "cuda/emulator/async_unit.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "core/status.h"
#include "cuda/emulator/block.h"
#include "cuda/emulator/memory_guard.h"

namespace tandem::cuda::emulator {
namespace {

constexpr int64_t kUnit = 16;  // bytes of shared memory that copies under way are counted by
constexpr uint64_t kBarrierMark = 0x7265697272614262u;  // what an mbarrier's 8 bytes hold here

}  // namespace

AsyncUnit::AsyncUnit(Block& block, int threads)
    : block_(block),
      small_(static_cast<size_t>(threads)),
      bulk_group_(static_cast<size_t>(threads), 0) {}

bool AsyncUnit::Now() {
  switch (block_.options().completion) {
    case Completion::kEager:
      return true;
    case Completion::kRandom:
      return block_.Random() % 3 == 0;
    default:
      return false;
  }
}

void AsyncUnit::Mark(const void* shared, int64_t bytes, bool pending, Site site) {
  const int64_t begin = block_.arena().Offset(shared);
  const int64_t first = begin / kUnit, last = (begin + bytes - 1) / kUnit;
  if (pending_.size() <= static_cast<size_t>(last)) {
    pending_.resize(static_cast<size_t>(last) + 1);
    pending_site_.resize(pending_.size());
  }
  for (int64_t i = first; i <= last; ++i) {
    const auto at = static_cast<size_t>(i);
    pending_[at] = static_cast<uint16_t>(pending_[at] + (pending ? 1 : -1));
    if (pending) pending_site_[at] = site;
  }
}

const Site* AsyncUnit::PendingWrite(const void* shared, int64_t bytes) const {
  if (pending_.empty() || bytes <= 0) return nullptr;
  const int64_t begin = block_.arena().Offset(shared);
  const auto end = static_cast<size_t>((begin + bytes - 1) / kUnit);
  for (auto i = static_cast<size_t>(begin / kUnit); i <= end && i < pending_.size(); ++i) {
    if (pending_[i] != 0) return &pending_site_[i];
  }
  return nullptr;
}

// --- cp.async

void AsyncUnit::CopyAsync(void* shared, const void* global, int bytes, int valid, Site site) {
  if (valid < 0 || valid > bytes) {
    block_.Report(absl::StrCat("cp.async at ", ToString(site), ": ", valid,
                               " bytes are to be read, expected 0..", bytes));
  }
  if (!IsAligned(shared, bytes) || (valid > 0 && !IsAligned(global, bytes))) {
    block_.Report(absl::StrCat("cp.async at ", ToString(site),
                               ": misaligned, expected both addresses ", "to be multiples of ",
                               bytes));
  }
  if (!block_.arena().Contains(shared, bytes)) {
    block_.Report(absl::StrCat("cp.async at ", ToString(site),
                               " writes beyond a piece: ", block_.arena().Describe(shared)));
  }
  if (IsPoisoned(global, static_cast<size_t>(valid))) {
    block_.Report(absl::StrCat("cp.async at ", ToString(site), " reads outside its tensor"));
  }
  const size_t self = static_cast<size_t>(block_.running_thread());
  const SmallCopy copy = {shared, global, bytes, valid, nullptr, small_[self].group, site};
  // The write belongs to this thread, from here until its wait.
  NoteWrite(shared, static_cast<size_t>(bytes));
  NoteRead(global, static_cast<size_t>(valid));
  if (Now()) {
    Perform(copy);
    return;
  }
  RawFill(shared, kNotYet, static_cast<size_t>(bytes));
  if (bytes == kUnit) PoisonMemory(shared, kUnit);  // smaller ones share ASan's granules
  Mark(shared, bytes, true, site);
  small_[self].copies.push_back(copy);
}

void AsyncUnit::Perform(const SmallCopy& copy) {
  if (copy.bytes == kUnit) UnpoisonMemory(copy.shared, kUnit);
  RawCopy(copy.shared, copy.global, static_cast<size_t>(copy.valid));
  RawFill(static_cast<std::byte*>(copy.shared) + copy.valid, 0,
          static_cast<size_t>(copy.bytes - copy.valid));
}

void AsyncUnit::CopyAsyncCommit() { ++small_[static_cast<size_t>(block_.running_thread())].group; }

void AsyncUnit::CopyAsyncWait(int pending) {
  SmallQueue& queue = small_[static_cast<size_t>(block_.running_thread())];
  while (!queue.copies.empty() && queue.copies.front().group < queue.group - pending) {
    const SmallCopy copy = queue.copies.front();
    queue.copies.pop_front();
    if (copy.arrives_at != nullptr) {
      Arrived(copy.arrives_at, Find(copy.arrives_at, "cp.async.mbarrier.arrive", copy.site));
      continue;
    }
    Perform(copy);
    Mark(copy.shared, copy.bytes, false, copy.site);
    NoteWrite(copy.shared, static_cast<size_t>(copy.bytes));
  }
}

void AsyncUnit::CopyAsyncArrive(void* barrier, Site site) {
  Mbarrier& state = Find(barrier, "cp.async.mbarrier.arrive", site);
  SmallQueue& queue = small_[static_cast<size_t>(block_.running_thread())];
  Release(&state.order[state.phase & 1]);
  if (queue.copies.empty()) {
    Arrived(barrier, state);
  } else {
    queue.copies.push_back({nullptr, nullptr, 0, 0, barrier, queue.group, site});
  }
}

// --- mbarriers

AsyncUnit::Mbarrier& AsyncUnit::Find(void* barrier, const char* operation, Site site) {
  const auto found = barriers_.find(barrier);
  if (found == barriers_.end()) {
    block_.Report(absl::StrCat(operation, " at ", ToString(site), ": not an initialised mbarrier: ",
                               block_.arena().Describe(barrier)));
  }
  uint64_t mark = 0;
  RawCopy(&mark, barrier, sizeof(mark));
  if (mark != kBarrierMark) {
    block_.Report(absl::StrCat(operation, " at ", ToString(site), ": the mbarrier ",
                               block_.arena().Describe(barrier), " has been overwritten"));
  }
  return found->second;
}

void AsyncUnit::MbarrierInit(void* barrier, int count, Site site) {
  if (count < 1 || count >= 1 << 20) {
    block_.Report(absl::StrCat("mbarrier.init at ", ToString(site), ": count ", count,
                               ", expected 1..2^20-1"));
  }
  if (!IsAligned(barrier, 8) || !block_.arena().Contains(barrier, 8)) {
    block_.Report(absl::StrCat("mbarrier.init at ", ToString(site),
                               ": expected 8 aligned bytes of shared memory, it is ",
                               block_.arena().Describe(barrier)));
  }
  if (barriers_.count(barrier) != 0) {
    block_.Report(absl::StrCat("mbarrier.init at ", ToString(site),
                               ": it is initialised already: ", block_.arena().Describe(barrier)));
  }
  Mbarrier& state = barriers_[barrier];
  state.count = state.pending = count;
  state.initialised_by = block_.running_thread();
  NoteWrite(barrier, 8);
  RawCopy(barrier, &kBarrierMark, sizeof(kBarrierMark));
}

void AsyncUnit::MbarrierInvalidate(void* barrier, Site site) {
  const Mbarrier& state = Find(barrier, "mbarrier.inval", site);
  if (!state.waiting.empty()) {
    block_.Report(absl::StrCat("mbarrier.inval at ", ToString(site), ": thread ",
                               state.waiting.front().first, " waits for it"));
  }
  barriers_.erase(barrier);
  NoteWrite(barrier, 8);
  RawFill(barrier, kNotYet, 8);
}

void AsyncUnit::FenceMbarrierInit() {
  for (auto& [barrier, state] : barriers_) {
    if (state.initialised_by == block_.running_thread()) state.fenced = true;
  }
}

void AsyncUnit::FenceProxyAsync() {
  FenceMbarrierInit();
  block_.arena().Fence();
}

void AsyncUnit::Arrived(void* barrier, Mbarrier& state) {
  --state.pending;
  if (state.pending > 0 || state.missing_bytes != 0) return;
  ++state.phase;
  state.pending = state.count;
  (void)barrier;
  auto waits = [&](const std::pair<int, int>& waiter) {
    return static_cast<int>(state.phase & 1) == waiter.second;
  };
  for (const auto& waiter : state.waiting) {
    if (!waits(waiter)) block_.MakeReady(waiter.first);
  }
  state.waiting.erase(std::remove_if(state.waiting.begin(), state.waiting.end(),
                                     [&](const auto& w) { return !waits(w); }),
                      state.waiting.end());
}

void AsyncUnit::MbarrierArrive(void* barrier, int count, Site site) {
  Mbarrier& state = Find(barrier, "mbarrier.arrive", site);
  if (count < 1 || count > state.pending) {
    block_.Report(absl::StrCat("mbarrier.arrive at ", ToString(site), ": ", count,
                               " arrivals, but phase ", state.phase, " expects only ",
                               state.pending, " more of its ", state.count));
  }
  Release(&state.order[state.phase & 1]);
  state.pending -= count - 1;
  Arrived(barrier, state);
}

void AsyncUnit::MbarrierExpect(void* barrier, int64_t bytes, Site site) {
  Mbarrier& state = Find(barrier, "mbarrier.expect_tx", site);
  state.missing_bytes += bytes;
  if (bytes < 0 || state.missing_bytes > kMaxTransactionBytes) {
    block_.Report(absl::StrCat("mbarrier.expect_tx at ", ToString(site), ": ", bytes,
                               " bytes, a phase can expect at most ", kMaxTransactionBytes));
  }
}

bool AsyncUnit::MbarrierTest(void* barrier, int parity, Site site) {
  Mbarrier& state = Find(barrier, "mbarrier.test_wait", site);
  if (static_cast<int>(state.phase & 1) == (parity & 1)) {
    block_.Yield(site);
    return false;
  }
  Acquire(&state.order[static_cast<size_t>(parity & 1)]);
  return true;
}

void AsyncUnit::MbarrierWait(void* barrier, int parity, Site site) {
  Mbarrier& state = Find(barrier, "mbarrier.try_wait", site);
  parity &= 1;
  if (static_cast<int>(state.phase & 1) == parity) {
    state.waiting.push_back({block_.running_thread(), parity});
    block_.Suspend("mbarrier", barrier, site);
  }
  Acquire(&state.order[static_cast<size_t>(parity)]);
}

std::string AsyncUnit::DescribeBarrier(const void* barrier) const {
  const auto found = barriers_.find(const_cast<void*>(barrier));
  if (found == barriers_.end()) return "an mbarrier";
  const Mbarrier& state = found->second;
  return absl::StrCat("mbarrier ", block_.arena().Describe(barrier), " (in phase ", state.phase,
                      ", ", state.pending, " of ", state.count, " arrivals and ",
                      state.missing_bytes, " bytes missing)");
}

bool AsyncUnit::CompleteOne() {
  // Loads, and stores that have read; others read when they are waited for: that is the latest.
  std::vector<size_t> ready;
  for (size_t i = 0; i < bulk_.size(); ++i) {
    if (!bulk_[i].load && !bulk_[i].read) continue;
    ready.push_back(i);
    if (block_.options().completion != Completion::kRandom) break;
  }
  if (!ready.empty()) {
    PerformAt(ready[static_cast<size_t>(block_.Random() % ready.size())]);
    return true;
  }
  // cp.async that an mbarrier is to be told of.
  for (SmallQueue& queue : small_) {
    const auto arrival = std::find_if(queue.copies.begin(), queue.copies.end(),
                                      [](const SmallCopy& c) { return c.arrives_at != nullptr; });
    if (arrival == queue.copies.end()) continue;
    while (queue.copies.front().arrives_at == nullptr) {
      const SmallCopy copy = queue.copies.front();
      queue.copies.pop_front();
      Perform(copy);
      Mark(copy.shared, copy.bytes, false, copy.site);
    }
    const SmallCopy copy = queue.copies.front();
    queue.copies.pop_front();
    Arrived(copy.arrives_at, barriers_[copy.arrives_at]);
    return true;
  }
  return false;
}

std::string AsyncUnit::CheckExit() {
  const int self = block_.running_thread();
  for (const Bulk& bulk : bulk_) {
    if (!bulk.load && !bulk.read && bulk.owner == self) {
      return absl::StrCat("ends before its bulk store, issued at ", ToString(bulk.site),
                          ", has read shared memory");
    }
  }
  // Copies of its own that nobody waits for complete some time.
  SmallQueue& queue = small_[static_cast<size_t>(self)];
  if (std::none_of(queue.copies.begin(), queue.copies.end(),
                   [](const SmallCopy& c) { return c.arrives_at != nullptr; })) {
    queue.group += 1;
    CopyAsyncWait(0);
  }
  return "";
}

}  // namespace tandem::cuda::emulator
