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
  int64_t chunk = 0;
  int64_t prefix_len = 0;
  int64_t kv_begin = 0;
  int64_t keys_before = 0;  // of a longer sequence
  int64_t keys_after = 0;
  int64_t first_row = 0;
  int64_t rows = -1;
  int64_t batch = 0;       // 0: out of rank 2
  int64_t lists = 0;       // which of q_lens (1), kv_lens (2), kv_starts (4) there are
  int64_t old_q_len = -1;  // -1: no previous rule; else the previous rule differs in these
  int64_t old_kv_len = 0;
  int64_t old_window_left = -1;
  int64_t old_kv_begin = 0;
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
    visit("chunk", self.chunk);
    visit("prefix_len", self.prefix_len);
    visit("kv_begin", self.kv_begin);
    visit("keys_before", self.keys_before);
    visit("keys_after", self.keys_after);
    visit("first_row", self.first_row);
    visit("rows", self.rows);
    visit("batch", self.batch);
    visit("lists", self.lists);
    visit("old_q_len", self.old_q_len);
    visit("old_kv_len", self.old_kv_len);
    visit("old_window_left", self.old_window_left);
    visit("old_kv_begin", self.old_kv_begin);
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
