// The scheduler of one block: a loop on the host thread's own stack that picks a thread which can
// run and switches to its fiber, until all are done. A kernel that never waits runs all its threads
// on one fiber, one after the other.
#include "cuda/emulator/block.h"

#include <algorithm>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "cuda/emulator/memory_guard.h"
#include "cuda/emulator/races.h"

namespace tandem::cuda::emulator {
namespace {

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

namespace {

int NumThreads(const LaunchConfig& config) {
  return static_cast<int>(config.block.x * config.block.y * config.block.z);
}

}  // namespace

Block& Block::Current() { return *current_block; }
Thread& CurrentThread() { return *current_thread; }

bool operator==(const Site& a, const Site& b) {
  return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0);
}

Block::Block(Launch& launch, BlockPool& pool, int64_t index)
    : launch_(launch),
      pool_(pool),
      async_(*this, NumThreads(launch.config)),
      warpgroups_(*this, NumThreads(launch.config)) {
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
  for (int t = 0; t < num_threads(); ++t) ready_.push_back(t);
  warps_.resize(static_cast<size_t>((threads + kWarpSize - 1) / kWarpSize));
  pool.shared.Begin(launch.config.shared_bytes);
  // A stack that a race detector takes for one thread's is given to no other until it has
  // forgotten: by turns. What one block's thread did comes before what a later one's with its stack
  // does, so blocks that share them have no races. With three turns these are not the blocks of one
  // sequence and head, whose numbers differ by the number of heads, mostly a power of two.
  if (kDetectsRaces) {
    while (pool.fibers.size() < 3 * lanes_.size()) {
      pool.fibers.push_back(std::make_unique<Fiber>(FiberStackBytes()));
    }
    const auto middle = pool.fibers.begin() + static_cast<std::ptrdiff_t>(lanes_.size());
    std::rotate(pool.fibers.begin(), middle, pool.fibers.end());
  }
  for (auto& fiber : pool.fibers) free_fibers_.push_back(fiber.get());
  uint64_t mixed = launch.options.seed * 0x9E3779B97F4A7C15u + static_cast<uint64_t>(index);
  mixed ^= mixed >> 31;
  random_.seed(mixed);
}

void Block::ThreadMain(void* block) {
  auto* self = static_cast<Block*>(block);
  Acquire(&self->start_order_);
  try {
    {
      const KernelCode::Scope running(true);
      self->launch_.function->emulated(self->launch_.params);
    }
    const InsideEmulator inside;
    self->CheckExit();
  } catch (const ThreadStopped&) {  // by Report
  }
  Release(&self->launch_.end_order);
  self->EndThread()->Suspend(/*last=*/true);
}

void Block::ReleaseToHost() { Release(&launch_.end_order); }

Fiber* Block::EndThread() {
  const InsideEmulator inside;
  Lane& lane = running();
  lane.state = State::kDone;
  ++done_;
  Fiber* fiber = lane.fiber;
  lane.fiber = nullptr;
  if (!kDetectsRaces) free_fibers_.push_back(fiber);
  return fiber;
}

bool Block::Run() {
  Block* const outer_block = current_block;
  Thread* const outer_thread = current_thread;
  current_block = this;
  Release(&start_order_);
  while (done_ < num_threads() && !stopped_) {
    if (launch_.stopped.load(std::memory_order_relaxed)) stopped_ = true;
    if (launch_.options.completion == Completion::kRandom && random_() % 4 == 0) {
      async_.CompleteOne();
    }
    if (ready_.empty()) {
      if (async_.CompleteOne()) continue;
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
    ++resumed_;
    lane.fiber->Resume();
    if (stuck_) Stop(DescribeStuck());
  }
  if (!stopped_) {
    std::string error = async_.Finish();
    if (error.empty()) error = pool_.shared.CheckGuards();
    if (!error.empty()) Stop(error);
  }
  if (launch_.options.statistics != nullptr) {
    launch_.options.statistics->matrix_moves += statistics_.matrix_moves;
    launch_.options.statistics->bank_conflicts += statistics_.bank_conflicts;
  }
  // Threads that did not end leave their fibers in the middle of kernel code: nothing there needs
  // destruction, and Start() makes the stacks usable again.
  for (const Lane& lane : lanes_) {
    if (lane.state != State::kDone && lane.fiber != nullptr) {
      lane.fiber->Abandon(&launch_.end_order);
    }
  }
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
  lane.mbarrier = nullptr;
  lane.site = site;
  lane.fiber->Suspend(/*last=*/false);
}

void Block::Suspend(const char* waits_for, const void* barrier, Site site) {
  Lane& lane = running();
  lane.state = State::kWaiting;
  lane.waits_for = waits_for;
  lane.barrier = -1;
  lane.mbarrier = barrier;
  lane.site = site;
  lane.fiber->Suspend(/*last=*/false);
}

void Block::CheckExit() {
  std::string error = async_.CheckExit();
  if (error.empty()) error = warpgroups_.CheckExit();
  if (!error.empty()) Report(error);
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
  Release(&barrier.order[barrier.phase & 1]);
  return barrier;
}

void Block::Complete(Barrier& barrier) {
  for (const int thread : barrier.waiting) MakeReady(thread);
  barrier.waiting.clear();
  barrier.arrived = 0;
  ++barrier.phase;
}

void Block::SyncBarrier(int id, int threads, bool same_site, Site site) {
  Barrier& barrier = Arrive(id, threads, same_site, site);
  const size_t phase = barrier.phase & 1;
  if (barrier.arrived >= barrier.expected) {
    // The last to arrive takes its turn with the others: which of them goes on first is up to the
    // schedule.
    Complete(barrier);
    MakeReady(running_);
  } else {
    barrier.waiting.push_back(running_);
  }
  Suspend("barrier", id, site);
  Acquire(&barrier.order[phase]);
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
  // Lanes that name another mask are elsewhere for now; who names the same must do the same.
  auto open = std::find_if(warp.open.begin(), warp.open.end(),
                           [&](const Collective& c) { return c.mask == mask; });
  if (open == warp.open.end()) {
    warp.open.push_back({operation, mask, 0, site, {}});
    open = warp.open.end() - 1;
  } else if ((open->operation != operation && std::strcmp(open->operation, operation) != 0) ||
             !(open->site == site)) {
    Report(absl::StrCat("divergent warp: thread ", running_, " is at ", operation, " ",
                        ToString(site), ", others of warp ", index, " are at ", open->operation,
                        " ", ToString(open->site), ", all with mask ", absl::Hex(mask)));
  }
  open->data[static_cast<size_t>(self)] = data;
  open->arrived |= uint32_t{1} << self;
  if (open->arrived == open->mask) {
    execute(open->data.data(), mask);
    warp.open.erase(open);
    ++warp.phase;
    for (int i = 0; i < kWarpSize; ++i) {
      if (mask >> i & 1u) MakeReady(index * kWarpSize + i);
    }
  }
  Suspend(operation, -1, site);
}

void Block::SyncWarp(uint32_t mask, Site site) {
  Warp& warp = warps_[static_cast<size_t>(running().thread.warp())];
  const size_t phase = warp.phase & 1;
  Release(&warp.order[phase]);
  WarpCollective(
      "SyncWarp", mask, nullptr, [](void* const*, uint32_t) {}, site);
  Acquire(&warp.order[phase]);
}

void* Block::SharedPiece(int64_t offset, int64_t bytes, int index, int64_t alignment, Site site) {
  std::string error;
  void* piece = pool_.shared.Take(offset, bytes, index, alignment, &error);
  if (piece == nullptr) {
    Report(absl::StrCat("shared memory at ", ToString(site), ": thread ", running_, ": ", error));
  }
  return piece;
}

// In the order of the emulation, fences order what is before them and what is after them. So does
// a GPU only where an atomic or a flag tells one thread of the other's fence: a missing one is not
// found.
void Block::Fence(bool device) {
  char* order = device ? &launch_.fence_order : &fence_order_;
  Acquire(order);
  Release(order);
  std::atomic_thread_fence(std::memory_order_seq_cst);  // blocks run on several host threads
}

void Block::Yield(Site site) {
  if (++yields_ > launch_.options.max_yields) {
    Report(absl::StrCat("hanging: thread ", running_, " still waits at ", ToString(site)));
  }
  // Somebody who polls never leaves the block without threads to run.
  constexpr int64_t kPolls = 64;
  if (yields_ % kPolls == 0) async_.CompleteOne();
  MakeReady(running_);
  Suspend("a value in memory", -1, site);
}

void Block::OnTimer() {
  if (stopped_) return;  // the thread is on its way out
  if (resumed_at_timer_ != resumed_) {
    resumed_at_timer_ = resumed_;
    return;
  }
  KernelCode::Leave();
  if (kDetectsRaces) {
    const Index3& thread = running().thread.thread_index;
    EndStuckProcess(launch_.function->name, {index_.x, index_.y, index_.z},
                    {thread.x, thread.y, thread.z});
  }
  stuck_ = true;
  running().fiber->Suspend(/*last=*/false);
}

std::string Block::DescribeStuck() const {
  const Lane& lane = lanes_[static_cast<size_t>(running_)];
  return absl::StrCat("stuck: thread ", ToString(lane.thread.thread_index), " has run for ",
                      launch_.options.stuck_seconds,
                      " s of CPU time without a barrier, a wait or a Yield since ",
                      lane.site.line == 0 ? std::string("its start") : ToString(lane.site));
}

std::string Block::Describe(const Lane& lane) const {
  if (lane.state == State::kDone) return "has exited";
  if (lane.mbarrier != nullptr) {
    return absl::StrCat("waits for ", async_.DescribeBarrier(lane.mbarrier), " at ",
                        ToString(lane.site));
  }
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
