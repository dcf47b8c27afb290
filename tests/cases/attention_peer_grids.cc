// The attention test grids of FlashAttention and of ggml, as pairwise selections.
#include <tuple>

#include "tests/cases/attention_grid.h"

namespace tandem::cases {
namespace {

using Case = AttentionCase;
using Extents = AttentionExtents;
using Hidden = AttentionHidden;

constexpr DType kF32 = DType::kF32, kF16 = DType::kF16, kBF16 = DType::kBF16;

}  // namespace

std::vector<Case> FlashAttentionCases() {
  std::vector<Case> cases =
      Pairwise<Case>()
          .Field(&Case::head_dim, {32, 40, 59, 64, 80, 96, 111, 128, 160, 192, 224, 256})
          .Group(Lengths({{1, 1},
                          {1, 239},
                          {3, 799},
                          {64, 128},
                          {108, 256},
                          {113, 203},
                          {127, 512},
                          {128, 217},
                          {256, 512},
                          {512, 256}}))
          .Field(&Case::batch, {1, 2})
          .Group(Heads({{3, 1}, {1, 6}, {2, 3}}))
          .Group(DTypes({{kF16, kF16, kF16}, {kBF16, kBF16, kBF16}, {kF32, kF32, kF32}}))
          .Field(&Case::v_head_dim, {0, 0, 64})
          .Field(&Case::causal, {Causal::kBottomRight, Causal::kNone})
          .Group(Windows({{-1, -1}, {37, -1}, {100, 20}, {0, 0}}))
          .Field(&Case::alibi, {false, true})
          .Field(&Case::softcap, {0.0f, 15.0f, 50.0f})
          .Field(&Case::lse, {true, false})
          .Select(9000);
  cases = Bounded(std::move(cases), 20'000'000);
  // The long ones, each once.
  const Case base = {.head_dim = 64, .lse = true};
  std::vector<Case> lengthy(6, base);
  for (const auto& [q_len, kv_len, i] :
       {std::tuple(1023, 1024, 0), std::tuple(1024, 1023, 1), std::tuple(2048, 2048, 2),
        std::tuple(1023, 1024, 3), std::tuple(1024, 1023, 4), std::tuple(1024, 1024, 5)}) {
    Case& c = lengthy[static_cast<size_t>(i)];
    c.q_len = q_len;
    c.kv_len = kv_len;
    c.seed = 9900 + i;
  }
  lengthy[1].causal = Causal::kNone;
  lengthy[2].q_dtype = lengthy[2].kv_dtype = lengthy[2].out_dtype = kBF16;
  lengthy[3].window_left = 200;
  lengthy[3].softcap = 15.0f;
  lengthy[4].alibi = true;
  lengthy[4].q_dtype = lengthy[4].kv_dtype = lengthy[4].out_dtype = kF16;
  lengthy[5].causal = Causal::kNone;
  lengthy[5].window_left = 64;
  lengthy[5].window_right = 64;
  Append(cases, std::move(lengthy));
  return cases;
}

std::vector<Case> FlashAttentionCacheCases() {
  return Bounded(
      Pairwise<Case>()
          .Field(&Case::page_size, {0, 1, 4, 16, 128})
          .Group(Lengths(
              {{1, 128}, {1, 339}, {3, 1024}, {64, 256}, {64, 800}, {3, 799}, {128, 128}, {7, 20}}))
          .Group(NewKeys({{-1, kF32}, {1, kF16}, {3, kF32}, {64, kBF16}, {0, kF32}}))
          .Field(&Case::left_padding, {false, true})
          .Field(&Case::queries,
                 {AttentionQueries::kWhole, AttentionQueries::kRagged, AttentionQueries::kPacked})
          .Field(&Case::ragged_kv, {true, false})
          .Field(&Case::batch, {4, 1, 7})
          .Group(Heads({{3, 1}, {1, 6}, {2, 3}, {2, 8}}))
          .Field(&Case::head_dim, {59, 64, 96, 128, 192, 256})
          .Group(DTypes({{kF16, kF16, kF16},
                         {kF32, kF32, kF32},
                         {kF32, DType::kI8, kF32},
                         {kF32, kF16, kF32},
                         {kBF16, kBF16, kBF16},
                         {kBF16, DType::kI8, kBF16}}))
          .Field(&Case::causal, {Causal::kBottomRight, Causal::kNone})
          .Group(Windows({{-1, -1}, {50, -1}, {30, 10}}))
          .Field(&Case::alibi, {false, true})
          .Field(&Case::values, {AttentionValues::kNormal, AttentionValues::kNormal,
                                 AttentionValues::kNanFirst, AttentionValues::kNanLast})
          .Field(&Case::lse, {true, false})
          .Field(&Case::kv_layout, {Layout::kContiguous, Layout::kTransposed, Layout::kPadded})
          .Select(9100),
      10'000'000);
}

std::vector<Case> GgmlAttentionCases() {
  Pairwise<Case>::Settings head_dims;
  for (const auto& [qk, v] :
       {std::pair(40, 0), std::pair(64, 0), std::pair(72, 0), std::pair(80, 0), std::pair(96, 0),
        std::pair(128, 0), std::pair(192, 128), std::pair(256, 0), std::pair(576, 512)}) {
    head_dims.push_back([qk = qk, v = v](Case& c) {
      c.head_dim = qk;
      c.v_head_dim = v;
    });
  }
  Case base;
  base.bias_hides = Hidden::kBlocks;
  base.bias_dtype = kF16;
  base.causal = Causal::kNone;
  return Bounded(
      Pairwise<Case>(base)
          .Group(head_dims)
          .Group(Heads({{4, 1}, {2, 4}, {1, 8}, {1, 12}, {1, 16}, {1, 20}, {1, 32}}))
          .Group(Lengths({{1, 113},
                          {1, 512},
                          {1, 1024},
                          {3, 113},
                          {3, 512},
                          {3, 1024},
                          {32, 113},
                          {32, 512},
                          {32, 1024},
                          {75, 113},
                          {75, 512},
                          {75, 1024}}))
          .Field(&Case::batch, {1, 3})
          .Field(&Case::bias, {Extents::kOneBatchAndHead, Extents::kAbsent, Extents::kOneHead})
          .Field(&Case::sinks, {false, true})
          .Field(&Case::alibi, {false, true})
          .Field(&Case::softcap, {0.0f, 10.0f})
          .Group(DTypes({{kF32, kF16, kF32},
                         {kF32, kF32, kF32},
                         {kF32, kBF16, kF32},
                         {kF32, DType::kI8, kF32}}))
          .Field(&Case::kv_layout, {Layout::kContiguous, Layout::kTransposed})
          .Field(&Case::q_layout, {Layout::kContiguous, Layout::kTransposed})
          .Select(9200),
      20'000'000);
}

}  // namespace tandem::cases
