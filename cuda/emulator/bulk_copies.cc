// Bulk copies of one block. They are units of their own: the scheduler completes loads when no
// thread can run (as late as possible), at their issue (as early as possible), or at random. A
// store reads its source when its thread waits for that, or at its issue, and writes later still:
// when it is waited for, when nothing else can run, at the end of the block, or at random.
#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "core/status.h"
#include "cuda/emulator/async_unit.h"
#include "cuda/emulator/block.h"
#include "cuda/emulator/memory_guard.h"

namespace tandem::cuda::emulator {
namespace {

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
    const ProxyThread::Scope scope(proxy());
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
// load, left alone in a store, which only reads here. `at`: where the row starts in the arena,
// before swizzling. `global`: of element 0 of the row.
std::string AsyncUnit::PerformRow(Bulk& bulk, int64_t at, std::byte* global, int64_t first,
                                  int64_t last) {
  const int64_t element = bulk.map.stride[0], elements = bulk.map.box[0];
  const int64_t row_bytes = element * elements;
  SharedArena& arena = block_.arena();
  std::byte* staged = nullptr;  // of element `first`
  if (first < last) {
    std::byte* row = global + first * element;
    const auto bytes = static_cast<size_t>((last - first) * element);
    if (IsPoisoned(row, bytes)) return "outside its tensor's memory";
    if (bulk.load) {
      NoteRead(row, bytes);
    } else {
      staged = bulk.staged.emplace_back(row, std::vector<std::byte>(bytes)).second.data();
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
        RawCopy(staged + (begin - first * element), bytes.data() + (begin - chunk),
                static_cast<size_t>(end - begin));
      }
    }
  }
  return "";
}

std::string AsyncUnit::Perform(Bulk& bulk) {
  SharedArena& arena = block_.arena();
  if (!bulk.tensor) {
    // As a row of bytes.
    bulk.map.stride[0] = 1;
    bulk.map.box[0] = static_cast<int32_t>(bulk.bytes);
    return PerformRow(bulk, arena.Offset(bulk.shared), bulk.global, 0, bulk.bytes);
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

ProxyThread& AsyncUnit::proxy() {
  if (proxy_ == nullptr) proxy_ = std::make_unique<ProxyThread>();
  return *proxy_;
}

bool AsyncUnit::ReadSource(Bulk& store) {
  std::string error;
  {
    const ProxyThread::Scope scope(proxy());
    Acquire(store.order.get());
    error = Perform(store);
    Release(&reads_);
  }
  store.read = true;
  if (error.empty()) return true;
  block_.Fail(absl::StrCat("bulk store issued at ", ToString(store.site), " by thread ",
                           store.owner, ": ", error));
  return false;
}

void AsyncUnit::WriteBack(const Bulk& store) {
  const ProxyThread::Scope scope(proxy());
  for (const auto& [global, bytes] : store.staged) {
    NoteWrite(global, bytes.size());
    RawCopy(global, bytes.data(), bytes.size());
  }
  Release(&stores_);
  block_.ReleaseToHost();
}

void AsyncUnit::PerformAt(size_t index) {
  Bulk bulk = std::move(bulk_[index]);
  bulk_.erase(bulk_.begin() + static_cast<std::ptrdiff_t>(index));
  if (!bulk.load) {
    if (bulk.read || ReadSource(bulk)) WriteBack(bulk);
    return;
  }
  std::string error;
  {
    const ProxyThread::Scope scope(proxy());
    Acquire(bulk.order.get());
    UnpoisonMemory(bulk.shared, static_cast<size_t>(bulk.bytes));
    Mark(bulk.shared, bulk.bytes, false, bulk.site);
    NoteWrite(bulk.shared, static_cast<size_t>(bulk.bytes));
    error = Perform(bulk);
    Mbarrier& state = barriers_[bulk.barrier];
    Release(&state.order[state.phase & 1]);
  }
  if (!error.empty()) {
    block_.Fail(absl::StrCat("bulk load issued at ", ToString(bulk.site), " by thread ", bulk.owner,
                             ": ", error));
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

void AsyncUnit::BulkWait(int pending, bool read) {
  const int self = block_.running_thread();
  const int64_t before = bulk_group_[static_cast<size_t>(self)] - pending;
  for (size_t i = 0; i < bulk_.size();) {
    Bulk& bulk = bulk_[i];
    if (bulk.load || bulk.owner != self || bulk.group >= before) {
      ++i;
    } else if (!read || Now()) {
      PerformAt(i);
    } else {
      if (!bulk.read) ReadSource(bulk);
      ++i;
    }
  }
  Acquire(read ? &reads_ : &stores_);
}

std::string AsyncUnit::Finish() {
  for (const Bulk& bulk : bulk_) {
    if (bulk.load) {
      return absl::StrCat("the block has ended, the bulk load issued at ", ToString(bulk.site),
                          " by thread ", bulk.owner, " has not");
    }
  }
  while (!bulk_.empty()) PerformAt(bulk_.size() - 1);  // in no order: there is none
  return "";
}

}  // namespace tandem::cuda::emulator
