// One matrix product, or several of the same activations (core/ops/grouped_matmul.h): what the
// kernels that do either are given, and how their tasks are numbered.
#pragma once

#include <array>
#include <cstdint>
#include <span>

#include "core/kernel.h"
#include "core/ops/grouped_matmul.h"
#include "core/ops/matmul.h"
#include "core/status.h"

namespace tandem::cpu {

struct MatMulGroup {
  std::span<const MatMulArgs> products;  // at least one, at most kMaxProducts; a of the same M, K
  bool gated = false;  // two of the same N: the first's out is silu(first) * second

  const MatMulArgs& first() const { return products[0]; }
  size_t size() const { return products.size(); }
  // Products whose output features are cut into tasks; with a gate, the tasks of the first do the
  // second as well.
  size_t outs() const { return gated ? 1 : size(); }
};

inline MatMulGroup GroupOf(const MatMulArgs& args) { return {{&args, 1}, false}; }

// The products of a grouped call.
class GroupedProducts {
 public:
  explicit GroupedProducts(const GroupedMatMulArgs& args)
      : size_(static_cast<size_t>(args.num_products)), gated_(args.gated()) {
    for (int i = 0; i < args.num_products; ++i) {
      products_[static_cast<size_t>(i)] = args.ProductArgs(i);
    }
  }
  MatMulGroup group() const { return {{products_.data(), size_}, gated_}; }

 private:
  std::array<MatMulArgs, GroupedMatMulArgs::kMaxProducts> products_;
  size_t size_;
  bool gated_;
};

// The tasks of all outs, one out after the other.
class GroupTasks {
 public:
  struct Place {
    size_t product;
    int64_t task;  // of the product's own
  };

  // count(args): the tasks of one product.
  template <typename Count>
  GroupTasks(const MatMulGroup& group, Count count) {
    for (size_t i = 0; i < group.outs(); ++i) {
      total_ += count(group.products[i]);
      ends_[i] = total_;
    }
  }
  int64_t total() const { return total_; }
  Place At(int64_t task) const {
    size_t i = 0;
    while (task >= ends_[i]) ++i;
    return {i, i == 0 ? task : task - ends_[i - 1]};
  }

 private:
  std::array<int64_t, GroupedMatMulArgs::kMaxProducts> ends_{};
  int64_t total_ = 0;
};

// A kernel of grouped_matmul from the functions of the matmul kernel that it shares its driver
// with: it takes what that one takes of every product.
template <absl::Status (*kSupports)(const KernelContext&, const MatMulArgs&)>
absl::Status SupportsGroup(const KernelContext& context, const GroupedMatMulArgs& args) {
  for (int i = 0; i < args.num_products; ++i) {
    const absl::Status status = kSupports(context, args.ProductArgs(i));
    if (!status.ok()) return Unimplemented("products[", i, "]: ", Message(status));
  }
  return absl::OkStatus();
}
template <bool (*kApplies)(const MatMulArgs&)>
bool AppliesToGroup(const GroupedMatMulArgs& args) {
  for (int i = 0; i < args.num_products; ++i) {
    if (!kApplies(args.ProductArgs(i))) return false;
  }
  return true;
}

}  // namespace tandem::cpu
