#include "cuda/runtime/emulated_runtime.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/status.h"
#include "cuda/blas/host_blas.h"
#include "cuda/emulator/async.h"
#include "cuda/runtime/emulated_memory.h"
#include "cuda/runtime/emulated_stream.h"

namespace tandem::cuda {
namespace {

constexpr size_t kPinnedAlignment = 4096;  // bytes, as of cudaMallocHost

DeviceInfo EmulatedInfo(const EmulatedRuntimeOptions& options) {
  DeviceInfo info;
  info.index = kEmulatedDevice;
  info.name = "emulated on the CPU (for tests; its speed is not a GPU's)";
  info.compute_capability_major = options.compute_capability_major;
  info.compute_capability_minor = options.compute_capability_minor;
  info.multiprocessors = 4;
  info.memory_bytes = options.memory_bytes;
  info.l2_cache_bytes = int64_t{32} << 20;
  info.shared_memory_per_block_bytes = options.shared_memory_per_block_bytes;
  return info;
}

struct EmulatedGraph {
  std::vector<EmulatedTask> tasks;
};

class EmulatedRuntimeImpl final : public EmulatedRuntime {
 public:
  explicit EmulatedRuntimeImpl(const EmulatedRuntimeOptions& options)
      : options_(options), info_(EmulatedInfo(options)), memory_(options.memory_bytes) {}
  ~EmulatedRuntimeImpl() override {
    streams_.clear();  // does the work that is left
    for (const auto& [data, bytes] : pinned_) std::free(data);
  }

  bool emulated() const override { return true; }
  Probe Devices() override {
    Probe probe;
    probe.devices = {info_};
    probe.message = absl::StrCat("cuda:emulated: ", info_.name);
    return probe;
  }
  absl::StatusOr<MemoryInfo> Memory(int device) override {
    TANDEM_RETURN_IF_ERROR(Enter("Memory"));
    TANDEM_RETURN_IF_ERROR(CheckDevice("Memory", device));
    return MemoryInfo{options_.memory_bytes, options_.memory_bytes - memory_.used()};
  }

  absl::StatusOr<void*> Allocate(int device, int64_t bytes) override {
    TANDEM_RETURN_IF_ERROR(Enter("Allocate"));
    TANDEM_RETURN_IF_ERROR(CheckDevice("Allocate", device));
    absl::StatusOr<void*> data = memory_.Allocate(bytes);
    if (!data.ok()) return Named("Allocate", data.status());
    return data;
  }
  absl::Status Free(int device, void* data) override {
    TANDEM_RETURN_IF_ERROR(CheckDevice("Free", device));
    DrainAll();  // as cudaFree does
    TANDEM_RETURN_IF_ERROR(Named("Free", memory_.Free(data)));
    return Enter("Free");
  }
  absl::StatusOr<TensorMap> EncodeTensorMap(const TensorMapSpec& spec) override {
    TANDEM_RETURN_IF_ERROR(Enter("EncodeTensorMap"));
    return emulator::EncodeTensorMap(spec);
  }
  absl::StatusOr<void*> AllocatePinned(int64_t bytes) override {
    TANDEM_RETURN_IF_ERROR(Enter("AllocatePinned"));
    void* data = nullptr;
    if (bytes <= 0 || posix_memalign(&data, kPinnedAlignment, static_cast<size_t>(bytes)) != 0) {
      return absl::ResourceExhaustedError(
          absl::StrCat("AllocatePinned: out of host memory: ", bytes, " bytes asked for"));
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    pinned_[static_cast<char*>(data)] = bytes;
    return data;
  }
  absl::Status FreePinned(void* data) override {
    DrainAll();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (pinned_.erase(static_cast<char*>(data)) == 0) {
        return InvalidArgument("FreePinned: not the address of pinned memory");
      }
    }
    std::free(data);
    return Enter("FreePinned");
  }
  void SetUse(void* data, int64_t used, int64_t bytes) override {
    memory_.SetUse(data, used, bytes);
  }

  absl::StatusOr<StreamHandle> CreateStream(int device) override {
    TANDEM_RETURN_IF_ERROR(Enter("CreateStream"));
    TANDEM_RETURN_IF_ERROR(CheckDevice("CreateStream", device));
    const std::lock_guard<std::mutex> lock(mutex_);
    auto stream = std::make_unique<EmulatedStream>(options_.seed + ++streams_made_, options_.jitter,
                                                   lost_by_);
    StreamHandle handle{stream.get()};
    streams_[handle.value] = std::move(stream);
    return handle;
  }
  absl::Status DestroyStream(StreamHandle handle) override {
    std::unique_ptr<EmulatedStream> stream;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = streams_.find(handle.value);
      if (found == streams_.end()) return Dead("DestroyStream", "stream");
      stream = std::move(found->second);
      streams_.erase(found);
    }
    stream.reset();  // does its work
    return Enter("DestroyStream");
  }
  absl::Status Synchronize(StreamHandle handle) override {
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find("Synchronize", handle));
    if (stream->capturing()) return InvalidArgument("Synchronize: the stream is being captured");
    stream->Drain();
    return Enter("Synchronize");
  }
  absl::StatusOr<bool> Finished(StreamHandle handle) override {
    TANDEM_RETURN_IF_ERROR(Enter("Finished"));
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find("Finished", handle));
    return stream->idle();
  }

  absl::Status Copy(StreamHandle handle, void* destination, const void* source,
                    int64_t bytes) override {
    TANDEM_RETURN_IF_ERROR(Enter("Copy"));
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find("Copy", handle));
    if (bytes < 0) return InvalidArgument("Copy: expected >= 0 bytes, got ", bytes);
    if (bytes == 0) return absl::OkStatus();
    bool pageable = false;
    for (const auto& [name, data] :
         {std::pair("destination", static_cast<const void*>(destination)),
          std::pair("source", source)}) {
      if (data == nullptr) return InvalidArgument("Copy: ", name, " is null");
      if (!memory_.Contains(data)) {
        pageable = pageable || !IsPinned(data, bytes);
      } else if (absl::Status status = memory_.Check(data, bytes); !status.ok()) {
        return InvalidArgument("Copy: ", name, " is ", Message(status));
      }
    }
    if (pageable && stream->capturing()) {
      return InvalidArgument("Copy: expected pinned host memory while capturing");
    }
    stream->Push({[=](EmulatedStream&) {
                    std::memmove(destination, source, static_cast<size_t>(bytes));
                    return absl::OkStatus();
                  },
                  Seconds(bytes)});
    if (!pageable) return absl::OkStatus();
    stream->Drain();
    return Lost("Copy");
  }
  absl::Status Fill(StreamHandle handle, void* destination, uint8_t byte, int64_t bytes) override {
    TANDEM_RETURN_IF_ERROR(Enter("Fill"));
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find("Fill", handle));
    if (bytes < 0) return InvalidArgument("Fill: expected >= 0 bytes, got ", bytes);
    if (bytes == 0) return absl::OkStatus();
    if (!memory_.Contains(destination)) {
      return InvalidArgument("Fill: destination is host memory, expected cuda:emulated");
    }
    if (absl::Status status = memory_.Check(destination, bytes); !status.ok()) {
      return InvalidArgument("Fill: destination is ", Message(status));
    }
    stream->Push({[=](EmulatedStream&) {
                    std::memset(destination, byte, static_cast<size_t>(bytes));
                    return absl::OkStatus();
                  },
                  Seconds(bytes)});
    return absl::OkStatus();
  }
  absl::Status Launch(StreamHandle handle, const KernelFunction& function,
                      const LaunchConfig& config, const void* params) override {
    TANDEM_RETURN_IF_ERROR(Enter("Launch"));
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find("Launch", handle));
    if (function.emulated == nullptr) {
      return absl::InternalError(
          absl::StrCat("Launch ", function.name, ": it was not built for cuda:emulated"));
    }
    TANDEM_RETURN_IF_ERROR(CheckParameters(function, params));
    if (!options_.run_kernels) return absl::OkStatus();
    const auto* bytes = static_cast<const char*>(params);
    // In 64-byte units: aligned as any parameter struct is, tensor maps included.
    struct alignas(64) Unit {
      char bytes[64];
    };
    std::vector<Unit> copy((function.params_bytes + sizeof(Unit) - 1) / sizeof(Unit));
    if (!copy.empty()) std::memcpy(copy.data(), bytes, function.params_bytes);
    stream->Push({[=, copy = std::move(copy), options = options_.emulator](EmulatedStream&) {
                    return emulator::RunKernel(function, config, copy.data(), options);
                  },
                  Seconds(0)});
    return absl::OkStatus();
  }
  absl::Status HostFunction(StreamHandle handle, void (*function)(void*), void* data) override {
    TANDEM_RETURN_IF_ERROR(Enter("HostFunction"));
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find("HostFunction", handle));
    stream->Push({[=](EmulatedStream&) {
                    function(data);
                    return absl::OkStatus();
                  },
                  Seconds(0)});
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<Blas>> MakeBlas(int device) override {
    TANDEM_RETURN_IF_ERROR(CheckDevice("MakeBlas", device));
    return options_.make_blas ? options_.make_blas(*this) : MakeHostBlas(*this);
  }

  absl::StatusOr<EventHandle> CreateEvent(int device) override {
    TANDEM_RETURN_IF_ERROR(Enter("CreateEvent"));
    TANDEM_RETURN_IF_ERROR(CheckDevice("CreateEvent", device));
    auto event = std::make_shared<EmulatedEvent>();
    EventHandle handle{event.get()};
    const std::lock_guard<std::mutex> lock(mutex_);
    events_[handle.value] = std::move(event);
    return handle;
  }
  absl::Status DestroyEvent(EventHandle handle) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (events_.erase(handle.value) == 0) return Dead("DestroyEvent", "event");
    }
    return Enter("DestroyEvent");
  }
  absl::Status Record(EventHandle event_handle, StreamHandle handle) override {
    TANDEM_RETURN_IF_ERROR(Enter("Record"));
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find("Record", handle));
    TANDEM_ASSIGN_OR_RETURN(auto event, Find("Record", event_handle));
    if (stream->capturing()) return Unimplemented("Record: events inside a capture");
    const int64_t number = event->Begin();
    stream->Push({[event, number](EmulatedStream& own) {
                    event->Complete(number, own.now());
                    return absl::OkStatus();
                  },
                  0.0, /*unconditional=*/true});
    return absl::OkStatus();
  }
  absl::Status Wait(StreamHandle handle, EventHandle event_handle) override {
    TANDEM_RETURN_IF_ERROR(Enter("Wait"));
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find("Wait", handle));
    TANDEM_ASSIGN_OR_RETURN(auto event, Find("Wait", event_handle));
    if (stream->capturing()) return Unimplemented("Wait: events inside a capture");
    const int64_t number = event->latest();
    stream->Push({[event, number](EmulatedStream& own) {
                    own.AdvanceTo(event->Await(number));
                    return absl::OkStatus();
                  },
                  0.0, /*unconditional=*/true});
    return absl::OkStatus();
  }
  absl::Status Synchronize(EventHandle handle) override {
    TANDEM_ASSIGN_OR_RETURN(auto event, Find("Synchronize", handle));
    event->Await(event->latest());
    return Enter("Synchronize");
  }
  absl::StatusOr<bool> Finished(EventHandle handle) override {
    TANDEM_RETURN_IF_ERROR(Enter("Finished"));
    TANDEM_ASSIGN_OR_RETURN(auto event, Find("Finished", handle));
    return event->Completed(event->latest());
  }
  absl::StatusOr<double> Seconds(EventHandle start, EventHandle end) override {
    TANDEM_RETURN_IF_ERROR(Enter("Seconds"));
    TANDEM_ASSIGN_OR_RETURN(auto first, Find("Seconds", start));
    TANDEM_ASSIGN_OR_RETURN(auto last, Find("Seconds", end));
    for (const auto& event : {first, last}) {
      if (event->latest() == 0 || !event->Completed(event->latest())) {
        return absl::FailedPreconditionError("Seconds: an event is not recorded or not finished");
      }
    }
    return last->Await(0) - first->Await(0);
  }

  absl::Status BeginCapture(StreamHandle handle) override {
    TANDEM_RETURN_IF_ERROR(Enter("BeginCapture"));
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find("BeginCapture", handle));
    if (stream->capturing()) return InvalidArgument("BeginCapture: already capturing");
    stream->BeginCapture();
    return absl::OkStatus();
  }
  absl::StatusOr<GraphHandle> EndCapture(StreamHandle handle) override {
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find("EndCapture", handle));
    if (!stream->capturing()) return InvalidArgument("EndCapture: the stream is not captured");
    auto graph = std::make_unique<EmulatedGraph>();
    graph->tasks = stream->EndCapture();
    TANDEM_RETURN_IF_ERROR(Enter("EndCapture"));
    GraphHandle result{graph.get()};
    const std::lock_guard<std::mutex> lock(mutex_);
    graphs_[result.value] = std::move(graph);
    return result;
  }
  absl::Status LaunchGraph(GraphHandle graph, StreamHandle handle) override {
    TANDEM_RETURN_IF_ERROR(Enter("LaunchGraph"));
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find("LaunchGraph", handle));
    std::vector<EmulatedTask> tasks;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      const auto found = graphs_.find(graph.value);
      if (found == graphs_.end()) return Dead("LaunchGraph", "graph");
      tasks = found->second->tasks;
    }
    for (EmulatedTask& task : tasks) stream->Push(std::move(task));
    return absl::OkStatus();
  }
  absl::Status DestroyGraph(GraphHandle graph) override {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (graphs_.erase(graph.value) == 0) return Dead("DestroyGraph", "graph");
    }
    return Enter("DestroyGraph");
  }

  void Inject(const Fault& fault) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    fault_ = fault;
    armed_ = true;
    happened_ = false;
  }
  bool fault_happened() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return happened_;
  }
  void Heal() override {
    DrainAll();
    lost_by_.Clear();
    const std::lock_guard<std::mutex> lock(mutex_);
    armed_ = lost_ = false;
  }
  EmulatedStats stats() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return {memory_.count(),
            memory_.used(),
            static_cast<int64_t>(pinned_.size()),
            static_cast<int64_t>(streams_.size()),
            static_cast<int64_t>(events_.size()),
            static_cast<int64_t>(graphs_.size()),
            library_objects_};
  }
  int64_t calls() const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return calls_;
  }
  int64_t calls(const std::string& call) const override {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = calls_by_name_.find(call);
    return found == calls_by_name_.end() ? 0 : found->second;
  }

  absl::Status Enter(const char* call) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++calls_;
    ++calls_by_name_[call];
    if (armed_ && (fault_.call.empty() || fault_.call == call) && --fault_.ordinal <= 0) {
      armed_ = --fault_.times > 0;
      happened_ = true;
      if (fault_.kind == Fault::Kind::kError) {
        return absl::InternalError(absl::StrCat(call, ": injected error"));
      }
      if (fault_.kind == Fault::Kind::kOutOfMemory) {
        return absl::ResourceExhaustedError(absl::StrCat(call, ": injected: out of memory"));
      }
      lost_ = true;
    }
    if (lost_) return absl::UnavailableError(absl::StrCat(call, ": the device is lost (injected)"));
    return Lost(call);
  }
  // By the error of a kernel.
  absl::Status Lost(const char* call) const {
    const absl::Status error = lost_by_.status();
    if (error.ok()) return error;
    return absl::UnavailableError(absl::StrCat(call, ": the device is lost: ", Message(error)));
  }
  absl::Status CheckMemory(const char* call, const char* name, const void* data,
                           int64_t bytes) const override {
    if (!options_.run_kernels) return absl::OkStatus();  // nobody reads it
    if (!memory_.Contains(data)) {
      return InvalidArgument(call, ": ", name, " is host memory, expected cuda:emulated");
    }
    if (absl::Status status = memory_.Check(data, bytes); !status.ok()) {
      return InvalidArgument(call, ": ", name, " is ", Message(status));
    }
    return absl::OkStatus();
  }
  absl::Status Enqueue(const char* call, StreamHandle handle, std::function<void()> work) override {
    TANDEM_ASSIGN_OR_RETURN(EmulatedStream * stream, Find(call, handle));
    stream->Push({[work = std::move(work), run = options_.run_kernels](EmulatedStream&) {
                    if (run) work();
                    return absl::OkStatus();
                  },
                  Seconds(0)});
    return absl::OkStatus();
  }
  void CountLibraryObjects(int64_t change) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    library_objects_ += change;
  }

 private:
  static absl::Status Named(const char* call, const absl::Status& status) {
    if (status.ok()) return status;
    return absl::Status(status.code(), absl::StrCat(call, ": ", Message(status)));
  }
  static absl::Status Dead(const char* call, const char* what) {
    return InvalidArgument(call, ": not a live ", what, " of cuda:emulated");
  }
  static absl::Status CheckDevice(const char* call, int device) {
    if (device == kEmulatedDevice) return absl::OkStatus();
    return InvalidArgument(call, ": expected device cuda:emulated, got cuda:", device);
  }
  absl::StatusOr<EmulatedStream*> Find(const char* call, StreamHandle handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = streams_.find(handle.value);
    if (found == streams_.end()) return Dead(call, "stream");
    return found->second.get();
  }
  absl::StatusOr<std::shared_ptr<EmulatedEvent>> Find(const char* call, EventHandle handle) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = events_.find(handle.value);
    if (found == events_.end()) return Dead(call, "event");
    return found->second;
  }
  bool IsPinned(const void* data, int64_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto* address = static_cast<const char*>(data);
    auto after = pinned_.upper_bound(const_cast<char*>(address));
    if (after == pinned_.begin()) return false;
    --after;
    return address + bytes <= after->first + after->second;
  }
  // Parameters that are addresses of the device must be in use. An address one past the end of an
  // allocation belongs to an empty tensor.
  absl::Status CheckParameters(const KernelFunction& function, const void* params) {
    const size_t bytes = std::min(function.params_bytes, function.address_bytes);
    for (size_t at = 0; at + sizeof(void*) <= bytes; at += sizeof(void*)) {
      const char* address = nullptr;
      std::memcpy(&address, static_cast<const char*>(params) + at, sizeof(address));
      if (!memory_.Contains(address) || memory_.Check(address, 0).ok() ||
          memory_.Check(address - 1, 0).ok()) {
        continue;
      }
      return InvalidArgument("Launch ", function.name, ": the parameter at byte ", at,
                             " is an address of cuda:emulated that is not allocated, or freed");
    }
    return absl::OkStatus();
  }
  void DrainAll() {
    std::vector<std::shared_ptr<EmulatedEvent>> ends;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const auto& [handle, stream] : streams_) {
        if (stream->idle() || stream->capturing()) continue;
        auto event = std::make_shared<EmulatedEvent>();
        event->Begin();
        stream->Push({[event](EmulatedStream& own) {
                        event->Complete(1, own.now());
                        return absl::OkStatus();
                      },
                      0.0, /*unconditional=*/true});
        ends.push_back(std::move(event));
      }
    }
    for (const auto& event : ends) event->Await(1);
  }
  double Seconds(int64_t bytes) const {
    return options_.latency + static_cast<double>(bytes) / options_.bandwidth;
  }

  const EmulatedRuntimeOptions options_;
  const DeviceInfo info_;
  EmulatedMemory memory_;
  EmulatedFault lost_by_;
  mutable std::mutex mutex_;
  std::map<char*, int64_t> pinned_;  // bytes by address
  std::map<void*, std::unique_ptr<EmulatedStream>> streams_;
  std::map<void*, std::shared_ptr<EmulatedEvent>> events_;
  std::map<void*, std::unique_ptr<EmulatedGraph>> graphs_;
  uint64_t streams_made_ = 0;
  int64_t library_objects_ = 0;
  int64_t calls_ = 0;
  std::map<std::string, int64_t> calls_by_name_;
  Fault fault_;
  bool armed_ = false;
  bool happened_ = false;
  bool lost_ = false;
};

}  // namespace

absl::StatusOr<Fault> ParseFault(std::string_view text) {
  const absl::Status bad = InvalidArgument(
      "fault: expected KIND@CALL:ORDINAL[xTIMES] with a KIND of error, oom, lost and a CALL of "
      "any, ",
      absl::StrJoin(kFaultCalls, ", ",
                    [](std::string* out, std::string_view call) { out->append(call); }),
      "; got '", std::string(text), "'");
  const size_t at = text.find('@'), colon = text.find(':');
  if (at == text.npos || colon == text.npos || colon < at) return bad;
  const std::string_view kind = text.substr(0, at);
  std::string_view ordinal = text.substr(colon + 1), times = "1";
  if (const size_t x = ordinal.find('x'); x != ordinal.npos) {
    times = ordinal.substr(x + 1);
    ordinal = ordinal.substr(0, x);
  }
  Fault fault;
  if (kind == "oom") {
    fault.kind = Fault::Kind::kOutOfMemory;
  } else if (kind == "lost") {
    fault.kind = Fault::Kind::kDeviceLost;
  } else if (kind != "error") {
    return bad;
  }
  fault.call = std::string(text.substr(at + 1, colon - at - 1));
  if (fault.call == "any") {
    fault.call.clear();
  } else if (std::find(kFaultCalls.begin(), kFaultCalls.end(), fault.call) == kFaultCalls.end()) {
    return bad;
  }
  const auto parse = [](std::string_view digits, int64_t& number) {
    return absl::SimpleAtoi(std::string(digits), &number) && number >= 1;
  };
  if (!parse(ordinal, fault.ordinal) || !parse(times, fault.times)) return bad;
  return fault;
}

std::unique_ptr<EmulatedRuntime> MakeEmulatedRuntime(const EmulatedRuntimeOptions& options) {
  return std::make_unique<EmulatedRuntimeImpl>(options);
}

}  // namespace tandem::cuda
