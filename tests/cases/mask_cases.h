// Cases of mask creation (core/ops/mask.h).
#pragma once

#include <string>
#include <vector>

#include "core/ops/mask.h"
#include "tests/cases/random.h"
#include "tests/cases/run.h"

namespace tandem::cases {

struct MaskCase {
  using Args = MaskArgs;

  int64_t q_len = 1;
  int64_t kv_len = 1;
  Causal causal = Causal::kBottomRight;
  int64_t window_left = -1;
  int64_t window_right = -1;
  DType out_dtype = DType::kF32;
  Layout out_layout = Layout::kContiguous;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("q_len", self.q_len);
    visit("kv_len", self.kv_len);
    visit("causal", self.causal);
    visit("window_left", self.window_left);
    visit("window_right", self.window_right);
    visit("out_dtype", self.out_dtype);
    visit("out_layout", self.out_layout);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  MaskArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const MaskArgs& args) const;
  std::string DTypeLabel() const;

  static std::vector<MaskCase> Grid(GridSize size);
  static MaskCase Random(Rng& rng);
};

}  // namespace tandem::cases
