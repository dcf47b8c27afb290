#include "tests/reference/grouped_matmul.h"

#include <cmath>

#include "tests/reference/elements.h"
#include "tests/reference/matmul.h"

namespace tandem::reference {
namespace {

GroupedMatMulResult::Out ProductOf(const MatMulArgs& args, double sum_floor) {
  const MatMulResult exact = MatMul(args);
  GroupedMatMulResult::Out out = {exact.out, NaiveMatMul(args).out, exact.magnitude};
  for (double& slack : out.slack) slack *= sum_floor;
  if (!args.float_activations && IsBlockQuantized(args.b.dtype)) {
    const std::vector<double> rounding = ActivationRounding(args);
    for (size_t i = 0; i < out.slack.size(); ++i) out.slack[i] += rounding[i];
  }
  return out;
}

}  // namespace

GroupedMatMulResult GroupedMatMul(const GroupedMatMulArgs& args, double sum_floor) {
  GroupedMatMulResult result;
  for (int i = 0; i < args.num_products; ++i) {
    MatMulArgs product = args.ProductArgs(i);
    if (args.gated()) product.out.dtype = DType::kF32;  // only its shape is looked at
    result.outs.push_back(ProductOf(product, sum_floor));
  }
  if (!args.gated()) return result;
  constexpr double kSteepest = 1.1;  // the largest slope of silu
  GroupedMatMulResult::Out& gate = result.outs[0];
  const GroupedMatMulResult::Out& up = result.outs[1];
  for (size_t i = 0; i < gate.oracle.size(); ++i) {
    const double silu = gate.oracle[i] / (1.0 + std::exp(-gate.oracle[i]));
    gate.slack[i] = kSteepest * gate.slack[i] * (std::fabs(up.oracle[i]) + up.slack[i]) +
                    std::fabs(silu) * up.slack[i] +
                    0x1p-21 * std::fabs(silu * up.oracle[i]);  // a few roundings of the last steps
    gate.oracle[i] = silu * up.oracle[i];
    const auto g = static_cast<float>(gate.naive[i]);
    gate.naive[i] =
        RoundTo(args.out(0).dtype, g / (1.0f + std::exp(-g)) * static_cast<float>(up.naive[i]));
  }
  result.outs.resize(1);
  return result;
}

}  // namespace tandem::reference
