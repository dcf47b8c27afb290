// Every way in which the arguments of attention and of the matrix product can be bad.
#include <cmath>

#include "core/ops/attention.h"
#include "core/ops/matmul.h"
#include "tests/bad_arguments.h"

namespace tandem {
namespace {

class AttentionValidation : public testing::Test {
 protected:
  AttentionValidation() {
    const auto view = [&](DType dtype, const Shape& shape) {
      memory_.emplace_back(4096);
      return MakeView(memory_.back().data(), dtype, shape);
    };
    memory_.reserve(16);
    good_.q = view(DType::kF32, {2, 4, 3, 8});
    good_.k = view(DType::kF16, {2, 2, 5, 8});
    good_.v = view(DType::kF16, {2, 2, 5, 6});
    good_.k_new = view(DType::kBF16, {2, 2, 1, 8});
    good_.v_new = view(DType::kBF16, {2, 2, 1, 6});
    good_.out = view(DType::kF32, {2, 4, 3, 6});
    good_.lse = view(DType::kF32, {2, 4, 3});
  }

  std::vector<std::vector<char>> memory_;
  AttentionArgs good_;
};

TEST_F(AttentionValidation, Views) {
  ExpectViewIsChecked(good_, &AttentionArgs::q, "q");
  ExpectViewIsChecked(good_, &AttentionArgs::k, "k");
  ExpectViewIsChecked(good_, &AttentionArgs::v, "v");
  ExpectViewIsChecked(good_, &AttentionArgs::out, "out");
  ExpectViewIsChecked(good_, &AttentionArgs::k_new, "k_new", /*required=*/false);
  ExpectViewIsChecked(good_, &AttentionArgs::v_new, "v_new", /*required=*/false);
  ExpectViewIsChecked(good_, &AttentionArgs::lse, "lse", /*required=*/false);
}

TEST_F(AttentionValidation, Relations) {
  using A = AttentionArgs;
  ExpectEachRejected<A>(
      good_,
      {
          {"q: expected rank 4, got 3", [](A& a) { a.q = Select(a.q, 0, 0); }},
          {"k: expected rank 4, got 3", [](A& a) { a.k = Select(a.k, 0, 0); }},
          {"out: expected rank 4, got 3", [](A& a) { a.out = Select(a.out, 0, 0); }},
          {"lse: expected rank 3, got 4", [](A& a) { a.lse = a.out; }},
          {"q: expected dtype f32, f16 or bf16, got i32", [](A& a) { a.q.dtype = DType::kI32; }},
          {"k: expected dtype f32, f16, bf16 or i8", [](A& a) { a.k.dtype = DType::kI32; }},
          {"k_scale: expected with k of i8", [](A& a) { a.k.dtype = DType::kI8; }},
          {"v: expected dtype f16, got bf16", [](A& a) { a.v.dtype = DType::kBF16; }},
          {"v_new: expected dtype bf16, got f16", [](A& a) { a.v_new.dtype = DType::kF16; }},
          {"lse: expected dtype f32, got i32", [](A& a) { a.lse.dtype = DType::kI32; }},
          {"q dimension 1 (query heads): expected a multiple of the 2 key/value heads of k, got 3",
           [](A& a) { a.q = Slice(a.q, 1, 0, 3); }},
          {"query heads",
           [](A& a) {
             a.k = Slice(a.k, 1, 0, 0);
             a.v = Slice(a.v, 1, 0, 0);
           }},
          {"k dimension 0 (batch): expected 2, got 1", [](A& a) { a.k = Slice(a.k, 0, 0, 1); }},
          {"k dimension 3 (head_dim): expected 8, got 4", [](A& a) { a.k = Slice(a.k, 3, 0, 4); }},
          {"v dimension 0 (batch)", [](A& a) { a.v = Slice(a.v, 0, 0, 1); }},
          {"v dimension 1 (key/value heads): expected 2, got 1",
           [](A& a) { a.v = Slice(a.v, 1, 0, 1); }},
          {"v dimension 2 (keys): expected 5, got 4", [](A& a) { a.v = Slice(a.v, 2, 0, 4); }},
          {"out dimension 0 (batch)", [](A& a) { a.out = Slice(a.out, 0, 0, 1); }},
          {"out dimension 1 (query heads)", [](A& a) { a.out = Slice(a.out, 1, 0, 2); }},
          {"out dimension 2 (queries): expected 3, got 2",
           [](A& a) { a.out = Slice(a.out, 2, 0, 2); }},
          {"out dimension 3 (v head_dim): expected 6, got 5",
           [](A& a) { a.out = Slice(a.out, 3, 0, 5); }},
          {"head_dim): expected >= 1, got 0",
           [](A& a) {
             a.q = Slice(a.q, 3, 0, 0);
             a.k = Slice(a.k, 3, 0, 0);
           }},
          {"v_new: expected to be given exactly when k_new is", [](A& a) { a.v_new = {}; }},
          {"v_new: expected to be given exactly when k_new is", [](A& a) { a.k_new = {}; }},
          {"k_new dimension 0 (batch)", [](A& a) { a.k_new = Slice(a.k_new, 0, 0, 1); }},
          {"k_new dimension 1 (key/value heads)", [](A& a) { a.k_new = Slice(a.k_new, 1, 0, 1); }},
          {"k_new dimension 3 (head_dim)", [](A& a) { a.k_new = Slice(a.k_new, 3, 0, 2); }},
          {"v_new dimension 0 (batch)", [](A& a) { a.v_new = Slice(a.v_new, 0, 0, 1); }},
          {"v_new dimension 1 (key/value heads)", [](A& a) { a.v_new = Slice(a.v_new, 1, 0, 1); }},
          {"v_new dimension 2 (keys): expected 1, got 0",
           [](A& a) { a.v_new = Slice(a.v_new, 2, 0, 0); }},
          {"v_new dimension 3 (v head_dim)", [](A& a) { a.v_new = Slice(a.v_new, 3, 0, 2); }},
          {"lse dimension 0 (batch)", [](A& a) { a.lse = Slice(a.lse, 0, 0, 1); }},
          {"lse dimension 1 (query heads)", [](A& a) { a.lse = Slice(a.lse, 1, 0, 1); }},
          {"lse dimension 2 (queries)", [](A& a) { a.lse = Slice(a.lse, 2, 0, 1); }},
          {"causal: unknown value 9", [](A& a) { a.causal = static_cast<Causal>(9); }},
          {"window_left: expected >= -1, got -2", [](A& a) { a.window_left = -2; }},
          {"window_right: expected >= -1, got", [](A& a) { a.window_right = INT64_MIN; }},
          {"scale: expected a finite number", [](A& a) { a.scale = NAN; }},
          {"scale: expected a finite number", [](A& a) { a.scale = INFINITY; }},
          {"k dimension 2 (keys): expected <= 2^47",
           [](A& a) {  // a broadcast key, as long as can be written
             a.k.shape[2] = a.v.shape[2] = INT64_MAX / 64;
             a.k.strides[2] = a.v.strides[2] = 0;
           }},
      });
}

TEST_F(AttentionValidation, Overlap) {
  using A = AttentionArgs;
  const auto at = [](TensorView v, const TensorView& where, int64_t bytes) {
    v.data = static_cast<char*>(where.data) + bytes;
    return v;
  };
  ExpectEachRejected<A>(
      good_, {
                 {"out overlaps q", [&](A& a) { a.out = at(a.out, a.q, 0); }},
                 {"out overlaps q", [&](A& a) { a.out = at(a.out, a.q, ByteExtent(a.q) - 4); }},
                 {"out overlaps k", [&](A& a) { a.out = at(a.out, a.k, 4); }},
                 {"out overlaps v", [&](A& a) { a.out = at(a.out, a.v, 0); }},
                 {"out overlaps k_new", [&](A& a) { a.out = at(a.out, a.k_new, 0); }},
                 {"out overlaps v_new", [&](A& a) { a.out = at(a.out, a.v_new, 0); }},
                 {"lse overlaps out", [&](A& a) { a.lse = at(a.lse, a.out, 0); }},
                 {"lse overlaps q", [&](A& a) { a.lse = at(a.lse, a.q, 8); }},
                 {"lse overlaps v_new", [&](A& a) { a.lse = at(a.lse, a.v_new, 0); }},
                 {"out stride 0: elements of an output must not share addresses",
                  [](A& a) { a.out.strides[0] = 0; }},
                 {"lse stride 2", [](A& a) { a.lse.strides[2] = 0; }},
             });
}

TEST_F(AttentionValidation, WhatIsAllowed) {
  const auto expect_ok = [&](const std::function<void(AttentionArgs&)>& change) {
    AttentionArgs args = good_;
    change(args);
    EXPECT_TRUE(Validate(args).ok()) << Validate(args).ToString();
  };
  expect_ok([](auto& a) { a.k_new = a.v_new = {}; });
  expect_ok([](auto& a) { a.lse = {}; });
  expect_ok([](auto& a) { a.window_left = INT64_MAX; });
  expect_ok([](auto& a) { a.k.strides[0] = a.v.strides[0] = 0; });  // one cache for all sequences
  expect_ok([](auto& a) {  // no cache yet: no memory either
    a.k = Slice(a.k, 2, 0, 0);
    a.v = Slice(a.v, 2, 0, 0);
    a.k.data = a.v.data = nullptr;
  });
  expect_ok([](auto& a) {  // no queries
    a.q = Slice(a.q, 2, 0, 0);
    a.out = Slice(a.out, 2, 0, 0);
    a.lse = Slice(a.lse, 2, 0, 0);
  });
  AttentionArgs zero_heads = good_;
  EXPECT_EQ(zero_heads.group(), 2);
  EXPECT_EQ(zero_heads.kv_len(), 6);
  EXPECT_EQ(zero_heads.Scale(), static_cast<float>(1 / std::sqrt(8.0)));
  zero_heads.k.shape[1] = 0;
  EXPECT_EQ(zero_heads.group(), 0);
}

class MatMulValidation : public testing::Test {
 protected:
  struct Packed final : PackedWeights {
    std::string_view format() const override { return "test"; }
    int64_t bytes() const override { return 0; }
  };

  MatMulValidation() : memory_(8, std::vector<char>(8192)) {
    good_.a = MakeView(memory_[0].data(), DType::kF32, {3, 64});
    good_.b = MakeView(memory_[1].data(), DType::kF16, {5, 64});
    good_.bias = MakeView(memory_[2].data(), DType::kF32, {5});
    good_.addend = MakeView(memory_[3].data(), DType::kBF16, {3, 5});
    good_.out = MakeView(memory_[4].data(), DType::kF32, {3, 5});
    batched_ = good_;
    batched_.a = MakeView(memory_[0].data(), DType::kF32, {2, 3, 64});
    batched_.b = MakeView(memory_[1].data(), DType::kF16, {2, 5, 64});
    batched_.addend = MakeView(memory_[3].data(), DType::kBF16, {2, 3, 5});
    batched_.out = MakeView(memory_[4].data(), DType::kF32, {2, 3, 5});
  }

  std::vector<std::vector<char>> memory_;
  MatMulArgs good_;
  MatMulArgs batched_;
};

TEST_F(MatMulValidation, Views) {
  for (const MatMulArgs& good : {good_, batched_}) {
    ExpectViewIsChecked(good, &MatMulArgs::a, "a");
    ExpectViewIsChecked(good, &MatMulArgs::b, "b");
    ExpectViewIsChecked(good, &MatMulArgs::out, "out");
    ExpectViewIsChecked(good, &MatMulArgs::bias, "bias", /*required=*/false);
    ExpectViewIsChecked(good, &MatMulArgs::addend, "addend", /*required=*/false);
  }
}

TEST_F(MatMulValidation, Relations) {
  using A = MatMulArgs;
  ExpectEachRejected<A>(
      good_,
      {
          {"a: expected rank 2 or 3, got 1", [](A& a) { a.a = Select(a.a, 0, 0); }},
          {"out: expected rank 2, got 1", [](A& a) { a.out = Select(a.out, 0, 0); }},
          {"b: expected rank 2 or 2, got 1", [](A& a) { a.b = Select(a.b, 0, 0); }},
          {"b: expected a matrix or b_packed, got neither", [](A& a) { a.b = {}; }},
          {"b: expected a float or block dtype, got i64", [](A& a) { a.b.dtype = DType::kI64; }},
          {"a: expected dtype f32, f16 or bf16, got q8_0", [](A& a) { a.a.dtype = DType::kQ8_0; }},
          {"b dimension 0 (output features N): expected 5, got 4",
           [](A& a) { a.b = Slice(a.b, 0, 0, 4); }},
          {"b dimension 1 (input features K): expected 64, got 63",
           [](A& a) { a.b = Slice(a.b, 1, 0, 63); }},
          {"out dimension 0 (rows M): expected 3, got 2",
           [](A& a) {
             a.out = Slice(a.out, 0, 0, 2);
             a.addend = Slice(a.addend, 0, 0, 2);
           }},
          {"bias: expected rank 1, got 2", [](A& a) { a.bias = a.b; }},
          {"bias dimension 0 (output features N): expected 5, got 4",
           [](A& a) { a.bias = Slice(a.bias, 0, 0, 4); }},
          {"addend dimension 1 (shape of out): expected 5, got 4",
           [](A& a) { a.addend = Slice(a.addend, 1, 0, 4); }},
          {"addend: expected rank 2, got 1", [](A& a) { a.addend = Select(a.addend, 0, 0); }},
          {"alpha: expected a finite number", [](A& a) { a.alpha = NAN; }},
          {"beta: expected a finite number", [](A& a) { a.beta = INFINITY; }},
          {"activation: unknown value 7", [](A& a) { a.activation = static_cast<Activation>(7); }},
          {"out overlaps a", [](A& a) { a.out.data = a.a.data; }},
          {"out overlaps b", [](A& a) { a.out.data = a.b.data; }},
          {"out overlaps bias", [](A& a) { a.out.data = a.bias.data; }},
          {"out overlaps addend", [](A& a) { a.addend.data = a.out.data; }},
          {"out stride 1: elements of an output must not share addresses",
           [](A& a) { a.out.strides[1] = 0; }},
          {"b (q8_0)",
           [](A& a) {
             a.b.dtype = DType::kQ8_0;
             a.b = Slice(a.b, 1, 0, 33);
           }},
          {"b (q4_0)",
           [](A& a) {
             a.b.dtype = DType::kQ4_0;
             a.b.strides[0] = 65;
           }},
      });
  ExpectEachRejected<A>(batched_,
                        {
                            {"a dimension 0 (batch): expected 3 or 1, got 2",
                             [&](A& a) {
                               a.out = MakeView(memory_[4].data(), DType::kF32, {3, 3, 5});
                               a.addend = {};
                             }},
                            {"b dimension 0 (batch): expected 2 or 1, got 3",
                             [&](A& a) {
                               a.b = MakeView(memory_[1].data(), DType::kF16, {3, 5, 64});
                             }},
                        });
}

TEST_F(MatMulValidation, PackedWeightsMustFit) {
  Packed packed;
  packed.n = 5;
  packed.k = 64;
  MatMulArgs args = good_;
  args.b = {};
  args.b_packed = &packed;
  EXPECT_TRUE(Validate(args).ok()) << Validate(args).ToString();
  packed.n = 6;
  ExpectRejected(args, "b_packed: expected [5, 64], got [6, 64]");
  packed.n = 5;
  packed.device = {DeviceKind::kCuda, 1};
  ExpectRejected(args, "b_packed is on cuda:1 but a is on cpu");
  packed.device = {};
  MatMulArgs batched = batched_;
  batched.b_packed = &packed;
  ExpectRejected(batched, "b_packed: expected a of rank 2");
}

TEST_F(MatMulValidation, WhatIsAllowed) {
  const auto expect_ok = [&](MatMulArgs args, const std::function<void(MatMulArgs&)>& change) {
    change(args);
    EXPECT_TRUE(Validate(args).ok()) << Validate(args).ToString();
  };
  expect_ok(good_, [](auto& a) { a.addend = a.out; });  // in place
  expect_ok(good_, [](auto& a) { a.b = Transpose(MakeView(a.b.data, a.b.dtype, {64, 5}), 0, 1); });
  expect_ok(good_, [](auto& a) { a.a.strides[0] = 0; });  // one row for all
  expect_ok(good_, [](auto& a) { a.b.dtype = DType::kQ8_0; });
  expect_ok(batched_, [](auto& a) { a.a = Slice(a.a, 0, 0, 1); });
  expect_ok(batched_, [](auto& a) { a.b = Slice(a.b, 0, 1, 1); });
  expect_ok(batched_, [](auto& a) { a.b = Select(a.b, 0, 1); });
  expect_ok(good_, [](auto& a) {  // K = 0
    a.a = Slice(a.a, 1, 0, 0);
    a.b = Slice(a.b, 1, 0, 0);
  });
}

}  // namespace
}  // namespace tandem
