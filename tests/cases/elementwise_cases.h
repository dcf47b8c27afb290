// Cases of the row-wise ops: softmax, rms_norm, silu_mul, add, cast.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "core/ops/add.h"
#include "core/ops/cast.h"
#include "core/ops/rms_norm.h"
#include "core/ops/silu_mul.h"
#include "core/ops/softmax.h"
#include "tests/cases/random.h"
#include "tests/cases/run.h"
#include "tests/cases/values.h"

namespace tandem::cases {

struct SoftmaxCase {
  using Args = SoftmaxArgs;

  int64_t rows = 1;
  int64_t columns = 64;
  DType x_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  float scale = 1.0f;
  bool in_place = false;  // out is x
  Layout x_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  Values values = Values::kNormal;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("rows", self.rows);
    visit("columns", self.columns);
    visit("x_dtype", self.x_dtype);
    visit("out_dtype", self.out_dtype);
    visit("scale", self.scale);
    visit("in_place", self.in_place);
    visit("x_layout", self.x_layout);
    visit("out_layout", self.out_layout);
    visit("values", self.values);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  SoftmaxArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const SoftmaxArgs& args) const;
  std::string DTypeLabel() const;

  static std::vector<SoftmaxCase> Grid(GridSize size);
  static SoftmaxCase Random(Rng& rng);
};

enum class InPlace : uint8_t {
  kNo,
  kFirst,
  kSecond
};  // the output is a separate tensor, the first or the second input
template <>
inline constexpr std::array<std::string_view, 3> kEnumNames<InPlace> = {"no", "first", "second"};

struct RmsNormCase {
  using Args = RmsNormArgs;

  int64_t rank = 2;
  int64_t batch = 2;  // rank 4
  int64_t rows = 1;
  int64_t heads = 2;  // rank 3 and 4
  int64_t columns = 64;
  DType x_dtype = DType::kF32;
  DType weight_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  float eps = 1e-5f;
  bool in_place = false;  // out is x
  bool residual = false;
  DType residual_dtype = DType::kF32;
  DType sum_dtype = DType::kF32;
  InPlace sum_in_place = InPlace::kNo;  // sum is x or the residual; x is then not out
  Layout x_layout = Layout::kContiguous;
  Layout weight_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  Values values = Values::kNormal;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("rank", self.rank);
    visit("batch", self.batch);
    visit("rows", self.rows);
    visit("heads", self.heads);
    visit("columns", self.columns);
    visit("x_dtype", self.x_dtype);
    visit("weight_dtype", self.weight_dtype);
    visit("out_dtype", self.out_dtype);
    visit("eps", self.eps);
    visit("in_place", self.in_place);
    visit("residual", self.residual);
    visit("residual_dtype", self.residual_dtype);
    visit("sum_dtype", self.sum_dtype);
    visit("sum_in_place", self.sum_in_place);
    visit("x_layout", self.x_layout);
    visit("weight_layout", self.weight_layout);
    visit("out_layout", self.out_layout);
    visit("values", self.values);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  RmsNormArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const RmsNormArgs& args) const;
  std::string DTypeLabel() const;
  bool OutIsX() const;
  std::string SumName() const;

  static std::vector<RmsNormCase> Grid(GridSize size);
  static RmsNormCase Random(Rng& rng);
};

struct SiluMulCase {
  using Args = SiluMulArgs;

  int64_t rows = 1;
  int64_t columns = 64;
  DType gate_dtype = DType::kF32;
  DType up_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  InPlace in_place = InPlace::kNo;
  Layout gate_layout = Layout::kContiguous;
  Layout up_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  Values values = Values::kNormal;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("rows", self.rows);
    visit("columns", self.columns);
    visit("gate_dtype", self.gate_dtype);
    visit("up_dtype", self.up_dtype);
    visit("out_dtype", self.out_dtype);
    visit("in_place", self.in_place);
    visit("gate_layout", self.gate_layout);
    visit("up_layout", self.up_layout);
    visit("out_layout", self.out_layout);
    visit("values", self.values);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  SiluMulArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const SiluMulArgs& args) const;
  std::string DTypeLabel() const;

  static std::vector<SiluMulCase> Grid(GridSize size);
  static SiluMulCase Random(Rng& rng);
};

struct AddCase {
  using Args = AddArgs;

  int64_t rows = 1;
  int64_t columns = 64;
  bool one_row = false;  // b has one row, added to all
  DType a_dtype = DType::kF32;
  DType b_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  InPlace in_place = InPlace::kNo;
  Layout a_layout = Layout::kContiguous;
  Layout b_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  Values values = Values::kNormal;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("rows", self.rows);
    visit("columns", self.columns);
    visit("one_row", self.one_row);
    visit("a_dtype", self.a_dtype);
    visit("b_dtype", self.b_dtype);
    visit("out_dtype", self.out_dtype);
    visit("in_place", self.in_place);
    visit("a_layout", self.a_layout);
    visit("b_layout", self.b_layout);
    visit("out_layout", self.out_layout);
    visit("values", self.values);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  AddArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const AddArgs& args) const;
  std::string DTypeLabel() const;

  static std::vector<AddCase> Grid(GridSize size);
  static AddCase Random(Rng& rng);
};

struct CastCase {
  using Args = CastArgs;

  int64_t rows = 1;
  int64_t columns = 64;
  DType x_dtype = DType::kF32;
  DType out_dtype = DType::kF32;
  Layout x_layout = Layout::kContiguous;
  Layout out_layout = Layout::kContiguous;
  Values values = Values::kNormal;
  int64_t seed = 1;

  template <typename Self, typename Visitor>
  static void VisitFields(Self& self, Visitor&& visit) {
    visit("rows", self.rows);
    visit("columns", self.columns);
    visit("x_dtype", self.x_dtype);
    visit("out_dtype", self.out_dtype);
    visit("x_layout", self.x_layout);
    visit("out_layout", self.out_layout);
    visit("values", self.values);
    visit("seed", self.seed);
  }

  Operands MakeOperands() const;
  CastArgs Bind(const Views& views) const;
  std::vector<Expectation> Expect(const CastArgs& args) const;
  std::string DTypeLabel() const;

  static std::vector<CastCase> Grid(GridSize size);
  static CastCase Random(Rng& rng);
};

}  // namespace tandem::cases
