// The framework under the cases: reproducers, pairwise selection, random numbers, operands,
// reports.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "cpu/backend.h"
#include "nlohmann/json.hpp"
#include "tests/cases/all_cases.h"
#include "tests/cases/check.h"
#include "tests/cases/pairwise.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

using ::testing::HasSubstr;

TEST(Reproducers, EveryCaseSurvivesItsText) {
  ForEachCaseType([]<typename Case>() {
    std::vector<Case> cases = Case::Grid(GridSize::kFull);
    Append(cases, Case::Grid(GridSize::kShort));
    Rng rng(7);
    for (int i = 0; i < 100; ++i) cases.push_back(Case::Random(rng));
    EXPECT_GT(cases.size(), 110u) << OpNameOf<Case>();
    for (const Case& c : cases) {
      const auto again = ParseCase<Case>(CaseText(c));
      ASSERT_TRUE(again.ok()) << again.status().ToString();
      EXPECT_EQ(CaseText(c), CaseText(*again));
    }
  });
}

TEST(Reproducers, GridsAreTheSameEveryTime) {
  ForEachCaseType([]<typename Case>() {
    const std::vector<Case> first = Case::Grid(GridSize::kFull);
    const std::vector<Case> second = Case::Grid(GridSize::kFull);
    ASSERT_EQ(first.size(), second.size());
    for (size_t i = 0; i < first.size(); ++i) EXPECT_EQ(CaseText(first[i]), CaseText(second[i]));
  });
}

TEST(Reproducers, BadTextNamesTheField) {
  const auto message = [](const char* text) {
    return Message(ParseCase<AttentionCase>(text).status());
  };
  EXPECT_THAT(message("matmul m=1"), HasSubstr("attention"));
  EXPECT_THAT(message(""), HasSubstr("attention"));
  EXPECT_THAT(message("attention q_lenn=3"), HasSubstr("q_lenn"));
  EXPECT_THAT(message("attention q_len"), HasSubstr("q_len"));
  EXPECT_THAT(message("attention q_len=3x"), HasSubstr("3x"));
  EXPECT_THAT(message("attention q_len=99999999999999999999"), HasSubstr("q_len"));
  EXPECT_THAT(message("attention q_dtype=f64"), HasSubstr("f64"));
  EXPECT_THAT(message("attention causal=maybe"), HasSubstr("maybe"));
  EXPECT_THAT(message("attention lse=yes"), HasSubstr("yes"));
  const auto good = ParseCase<AttentionCase>("  attention scale=0.5  kv_layout=padded\n");
  ASSERT_TRUE(good.ok());
  EXPECT_EQ(good->scale, 0.5f);
  EXPECT_EQ(good->kv_layout, Layout::kPadded);
}

TEST(Random, IsTheSameOnEveryMachine) {
  Rng rng(1);
  // mt19937_64 is defined by the standard to the bit; everything after it is exact.
  EXPECT_EQ(rng.Normal(), -0x1.cfcp-4);
  EXPECT_EQ(rng.Uniform(), 0x1.5876p-6);
  EXPECT_EQ(rng.Integer(-5, 5), -1);
}

TEST(Random, NormalHasItsMoments) {
  Rng rng(2);
  double sum = 0, squares = 0;
  constexpr int kCount = 100'000;
  for (int i = 0; i < kCount; ++i) {
    const double x = rng.Normal();
    sum += x;
    squares += x * x;
  }
  EXPECT_NEAR(sum / kCount, 0.0, 0.01);
  EXPECT_NEAR(squares / kCount, 1.0, 0.02);
}

struct Toy {
  int64_t a = 0, b = 0, c = 0, seed = 0;
};

TEST(Pairwise, EveryPairOfValuesMeets) {
  const auto cases = Pairwise<Toy>()
                         .Field(&Toy::a, {0, 1, 2, 3, 4})
                         .Field(&Toy::b, {0, 1, 2})
                         .Field(&Toy::c, {0, 1, 2, 3})
                         .Select(11);
  std::set<std::pair<int64_t, int64_t>> ab, ac, bc;
  for (const Toy& t : cases) {
    ab.emplace(t.a, t.b);
    ac.emplace(t.a, t.c);
    bc.emplace(t.b, t.c);
  }
  EXPECT_EQ(ab.size(), 15u);
  EXPECT_EQ(ac.size(), 20u);
  EXPECT_EQ(bc.size(), 12u);
  EXPECT_LT(cases.size(), 35u);  // of 60
}

TEST(OperandMemory, EveryLayoutIsAValidViewWithPoisonAround) {
  std::vector<DType> dtypes = FloatDTypes();
  Append(dtypes, BlockDTypes());
  for (DType dtype : dtypes) {
    for (Layout layout : {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                          Layout::kBroadcast, Layout::kSpread}) {
      for (Shape shape : {Shape{32}, Shape{3, 64}, Shape{2, 3, 32}, Shape{2, 3, 5, 64}, Shape{2, 0},
                          Shape{0, 3, 4, 32}}) {
        shape[shape.rank - 1] = WholeBlocks(dtype, shape[shape.rank - 1]);
        SCOPED_TRACE(FieldText(dtype) + " " + FieldText(layout) + " " + ToString(shape));
        Operands operands;
        operands.Input("x", dtype, shape, layout, [](int64_t i) { return double(i % 7) - 3; });
        operands.Output("y", dtype, shape, layout);
        ASSERT_TRUE(operands.status().ok()) << operands.status().ToString();
        const TensorView x = operands.View("x"), y = operands.View("y");
        EXPECT_TRUE(ValidateView("x", x).ok()) << ValidateView("x", x).ToString();
        EXPECT_TRUE(ValidateOutput("y", y, shape.rank).ok());
        for (double value : reference::ReadAll(x)) EXPECT_TRUE(std::isfinite(value));
        for (double value : reference::ReadAll(y)) EXPECT_TRUE(std::isnan(value));
        EXPECT_FALSE(operands.View("z").present());
        // What lies before and behind the elements of an input reads as NaN.
        const Operand& operand = operands.all()[0];
        EXPECT_EQ(operand.bytes.front(), std::byte{0xFF});
        EXPECT_EQ(operand.bytes.back(), std::byte{0xFF});
        EXPECT_GE(static_cast<int64_t>(operand.bytes.size()), ByteExtent(x) + 1024);
      }
    }
  }
}

TEST(OperandMemory, BadShapesAreErrors) {
  const auto status = [](DType dtype, const Shape& shape) {
    Operands operands;
    operands.Output("x", dtype, shape, Layout::kContiguous);
    operands.Output("fine", DType::kF32, {1}, Layout::kContiguous);
    return Message(operands.status());
  };
  EXPECT_THAT(status(DType::kF32, {2, -1}), HasSubstr("x"));
  EXPECT_THAT(status(DType::kQ8_0, {2, 33}), HasSubstr("block"));
  EXPECT_THAT(status(DType::kF32, {int64_t{1} << 62, 8}), HasSubstr("64 bits"));
  EXPECT_THAT(status(DType::kF32, {int64_t{1} << 40}), HasSubstr("more than"));
  EXPECT_EQ(status(DType::kF32, {2, 2}), "");
}

TEST(Elements, RoundTripOfEveryDType) {
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI32, DType::kI64, DType::kU32,
                      DType::kI8, DType::kBool}) {
    std::vector<std::byte> memory(256);
    const TensorView view = MakeView(memory.data(), dtype, {2, 3});
    const auto value = [&](int64_t i) { return dtype == DType::kBool ? double(i % 2) : double(i); };
    reference::WriteAll(view, value);
    const std::vector<double> read = reference::ReadAll(view);
    ASSERT_EQ(read.size(), 6u);
    for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(read[i], value(i)) << FieldText(dtype);
  }
}

TEST(Elements, HalfUlpBoundsOneRounding) {
  EXPECT_EQ(reference::HalfUlp(DType::kF32, 1.0), 0x1p-24);
  EXPECT_EQ(reference::HalfUlp(DType::kF16, 1.0), 0x1p-11);
  EXPECT_EQ(reference::HalfUlp(DType::kBF16, -3.0), 0x1p-7);
  EXPECT_EQ(reference::HalfUlp(DType::kF16, 0.0), 0x1p-25);
  Rng rng(3);
  for (int i = 0; i < 10'000; ++i) {
    const double x = std::ldexp(rng.Normal(), static_cast<int>(rng.Integer(-26, 12)));
    for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
      EXPECT_LE(std::fabs(reference::RoundTo(dtype, x) - x), reference::HalfUlp(dtype, x));
    }
  }
}

TEST(Tolerance, IsTwiceTheNaiveErrorAndOneRounding) {
  const double inf = std::numeric_limits<double>::infinity();
  const std::vector<double> allowed =
      AllowedErrors({1.0, 2.0, 3.0}, {1.25, 2.0, inf}, DType::kF16, 0.125);
  EXPECT_THAT(allowed, testing::ElementsAre(0.625 + 0x1p-11, 0.625 + 0x1p-10, 0.625 + 0x1p-10));
}

TEST(Tolerance, CompareIsExactAboutNanInfinityAndMagnitude) {
  const auto judge = [](std::vector<double> expected, double allowed, std::vector<float> got) {
    Outcome outcome;
    Expectation e;
    e.operand = "y";
    e.expected = std::move(expected);
    e.allowed = {allowed};
    return Compare(e, MakeView(got.data(), DType::kF32, {1, static_cast<int64_t>(got.size())}),
                   outcome);
  };
  const double inf = std::numeric_limits<double>::infinity();
  const float finf = std::numeric_limits<float>::infinity();
  EXPECT_EQ(judge({1, 2}, 0.5, {1.5f, 1.5f}), "");
  EXPECT_THAT(judge({1, 2}, 0.5, {1, 2.75f}), HasSubstr("y[0, 1]: got 2.75, expected 2"));
  EXPECT_EQ(judge({inf, -inf, std::nan("")}, 0.5, {finf, -finf, std::nanf("")}), "");
  EXPECT_NE(judge({inf}, 0.5, {1.0f}), "");
  EXPECT_NE(judge({inf}, 0.5, {-finf}), "");
  EXPECT_NE(judge({1.0}, 0.5, {finf}), "");
  EXPECT_NE(judge({1.0}, inf, {std::nanf("")}), "");
  EXPECT_NE(judge({std::nan("")}, 0.5, {0.0f}), "");
  EXPECT_NE(judge({0.0}, 0.0, {1e-30f}), "");
  EXPECT_NE(judge({0.0, 0.0}, 0.0, {0.0f}), "") << "a case that expects too much";
}

TEST(Check, BadOptionsNameWhatIsWrong) {
  const auto message = [](const CheckOptions& options) {
    const auto report = RunCheck(options);
    EXPECT_EQ(report.status().code(), absl::StatusCode::kInvalidArgument);
    return Message(report.status());
  };
  CheckOptions options;
  options.ops = {"convolution"};
  EXPECT_THAT(message(options), HasSubstr("convolution"));
  options = {};
  options.case_text = "attention q_heads=3 kv_heads=2";
  EXPECT_THAT(message(options), HasSubstr("query heads"));
  options.case_text = "attention kv_len=oops";
  EXPECT_THAT(message(options), HasSubstr("oops"));
  options = {};
  options.case_text = "attention";
  options.kernels = {"no_such_kernel"};
  EXPECT_THAT(message(options), HasSubstr("no_such_kernel"));
  options = {};
  options.isas = {"avx1024"};
  options.ops = {"attention"};
  EXPECT_THAT(message(options), HasSubstr("avx1024"));
  options = {};
  options.part = 2;
  options.parts = 2;
  EXPECT_THAT(message(options), HasSubstr("part"));
}

TEST(Check, OneCaseOneKernelWithProgress) {
  CheckOptions options;
  options.case_text = "attention q_heads=4 kv_heads=2 kv_len=70 lse=1";
  options.kernels = {"reference"};
  int64_t calls = 0;
  options.progress = [&](const CheckProgress& progress) {
    ++calls;
    EXPECT_EQ(progress.op, "attention");
    EXPECT_EQ(progress.total, 1);
    EXPECT_EQ(progress.done, 1);
    EXPECT_EQ(progress.failed, 0);
  };
  const auto report = RunCheck(options);
  ASSERT_TRUE(report.ok()) << report.status().ToString();
  EXPECT_EQ(calls, 1);
  ASSERT_EQ(report->rows.size(), 1u);
  EXPECT_EQ(report->rows[0].kernel, "reference");
  EXPECT_EQ(report->rows[0].dtype, "f32");
  EXPECT_EQ(report->passed(), 1);
  EXPECT_EQ(report->failed(), 0);
}

TEST(Check, PartsAreTheWholeGrid) {
  CheckOptions options;
  options.ops = {"matmul"};
  options.kernels = {"reference"};
  const auto whole = RunCheck(options);
  ASSERT_TRUE(whole.ok());
  int64_t cases = 0;
  options.parts = 3;
  for (options.part = 0; options.part < 3; ++options.part) {
    const auto part = RunCheck(options);
    ASSERT_TRUE(part.ok());
    cases += part->cases;
  }
  EXPECT_EQ(cases, whole->cases);
}

CheckReport MadeUpReport() {
  CheckRow good, bad, absent;
  good.op = bad.op = absent.op = "attention";
  good.device = bad.device = absent.device = "cpu";
  good.isa = bad.isa = absent.isa = "native";
  good.kernel = "reference";
  good.dtype = "f32";
  good.cases = good.passed = 3;
  good.worst_ratio = 0.25;
  bad.kernel = "decode_avx2";
  bad.dtype = "f16 x bf16";
  bad.cases = 3;
  bad.passed = 2;
  bad.failed = 1;
  bad.worst_ratio = std::numeric_limits<double>::infinity();
  bad.first_failure = "out[0] <nan> & \"x\"\n  reproduce: --case 'attention'\x01";
  absent.kernel = "decode_avx512";
  absent.dtype = "f32";
  absent.cases = absent.unsupported = 3;
  absent.first_unsupported = "needs avx512";
  CheckReport report;
  report.rows = {good, bad, absent};
  report.cases = 3;
  report.seconds = 1.5;
  return report;
}

TEST(CheckReportText, TableShowsFailuresAndReasons) {
  const std::string table = CheckTable(MadeUpReport());
  EXPECT_THAT(table, HasSubstr("decode_avx2"));
  EXPECT_THAT(table, HasSubstr("not run: needs avx512"));
  EXPECT_THAT(table, HasSubstr("FAILED attention decode_avx2 (f16 x bf16), first of 1:"));
  EXPECT_THAT(table, HasSubstr("--case 'attention'"));
  EXPECT_THAT(table, HasSubstr("3 cases, 5 runs passed, 1 failed in 1.5 s"));
}

TEST(CheckReportText, JsonCanBeRead) {
  const auto json = nlohmann::json::parse(CheckJson(MadeUpReport()), nullptr, false);
  ASSERT_FALSE(json.is_discarded());
  EXPECT_EQ(json["passed"], 5);
  EXPECT_EQ(json["failed"], 1);
  ASSERT_EQ(json["rows"].size(), 3u);
  EXPECT_EQ(json["rows"][1]["kernel"], "decode_avx2");
  EXPECT_TRUE(json["rows"][1]["worst_error_over_allowed"].is_null());
  EXPECT_EQ(json["rows"][0]["worst_error_over_allowed"], 0.25);
}

TEST(CheckReportText, JunitIsEscapedAndCounted) {
  const std::string xml = CheckJunit(MadeUpReport());
  EXPECT_THAT(xml,
              HasSubstr("<testsuite name=\"attention\" tests=\"3\" failures=\"1\" skipped=\"1\">"));
  EXPECT_THAT(xml, HasSubstr("out[0] &lt;nan&gt; &amp; &quot;x&quot;"));
  EXPECT_THAT(xml, HasSubstr("<skipped message=\"needs avx512\"/>"));
  EXPECT_EQ(xml.find('\x01'), std::string::npos);
}

}  // namespace
}  // namespace tandem::cases
