// Context: everything an op call needs, explicitly. Devices with their streams and workspaces, the
// scheduling policy, forced choices, and the trace. Not thread-safe: one context per calling
// thread.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "core/kernel.h"
#include "core/op.h"
#include "dispatch/cost_correction.h"
#include "dispatch/cost_model.h"
#include "dispatch/device_health.h"
#include "dispatch/kernel_choice.h"
#include "dispatch/scheduler.h"
#include "dispatch/trace.h"

namespace tandem {

struct ContextOptions {
  int threads = 0;           // CPU threads; 0: one per core          TANDEM_THREADS
  std::string isa;           // "", scalar, avx2, avx512: upper limit TANDEM_ISA
  bool pin_threads = false;  //                                       TANDEM_PIN_THREADS=1
  Policy policy;             // see scheduler.h           TANDEM_POLICY, TANDEM_POLICY_*
  std::optional<DeviceKind>
      device;  // force every op onto one device        TANDEM_DEVICE=cpu|cuda|cuda:emulated
  // Keeps models on the GPU if there is one, but goes on without it when it fails
  // (model/recovery.h): TANDEM_DEVICE=prefer:cuda|prefer:cuda:emulated
  bool prefer_cuda = false;
  // Keeps a model's layers on both devices (model/hybrid.h), for those who load models; no op is
  // forced: TANDEM_DEVICE=hybrid|hybrid:emulated
  bool hybrid = false;
  // Uses a GPU if there is one: TANDEM_CUDA=1, or by naming the device. Not by itself so far: see
  // docs/gpu_status.md for what has been verified on one.
  bool cuda = false;
  // Adds the emulated CUDA device, instead of a GPU (docs/cuda.md), for tests of kernels:
  // TANDEM_CUDA_EMULATED=1
  bool cuda_emulated = false;
  // In which order it runs the threads of a block: fifo, lifo, reverse or random:SEED.
  std::string cuda_schedule = "fifo";  //                               TANDEM_CUDA_SCHEDULE
  // Most bytes of device memory to use; 0: all there is.               TANDEM_CUDA_MEMORY_LIMIT
  int64_t cuda_memory_limit = 0;
  // Makes a call of the emulated device fail, for trying what happens then: "lost@Launch:200",
  // see docs/cuda.md. InvalidArgument without that device.        TANDEM_CUDA_EMULATED_FAULT
  std::string cuda_fault = {};
  // Where cuBLASLt is: a file, or the folder it is in; empty: searched. TANDEM_CUBLASLT_PATH
  std::string cublaslt_path = {};
  std::map<std::string, std::string>
      force_kernel;  // op name -> kernel name  TANDEM_KERNEL=attention=reference,...
  // Allow products to round activations (docs/numerics.md): to 8 bits where weights are quantised,
  // an error as of q8_0 weights, and to bf16 where weights are; several times the speed, and twice.
  bool quantize_activations = true;  //                         TANDEM_QUANTIZE_ACTIVATIONS=0
  // Measured choice of kernels (dispatch/kernel_choice.h): "" takes the file that `tandem calibrate
  // kernels` left for this machine, if there is one; "off" none; else the file of that path, which
  // must be there and of this machine.
  std::string kernel_profile;  //                         TANDEM_KERNEL_PROFILE
  // Measured times of calls on the devices (dispatch/cost_profile.h), by which the calibrated
  // policy decides: "" takes the file that `tandem calibrate` left for this machine, if there is
  // one; "off" none; else the file of that path, which must be there and of this machine.
  std::string cost_profile;  //                           TANDEM_COST_PROFILE
  // Or these, whatever machine they are of.
  std::shared_ptr<const CostModel> cost_model = nullptr;
  bool trace = false;  // record every op call                  TANDEM_TRACE=1

  // These options overridden by the environment variables above. InvalidArgument names a variable
  // whose value is bad.
  absl::StatusOr<ContextOptions> WithEnvironment() const;
  // Forces a device by name: cpu, cuda, or cuda:emulated (which then exists); prefers one: prefer:
  // and one of the latter two; or both, for a model: hybrid, hybrid:emulated. What was said before
  // about devices is forgotten. InvalidArgument otherwise.
  absl::Status SetDevice(const std::string& name);
};

// A device the context can use.
struct ContextDevice {
  std::unique_ptr<Backend> backend;
  std::unique_ptr<Stream> stream;
  std::shared_ptr<Buffer> scratch;  // workspace memory, grown on demand
  std::shared_ptr<Buffer> landing;  // host memory that results are copied back to, likewise
};

class Context {
 public:
  // Environment overrides are applied here, once. InvalidArgument: unknown kernel or device names,
  // bad values.
  static absl::StatusOr<std::unique_ptr<Context>> Create(const ContextOptions& options = {});

  const ContextOptions& options() const { return options_; }
  Trace& trace() { return trace_; }
  // nullptr if the device is not there.
  ContextDevice* device(DeviceKind kind);
  // Is this very device among them?
  bool has(Device device) const;
  Allocator& host_allocator() { return device(DeviceKind::kCpu)->backend->allocator(); }
  const std::vector<DeviceKind>& devices_present() const { return present_; }

  // Machine, instruction set, threads and library version: what measured kernel times belong to.
  const std::string& machine_key() const { return machine_key_; }
  const KernelPreferences& kernel_preferences() const { return preferences_; }
  // Where they came from, or why there are none.
  const std::string& kernel_profile_note() const { return profile_note_; }

  // Times of calls on this machine; nullptr: it has not been measured.
  const CostModel* cost_model() const { return cost_model_.get(); }
  // Where they came from, or why there are none.
  const std::string& cost_profile_note() const { return cost_profile_note_; }
  // What a person should know about how the context was made: profiles that were ignored, and why.
  // One line each; the tools print them. The library itself writes nothing.
  const std::vector<std::string>& warnings() const { return warnings_; }
  // What they are corrected by, from the calls made so far.
  CostCorrection& cost_correction() { return correction_; }

  // The device for a call, by the options' policy. Counts the call for exploration.
  Decision Decide(const OpFacts& facts);
  // All that a decision is made from.
  DecisionInputs InputsOf(const OpFacts& facts);
  // Does it go by predicted times? Not without measured ones or a GPU, with a forced device, or by
  // another policy.
  bool predicts() const { return predicts_; }
  // The decision for a call that stays where its operands are, and what it is predicted to take
  // there.
  Decision StayWith(const OpFacts& facts) const;
  // Do decisions learn from what calls take? Placed calls, which are not decided, teach as well.
  bool Learns(const Decision& decision) const {
    return learns_ && decision.predicted[decision.device].slot >= 0;
  }
  bool learns() const { return learns_; }
  // A call so decided is finished and took this long, moves included.
  void Finished(const Decision& decision, double seconds);
  // A call so decided was put on the device's stream, and nobody has waited for it.
  void Queued(const Decision& decision);
  // Adds to `work` what is queued from now on; nullptr: no longer. See SegmentClock.
  void CollectQueued(QueuedWork* work) { queued_work_ = work; }

  // Makes the workspace of `device` at least `bytes` large, so that later calls allocate nothing.
  absl::Status ReserveWorkspace(DeviceKind device, int64_t bytes);

  // Do ops run where their operands are? See PlacedCalls.
  bool placed() const { return placed_; }

  // Where models are kept if nobody says: on the device that is forced, or the GPU if it is
  // preferred and there, or the CPU.
  DeviceKind preferred_device() const;
  // Why there is no GPU; empty where there is one.
  const std::string& no_cuda() const { return no_cuda_; }

  // What failed on the GPU so far, and whether it is still asked.
  DeviceHealth& health() { return health_; }
  const DeviceHealth& health() const { return health_; }
  // Adds an event to the health and, if tracing, to the trace. Its number.
  int64_t ReportFault(FaultEvent event, bool resident = false);
  // Asks a lost device again; if it answers, or can be opened anew, it is used as before. Tensors
  // that lay on it are lost all the same; they may still be destroyed. Unavailable: it is still
  // lost (a GPU usually is to the whole process). Forgets all back-off, too.
  absl::Status Revive(DeviceKind kind);

  // The kernel forced for an op, or empty.
  const std::string& forced_kernel(OpKind op) const { return forced_[static_cast<size_t>(op)]; }
  // Forces (or, with an empty name, frees) the kernel of one op. InvalidArgument lists the known
  // names.
  absl::Status ForceKernel(OpKind op, const std::string& kernel);

 private:
  friend class PlacedCalls;
  Context() = default;
  absl::Status SetUpCosts();

  ContextOptions options_;
  std::array<ContextDevice, 2> devices_;
  std::vector<DeviceKind> present_;
  std::array<std::string, kNumOps> forced_;
  std::string machine_key_;
  KernelPreferences preferences_;
  std::string profile_note_;
  std::shared_ptr<const CostModel> cost_model_;
  std::string cost_profile_note_;
  std::vector<std::string> warnings_;
  CostCorrection correction_{0};
  bool predicts_ = false;
  bool learns_ = false;
  QueuedWork* queued_work_ = nullptr;
  int64_t decisions_ = 0;  // by predicted times
  // Of the GPU: bytes that this context may have in use, and when its queue should be empty.
  int64_t cuda_bytes_ = INT64_MAX;
  std::chrono::steady_clock::time_point cuda_done_{};
  std::string no_cuda_;
  Trace trace_;
  bool placed_ = false;
  DeviceHealth health_;
  std::vector<ContextDevice> retired_;  // lost devices that were opened anew
};

// While it lives, every op of the context runs where its operands are, whatever the policy says of
// the op alone (a forced device still wins): for callers that have placed several ops together.
class PlacedCalls {
 public:
  explicit PlacedCalls(Context& context, bool placed = true)
      : context_(context), before_(context.placed_) {
    context.placed_ = placed || before_;
  }
  ~PlacedCalls() { context_.placed_ = before_; }
  PlacedCalls(const PlacedCalls&) = delete;
  PlacedCalls& operator=(const PlacedCalls&) = delete;

 private:
  Context& context_;
  bool before_;
};

}  // namespace tandem
