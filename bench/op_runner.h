// One call of an op on the CPU, by the first kernel that can do it, and the yardsticks of the
// row-wise benchmarks.
#pragma once

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "bench/median.h"
#include "core/buffer.h"
#include "core/tensor_view.h"
#include "cpu/kernels.h"
#include "cpu/stream.h"

namespace tandem::bench {

// The kernel of the list that the registry would choose, or the one of that name.
template <typename Args>
class OpRunner {
 public:
  OpRunner(int threads, const Args& args, std::string_view kernel_name = "",
           cpu::CpuFeatures features = cpu::DetectCpu())
      : stream_(std::make_shared<cpu::ThreadPool>(threads), features), context_{&stream_, nullptr} {
    for (const Kernel<Args>& kernel : cpu::Kernels<Args>()) {
      if (!kernel_name.empty() && kernel.name != kernel_name) continue;
      if (kernel.applies != nullptr && !kernel.applies(args)) continue;
      if (!kernel.supports(context_, args).ok()) continue;
      kernel_ = &kernel;
      break;
    }
    if (kernel_ == nullptr) return;
    bytes_ = kernel_->workspace_bytes(context_, args);
    memory_ = allocator_->Allocate(bytes_).value();
  }

  bool Run(const Args& args) {
    if (kernel_ == nullptr) return false;
    Workspace workspace(memory_->data(), bytes_);
    context_.workspace = &workspace;
    return kernel_->run(context_, args).ok();
  }
  std::string name() const { return std::string(kernel_ ? kernel_->name : "none"); }

 private:
  std::unique_ptr<Allocator> allocator_ = MakeHostAllocator();
  cpu::CpuStream stream_;
  KernelContext context_;
  const Kernel<Args>* kernel_ = nullptr;
  int64_t bytes_ = 0;
  std::shared_ptr<Buffer> memory_;
};

// Tensors that live as long as this object.
class TensorArena {
 public:
  TensorView Make(DType dtype, const Shape& shape, float low = -1.0f, float high = 1.0f) {
    const int64_t count = NumElements(shape).value();
    buffers_.push_back(allocator_->Allocate(ByteOffset(dtype, count)).value());
    const TensorView view = MakeView(buffers_.back()->data(), dtype, shape);
    if (!IsFloat(dtype)) {
      std::fill_n(static_cast<char*>(view.data), ByteOffset(dtype, count), char{0});
      return view;
    }
    DispatchFloat(dtype, [&]<typename T>() {
      uint32_t state = 1;
      for (int64_t i = 0; i < count; ++i) {
        state = state * 1664525u + 1013904223u;
        const float unit = static_cast<float>(state >> 8) * 0x1p-24f;
        view.As<T>()[i] = FromFloat<T>(low + (high - low) * unit);
      }
    });
    return view;
  }

 private:
  std::unique_ptr<Allocator> allocator_ = MakeHostAllocator();
  std::vector<std::shared_ptr<Buffer>> buffers_;
};

// Median seconds of several calls.
template <typename Fn>
double MedianSeconds(Fn fn, double budget_seconds = 0.2) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  double spent = 0.0;
  while (times.size() < 3 || spent < budget_seconds) {
    const auto begin = Clock::now();
    fn();
    times.push_back(std::chrono::duration<double>(Clock::now() - begin).count());
    spent += times.back();
  }
  return Median(times);
}

}  // namespace tandem::bench
