// Cases of the rotary position embedding (core/ops/rope.h).
#pragma once

#include <string>
#include <vector>

#include "core/ops/rope.h"
#include "tests/cases/random.h"
#include "tests/cases/run.h"
#include "tests/cases/values.h"

namespace tandem::cases {

// The oracle of a rotation of x [B, H, S, D] in f64, and the error that each element may have when
// it is computed in f32 and stored as `out_type`. x is the last S of the rotation's tokens.
struct RotationOracle {
  std::vector<double> expected, allowed;
};
RotationOracle ExpectRotation(const TensorView& x, const RopeRotation& rotation, DType out_type);

struct RopeCase {
  using Args = RopeArgs;

  int64_t batch = 1;
  int64_t heads = 1;
  int64_t tokens = 1;
  int64_t head_dim = 64;
  int64_t pairs = -1;  // -1: head_dim / 2
  bool positions_per_sequence = false;
  int64_t first_position = 0;
  int64_t position_step = 1;
  RopePairing pairing = RopePairing::kInterleaved;
  float magnitude = 1.0f;
  DType x_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  bool in_place = false;  // out is x
  Layout x_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  Values values = Values::kNormal;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("batch", self.batch);
    visit("heads", self.heads);
    visit("tokens", self.tokens);
    visit("head_dim", self.head_dim);
    visit("pairs", self.pairs);
    visit("positions_per_sequence", self.positions_per_sequence);
    visit("first_position", self.first_position);
    visit("position_step", self.position_step);
    visit("pairing", self.pairing);
    visit("magnitude", self.magnitude);
    visit("x_dtype", self.x_dtype);
    visit("out_dtype", self.out_dtype);
    visit("in_place", self.in_place);
    visit("x_layout", self.x_layout);
    visit("out_layout", self.out_layout);
    visit("values", self.values);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  RopeArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const RopeArgs& args) const;
  std::string DTypeLabel() const;

  static std::vector<RopeCase> Grid(GridSize size);
  static RopeCase Random(Rng& rng);
};

}  // namespace tandem::cases
