// The scheduler of one block: a loop on the host thread's own stack that picks a thread which can
// run and switches to its fiber, until all are done. A kernel that never waits runs all its threads
// on one fiber, one after the other.
#include "cuda/emulator/block.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cuda/emulator/memory_guard.h"

namespace tandem::cuda::emulator {
namespace {

// Bytes between pieces of shared memory, and after the last.
constexpr int64_t kSharedGuard = 128;
constexpr int kMaxPieces = 64;
constexpr uint8_t kGuardByte = 0xFA;
constexpr uint8_t kUninitialised = 0xFF;  // NaN in every float type

// Thrown through the frames of a kernel whose thread has been reported.
struct ThreadStopped {};

thread_local Block* current_block = nullptr;
thread_local Thread* current_thread = nullptr;

}  // namespace

std::string ToString(Site site) {
  const std::string_view file = site.file;
  const size_t slash = file.rfind('/');
  return absl::StrCat(std::string(slash == std::string_view::npos ? file : file.substr(slash + 1)),
                      ":", site.line);
}

std::string ToString(Index3 index) {
  return absl::StrCat("[", index.x, ", ", index.y, ", ", index.z, "]");
}

bool operator==(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

Thread& CurrentThread() { return *current_thread; }
void SyncBarrier(int id, int threads, bool same_site, Site site) {
  current_block->SyncBarrier(id, threads, same_site, site);
}
void ArriveBarrier(int id, int threads, Site site) {
  current_block->ArriveBarrier(id, threads, site);
}
void WarpCollective(const char* operation, uint32_t mask, void* data, CollectiveFn execute,
                    Site site) {
  current_block->WarpCollective(operation, mask, data, execute, site);
}
void* SharedPiece(int64_t offset, int64_t bytes, int index, Site site) {
  return current_block->SharedPiece(offset, bytes, index, site);
}
void Yield(Site site) { current_block->Yield(site); }
void ReportBug(const char* what, Site site) {
  current_block->Report(absl::StrCat(what, " at ", ToString(site)));
}

Block::Block(Launch& launch, BlockPool& pool, int64_t index) : launch_(launch), pool_(pool) {
  const Dim3 &grid = launch.config.grid, &dim = launch.config.block;
  const auto narrow = [](const Dim3& d) {
    return Index3{static_cast<uint32_t>(d.x), static_cast<uint32_t>(d.y),
                  static_cast<uint32_t>(d.z)};
  };
  index_ = narrow({index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y});
  const int64_t threads = dim.x * dim.y * dim.z;
  lanes_.resize(static_cast<size_t>(threads));
  for (int64_t t = 0; t < threads; ++t) {
    Thread& thread = lanes_[static_cast<size_t>(t)].thread;
    thread.thread_index = narrow({t % dim.x, t / dim.x % dim.y, t / dim.x / dim.y});
    thread.block_index = index_;
    thread.block_dim = narrow(dim);
    thread.grid_dim = narrow(grid);
    thread.linear = static_cast<int>(t);
    thread.block = this;
  }
  ready_.reserve(lanes_.size());
  for (int t = 0; t < num_threads(); ++t) ready_.push_back(t);
  warps_.resize(static_cast<size_t>((threads + kWarpSize - 1) / kWarpSize));
  const auto arena = static_cast<size_t>(launch.config.shared_bytes + kMaxPieces * kSharedGuard);
  if (launch.config.shared_bytes > 0) {
    if (pool.shared.size() < arena) pool.shared.resize(arena);
    UnpoisonMemory(pool.shared.data(), pool.shared.size());
    std::memset(pool.shared.data(), kGuardByte, arena);
    PoisonMemory(pool.shared.data(), pool.shared.size());
  }
  for (auto& fiber : pool.fibers) free_fibers_.push_back(fiber.get());
  uint64_t mixed = launch.options.seed * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(index);
  mixed ^= mixed >> 31;
  random_.seed(mixed);
}

void Block::ThreadMain(void* block) {
  auto* self = static_cast<Block*>(block);
  try {
    self->launch_.function->emulated(self->launch_.params);
  } catch (const ThreadStopped&) {  // by Report
  }
  Lane& lane = self->running();
  lane.state = State::kDone;
  ++self->done_;
  Fiber* fiber = lane.fiber;
  lane.fiber = nullptr;
  self->free_fibers_.push_back(fiber);
  fiber->Suspend(/*last=*/true);
}

bool Block::Run() {
  Block* const outer_block = current_block;
  Thread* const outer_thread = current_thread;
  current_block = this;
  while (done_ < num_threads() && !stopped_) {
    if (launch_.stopped.load(std::memory_order_relaxed)) stopped_ = true;
    if (ready_.empty()) {
      ReportDeadlock();
      break;
    }
    running_ = PickReady();
    Lane& lane = running();
    if (lane.fiber == nullptr) {
      if (free_fibers_.empty()) {
        pool_.fibers.push_back(std::make_unique<Fiber>(FiberStackBytes()));
        free_fibers_.push_back(pool_.fibers.back().get());
      }
      lane.fiber = free_fibers_.back();
      free_fibers_.pop_back();
      lane.fiber->Start(&Block::ThreadMain, this);
    }
    current_thread = &lane.thread;
    lane.fiber->Resume();
  }
  if (!stopped_) CheckSharedGuards();
  // Threads that did not end leave their fibers in the middle of kernel code: nothing there needs
  // destruction, and Start() makes the stacks usable again.
  current_block = outer_block;
  current_thread = outer_thread;
  return !stopped_;
}

int Block::PickReady() {
  size_t at = 0;
  switch (launch_.options.schedule) {
    case Schedule::kFifo:
      break;
    case Schedule::kLifo:
      at = ready_.size() - 1;
      break;
    case Schedule::kReverse:
      at = static_cast<size_t>(std::max_element(ready_.begin(), ready_.end()) - ready_.begin());
      break;
    case Schedule::kRandom:
      at = static_cast<size_t>(random_() % ready_.size());
      break;
  }
  const int thread = ready_[at];
  ready_.erase(ready_.begin() + static_cast<std::ptrdiff_t>(at));
  return thread;
}

void Block::MakeReady(int thread) {
  lanes_[static_cast<size_t>(thread)].state = State::kReady;
  ready_.push_back(thread);
}

void Block::Suspend(const char* waits_for, int barrier, Site site) {
  Lane& lane = running();
  lane.state = State::kWaiting;
  lane.waits_for = waits_for;
  lane.barrier = barrier;
  lane.site = site;
  lane.fiber->Suspend(/*last=*/false);
}

Block::Barrier& Block::Arrive(int id, int threads, bool same_site, Site site) {
  if (id < 0 || id >= static_cast<int>(barriers_.size())) {
    Report(absl::StrCat("barrier ", id, " at ", ToString(site), ": expected 0..15"));
  }
  const int expected = threads == 0 ? num_threads() : threads;
  Barrier& barrier = barriers_[static_cast<size_t>(id)];
  if (barrier.arrived == 0) {
    barrier.expected = expected;
    barrier.site = site;
    barrier.first_thread = running_;
  } else if (barrier.expected != expected) {
    Report(absl::StrCat("barrier ", id, ": thread ", barrier.first_thread, " expects ",
                        barrier.expected, " threads at ", ToString(barrier.site), ", thread ",
                        running_, " expects ", expected, " at ", ToString(site)));
  } else if (same_site && !(barrier.site == site)) {
    Report(absl::StrCat("divergent barrier: thread ", barrier.first_thread, " is at ",
                        ToString(barrier.site), ", thread ", running_, " at ", ToString(site)));
  }
  ++barrier.arrived;
  return barrier;
}

void Block::Complete(Barrier& barrier) {
  for (const int thread : barrier.waiting) MakeReady(thread);
  barrier.waiting.clear();
  barrier.arrived = 0;
}

void Block::SyncBarrier(int id, int threads, bool same_site, Site site) {
  Barrier& barrier = Arrive(id, threads, same_site, site);
  if (barrier.arrived >= barrier.expected) {
    // The last to arrive takes its turn with the others: which of them goes on first is up to the
    // schedule.
    Complete(barrier);
    MakeReady(running_);
  } else {
    barrier.waiting.push_back(running_);
  }
  Suspend("barrier", id, site);
}

void Block::ArriveBarrier(int id, int threads, Site site) {
  Barrier& barrier = Arrive(id, threads, /*same_site=*/false, site);
  if (barrier.arrived >= barrier.expected) Complete(barrier);
}

void Block::WarpCollective(const char* operation, uint32_t mask, void* data, CollectiveFn execute,
                           Site site) {
  const Lane& lane = running();
  const int index = lane.thread.warp(), self = lane.thread.lane();
  Warp& warp = warps_[static_cast<size_t>(index)];
  if ((mask >> self & 1u) == 0) {
    Report(absl::StrCat(operation, " at ", ToString(site), ": thread ", running_,
                        " is not in its own mask ", absl::Hex(mask)));
  }
  const int lanes = std::min(kWarpSize, num_threads() - index * kWarpSize);
  const uint32_t existing = lanes == kWarpSize ? ~uint32_t{0} : (uint32_t{1} << lanes) - 1;
  mask &= existing;  // of a last warp that is not whole
  if (warp.operation == nullptr) {
    warp.operation = operation;
    warp.mask = mask;
    warp.site = site;
    warp.arrived = 0;
  } else if (warp.mask != mask || std::strcmp(warp.operation, operation) != 0 ||
             !(warp.site == site)) {
    Report(absl::StrCat("divergent warp: thread ", running_, " is at ", operation, " ",
                        ToString(site), " with mask ", absl::Hex(mask), ", others of warp ", index,
                        " are at ", warp.operation, " ", ToString(warp.site), " with mask ",
                        absl::Hex(warp.mask)));
  }
  warp.data[static_cast<size_t>(self)] = data;
  warp.arrived |= uint32_t{1} << self;
  if (warp.arrived == warp.mask) {
    execute(warp.data.data(), mask);
    warp.operation = nullptr;
    for (int i = 0; i < kWarpSize; ++i) {
      if (mask >> i & 1u) MakeReady(index * kWarpSize + i);
    }
  }
  Suspend(operation, -1, site);
}

void* Block::SharedPiece(int64_t offset, int64_t bytes, int index, Site site) {
  if (index >= kMaxPieces || offset < 0 || bytes < 0 ||
      offset + bytes > launch_.config.shared_bytes) {
    Report(absl::StrCat("shared memory at ", ToString(site), ": the kernel takes ", offset + bytes,
                        " bytes in ", index + 1, " pieces, it was launched with ",
                        launch_.config.shared_bytes));
  }
  const int64_t begin = offset + index * kSharedGuard;
  std::byte* data = pool_.shared.data() + begin;
  if (static_cast<size_t>(index) == pieces_.size()) {
    pieces_.push_back({begin, begin + bytes});
    UnpoisonMemory(data, static_cast<size_t>(bytes));
    std::memset(data, kUninitialised, static_cast<size_t>(bytes));
  } else if (static_cast<size_t>(index) > pieces_.size() ||
             pieces_[static_cast<size_t>(index)] != std::array<int64_t, 2>{begin, begin + bytes}) {
    Report(absl::StrCat("shared memory at ", ToString(site), ": thread ", running_, " takes piece ",
                        index, " as ", bytes, " bytes, other threads differently"));
  }
  return data;
}

void Block::CheckSharedGuards() {
  if (launch_.config.shared_bytes == 0 || pool_.shared.empty()) return;
  const int64_t arena = launch_.config.shared_bytes + kMaxPieces * kSharedGuard;
  UnpoisonMemory(pool_.shared.data(), static_cast<size_t>(arena));
  int64_t at = 0;
  const auto check = [&](int64_t end) {
    for (; at < end; ++at) {
      if (pool_.shared[static_cast<size_t>(at)] != std::byte{kGuardByte}) {
        Stop(absl::StrCat("a write beyond shared memory, ", at, " bytes into the arena"));
        return;
      }
    }
  };
  for (const auto& [begin, end] : pieces_) {
    check(begin);
    if (stopped_) return;
    at = end;
  }
  check(arena);
}

void Block::Yield(Site site) {
  if (++yields_ > launch_.options.max_yields) {
    Report(absl::StrCat("hanging: thread ", running_, " still waits at ", ToString(site)));
  }
  MakeReady(running_);
  Suspend("a value in memory", -1, site);
}

std::string Block::Describe(const Lane& lane) const {
  if (lane.state == State::kDone) return "has exited";
  return absl::StrCat("waits for ", lane.waits_for,
                      lane.barrier >= 0 ? absl::StrCat(" ", lane.barrier) : std::string(), " at ",
                      ToString(lane.site));
}

// Threads in runs that wait for the same: "threads 0..30 wait for barrier 0 at x.cu:12; thread 31
// has exited".
void Block::ReportDeadlock() {
  std::vector<std::string> runs;
  for (int first = 0; first < num_threads();) {
    const std::string what = Describe(lanes_[static_cast<size_t>(first)]);
    int last = first;
    while (last + 1 < num_threads() && Describe(lanes_[static_cast<size_t>(last) + 1]) == what) {
      ++last;
    }
    if (runs.size() < 8) {
      runs.push_back(absl::StrCat("thread", first == last ? "" : "s", " ", first,
                                  first == last ? "" : absl::StrCat("..", last), " ", what));
    }
    first = last + 1;
  }
  Stop(absl::StrCat("deadlock: ", absl::StrJoin(runs, "; ")));
}

void Block::Stop(const std::string& what) {
  stopped_ = true;
  const std::lock_guard<std::mutex> lock(launch_.mutex);
  if (launch_.report.empty()) {
    launch_.report = absl::StrCat("block ", ToString(index_), ": ", what);
  }
  launch_.stopped.store(true);
}

void Block::Report(const std::string& what) {
  Stop(absl::StrCat("thread ", ToString(running().thread.thread_index), ": ", what));
  // Leaves the kernel's frames by unwinding, so that what they hold is freed. Frames of this file
  // and of kernels only: nothing of the public interface throws.
  throw ThreadStopped();
}

}  // namespace tandem::cuda::emulator
