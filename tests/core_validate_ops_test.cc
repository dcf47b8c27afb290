// Every way in which the arguments of the other ops can be bad; and garbage of every kind, which
// must be judged without harm.
#include <array>
#include <cmath>
#include <memory>

#include "core/ops/add.h"
#include "core/ops/argmax.h"
#include "core/ops/attention.h"
#include "core/ops/cast.h"
#include "core/ops/embedding.h"
#include "core/ops/kv_append.h"
#include "core/ops/mask.h"
#include "core/ops/matmul.h"
#include "core/ops/merge_attention.h"
#include "core/ops/rms_norm.h"
#include "core/ops/rope.h"
#include "core/ops/sample.h"
#include "core/ops/silu_mul.h"
#include "core/ops/softmax.h"
#include "tests/bad_arguments.h"
#include "tests/cases/random.h"

namespace tandem {
namespace {

class OpValidation : public testing::Test {
 protected:
  // A view of its own memory.
  TensorView View(DType dtype, const Shape& shape) {
    memory_.push_back(std::make_unique<std::array<char, 8192>>());
    return MakeView(memory_.back()->data(), dtype, shape);
  }

  std::vector<std::unique_ptr<std::array<char, 8192>>> memory_;
};

TEST_F(OpValidation, Mask) {
  MaskArgs good;
  good.rule = {.q_len = 3, .kv_len = 70};
  good.out = View(DType::kF32, {3, 70});
  using A = MaskArgs;
  ExpectViewIsChecked(good, &A::out, "out", /*required=*/true, /*others=*/false);
  ExpectEachRejected<A>(
      good,
      {
          {"rule.q_len: expected 0..2^48, got -1", [](A& a) { a.rule.q_len = -1; }},
          {"rule.kv_len: expected 0..2^48", [](A& a) { a.rule.kv_len = INT64_MAX; }},
          {"rule.causal: unknown value 5", [](A& a) { a.rule.causal = static_cast<Causal>(5); }},
          {"rule.window_left: expected >= -1, got -2", [](A& a) { a.rule.window_left = -2; }},
          {"rule.window_right: expected >= -1, got -7", [](A& a) { a.rule.window_right = -7; }},
          {"rule.chunk: expected >= 0, got -1", [](A& a) { a.rule.chunk = -1; }},
          {"rule.prefix_len: expected >= 0", [](A& a) { a.rule.prefix_len = -1; }},
          {"rule.kv_begin: expected >= 0", [](A& a) { a.rule.kv_begin = -1; }},
          {"out: expected dtype f32, f16, bf16, bool or u32 (packed), got i32",
           [](A& a) { a.out.dtype = DType::kI32; }},
          {"out dimension 0 (rows): expected 3, got 2",
           [](A& a) { a.out = Slice(a.out, 0, 0, 2); }},
          {"out dimension 1 (columns): expected 70, got 69",
           [](A& a) { a.out = Slice(a.out, 1, 0, 69); }},
          {"out dimension 1 (columns): expected 3, got 70",
           [](A& a) { a.out.dtype = DType::kU32; }},
          {"out stride 1: expected 1, got 2",
           [](A& a) {
             a.out.strides = {200, 2};
           }},
          {"out stride 0", [](A& a) { a.out.strides[0] = 69; }},
      });
  ExpectEachRejected<A>(
      good,
      {
          {"first_row: expected 0..q_len (3), got -1", [](A& a) { a.first_row = -1; }},
          {"first_row: expected 0..q_len (3), got 4", [](A& a) { a.first_row = 4; }},
          {"rows: expected -1..q_len - first_row (2), got 3",
           [](A& a) {
             a.first_row = 1;
             a.rows = 3;
           }},
          {"rows: expected", [](A& a) { a.rows = -2; }},
          {"rows: expected", [](A& a) { a.rows = INT64_MAX; }},
          {"out dimension 0 (rows): expected 2, got 3", [](A& a) { a.first_row = 1; }},
          {"out dimension 0 (rows): expected 1, got 3", [](A& a) { a.rows = 1; }},
          {"previous.q_len: expected 0..2^48, got -4",
           [](A& a) {
             a.previous.emplace();
             a.previous->q_len = -4;
           }},
          {"out: expected rank 4 with q_lens", [&](A& a) { a.q_lens = View(DType::kI32, {1}); }},
      });
  A band = good;
  band.first_row = 1;
  band.rows = 1;
  band.out = Slice(band.out, 0, 0, 1);
  EXPECT_TRUE(Validate(band).ok());

  A batch = good;
  batch.out = View(DType::kF32, {2, 1, 3, 70});
  batch.q_lens = View(DType::kI32, {2});
  batch.kv_lens = View(DType::kI32, {2});
  batch.kv_starts = View(DType::kI32, {2});
  for (const TensorView& list : {batch.q_lens, batch.kv_lens, batch.kv_starts}) {
    std::fill_n(list.As<int32_t>(), 2, 3);
  }
  ExpectEachRejected<A>(
      batch, {
                 {"out dimension 1 (heads): expected 1, got 2",
                  [&](A& a) {
                    a.out = View(DType::kF32, {2, 2, 3, 70});
                  }},
                 {"out dimension 2 (rows): expected 2, got 3", [](A& a) { a.rows = 2; }},
                 {"q_lens dimension 0 (batch): expected 2, got 3",
                  [&](A& a) { a.q_lens = View(DType::kI32, {3}); }},
                 {"kv_lens: expected dtype i32", [](A& a) { a.kv_lens.dtype = DType::kF32; }},
                 {"kv_starts", [](A& a) { a.kv_starts.data = nullptr; }},
                 {"q_lens[1]: expected 0..2",
                  [](A& a) {
                    a.rule.q_len = 2;
                    a.rows = 2;
                    a.out = Slice(a.out, 2, 0, 2);
                    a.q_lens.As<int32_t>()[0] = 2;
                  }},
                 {"out",
                  [](A& a) {
                    a.out.dtype = DType::kU32;
                    a.out = Slice(a.out, 3, 0, 3);
                    a.kv_lens.data = a.out.data;
                  }},
                 {"previous: not together with",
                  [](A& a) {
                    a.q_lens.As<int32_t>()[0] = 3;
                    a.previous = a.rule;
                  }},
             });
  batch.kv_lens.As<int32_t>()[1] = 71;
  ExpectRejected(batch, "kv_lens[1]: expected 0..70, got 71");
  batch.kv_lens.As<int32_t>()[1] = -1;
  ExpectRejected(batch, "kv_lens[1]: expected 0..70, got -1");

  EXPECT_EQ(MaskColumns(DType::kU32, 64), 2);
  EXPECT_EQ(MaskColumns(DType::kU32, 65), 3);
  EXPECT_EQ(MaskColumns(DType::kF32, 65), 65);
}

TEST_F(OpValidation, Softmax) {
  SoftmaxArgs good;
  good.x = View(DType::kF32, {3, 8});
  good.out = View(DType::kF16, {3, 8});
  using A = SoftmaxArgs;
  ExpectViewIsChecked(good, &A::x, "x");
  ExpectViewIsChecked(good, &A::out, "out");
  ExpectEachRejected<A>(
      good, {
                {"x: expected rank 2, got 1", [](A& a) { a.x = Select(a.x, 0, 0); }},
                {"x: expected dtype f32, f16 or bf16", [](A& a) { a.x.dtype = DType::kI32; }},
                {"out: expected the shape of x [3, 8], got [2, 8]",
                 [](A& a) { a.out = Slice(a.out, 0, 0, 2); }},
                {"scale: expected a finite number", [](A& a) { a.scale = NAN; }},
                {"out overlaps x", [](A& a) { a.out.data = a.x.data; }},  // other dtype
                {"out stride 0", [](A& a) { a.out.strides[0] = 0; }},
            });
  good.out = good.x;
  EXPECT_TRUE(Validate(good).ok()) << "in place";
}

TEST_F(OpValidation, RmsNorm) {
  RmsNormArgs good;
  good.x = View(DType::kF32, {2, 3, 8});
  good.weight = View(DType::kF16, {8});
  good.out = View(DType::kF32, {2, 3, 8});
  using A = RmsNormArgs;
  ExpectViewIsChecked(good, &A::x, "x");
  ExpectViewIsChecked(good, &A::weight, "weight");
  ExpectViewIsChecked(good, &A::out, "out");
  ExpectEachRejected<A>(
      good, {
                {"x: expected rank 1..4, got 5",
                 [](A& a) {
                   a.x = MakeView(a.x.data, DType::kF32, {1, 1, 1, 1, 8});
                 }},
                {"weight dimension 0 (normalised extent): expected 8, got 7",
                 [](A& a) { a.weight = Slice(a.weight, 0, 0, 7); }},
                {"out: expected rank 3, got 2", [](A& a) { a.out = Select(a.out, 0, 0); }},
                {"out: expected the shape of x", [](A& a) { a.out = Slice(a.out, 2, 0, 4); }},
                {"eps: expected a finite number > 0", [](A& a) { a.eps = 0.0f; }},
                {"eps: expected a finite number > 0", [](A& a) { a.eps = -1e-5f; }},
                {"eps: expected a finite number > 0", [](A& a) { a.eps = NAN; }},
                {"eps: expected a finite number > 0", [](A& a) { a.eps = INFINITY; }},
                {"out overlaps weight", [](A& a) { a.out.data = a.weight.data; }},
                {"out overlaps x", [](A& a) { a.out.data = static_cast<char*>(a.x.data) + 4; }},
            });
  good.out = good.x;
  EXPECT_TRUE(Validate(good).ok()) << "in place";
}

TEST_F(OpValidation, RmsNormWithResidual) {
  RmsNormArgs good;
  good.x = View(DType::kF32, {3, 8});
  good.weight = View(DType::kF16, {8});
  good.out = View(DType::kF32, {3, 8});
  good.residual = View(DType::kF32, {3, 8});
  good.sum = View(DType::kF32, {3, 8});
  using A = RmsNormArgs;
  ExpectViewIsChecked(good, &A::residual, "residual", /*required=*/false);
  ExpectViewIsChecked(good, &A::sum, "sum");
  ExpectEachRejected<A>(
      good,
      {
          {"sum: expected to be given exactly when residual is", [](A& a) { a.residual = {}; }},
          {"residual: expected the shape of x [3, 8], got [2, 8]",
           [](A& a) { a.residual = Slice(a.residual, 0, 0, 2); }},
          {"sum: expected rank 2, got 1", [](A& a) { a.sum = Select(a.sum, 0, 0); }},
          {"sum: expected the shape of x [3, 8], got [3, 7]",
           [](A& a) { a.sum = Slice(a.sum, 1, 0, 7); }},
          {"sum overlaps out", [](A& a) { a.sum.data = a.out.data; }},
          {"sum overlaps weight", [](A& a) { a.sum.data = a.weight.data; }},
          {"sum overlaps x", [](A& a) { a.sum.data = static_cast<char*>(a.x.data) + 4; }},
          {"sum overlaps residual",
           [](A& a) { a.sum.data = static_cast<char*>(a.residual.data) + 4; }},
          {"out overlaps residual",
           [](A& a) { a.out.data = static_cast<char*>(a.residual.data) + 4; }},
      });
  good.sum = good.residual;
  EXPECT_TRUE(Validate(good).ok()) << "sum in place";
  good.out = good.x;
  EXPECT_TRUE(Validate(good).ok()) << "both in place";
  good.sum = good.x;
  EXPECT_FALSE(Validate(good).ok()) << "both in the same place";
}

TEST_F(OpValidation, SiluMulAndAdd) {
  SiluMulArgs silu;
  silu.gate = View(DType::kF32, {3, 8});
  silu.up = View(DType::kBF16, {3, 8});
  silu.out = View(DType::kF32, {3, 8});
  ExpectViewIsChecked(silu, &SiluMulArgs::gate, "gate");
  ExpectViewIsChecked(silu, &SiluMulArgs::up, "up");
  ExpectViewIsChecked(silu, &SiluMulArgs::out, "out");
  using S = SiluMulArgs;
  ExpectEachRejected<S>(
      silu,
      {
          {"up: expected the shape of gate [3, 8], got [3, 7]",
           [](S& a) { a.up = Slice(a.up, 1, 0, 7); }},
          {"out: expected the shape of gate", [](S& a) { a.out = Slice(a.out, 0, 0, 1); }},
          {"gate: expected rank 2", [](S& a) { a.gate = Select(a.gate, 0, 0); }},
          {"out overlaps gate", [](S& a) { a.out.data = static_cast<char*>(a.gate.data) + 8; }},
          {"out overlaps up", [](S& a) { a.out.data = a.up.data; }},
      });
  silu.out = silu.gate;
  EXPECT_TRUE(Validate(silu).ok()) << "in place";

  AddArgs add;
  add.a = View(DType::kF32, {3, 8});
  add.b = View(DType::kF16, {3, 8});
  add.out = View(DType::kF32, {3, 8});
  ExpectViewIsChecked(add, &AddArgs::a, "a");
  ExpectViewIsChecked(add, &AddArgs::b, "b");
  ExpectViewIsChecked(add, &AddArgs::out, "out");
  using A = AddArgs;
  ExpectEachRejected<A>(
      add,
      {
          {"b dimension 0 (rows): expected 3 or 1, got 2", [](A& a) { a.b = Slice(a.b, 0, 0, 2); }},
          {"b dimension 1 (columns): expected 8, got 7", [](A& a) { a.b = Slice(a.b, 1, 0, 7); }},
          {"out: expected the shape of a", [](A& a) { a.out = Slice(a.out, 1, 0, 7); }},
          {"out overlaps a", [](A& a) { a.out.data = static_cast<char*>(a.a.data) + 4; }},
          {"out overlaps b", [](A& a) { a.out.data = a.b.data; }},
      });
  add.b = Slice(add.b, 0, 0, 1);
  EXPECT_TRUE(Validate(add).ok()) << "one row for all";
}

TEST_F(OpValidation, Cast) {
  CastArgs good;
  good.x = View(DType::kF32, {2, 64});
  good.out = View(DType::kQ8_0, {2, 64});
  using A = CastArgs;
  ExpectViewIsChecked(good, &A::x, "x");
  ExpectViewIsChecked(good, &A::out, "out");
  ExpectEachRejected<A>(
      good,
      {
          {"x: expected a float or block dtype, got i64", [](A& a) { a.x.dtype = DType::kI64; }},
          {"x: expected dtype f32 when out is block-quantised, got f16",
           [](A& a) { a.x.dtype = DType::kF16; }},
          {"out: expected dtype f32 when x is block-quantised, got q8_0",
           [](A& a) { a.x.dtype = DType::kQ8_0; }},
          {"out: expected the shape of x", [](A& a) { a.out = Slice(a.out, 1, 0, 32); }},
          {"multiple of 32", [](A& a) { a.out = Slice(a.out, 1, 0, 40); }},
          {"out overlaps x", [](A& a) { a.out.data = a.x.data; }},
      });
}

TEST_F(OpValidation, Rope) {
  RopeArgs good;
  good.x = View(DType::kF32, {2, 3, 4, 16});
  good.positions = View(DType::kI32, {4});
  good.inv_freq = View(DType::kF32, {6});
  good.out = View(DType::kF32, {2, 3, 4, 16});
  using A = RopeArgs;
  ExpectViewIsChecked(good, &A::x, "x");
  ExpectViewIsChecked(good, &A::positions, "positions");
  ExpectViewIsChecked(good, &A::inv_freq, "inv_freq");
  ExpectViewIsChecked(good, &A::out, "out");
  ExpectEachRejected<A>(
      good,
      {
          {"x: expected rank 4, got 3", [](A& a) { a.x = Select(a.x, 0, 0); }},
          {"positions: expected rank 1 or 2, got 3",
           [](A& a) {
             a.positions = MakeView(a.positions.data, DType::kI32, {1, 1, 4});
           }},
          {"positions: expected dtype i32, got f32", [](A& a) { a.positions.dtype = DType::kF32; }},
          {"positions dimension 0 (tokens): expected 4, got 3",
           [](A& a) { a.positions = Slice(a.positions, 0, 0, 3); }},
          {"positions dimension 0 (batch): expected 2, got 1",
           [](A& a) {
             a.positions = MakeView(a.positions.data, DType::kI32, {1, 4});
           }},
          {"inv_freq dimension 0 (pairs): expected <= head_dim / 2 = 8, got 9",
           [](A& a) { a.inv_freq = MakeView(a.inv_freq.data, DType::kF32, {9}); }},
          {"inv_freq: expected dtype f32", [](A& a) { a.inv_freq.dtype = DType::kF16; }},
          {"out dimension 1 (shape of x): expected 3, got 2",
           [](A& a) { a.out = Slice(a.out, 1, 0, 2); }},
          {"pairing: unknown value 2", [](A& a) { a.pairing = static_cast<RopePairing>(2); }},
          {"magnitude: expected a finite number", [](A& a) { a.magnitude = NAN; }},
          {"out overlaps positions", [](A& a) { a.out.data = a.positions.data; }},
          {"out overlaps inv_freq", [](A& a) { a.out.data = a.inv_freq.data; }},
          {"out overlaps x", [](A& a) { a.out.data = static_cast<char*>(a.x.data) + 4; }},
      });
  good.out = good.x;
  EXPECT_TRUE(Validate(good).ok()) << "in place";
}

TEST_F(OpValidation, Embedding) {
  EmbeddingArgs good;
  good.table = View(DType::kQ4_0, {10, 32});
  good.ids = View(DType::kI32, {3});
  good.out = View(DType::kF16, {3, 32});
  using A = EmbeddingArgs;
  ExpectViewIsChecked(good, &A::table, "table");
  ExpectViewIsChecked(good, &A::ids, "ids");
  ExpectViewIsChecked(good, &A::out, "out");
  ExpectEachRejected<A>(
      good,
      {
          {"table: expected a float or block dtype", [](A& a) { a.table.dtype = DType::kI32; }},
          {"ids: expected dtype i32, got u32", [](A& a) { a.ids.dtype = DType::kU32; }},
          {"ids: expected rank 1, got 2", [](A& a) { a.ids = a.out; }},
          {"out dimension 0 (ids): expected 3, got 2", [](A& a) { a.out = Slice(a.out, 0, 0, 2); }},
          {"out dimension 1 (embedding extent): expected 32, got 16",
           [](A& a) { a.out = Slice(a.out, 1, 0, 16); }},
          {"out overlaps ids", [](A& a) { a.out.data = a.ids.data; }},
          {"out overlaps table", [](A& a) { a.out.data = a.table.data; }},
      });
}

TEST_F(OpValidation, ArgMaxAndSample) {
  ArgMaxArgs argmax;
  argmax.x = View(DType::kF32, {3, 8});
  argmax.out = View(DType::kI32, {3});
  ExpectViewIsChecked(argmax, &ArgMaxArgs::x, "x");
  ExpectViewIsChecked(argmax, &ArgMaxArgs::out, "out");
  using M = ArgMaxArgs;
  ExpectEachRejected<M>(
      argmax,
      {
          {"x dimension 1: expected 1..2^31-1, got 0", [](M& a) { a.x = Slice(a.x, 1, 0, 0); }},
          {"x dimension 1: expected 1..2^31-1, got 2147483648",
           [](M& a) {
             a.x.shape[1] = int64_t{1} << 31;
             a.x.strides = {0, 0};
           }},
          {"out dimension 0 (rows): expected 3, got 2",
           [](M& a) { a.out = Slice(a.out, 0, 0, 2); }},
          {"out: expected dtype i32", [](M& a) { a.out.dtype = DType::kF32; }},
          {"out overlaps x", [](M& a) { a.out.data = a.x.data; }},
      });

  SampleArgs sample;
  sample.logits = View(DType::kBF16, {3, 8});
  sample.uniform = View(DType::kF32, {3});
  sample.out = View(DType::kI32, {3});
  ExpectViewIsChecked(sample, &SampleArgs::logits, "logits");
  ExpectViewIsChecked(sample, &SampleArgs::uniform, "uniform");
  ExpectViewIsChecked(sample, &SampleArgs::out, "out");
  using S = SampleArgs;
  ExpectEachRejected<S>(
      sample,
      {
          {"logits dimension 1", [](S& a) { a.logits = Slice(a.logits, 1, 0, 0); }},
          {"uniform dimension 0 (rows)", [](S& a) { a.uniform = Slice(a.uniform, 0, 0, 1); }},
          {"out dimension 0 (rows)", [](S& a) { a.out = Slice(a.out, 0, 0, 1); }},
          {"temperature: expected a finite number >= 0", [](S& a) { a.temperature = -0.1f; }},
          {"temperature: expected a finite number >= 0", [](S& a) { a.temperature = NAN; }},
          {"temperature: expected a finite number >= 0", [](S& a) { a.temperature = INFINITY; }},
          {"top_k: expected >= 0, got -1", [](S& a) { a.top_k = -1; }},
          {"top_p: expected a number in (0, 1]", [](S& a) { a.top_p = 0.0f; }},
          {"top_p: expected a number in (0, 1]", [](S& a) { a.top_p = 1.5f; }},
          {"top_p: expected a number in (0, 1]", [](S& a) { a.top_p = NAN; }},
          {"out overlaps uniform", [](S& a) { a.out.data = a.uniform.data; }},
          {"out overlaps logits", [](S& a) { a.out.data = a.logits.data; }},
      });
}

// --- garbage

TensorView Garbage(cases::Rng& rng, void* memory) {
  static const std::vector<int64_t> kNumbers = {
      0, 1, 2, 3, 4, 8, 32, 64, -1, int64_t{1} << 31, int64_t{1} << 48, INT64_MAX, INT64_MIN};
  TensorView view;
  view.data = rng.Chance(0.9) ? static_cast<char*>(memory) + rng.Integer(0, 64) * 2 : nullptr;
  view.dtype = static_cast<DType>(rng.Chance(0.9) ? rng.Integer(0, 9) : rng.Integer(0, 255));
  view.shape.rank = static_cast<int32_t>(
      rng.Chance(0.9) ? rng.Integer(0, 5) : rng.Pick<int64_t>({-1, 6, INT32_MAX, INT32_MIN}));
  const bool small = rng.Chance(0.7);
  for (int i = 0; i < kMaxRank; ++i) {
    view.shape[i] = small ? rng.Integer(0, 4) : rng.Pick(kNumbers);
    view.strides[i] = small ? rng.Integer(0, 64) : rng.Pick(kNumbers);
  }
  return view;
}

// No crash, no undefined behaviour (the sanitizer builds look), no other kind of error.
TEST(Garbage, IsJudgedWithoutHarm) {
  cases::Rng rng(20);
  std::vector<char> memory(4096);
  int64_t accepted = 0;
  const auto judge = [&](const auto& args) {
    const absl::Status status = Validate(args);
    accepted += status.ok();
    ASSERT_TRUE(status.ok() || absl::IsInvalidArgument(status)) << status.ToString();
    if (!status.ok()) {
      ASSERT_FALSE(status.message().empty());
    }
  };
  for (int i = 0; i < 20'000; ++i) {
    std::vector<TensorView> v;
    for (int j = 0; j < 7; ++j) v.push_back(Garbage(rng, memory.data()));
    // Often the views at least have one shape, so that the later checks are reached.
    if (rng.Chance(0.6)) {
      for (TensorView& view : v) view.shape = v[0].shape;
    }
    const int64_t number = rng.Pick<int64_t>({0, 1, -1, INT64_MAX, INT64_MIN});
    AttentionArgs attention;
    attention.q = v[0];
    attention.k = v[1];
    attention.v = v[2];
    attention.k_new = v[3];
    attention.v_new = v[4];
    attention.out = v[5];
    attention.lse = v[6];
    attention.window_left = number;
    judge(attention);
    attention.k_new = attention.v_new = {};
    attention.bias = v[3];
    attention.mask = v[4];
    attention.lse = {};
    (rng.Chance(0.5) ? attention.sinks : attention.alibi_slopes) = v[6];
    attention.k_scale = attention.v_scale = rng.Chance(0.5) ? v[6] : TensorView();
    attention.chunk = attention.prefix_len = number;
    judge(attention);
    MergeAttentionArgs merge;
    merge.out_parts = {v.data(), static_cast<size_t>(rng.Integer(0, 2))};
    merge.lse_parts = {v.data() + 2, 2};
    merge.out = v[4];
    merge.lse = v[5];
    judge(merge);
    MatMulArgs matmul;
    matmul.a = v[0];
    matmul.b = v[1];
    matmul.bias = v[2];
    matmul.addend = v[3];
    matmul.out = v[4];
    judge(matmul);
    MaskArgs mask;
    mask.rule = {number, v[0].shape[0], Causal::kNone, v[0].shape[1], v[0].shape[2]};
    mask.out = v[1];
    judge(mask);
    SoftmaxArgs softmax;
    softmax.x = v[0];
    softmax.out = v[1];
    judge(softmax);
    RmsNormArgs norm;
    norm.x = v[0];
    norm.weight = v[1];
    norm.out = v[2];
    judge(norm);
    norm.residual = v[3];
    norm.sum = v[0];
    judge(norm);
    RopeArgs rope;
    rope.x = v[0];
    rope.positions = v[1];
    rope.inv_freq = v[2];
    rope.out = v[3];
    judge(rope);
    SiluMulArgs silu;
    silu.gate = v[0];
    silu.up = v[1];
    silu.out = v[2];
    judge(silu);
    AddArgs add;
    add.a = v[0];
    add.b = v[1];
    add.out = v[2];
    judge(add);
    EmbeddingArgs embedding;
    embedding.table = v[0];
    embedding.ids = v[1];
    embedding.out = v[2];
    judge(embedding);
    KvAppendArgs append;
    append.k = v[0];
    append.v = v[1];
    append.k_cache = v[2];
    append.v_cache = v[3];
    append.position = number;
    judge(append);
    append.rope = {v[1], v[2], RopePairing::kHalf, 1.0f};
    append.q = v[3];
    append.q_out = v[0];
    judge(append);
    append.cache_lens = v[2];
    append.page_table = v[1];
    append.k_scale = v[0];
    append.v_scale = v[2];
    judge(append);
    CastArgs cast;
    cast.x = v[0];
    cast.out = v[1];
    judge(cast);
    ArgMaxArgs argmax;
    argmax.x = v[0];
    argmax.out = v[1];
    judge(argmax);
    SampleArgs sample;
    sample.logits = v[0];
    sample.uniform = v[1];
    sample.out = v[2];
    sample.top_k = number;
    judge(sample);
  }
  EXPECT_GT(accepted, 0) << "some garbage is valid by chance, else the test reaches little";
}

}  // namespace
}  // namespace tandem
