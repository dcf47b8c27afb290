#include "cuda/emulator/launch.h"

#include <algorithm>
#include <memory>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/status.h"
#include "cuda/emulator/block.h"
#include "cuda/emulator/races.h"
#include "cuda/emulator/watchdog.h"

namespace tandem::cuda::emulator {
namespace {

std::string Describe(const EmulatorOptions& options) {
  std::string text = "fifo";
  if (options.schedule == Schedule::kLifo) text = "lifo";
  if (options.schedule == Schedule::kReverse) text = "reverse";
  if (options.schedule == Schedule::kRandom) text = absl::StrCat("random:", options.seed);
  if (options.completion == Completion::kEager) text += ",eager";
  if (options.completion == Completion::kRandom) text += ",random";
  return text;
}

// What a host thread keeps from launch to launch: each stack costs system calls, with
// ThreadSanitizer most of the time of a small launch.
thread_local std::unique_ptr<BlockPool> kept_pool;

void RunBlocks(Launch& launch) {
  const InsideEmulator inside;
  const Watchdog watchdog(launch.options.stuck_seconds);
  std::unique_ptr<BlockPool> pool = std::move(kept_pool);
  try {
    if (pool == nullptr) pool = std::make_unique<BlockPool>();
    const int64_t times = launch.options.twin_blocks ? 2 : 1;
    for (int64_t i = launch.next_block++; i < times * launch.num_blocks();
         i = launch.next_block++) {
      if (launch.stopped.load()) break;
      // On the heap: ThreadSanitizer forgets what was released at the address of a barrier when
      // that is freed. On the stack all blocks would have one, and be ordered by it.
      if (!std::make_unique<Block>(launch, *pool, i / times)->Run()) break;
    }
  } catch (const std::bad_alloc&) {
    const std::lock_guard<std::mutex> lock(launch.mutex);
    if (launch.report.empty()) launch.report = "out of host memory for the stacks of a block";
    launch.stopped.store(true);
  }
  // After an error stacks are left in the middle of a kernel.
  if (!launch.stopped.load()) kept_pool = std::move(pool);
}

}  // namespace

bool DetectsRaces() { return kDetectsRaces; }

absl::StatusOr<EmulatorOptions> EmulatorOptions::Parse(std::string_view text) {
  EmulatorOptions options;
  constexpr std::string_view kRandom = "random:";
  const size_t comma = text.find(',');
  const std::string_view order = text.substr(0, comma);
  const std::string completion(comma == std::string_view::npos ? "lazy" : text.substr(comma + 1));
  bool known = true;
  if (order == "lifo") {
    options.schedule = Schedule::kLifo;
  } else if (order == "reverse") {
    options.schedule = Schedule::kReverse;
  } else if (order.substr(0, kRandom.size()) == kRandom) {
    options.schedule = Schedule::kRandom;
    known = absl::SimpleAtoi(std::string(order.substr(kRandom.size())), &options.seed);
  } else {
    known = order == "fifo";
  }
  if (completion == "eager") {
    options.completion = Completion::kEager;
  } else if (completion == "random") {
    options.completion = Completion::kRandom;
  } else {
    known = known && completion == "lazy";
  }
  if (known) return options;
  return InvalidArgument(
      "schedule: expected fifo, lifo, reverse or random:SEED, then nothing, ,eager or ,random, got "
      "'",
      std::string(text), "'");
}

absl::Status RunKernel(const KernelFunction& function, const LaunchConfig& config,
                       const void* params, const EmulatorOptions& options) {
  if (function.emulated == nullptr) {
    return absl::InternalError("the kernel has no form for the emulated device");
  }
  if (options.statistics != nullptr) {
    const std::lock_guard<std::mutex> lock(options.statistics->mutex);
    auto& seen = options.statistics->launches[{function.name, function.emulated}];
    seen.threads = std::max(seen.threads, config.block.x * config.block.y * config.block.z);
    seen.least_shared_bytes = std::min(seen.least_shared_bytes, config.shared_bytes);
    seen.most_shared_bytes = std::max(seen.most_shared_bytes, config.shared_bytes);
  }
  if (options.dry_run) return absl::OkStatus();
  Launch launch;
  launch.function = &function;
  launch.config = config;
  launch.params = params;
  launch.options = options;
  int64_t threads = options.host_threads;
  if (threads <= 0) threads = std::max(1u, std::thread::hardware_concurrency());
  // A block that waits for nothing takes microseconds, as starting a host thread does.
  constexpr int64_t kWorthAThread = 16384;  // CUDA threads
  const int64_t cuda_threads =
      launch.num_blocks() * config.block.x * config.block.y * config.block.z;
  threads = std::min({threads, launch.num_blocks(), 1 + cuda_threads / kWorthAThread});
  std::vector<std::thread> helpers;
  for (int64_t i = 1; i < threads; ++i) helpers.emplace_back([&] { RunBlocks(launch); });
  RunBlocks(launch);
  for (std::thread& helper : helpers) helper.join();
  Acquire(&launch.end_order);
  if (launch.report.empty()) return absl::OkStatus();
  return absl::InternalError(absl::StrCat("kernel ", function.name, " (emulated, schedule ",
                                          Describe(options), "), ", launch.report));
}

}  // namespace tandem::cuda::emulator
