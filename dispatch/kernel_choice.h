// Which of the kernels that can run a call should: chosen from measurements on this machine.
//
// The lists of the devices say what is usually fastest, but machines differ: on some the bf16 dot
// products run at half the rate of f32 multiply-adds, on others at twice it. So calls are put into
// classes (op, types, shape), the supported kernels are timed once for each class
// (dispatch/kernel_calibration.h), and the times are kept in a file per machine. A context that
// finds them tries the kernels of a call's class in that order; without measurements, and after
// them, the order of the list holds. What a measurement says can make a call slow, never wrong:
// `supports` is asked in any case.
//
//   file, JSON    {"format": "tandem kernel profile 1", "machine": "...", "classes": [
//                   {"op": "matmul", "device": "cpu", "input": "f32", "weights": "q8_0",
//                    "packed": false, "rows": 4, "size": 1,
//                    "kernels": [{"name": "gemv_avx512", "seconds": 1.2e-4}, ...]}, ...]}
//   place         $XDG_CACHE_HOME/tandem/kernels-<hash of machine>.json (~/.cache without it)
//
// Which kernel runs decides the order of sums: with a profile, results are the same from run to run
// and thread count to thread count as long as the same profile is used; a profile belongs to one
// thread count.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/op.h"
#include "dispatch/scheduler.h"

namespace tandem {

// Calls for which the same kernel is fastest, as far as we tell them apart.
struct KernelClass {
  OpKind op = OpKind::kMatMul;
  DeviceKind device = DeviceKind::kCpu;
  DType input = DType::kF32;
  DType weights = DType::kF32;
  bool packed = false;
  // matmul: M, attention: queries. Class r > 0 holds 2^(r-1) + 1 .. 2^r of them; the last also all
  // above.
  uint8_t rows = 0;
  // matmul: 0: N * K < 2^20, 1: more. attention: 0: fewer than 512 keys, 1: than 4096, 2: more.
  uint8_t size = 0;

  static constexpr int kRows = 10;
  static constexpr uint8_t Sizes(OpKind op) { return op == OpKind::kAttention ? 3 : 2; }

  // One number per class.
  uint32_t Id() const {
    return ((((((static_cast<uint32_t>(op) * 8 + static_cast<uint32_t>(device)) * 32 +
                static_cast<uint32_t>(input)) *
                   32 +
               static_cast<uint32_t>(weights)) *
                  2 +
              (packed ? 1u : 0u)) *
             16) +
            rows) *
               4 +
           size;
  }
  friend bool operator==(const KernelClass&, const KernelClass&) = default;
};

// nullopt: ops that are not told apart (one kernel is always best).
std::optional<KernelClass> ClassOf(const OpFacts& facts, DeviceKind device);
// "matmul f32 x q8_0, rows 5..8, N * K >= 2^20"
std::string Describe(const KernelClass& kernel_class);

struct KernelTime {
  std::string kernel;
  double seconds = 0.0;
};

struct KernelMeasurement {
  KernelClass kernel_class;
  std::vector<KernelTime> times;  // of every kernel that was tried, in any order
};

struct KernelProfile {
  std::string machine;  // MachineKey of the context that measured
  std::vector<KernelMeasurement> measurements;
};

std::string ToJson(const KernelProfile& profile);
// InvalidArgument names what is wrong.
absl::StatusOr<KernelProfile> KernelProfileFromJson(std::string_view json);

// Times closer than this are noise: then the list's order decides.
inline constexpr double kKernelChoiceMargin = 1.05;

// The order in which to try the measured kernels: fastest first, but a kernel passes one before it
// in `list` only if it is faster by more than the margin. Positions in `list`. Names that are not
// in the list are left out.
std::vector<uint8_t> OrderByTime(const std::vector<std::string_view>& list,
                                 const std::vector<KernelTime>& times);

// What is preferred for the calls of one class.
struct KernelPreference {
  std::vector<uint8_t> order;     // positions in the device's list
  std::vector<KernelTime> times;  // for explanations
};

// A profile made ready for lookup.
class KernelPreferences {
 public:
  KernelPreferences() = default;
  // InvalidArgument: a kernel that the device does not have, or a class given twice.
  static absl::StatusOr<KernelPreferences> FromProfile(const KernelProfile& profile);

  bool empty() const { return by_class_.empty(); }
  size_t size() const { return by_class_.size(); }
  // nullptr if calls like this were not measured.
  const KernelPreference* Find(const OpFacts& facts, DeviceKind device) const;

 private:
  absl::flat_hash_map<uint32_t, KernelPreference> by_class_;
};

// Why `kernel` runs: "measured: 1.8x as fast as onednn_expand on this machine", or "list order".
std::string ExplainKernel(const KernelPreference* preference, std::string_view kernel);

// $XDG_CACHE_HOME/tandem/kernels-<hash>.json; empty if neither that nor $HOME is set.
std::string DefaultKernelProfilePath(std::string_view machine);

// The profile at `path` if it is of `machine`. `required`: false means that a missing, broken or
// foreign file is no error, only a reason in `note`.
absl::StatusOr<KernelPreferences> LoadKernelPreferences(const std::string& path,
                                                        std::string_view machine, bool required,
                                                        std::string* note);
// Writes beside and renames, so that no reader sees half a file.
absl::Status SaveKernelProfile(const std::string& path, const KernelProfile& profile);

}  // namespace tandem
