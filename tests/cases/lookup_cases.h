// Cases of the ops that look up by index: embedding, argmax, sample.
#pragma once

#include <string>
#include <vector>

#include "core/ops/argmax.h"
#include "core/ops/embedding.h"
#include "core/ops/sample.h"
#include "tests/cases/random.h"
#include "tests/cases/run.h"
#include "tests/cases/values.h"

namespace tandem::cases {

enum class BadId : uint8_t { kNone, kNegative, kTooLarge };
template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<BadId> = {"none", "negative",
                                                                      "too_large"};

struct EmbeddingCase {
  using Args = EmbeddingArgs;

  int64_t vocabulary = 10;
  int64_t tokens = 1;
  int64_t columns = 64;
  DType table_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  BadId bad_id = BadId::kNone;  // the last id is outside the table
  Layout table_layout = Layout::kContiguous;
  Layout ids_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("vocabulary", self.vocabulary);
    visit("tokens", self.tokens);
    visit("columns", self.columns);
    visit("table_dtype", self.table_dtype);
    visit("out_dtype", self.out_dtype);
    visit("bad_id", self.bad_id);
    visit("table_layout", self.table_layout);
    visit("ids_layout", self.ids_layout);
    visit("out_layout", self.out_layout);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  EmbeddingArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const EmbeddingArgs& args) const;
  std::string DTypeLabel() const;
  absl::StatusCode ExpectedCode() const;

  static std::vector<EmbeddingCase> Grid(GridSize size);
  static EmbeddingCase Random(Rng& rng);
};

struct ArgMaxCase {
  using Args = ArgMaxArgs;

  int64_t rows = 1;
  int64_t columns = 64;
  DType x_dtype = DType::kF32;
  Layout x_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  Values values = Values::kNormal;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("rows", self.rows);
    visit("columns", self.columns);
    visit("x_dtype", self.x_dtype);
    visit("x_layout", self.x_layout);
    visit("out_layout", self.out_layout);
    visit("values", self.values);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  ArgMaxArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const ArgMaxArgs& args) const;
  std::string DTypeLabel() const;

  static std::vector<ArgMaxCase> Grid(GridSize size);
  static ArgMaxCase Random(Rng& rng);
};

struct SampleCase {
  using Args = SampleArgs;

  int64_t rows = 1;
  int64_t columns = 64;
  DType logits_dtype = DType::kF32;
  float temperature = 1.0f;
  int64_t top_k = 0;
  float top_p = 1.0f;
  float spread = 1.0f;  // logits are multiplied by it
  Layout logits_layout = Layout::kContiguous;
  Values values = Values::kNormal;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("rows", self.rows);
    visit("columns", self.columns);
    visit("logits_dtype", self.logits_dtype);
    visit("temperature", self.temperature);
    visit("top_k", self.top_k);
    visit("top_p", self.top_p);
    visit("spread", self.spread);
    visit("logits_layout", self.logits_layout);
    visit("values", self.values);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  SampleArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const SampleArgs& args) const;
  std::string DTypeLabel() const;

  static std::vector<SampleCase> Grid(GridSize size);
  static SampleCase Random(Rng& rng);
};

}  // namespace tandem::cases
