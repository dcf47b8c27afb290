// What a placed model would gain if both devices shared every product of it, on simulated machines
// (no GPU is timed here): the figures of docs/both_devices.md. TANDEM_PRINT_TABLES=1 prints them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "absl/strings/str_format.h"
#include "dispatch/split_costs.h"
#include "tests/made_up_costs.h"
#include "tests/model_shapes.h"
#include "tests/simulated_machine.h"

namespace tandem::cases {
namespace {

constexpr DeviceKind kCpu = DeviceKind::kCpu, kGpu = DeviceKind::kCuda;

struct Product {
  int64_t n, k, times;
};
std::vector<Product> ProductsOf(const ModelShape& shape) {
  const int64_t head_dim = shape.hidden / shape.heads;
  return {{(shape.heads + 2 * shape.kv_heads) * head_dim, shape.hidden, shape.layers},  // q, k, v
          {shape.hidden, shape.hidden, shape.layers},   // of attention's result
          {2 * shape.ffn, shape.hidden, shape.layers},  // gate, up
          {shape.hidden, shape.ffn, shape.layers},      // down
          {shape.vocabulary, shape.hidden, 1}};
}

// Half of the weights on the GPU: seconds with whole layers there, over those with half of the
// columns (or fewer, where that is better) of every product.
double GainOfColumns(const SplitCosts& costs, double launch, const ModelShape& shape, DType weights,
                     int64_t rows) {
  double turns = 0.0, shared = 0.0;
  for (const Product& product : ProductsOf(shape)) {
    const ProductCall call = {.m = product.times == 1 ? 1 : rows,  // of the last token alone
                              .n = product.n,
                              .k = product.k,
                              .weights = weights,
                              .packed = IsBlockQuantized(weights)};
    const auto times = static_cast<double>(product.times);
    const double cpu = MatMulSeconds(costs, call, kCpu, 0);
    // Launches of a layer that is on the GPU are waited for once, not one by one.
    const double gpu = MatMulSeconds(costs, call, kGpu, call.n) - launch;
    turns += times * (cpu + gpu) / 2.0;
    const auto choice = ChooseMatMulSplit(costs, call, kCpu, call.n / 2);
    EXPECT_TRUE(choice.ok()) << choice.status();
    if (choice.ok()) shared += times * MatMulSeconds(costs, call, kCpu, choice->gpu);
  }
  return turns / shared;
}

TEST(ColumnSplit, GainOfAPlacedModel) {
  const bool print = std::getenv("TANDEM_PRINT_TABLES") != nullptr;
  for (const simulated::MachineSpec& spec : simulated::Machines()) {
    const simulated::Machine machine(spec);
    const SplitCosts truth = TruthOf(machine);
    double least = HUGE_VAL, most = 0.0;
    for (const int64_t rows : {1, 512}) {
      std::string row = absl::StrFormat("| %s | %d |", spec.name, rows);
      for (const ModelShape& shape : ModelShapes()) {
        if (shape.name != "1B" && shape.name != "8B" && shape.name != "70B") continue;
        for (const DType weights : {DType::kQ4_K, DType::kF16}) {
          const double gain = GainOfColumns(truth, spec.gpu.launch_seconds, shape, weights, rows);
          absl::StrAppendFormat(&row, " %.2f |", gain);
          least = std::min(least, gain);
          most = std::max(most, gain);
        }
      }
      if (print) std::printf("%s\n", row.c_str());
    }
    // What both_devices.md concludes: it pays where the GPU is a few times faster than the CPU, and
    // loses where waiting for it takes as long as a product.
    if (spec.name.find("server") == 0) {
      EXPECT_LT(least, 0.8);
      EXPECT_LT(most, 1.1);
    } else {
      EXPECT_GT(least, 1.0) << spec.name;
      EXPECT_GT(most, 1.25) << spec.name;
      EXPECT_LT(most, 2.0) << spec.name << ": two devices cannot do more than twice as much";
    }
  }
}

}  // namespace
}  // namespace tandem::cases
