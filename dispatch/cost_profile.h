// What was measured of a machine so that run times can be predicted: launch overheads, memory
// bandwidth, copies between its devices, and tables of call times. dispatch/cost_calibration.h
// measures it, dispatch/cost_model.h predicts from it.
//
// A profile belongs to the machine that it was measured on: CPU, instruction set, threads, GPU and
// its driver, and library version (Context::machine_key). One of another machine, of another schema
// version or that is damaged is ignored, and the context warns (Context::warnings).
//
//   place         $XDG_CACHE_HOME/tandem/costs-<hash of machine>.json (~/.cache without it)
//   file, JSON    {"format": "tandem cost profile 1", "machine": "...",
//                  "devices": [{"device": "cpu", "name": "...", "launch_seconds": 1e-6,
//                               "bytes_per_second": 5e10}, ...],
//                  "copies": [{"from": "cpu", "to": "cuda", "pinned": false,
//                              "latency_seconds": 1e-5, "bytes_per_second": 6e9}, ...],
//                  "shared_bytes_per_second": 9e10,
//                  "tables": [{"op": "matmul", "device": "cpu", "input": "f32", "weights": "q8_0",
//                              "packed": false, "rows": [1, 2, ...], "work": [4096, ...],
//                              "seconds": [...]}, ...]}
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/device.h"
#include "core/dtype.h"
#include "core/op.h"
#include "dispatch/per_device.h"

namespace tandem {

// Calls whose times stand in one table.
struct CostClass {
  OpKind op = OpKind::kMatMul;
  DType input = DType::kF32;
  DType weights = DType::kF32;
  bool packed = false;

  friend bool operator==(const CostClass&, const CostClass&) = default;
};
// "matmul f32 x q8_0 packed", "add"
std::string Describe(const CostClass& cost_class);

// Seconds of one call, asked for until finished, its operands being on the device and not in its
// caches if they are weights or keys and values.
struct CostTable {
  CostClass cost_class;
  DeviceKind device = DeviceKind::kCpu;
  // Ascending, > 0. `rows`: matmul: m; attention: queries per key/value head; others: only {1}.
  // `work`: matmul: n * k; attention: elements of K and V that a query sees; others: bytes.
  std::vector<double> rows;
  std::vector<double> work;
  std::vector<double> seconds;  // [rows][work], ascending along both
};

struct DeviceCosts {
  std::string name;               // what a person calls it; empty: there is no such device
  double launch_seconds = 0.0;    // of a call with nothing to do, until it is known to be finished
  double bytes_per_second = 0.0;  // reading memory
};

// latency + bytes / bytes_per_second; bytes_per_second 0: unknown.
struct CopyCosts {
  double latency_seconds = 0.0;
  double bytes_per_second = 0.0;
};

struct CostProfile {
  std::string machine;
  PerDevice<DeviceCosts> devices;
  // By the device that is copied to: from the host to the GPU, or back. [0] pageable host memory,
  // [1] page-locked.
  PerDevice<std::array<CopyCosts, 2>> copies_to;
  // What both devices read together when they read memory at the same time, where that is less than
  // each of them reads alone: an integrated GPU and its CPU have one memory. 0: neither slows the
  // other, or nobody knows.
  double shared_bytes_per_second = 0.0;
  std::vector<CostTable> tables;
};

// InvalidArgument says what is wrong: a number that is not finite or out of range, tables that are
// not ascending or of the wrong size, a class given twice for one device, a missing CPU.
absl::Status Validate(const CostProfile& profile);

std::string ToJson(const CostProfile& profile);
// Validated.
absl::StatusOr<CostProfile> CostProfileFromJson(std::string_view json);

// $XDG_CACHE_HOME/tandem/costs-<hash>.json; empty if neither that nor $HOME is set.
std::string DefaultCostProfilePath(std::string_view machine);
// The profile in the file, of whichever machine.
absl::StatusOr<CostProfile> ReadCostProfile(const std::string& path);
// The profile in the file if it is of `machine`. `required`: false means that a missing, broken or
// foreign file is no error but nullopt, with the reason in `note`; it begins with "ignored" where
// there is a file, or one beside it that was measured before the GPU, its driver or the library
// changed.
absl::StatusOr<std::optional<CostProfile>> LoadCostProfile(const std::string& path,
                                                           std::string_view machine, bool required,
                                                           std::string* note);
// Writes beside and renames, so that no reader sees half a file.
absl::Status SaveCostProfile(const std::string& path, const CostProfile& profile);

}  // namespace tandem
