// Asynchronous copies and mbarriers of one block.
//
// A cp.async belongs to its thread and completes when that thread waits for it. Bulk copies are
// units of their own: the scheduler completes them when no thread can run (as late as possible), at
// their issue (as early as possible), or at random.
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
constexpr uint8_t kNotYet = 0xFF;
constexpr uint64_t kBarrierMark = 0x7265697272614262u;  // what an mbarrier's 8 bytes hold here
// PTX: the range of an mbarrier's transaction count.
constexpr int64_t kMaxTransactionBytes = (int64_t{1} << 20) - 1;

bool IsAligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}

// Address bits 4.. are XORed with bits 7..: 16-byte chunks of a row with the row's number.
int64_t Swizzle(int64_t offset, int swizzle_bytes) {
  if (swizzle_bytes == 0) return offset;
  const int64_t mask = swizzle_bytes / 16 - 1;
  return offset ^ ((offset >> 7 & mask) << 4);
}

}  // namespace

absl::StatusOr<TensorMap> EncodeTensorMap(const TensorMapSpec& spec) {
  TANDEM_RETURN_IF_ERROR(Validate(spec));
  EmulatedTensorMap emulated = {};
  emulated.magic = EmulatedTensorMap::kMagic;
  emulated.global = static_cast<std::byte*>(const_cast<void*>(spec.data));
  emulated.extent = spec.extent;
  emulated.stride = spec.stride;
  emulated.stride[0] = BlockBytes(spec.dtype);
  emulated.box = spec.box;
  emulated.rank = spec.rank;
  emulated.swizzle = SwizzleBytes(spec.swizzle);
  TensorMap map = {};
  std::memcpy(&map, &emulated, sizeof(emulated));
  return map;
}

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

// --- bulk copies

void AsyncUnit::TensorCopy(bool load, const void* map, int rank, const int32_t* at, void* shared,
                           void* barrier, Site site) {
  const char* name = load ? "TMA load" : "TMA store";
  Bulk bulk = {};
  bulk.load = load;
  bulk.tensor = true;
  RawCopy(&bulk.map, map, sizeof(bulk.map));
  if (bulk.map.magic != EmulatedTensorMap::kMagic || bulk.map.rank != rank) {
    block_.Report(absl::StrCat(name, " at ", ToString(site), ": not a tensor map of rank ", rank));
  }
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) {
    block_.Report(
        absl::StrCat(name, " at ", ToString(site), ": the tensor map is not aligned to 64 bytes"));
  }
  std::copy(at, at + rank, bulk.at.begin());
  bulk.bytes = bulk.map.stride[0];
  for (int i = 0; i < rank; ++i) bulk.bytes *= bulk.map.box[static_cast<size_t>(i)];
  bulk.shared = static_cast<std::byte*>(shared);
  bulk.barrier = barrier;
  bulk.site = site;
  if (!IsAligned(shared, 128)) {
    block_.Report(absl::StrCat(name, " at ", ToString(site),
                               ": misaligned, expected shared memory aligned to 128 bytes"));
  }
  Enqueue(std::move(bulk));
}

void AsyncUnit::BulkCopy(bool load, void* global, void* shared, int64_t bytes, void* barrier,
                         Site site) {
  Bulk bulk = {};
  bulk.load = load;
  bulk.global = static_cast<std::byte*>(global);
  bulk.shared = static_cast<std::byte*>(shared);
  bulk.bytes = bytes;
  bulk.barrier = barrier;
  bulk.site = site;
  if (!IsAligned(global, 16) || !IsAligned(shared, 16) || bytes % 16 != 0) {
    block_.Report(absl::StrCat("cp.async.bulk at ", ToString(site),
                               ": misaligned, expected addresses and size to be multiples of 16"));
  }
  Enqueue(std::move(bulk));
}

void AsyncUnit::Enqueue(Bulk bulk) {
  const char* name = bulk.load ? "bulk load" : "bulk store";
  bulk.owner = block_.running_thread();
  bulk.group = bulk_group_[static_cast<size_t>(bulk.owner)];
  bulk.order = std::make_unique<char>();
  if (!block_.arena().Contains(bulk.shared, bulk.bytes)) {
    block_.Report(absl::StrCat(name, " at ", ToString(bulk.site), ": ", bulk.bytes,
                               " bytes beyond a piece: ", block_.arena().Describe(bulk.shared)));
  }
  if (const Site* other = PendingWrite(bulk.shared, bulk.bytes)) {
    block_.Report(absl::StrCat(name, " at ", ToString(bulk.site), ": another copy, issued at ",
                               ToString(*other), ", is still writing there"));
  }
  if (bulk.load && !Find(bulk.barrier, name, bulk.site).fenced) {
    block_.Report(absl::StrCat(name, " at ", ToString(bulk.site),
                               ": the initialisation of its mbarrier has not been fenced"));
  }
  Release(bulk.order.get());
  if (bulk.load) {
    // From here on the bytes are the unit's.
    if (proxy_ == nullptr) proxy_ = std::make_unique<ProxyThread>();
    const ProxyThread::Scope scope(*proxy_);
    Acquire(bulk.order.get());
    NoteWrite(bulk.shared, static_cast<size_t>(bulk.bytes));
  }
  if (bulk.load) {
    block_.arena().AsyncFill(bulk.shared, kNotYet, bulk.bytes);
    PoisonMemory(bulk.shared, static_cast<size_t>(bulk.bytes));
    Mark(bulk.shared, bulk.bytes, true, bulk.site);
  }
  bulk_.push_back(std::move(bulk));
  if (Now()) PerformAt(bulk_.size() - 1);
}

// Copies elements [first, last) of one row of a box; what lies outside the tensor is zero in a
// load, left alone in a store. `at`: where the row starts in the arena, before swizzling. `global`:
// of element 0 of the row.
std::string AsyncUnit::PerformRow(const Bulk& bulk, int64_t at, std::byte* global, int64_t first,
                                  int64_t last) {
  const int64_t element = bulk.map.stride[0], elements = bulk.map.box[0];
  const int64_t row_bytes = element * elements;
  SharedArena& arena = block_.arena();
  if (first < last) {
    std::byte* begin = global + first * element;
    const auto bytes = static_cast<size_t>((last - first) * element);
    if (IsPoisoned(begin, bytes)) return "outside its tensor's memory";
    if (bulk.load) {
      NoteRead(begin, bytes);
    } else {
      NoteWrite(begin, bytes);
    }
  }
  for (int64_t chunk = 0; chunk < row_bytes; chunk += 16) {
    auto* shared = const_cast<std::byte*>(arena.At(Swizzle(at + chunk, bulk.map.swizzle)));
    const int64_t begin = std::clamp(first * element, chunk, chunk + 16);
    const int64_t end = std::clamp(last * element, begin, chunk + 16);
    std::array<std::byte, 16> bytes{};
    if (bulk.load) {
      if (begin < end) {
        RawCopy(bytes.data() + (begin - chunk), global + begin, static_cast<size_t>(end - begin));
      }
      arena.AsyncWrite(shared, bytes.data(), 16);
    } else {
      NoteRead(shared, 16);
      if (!arena.AsyncRead(bytes.data(), shared, 16)) {
        return absl::StrCat("reads what was written without fence.proxy.async, ",
                            arena.Describe(shared));
      }
      if (begin < end) {
        RawCopy(global + begin, bytes.data() + (begin - chunk), static_cast<size_t>(end - begin));
      }
    }
  }
  return "";
}

std::string AsyncUnit::Perform(const Bulk& bulk) {
  SharedArena& arena = block_.arena();
  if (!bulk.tensor) {
    // As a row of bytes.
    Bulk row = {};
    row.load = bulk.load;
    row.map.stride[0] = 1;
    row.map.box[0] = static_cast<int32_t>(bulk.bytes);
    return PerformRow(row, arena.Offset(bulk.shared), bulk.global, 0, bulk.bytes);
  }
  const EmulatedTensorMap& map = bulk.map;
  const int64_t row_bytes = map.stride[0] * map.box[0];
  const int64_t rows = bulk.bytes / row_bytes;
  const int64_t first = std::clamp<int64_t>(-int64_t{bulk.at[0]}, 0, map.box[0]);
  const int64_t last = std::clamp<int64_t>(map.extent[0] - bulk.at[0], first, map.box[0]);
  for (int64_t row = 0; row < rows; ++row) {
    int64_t rest = row;
    bool inside = true;
    std::byte* global = map.global + bulk.at[0] * map.stride[0];
    for (size_t i = 1; i < static_cast<size_t>(map.rank); ++i) {
      const int64_t index = bulk.at[i] + rest % map.box[i];
      rest /= map.box[i];
      inside = inside && index >= 0 && index < map.extent[i];
      global += index * map.stride[i];
    }
    const std::string error = PerformRow(bulk, arena.Offset(bulk.shared) + row * row_bytes, global,
                                         inside ? first : 0, inside ? last : 0);
    if (!error.empty()) return error;
  }
  return "";
}

void AsyncUnit::PerformAt(size_t index) {
  const Bulk bulk = std::move(bulk_[index]);
  bulk_.erase(bulk_.begin() + static_cast<std::ptrdiff_t>(index));
  if (proxy_ == nullptr) proxy_ = std::make_unique<ProxyThread>();
  std::string error;
  {
    const ProxyThread::Scope scope(*proxy_);
    Acquire(bulk.order.get());
    if (bulk.load) {
      UnpoisonMemory(bulk.shared, static_cast<size_t>(bulk.bytes));
      Mark(bulk.shared, bulk.bytes, false, bulk.site);
      NoteWrite(bulk.shared, static_cast<size_t>(bulk.bytes));
    }
    error = Perform(bulk);
    if (bulk.load) {
      Mbarrier& state = barriers_[bulk.barrier];
      Release(&state.order[state.phase & 1]);
    }
    Release(&stores_);
  }
  if (!error.empty()) {
    block_.Fail(absl::StrCat(bulk.load ? "bulk load" : "bulk store", " issued at ",
                             ToString(bulk.site), " by thread ", bulk.owner, ": ", error));
    return;
  }
  if (!bulk.load) {
    // The owner has waited for it, or will.
    return;
  }
  Mbarrier& state = barriers_[bulk.barrier];
  state.missing_bytes -= bulk.bytes;
  if (state.missing_bytes < -kMaxTransactionBytes) {
    block_.Fail(absl::StrCat("bulk load issued at ", ToString(bulk.site),
                             ": more bytes than its mbarrier can count"));
    return;
  }
  // An arrival of nobody: ends the phase if only these bytes were missing.
  if (state.missing_bytes == 0 && state.pending == 0) {
    ++state.pending;
    Arrived(bulk.barrier, state);
  }
}

void AsyncUnit::BulkCommit() { ++bulk_group_[static_cast<size_t>(block_.running_thread())]; }

void AsyncUnit::BulkWait(int pending) {
  const int self = block_.running_thread();
  const int64_t before = bulk_group_[static_cast<size_t>(self)] - pending;
  for (size_t i = 0; i < bulk_.size();) {
    if (!bulk_[i].load && bulk_[i].owner == self && bulk_[i].group < before) {
      PerformAt(i);
    } else {
      ++i;
    }
  }
  Acquire(&stores_);
}

bool AsyncUnit::CompleteOne() {
  // Stores complete when they are waited for: that is the latest.
  std::vector<size_t> loads;
  for (size_t i = 0; i < bulk_.size(); ++i) {
    if (bulk_[i].load) {
      loads.push_back(i);
      if (block_.options().completion != Completion::kRandom) break;
    }
  }
  if (!loads.empty()) {
    PerformAt(loads[static_cast<size_t>(block_.Random() % loads.size())]);
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
    if (!bulk.load && bulk.owner == self) {
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

std::string AsyncUnit::CheckEnd() const {
  for (const Bulk& bulk : bulk_) {
    return absl::StrCat("the block has ended, the bulk load issued at ", ToString(bulk.site),
                        " by thread ", bulk.owner, " has not");
  }
  return "";
}

}  // namespace tandem::cuda::emulator
