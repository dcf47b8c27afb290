#include "cpu/backend.h"

#include <hwloc.h>
#include <sched.h>
#include <unistd.h>

#include <cstring>
#include <fstream>

#include "core/status.h"
#include "cpu/stream.h"

namespace tandem::cpu {
namespace {

int AllowedCores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  return static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
}

int64_t AvailableBytes() {
  // MemAvailable counts reclaimable page cache, which sysinfo's free memory does not.
  std::ifstream meminfo("/proc/meminfo");
  std::string key, unit;
  int64_t kib = 0;
  while (meminfo >> key >> kib >> unit) {
    if (key == "MemAvailable:") return kib * 1024;
  }
  return static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
}

std::string ModelName() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    if (line.rfind("model name", 0) != 0) continue;
    const size_t colon = line.find(": ");
    if (colon != std::string::npos) return line.substr(colon + 2);
  }
  return "unknown CPU";
}

class CpuBackend final : public Backend {
 public:
  CpuBackend(int threads, CpuFeatures features, bool pin)
      : features_(features),
        allocator_(MakeHostAllocator()),
        pool_(std::make_shared<ThreadPool>(threads, pin)) {}

  Device device() const override { return {DeviceKind::kCpu, 0}; }
  std::string description() const override {
    const CpuInfo info = DescribeCpu();
    return absl::StrCat(info.model, ", ", pool_->size(), " threads, ",
                        std::string(Name(features_.isa)));
  }
  std::string profile_key() const override {
    std::string key = absl::StrCat(ModelName(), ", ", std::string(Name(features_.isa)));
    for (const auto& [name, present] :
         {std::pair("avx512_vnni", features_.avx512_vnni),
          std::pair("avx512_bf16", features_.avx512_bf16),
          std::pair("avx512_fp16", features_.avx512_fp16),
          std::pair("avx_vnni", features_.avx_vnni), std::pair("amx_bf16", features_.amx_bf16),
          std::pair("amx_int8", features_.amx_int8)}) {
      if (present) absl::StrAppend(&key, " ", name);
    }
    absl::StrAppend(&key, ", ", pool_->size(), pool_->size() == 1 ? " thread" : " threads");
    return key;
  }
  Allocator& allocator() override { return *allocator_; }
  absl::StatusOr<MemoryInfo> memory() const override {
    const int64_t total = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
    return MemoryInfo{total, AvailableBytes()};
  }
  absl::StatusOr<std::unique_ptr<Stream>> CreateStream() override {
    return std::make_unique<CpuStream>(pool_, features_);
  }
  absl::Status Copy(Stream&, void* destination, const void* source, int64_t bytes) override {
    if (bytes < 0) return InvalidArgument("bytes: expected >= 0, got ", bytes);
    if (bytes > 0) std::memcpy(destination, source, static_cast<size_t>(bytes));
    return absl::OkStatus();
  }

 private:
  CpuFeatures features_;
  std::unique_ptr<Allocator> allocator_;
  std::shared_ptr<ThreadPool> pool_;
};

void ReadTopology(CpuInfo& info) {
  hwloc_topology_t topology;
  if (hwloc_topology_init(&topology) != 0) return;
  if (hwloc_topology_load(topology) == 0) {
    info.numa_nodes = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_NUMANODE);
    info.cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
    int level = 1;
    for (hwloc_obj_type_t type : {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L3CACHE}) {
      const hwloc_obj_t cache = hwloc_get_obj_by_type(topology, type, 0);
      if (cache != nullptr) {
        const int cores =
            hwloc_get_nbobjs_inside_cpuset_by_type(topology, cache->cpuset, HWLOC_OBJ_CORE);
        info.caches.push_back({level, static_cast<int64_t>(cache->attr->cache.size), cores});
      }
      ++level;
    }
  }
  hwloc_topology_destroy(topology);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options) {
  constexpr int kMaxThreads = 4096;
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return InvalidArgument("threads: expected 0..", kMaxThreads, ", got ", options.threads);
  }
  CpuFeatures features = DetectCpu();
  if (options.isa) {
    if (*options.isa > features.isa) {
      return InvalidArgument("isa: ", std::string(Name(*options.isa)),
                             " was asked for, but this processor has only ",
                             std::string(Name(features.isa)));
    }
    features = Restrict(features, *options.isa);
  }
  const int threads = options.threads > 0 ? options.threads : AllowedCores();
  return std::make_unique<CpuBackend>(threads, features, options.pin_threads);
}

CpuInfo DescribeCpu() {
  CpuInfo info;
  info.model = ModelName();
  info.cores = AllowedCores();
  info.hardware_threads = AllowedCores();
  info.numa_nodes = 1;
  info.features = DetectCpu();
  info.memory_bytes = static_cast<int64_t>(sysconf(_SC_PHYS_PAGES)) * sysconf(_SC_PAGE_SIZE);
  ReadTopology(info);
  return info;
}

}  // namespace tandem::cpu
