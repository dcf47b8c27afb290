// Validate(GroupedMatMulArgs): each way of being wrong is named.
#include <gtest/gtest.h>

#include <vector>

#include "core/ops/grouped_matmul.h"
#include "tests/bad_arguments.h"

namespace tandem {
namespace {

class GroupedMatMulValidation : public testing::Test {
 protected:
  using G = GroupedMatMulArgs;

  // Three products of [3, 64] with 5, 2 and 2 features; a gate and up of 5.
  GroupedMatMulValidation() : memory_(10, std::vector<char>(8192)) {
    good_.a = MakeView(memory_[0].data(), DType::kF32, {3, 64});
    good_.num_products = 3;
    for (size_t i = 0; i < 3; ++i) {
      const int64_t n = i == 0 ? 5 : 2;
      G::Product& product = good_.products[i];
      product.b = MakeView(memory_[1 + 3 * i].data(), i == 2 ? DType::kQ8_0 : DType::kF16, {n, 64});
      product.bias = MakeView(memory_[2 + 3 * i].data(), DType::kF32, {n});
      product.out = MakeView(memory_[3 + 3 * i].data(), DType::kF32, {3, n});
    }
    gated_ = good_;
    gated_.num_products = 2;
    gated_.epilogue = GroupEpilogue::kSiluMultiply;
    gated_.products[1] = gated_.products[0];
    gated_.products[1].b.data = memory_[4].data();
    gated_.products[1].out = {};
  }

  std::vector<std::vector<char>> memory_;
  G good_, gated_;
};

TEST_F(GroupedMatMulValidation, Activations) { ExpectViewIsChecked(good_, &G::a, "a"); }

TEST_F(GroupedMatMulValidation, ProductsAreNamed) {
  ExpectEachRejected<G>(
      good_,
      {
          {"a: expected rank 2, got 1", [](G& g) { g.a = Select(g.a, 0, 0); }},
          {"num_products: expected 1..4, got 0", [](G& g) { g.num_products = 0; }},
          {"num_products: expected 1..4, got 5", [](G& g) { g.num_products = 5; }},
          {"epilogue: unknown value 2", [](G& g) { g.epilogue = static_cast<GroupEpilogue>(2); }},
          {"num_products: expected 2 with silu_multiply, got 3",
           [](G& g) { g.epilogue = GroupEpilogue::kSiluMultiply; }},
          {"products[1].b: expected a matrix or b_packed, got neither",
           [](G& g) { g.products[1].b = {}; }},
          {"products[2].b dimension 0 (output features N): expected 2, got 1",
           [](G& g) { g.products[2].b = Slice(g.products[2].b, 0, 0, 1); }},
          {"products[0].b dimension 1 (input features K): expected 64, got 63",
           [](G& g) { g.products[0].b = Slice(g.products[0].b, 1, 0, 63); }},
          {"products[1].b: expected a float or block dtype, got i64",
           [](G& g) { g.products[1].b.dtype = DType::kI64; }},
          {"products[1].bias dimension 0 (output features N): expected 2, got 1",
           [](G& g) { g.products[1].bias = Slice(g.products[1].bias, 0, 0, 1); }},
          {"products[2].out dimension 0 (rows M): expected 3, got 2",
           [](G& g) { g.products[2].out = Slice(g.products[2].out, 0, 0, 2); }},
          {"products[2].out: expected rank 2, got 0", [](G& g) { g.products[2].out = {}; }},
          {"products[1].b is on cuda:1 but a is on cpu",
           [](G& g) {
             g.products[1].b.device = {DeviceKind::kCuda, 1};
           }},
      });
}

TEST_F(GroupedMatMulValidation, OutputsAreApart) {
  ExpectEachRejected<G>(
      good_, {
                 {"products[0].out overlaps a", [](G& g) { g.products[0].out.data = g.a.data; }},
                 {"products[1].out overlaps bias",
                  [](G& g) { g.products[1].out.data = g.products[1].bias.data; }},
                 {"products[0].out overlaps products[2].b",
                  [](G& g) { g.products[0].out.data = g.products[2].b.data; }},
                 {"products[2].out overlaps products[0].bias",
                  [](G& g) { g.products[2].out.data = g.products[0].bias.data; }},
                 {"products[2].out overlaps products[1].out",
                  [](G& g) { g.products[2].out.data = g.products[1].out.data; }},
                 {"products[0].out stride 1: elements of an output must not share addresses",
                  [](G& g) { g.products[0].out.strides[1] = 0; }},
             });
  // The same weights may be multiplied twice.
  G twice = good_;
  twice.products[2].b = twice.products[1].b;
  EXPECT_TRUE(Validate(twice).ok()) << Validate(twice);
}

TEST_F(GroupedMatMulValidation, GateAndUp) {
  ExpectEachRejected<G>(
      gated_,
      {
          {"products[1].out: expected none with silu_multiply",
           [&](G& g) {
             g.products[1].out = MakeView(memory_[6].data(), DType::kF32, {3, 5});
           }},
          {"products[1].b dimension 0 (output features N): expected 5, got 4",
           [](G& g) { g.products[1].b = Slice(g.products[1].b, 0, 0, 4); }},
          {"products[0].out overlaps products[1].b",
           [](G& g) { g.products[0].out.data = g.products[1].b.data; }},
          {"num_products: expected 2 with silu_multiply, got 1", [](G& g) { g.num_products = 1; }},
      });
}

}  // namespace
}  // namespace tandem
