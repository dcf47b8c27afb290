// Contexts on the emulated device, for tests that look behind them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "cuda/blas/device_blas.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/stream.h"
#include "dispatch/context.h"
#include "tests/cases/matmul_cases.h"
#include "tests/cases/run.h"

namespace tandem::cases {

inline constexpr Device kEmulated = {DeviceKind::kCuda, kEmulatedDevice};

inline std::unique_ptr<Context> EmulatedContext(bool forced) {
  ContextOptions options;
  options.threads = 1;
  options.cuda_emulated = true;
  options.kernel_profile = "off";
  if (forced) options.device = DeviceKind::kCuda;
  auto context = Context::Create(options);
  EXPECT_TRUE(context.ok()) << context.status();
  return *std::move(context);
}

inline cuda::EmulatedRuntime& RuntimeOf(Context& context) {
  auto& stream = static_cast<cuda::CudaStream&>(*context.device(DeviceKind::kCuda)->stream);
  return static_cast<cuda::EmulatedRuntime&>(stream.runtime());
}

// Device memory in use but for the context's own.
inline int64_t InUse(Context& context) {
  const ContextDevice& device = *context.device(DeviceKind::kCuda);
  return device.backend->allocator().bytes_in_use() -
         (device.scratch ? device.scratch->bytes() : 0);
}

// Forgets the library of matrix products and its plans, so that they are made again.
inline void ResetBlas(Context& context) {
  static_cast<cuda::CudaStream&>(*context.device(DeviceKind::kCuda)->stream).blas()->Reset();
}

// A few cases per op, the first ones of the grid that run.
template <typename Case>
std::vector<Prepared<Case>> FaultCases() {
  std::vector<Prepared<Case>> chosen;
  for (const Case& c : Case::Grid(GridSize::kShort)) {
    if (ExpectedCode(c) != absl::StatusCode::kOk || chosen.size() == 2) continue;
    auto prepared = Prepare(c);
    if (!prepared.ok()) continue;
    const std::vector<Operand>& all = prepared->operands.all();
    const bool empty = std::any_of(all.begin(), all.end(),
                                   [](const Operand& operand) { return operand.view.empty(); });
    // Every call is failed in turn, of runs that make as many calls: few operands only.
    if (!empty && all.size() <= 24) chosen.push_back(*std::move(prepared));
  }
  if constexpr (std::is_same_v<Case, MatMulCase>) {  // by the library, alone and with all around it
    MatMulCase c = {.m = 9, .n = 20, .k = 50, .addend = Addend::kInPlace};
    chosen.push_back(*Prepare(c));
    c.activation = Activation::kSilu;
    c.b_dtype = DType::kF16;
    c.float_activations = false;
    chosen.push_back(*Prepare(c));
  }
  return chosen;
}

// Lists that may be in host memory although the other operands are in device memory.
inline bool IsList(OpKind op, const Operand& operand) {
  return op == OpKind::kKvAppend && (operand.name == "cache_lens" || operand.name == "page_table");
}

// One case for each set of such lists that the short grid has.
template <typename Case>
std::vector<Prepared<Case>> ListCases() {
  std::vector<Prepared<Case>> chosen;
  std::set<std::set<std::string>> seen = {{}};
  for (const Case& c : Case::Grid(GridSize::kShort)) {
    if (ExpectedCode(c) != absl::StatusCode::kOk) continue;
    bool empty = false;
    std::set<std::string> lists;
    const Operands operands = c.MakeOperands();
    for (const Operand& operand : operands.all()) {
      empty = empty || operand.view.empty();
      if (IsList(Case::Args::kOp, operand)) lists.insert(operand.name);
    }
    if (empty || seen.contains(lists)) continue;
    auto prepared = Prepare(c);
    if (!prepared.ok()) continue;
    seen.insert(lists);
    chosen.push_back(*std::move(prepared));
  }
  return chosen;
}

// The views of operands in device memory, but with lists where they were, in host memory.
inline Views WithHostLists(OpKind op, const Operands& initial, const Views& device) {
  Views views;
  for (const Operand& operand : initial.all()) {
    views.Add(operand.name,
              IsList(op, operand) ? initial.View(operand.name) : device(operand.name));
  }
  return views;
}

}  // namespace tandem::cases
