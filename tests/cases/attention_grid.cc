// The fixed and random cases of attention.
#include "tests/cases/attention_grid.h"

#include <algorithm>
#include <array>
#include <utility>

#include "tests/cases/attention_cases.h"
#include "tests/cases/pairwise.h"

namespace tandem::cases {
namespace {

using Case = AttentionCase;

using Extents = AttentionExtents;
using Hidden = AttentionHidden;

constexpr DType kF32 = DType::kF32, kF16 = DType::kF16, kBF16 = DType::kBF16;

const std::vector<std::array<DType, 3>> kUsualDTypes = {{kF32, kF32, kF32},
                                                        {kF16, kF16, kF16},
                                                        {kBF16, kBF16, kBF16},
                                                        {kF32, kF16, kF32},
                                                        {kF32, kBF16, kF32}};
const std::vector<std::array<DType, 3>> kMixedDTypes = {
    {kF32, kF32, kF32},  {kF16, kF16, kF16},  {kBF16, kBF16, kBF16}, {kF32, kF16, kF32},
    {kBF16, kF16, kF32}, {kF16, kF32, kBF16}, {kF16, kBF16, kF16},   {kF32, kBF16, kF16}};

// What models do: heads next to each other or tokens next to each other, causal with a past.
std::vector<Case> UsualCases() {
  std::vector<Case> cases =
      Pairwise<Case>()
          .Group(Heads({{2, 1}, {3, 2}, {2, 4}, {1, 7}, {2, 8}, {1, 16}, {1, 1}}))
          .Field(&Case::head_dim, {32, 40, 64, 80, 96, 128, 192, 256})
          .Group(Lengths({{1, 1}, {1, 239}, {1, 1030}, {4, 515}, {33, 33}, {113, 203}, {40, 9}}))
          .Group(DTypes(kUsualDTypes))
          .Field(&Case::causal, {Causal::kBottomRight, Causal::kNone})
          .Field(&Case::lse, {false, true})
          .Field(&Case::q_layout, {Layout::kContiguous, Layout::kTransposed})
          .Field(&Case::kv_layout, {Layout::kContiguous, Layout::kTransposed, Layout::kPadded})
          .Field(&Case::new_len, {-1, 1})
          .Select(1000);
  for (Case& c : cases) {
    c.out_layout = c.q_layout;
    c.new_dtype = c.q_dtype;
  }
  return cases;
}

// Every group size with every head_dim with every relation of the lengths; the remaining fields
// take turns.
std::vector<Case> ShapeProduct() {
  const auto lengths = Lengths({{0, 9}, {1, 1}, {1, 150}, {21, 21}, {13, 70}, {40, 17}});
  const auto dtypes = DTypes(kUsualDTypes);
  std::vector<Case> cases;
  for (int64_t group : {1, 2, 4, 7, 8, 16}) {
    for (int64_t head_dim : {32, 40, 64, 80, 96, 128, 192, 256}) {
      for (const auto& set_lengths : lengths) {
        const size_t turn = cases.size();
        Case c;
        SetHeads(c, 1 + static_cast<int64_t>(turn % 2), group);
        c.head_dim = head_dim;
        set_lengths(c);
        dtypes[turn % dtypes.size()](c);  // five: no divisor of the other counts
        c.lse = turn % 3 == 0;
        c.causal = turn % 7 == 0 ? Causal::kNone : Causal::kBottomRight;
        c.new_len = turn % 11 == 0 ? 1 : -1;
        c.seed = static_cast<int64_t>(6000 + turn);
        cases.push_back(c);
      }
    }
  }
  return cases;
}

// Everything the op allows.
std::vector<Case> UnusualCases() {
  return Pairwise<Case>()
      .Field(&Case::batch, {2, 1, 3})
      .Group(Heads({{1, 1}, {2, 2}, {1, 7}, {3, 4}, {5, 1}}))
      .Field(&Case::head_dim, {64, 1, 20, 59, 80, 111, 128})
      .Field(&Case::v_head_dim, {0, 48, 129})
      .Group(Lengths({{0, 5}, {1, 0}, {4, 0}, {1, 65}, {7, 7}, {19, 130}, {37, 12}, {70, 70}}))
      .Group(NewKeys({{-1, kF32}, {0, kF16}, {1, kBF16}, {5, kF32}, {9, kF16}}))
      .Group(DTypes(kMixedDTypes))
      .Field(&Case::causal, {Causal::kNone, Causal::kBottomRight, Causal::kTopLeft})
      .Group(
          Windows({{-1, -1}, {0, -1}, {7, -1}, {16, 4}, {3, 0}, {-1, 2}, {INT64_MAX, INT64_MAX}}))
      .Field(&Case::scale, {std::nullopt, 0.25f, -0.25f, 0.0f})
      .Field(&Case::lse, {true, false})
      .Field(&Case::q_layout, {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                               Layout::kBroadcast, Layout::kSpread})
      .Field(&Case::kv_layout, {Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                Layout::kBroadcast, Layout::kSpread})
      .Field(&Case::out_layout,
             {Layout::kContiguous, Layout::kPadded, Layout::kTransposed, Layout::kSpread})
      .Field(&Case::values,
             {AttentionValues::kNormal, AttentionValues::kNormal, AttentionValues::kNanFirst,
              AttentionValues::kNanLast, AttentionValues::kNanQuery})
      .Select(2000);
}

// Every variant with every other.
std::vector<Case> VariantCases(uint64_t seed) {
  return Pairwise<Case>()
      .Field(&Case::batch, {3, 1, 5})
      .Group(Heads({{2, 1}, {1, 4}, {2, 3}, {1, 8}}))
      .Group(Lengths({{1, 129}, {1, 300}, {5, 70}, {37, 37}, {70, 130}, {33, 12}}))
      .Field(&Case::new_len, {-1, 0, 1, 5})
      .Group(DTypes({{kF32, kF32, kF32},
                     {kF16, kF16, kF16},
                     {kF32, DType::kI8, kF32},
                     {kBF16, kBF16, kF32},
                     {kF16, DType::kI8, kF16}}))
      .Field(&Case::head_dim, {64, 128, 80})
      .Field(&Case::v_head_dim, {0, 48})
      .Field(&Case::causal, {Causal::kBottomRight, Causal::kNone, Causal::kTopLeft})
      .Group(Windows({{-1, -1}, {20, -1}, {-1, -1}, {40, 3}}))
      .Field(&Case::chunk, {0, 0, 16, 50})
      .Field(&Case::prefix_len, {0, 0, 7, 40})
      .Field(&Case::softcap, {0.0f, 15.0f, 50.0f, 0.5f})
      .Field(&Case::alibi, {false, true})
      .Field(&Case::sinks, {false, true})
      .Field(&Case::bias, {Extents::kAbsent, Extents::kAbsent, Extents::kFull, Extents::kOneHead,
                           Extents::kOneBatch, Extents::kOneHeadAndQuery, Extents::kOneBatchAndHead,
                           Extents::kOneKey})
      .Field(&Case::bias_dtype, {kF32, kF16, kBF16})
      .Field(&Case::bias_hides,
             {Hidden::kEntries, Hidden::kNothing, Hidden::kBlocks, Hidden::kRows})
      .Field(&Case::mask, {Extents::kAbsent, Extents::kAbsent, Extents::kFull, Extents::kOneHead,
                           Extents::kOneBatch, Extents::kOneHeadAndQuery, Extents::kOneBatchAndHead,
                           Extents::kOneKey})
      .Field(&Case::mask_packed, {false, true})
      .Field(&Case::mask_hides, {Hidden::kEntries, Hidden::kBlocks, Hidden::kRows})
      .Field(&Case::queries,
             {AttentionQueries::kWhole, AttentionQueries::kRagged, AttentionQueries::kPacked})
      .Field(&Case::ragged_kv, {false, true})
      .Field(&Case::left_padding, {false, true})
      .Field(&Case::page_size, {0, 1, 4, 16, 128})
      .Field(&Case::lse, {true, false})
      .Field(&Case::q_layout, {Layout::kContiguous, Layout::kTransposed, Layout::kPadded})
      .Field(&Case::kv_layout, {Layout::kContiguous, Layout::kTransposed, Layout::kPadded})
      .Field(&Case::bias_layout, {Layout::kContiguous, Layout::kPadded, Layout::kBroadcast})
      .Select(seed);
}

// A part of a longer cache, with everything that positions and lengths enter into.
std::vector<Case> PartCases(uint64_t seed) {
  const auto parts = [](std::vector<std::array<int64_t, 4>> settings) {
    AttentionSettings result;
    for (const auto& [before, after, new_after, new_len] : settings) {
      result.push_back([=](Case& c) {
        c.keys_before = before;
        c.keys_after = after;
        c.new_after = new_after;
        c.new_len = new_len;
      });
    }
    return result;
  };
  return Pairwise<Case>()
      .Group(parts({{40, 0, 0, -1}, {0, 33, 0, -1}, {17, 5, 3, -1}, {0, 0, 2, -1}, {50, 0, 0, 4}}))
      .Field(&Case::causal, {Causal::kBottomRight, Causal::kTopLeft, Causal::kNone})
      .Group(Lengths({{1, 60}, {90, 70}, {20, 33}, {5, 300}}))
      .Group(Windows({{-1, -1}, {30, -1}, {45, 10}}))
      .Field(&Case::chunk, {0, 24, 64})
      .Field(&Case::prefix_len, {0, 60, 20})
      .Field(&Case::alibi, {false, true})
      .Field(&Case::ragged_kv, {false, true})
      .Field(&Case::left_padding, {false, true})
      .Field(&Case::page_size, {0, 16})
      .Field(&Case::queries,
             {AttentionQueries::kWhole, AttentionQueries::kRagged, AttentionQueries::kPacked})
      .Group(DTypes({{kF32, kF32, kF32}, {kBF16, kBF16, kBF16}, {kF32, DType::kI8, kF32}}))
      .Group(Heads({{2, 1}, {1, 4}}))
      .Field(&Case::batch, {2, 1})
      .Field(&Case::lse, {true, false})
      .Select(seed);
}

// Each named for the bug it would show.
std::vector<Case> NamedCases() {
  return {
      // decoding: the cache is split over threads and merged
      {.q_heads = 8, .kv_heads = 2, .kv_len = 4099, .head_dim = 128, .kv_dtype = kF16, .lse = true},
      {.q_heads = 4, .kv_heads = 1, .kv_len = 2500, .new_len = 1, .kv_dtype = kBF16, .seed = 2},
      // long sums: f16 accumulation would show (relative L2 below 1e-3 is asked of f16)
      {.q_heads = 2, .kv_len = 16384, .kv_dtype = kF16, .seed = 3},
      {.q_heads = 2,
       .kv_len = 16384,
       .q_dtype = kF16,
       .kv_dtype = kF16,
       .out_dtype = kF16,
       .seed = 4},
      // prefill over several tiles in both directions
      {.q_heads = 2, .kv_heads = 1, .q_len = 300, .kv_len = 300, .lse = true, .seed = 5},
      {.q_heads = 2,
       .kv_heads = 1,
       .q_len = 150,
       .kv_len = 420,
       .q_dtype = kBF16,
       .kv_dtype = kBF16,
       .out_dtype = kBF16,
       .seed = 6},
      // more queries than keys: the first rows see nothing
      {.q_heads = 4, .kv_heads = 2, .q_len = 90, .kv_len = 30, .lse = true, .seed = 7},
      // only new keys, no cache
      {.q_heads = 4, .kv_heads = 2, .q_len = 6, .kv_len = 0, .new_len = 6, .lse = true, .seed = 8},
      // scores beyond the range of f16
      {.q_heads = 2,
       .q_len = 5,
       .kv_len = 77,
       .q_dtype = kF16,
       .kv_dtype = kF16,
       .out_dtype = kF16,
       .scale = 1.0f,
       .lse = true,
       .values = AttentionValues::kLarge,
       .seed = 9},
      {.q_heads = 2,
       .kv_len = 300,
       .q_dtype = kF16,
       .kv_dtype = kF16,
       .out_dtype = kF16,
       .scale = 1.0f,
       .values = AttentionValues::kLarge,
       .seed = 10},
      // NaN that nobody may see: beyond a top-left causal mask, left of a window
      {.q_heads = 2,
       .q_len = 20,
       .kv_len = 64,
       .causal = Causal::kTopLeft,
       .lse = true,
       .values = AttentionValues::kNanLast,
       .seed = 11},
      {.q_heads = 2,
       .kv_len = 600,
       .window_left = 100,
       .lse = true,
       .values = AttentionValues::kNanFirst,
       .seed = 12},
      {.q_heads = 2,
       .q_len = 70,
       .kv_len = 70,
       .lse = true,
       .values = AttentionValues::kNanLast,
       .seed = 13},
      // NaN that must be seen
      {.q_heads = 2, .kv_len = 500, .lse = true, .values = AttentionValues::kNanFirst, .seed = 14},
      // few queries, many keys: the keys of a prefill tile are cut and merged, with the sinks
      {.q_heads = 4,
       .kv_heads = 1,
       .q_len = 12,
       .kv_len = 2100,
       .new_len = 3,
       .softcap = 20.0f,
       .sinks = true,
       .lse = true,
       .seed = 16},
      {.q_heads = 4,
       .kv_heads = 2,
       .q_len = 40,
       .kv_len = 1700,
       .q_dtype = kBF16,
       .kv_dtype = kBF16,
       .window_left = 1200,
       .alibi = true,
       .page_size = 48,
       .lse = true,
       .values = AttentionValues::kNanFirst,
       .seed = 17},
      // the same where most of the pieces are hidden from most rows
      {.q_heads = 3,
       .kv_heads = 1,
       .q_len = 50,
       .kv_len = 1600,
       .q_dtype = kBF16,
       .kv_dtype = kBF16,
       .chunk = 700,
       .sinks = true,
       .mask = Extents::kFull,
       .mask_packed = true,
       .mask_hides = Hidden::kBlocks,
       .lse = true,
       .seed = 18},
      // key tiles hidden from whole row tiles by a mask, with a NaN in one
      {.q_heads = 2,
       .kv_heads = 1,
       .q_len = 190,
       .kv_len = 390,
       .q_dtype = kBF16,
       .kv_dtype = kBF16,
       .out_dtype = kBF16,
       .causal = Causal::kNone,
       .mask = Extents::kOneHead,
       .mask_hides = Hidden::kBlocks,
       .lse = true,
       .values = AttentionValues::kNanLast,
       .seed = 19},
      // compressed key/value heads: one head for all queries, values a part of the keys
      {.q_heads = 8,
       .kv_heads = 1,
       .q_len = 33,
       .kv_len = 200,
       .head_dim = 576,
       .v_head_dim = 512,
       .q_dtype = kBF16,
       .kv_dtype = kBF16,
       .out_dtype = kBF16,
       .seed = 20},
      {.q_heads = 4,
       .kv_heads = 4,
       .q_len = 100,
       .kv_len = 260,
       .head_dim = 192,
       .v_head_dim = 128,
       .kv_dtype = DType::kI8,
       .lse = true,
       .seed = 21},
      // eight heads of a group with eight speculative tokens
      {.q_heads = 8,
       .kv_heads = 1,
       .q_len = 8,
       .kv_len = 700,
       .head_dim = 128,
       .kv_dtype = kF16,
       .lse = true,
       .seed = 24},
      // batch-invariant: keys cut by their number alone, few queries and many
      {.batch = 3,
       .q_heads = 4,
       .kv_heads = 2,
       .q_len = 2,
       .kv_len = 1300,
       .new_len = 1,
       .kv_dtype = kF16,
       .batch_invariant = true,
       .sinks = true,
       .queries = AttentionQueries::kRagged,
       .ragged_kv = true,
       .page_size = 16,
       .lse = true,
       .seed = 22},
      {.batch = 2,
       .q_heads = 4,
       .kv_heads = 1,
       .q_len = 60,
       .kv_len = 1100,
       .q_dtype = kBF16,
       .kv_dtype = kBF16,
       .batch_invariant = true,
       .queries = AttentionQueries::kPacked,
       .lse = true,
       .seed = 23},
      // one cache shared by all sequences
      {.batch = 3,
       .q_heads = 4,
       .kv_heads = 2,
       .kv_len = 140,
       .kv_layout = Layout::kBroadcast,
       .seed = 15},
  };
}

}  // namespace

std::vector<Case> Case::Grid(GridSize size) {
  std::vector<Case> cases = NamedCases();
  if (size == GridSize::kFull) {
    Append(cases, Bounded(UsualCases(), 30'000'000));
    Append(cases, Bounded(UnusualCases(), 10'000'000));
    Append(cases, ShapeProduct());
    for (uint64_t seed : {3000, 3300, 3600}) {
      Append(cases, Bounded(VariantCases(seed), 10'000'000));
    }
    Append(cases, PartCases(3900));
    Append(cases, FlashAttentionCases());
    Append(cases, FlashAttentionCacheCases());
    Append(cases, GgmlAttentionCases());
    return cases;
  }
  std::erase_if(cases, [](const Case& c) { return c.kv_len > 5000 || c.q_len > 200; });
  Append(cases, Bounded(Pairwise<Case>()
                            .Group(Heads({{2, 1}, {2, 4}, {1, 7}}))
                            .Field(&Case::head_dim, {64, 80, 128})
                            .Group(Lengths({{1, 129}, {33, 70}, {12, 5}}))
                            .Group(DTypes(kUsualDTypes))
                            .Field(&Case::kv_layout, {Layout::kContiguous, Layout::kPadded})
                            .Field(&Case::lse, {false, true})
                            .Select(500),
                        2'000'000));
  Append(cases, Bounded(VariantCases(700), 1'000'000));
  Append(cases, Bounded(PartCases(800), 500'000));
  return cases;
}

namespace {

void RandomVariants(Rng& rng, Case& c) {
  const auto sometimes = [&] { return rng.Chance(0.2); };
  const auto extents = [&] { return static_cast<Extents>(rng.Integer(1, 6)); };
  if (sometimes()) c.softcap = rng.Pick<float>({0.5f, 15.0f, 50.0f});
  c.alibi = sometimes();
  c.sinks = sometimes();
  if (sometimes()) c.bias = extents();
  c.bias_dtype = rng.Pick<DType>({kF32, kF16, kBF16});
  c.bias_hides = static_cast<Hidden>(rng.Integer(0, 3));
  if (sometimes()) c.mask = extents();
  c.mask_packed = rng.Chance(0.5);
  c.mask_hides = static_cast<Hidden>(rng.Integer(0, 3));
  if (sometimes()) c.queries = static_cast<AttentionQueries>(rng.Integer(1, 2));
  c.ragged_kv = sometimes();
  c.left_padding = sometimes();
  if (sometimes()) c.page_size = rng.Integer(1, 70);
  if (sometimes()) c.kv_dtype = DType::kI8;
  if (sometimes()) c.chunk = rng.Integer(1, 60);
  if (sometimes()) c.prefix_len = rng.Integer(1, 60);
  if (sometimes()) c.keys_before = rng.Integer(0, 100);
  if (sometimes() && c.new_len < 0) {
    c.keys_after = rng.Integer(0, 100);
    c.new_after = rng.Integer(0, 10);
  }
  c.bias_layout = rng.Pick<Layout>({Layout::kContiguous, Layout::kPadded, Layout::kTransposed,
                                    Layout::kBroadcast, Layout::kSpread});
  c.values =
      rng.Chance(0.8) ? AttentionValues::kNormal : static_cast<AttentionValues>(rng.Integer(2, 4));
}

}  // namespace

Case Case::Random(Rng& rng) {
  static constexpr auto kAny = [](Rng& r) { return r.Pick<DType>({kF32, kF16, kBF16}); };
  static const std::vector<Layout> kLayouts = {Layout::kContiguous, Layout::kContiguous,
                                               Layout::kPadded,     Layout::kTransposed,
                                               Layout::kBroadcast,  Layout::kSpread};
  Case c;
  c.batch = rng.Integer(1, 3);
  SetHeads(c, rng.Integer(1, 4), rng.Integer(1, 9));
  c.q_len = rng.Chance(0.4) ? 1 : rng.Integer(0, 80);
  c.kv_len = rng.Chance(0.2) ? c.q_len : rng.Integer(0, 300);
  c.new_len = rng.Chance(0.5) ? -1 : rng.Integer(0, 10);
  c.head_dim = rng.Chance(0.5) ? 16 * rng.Integer(1, 16) : rng.Integer(1, 200);
  c.v_head_dim = rng.Chance(0.7) ? 0 : rng.Integer(1, 200);
  c.q_dtype = kAny(rng);
  c.kv_dtype = rng.Chance(0.5) ? c.q_dtype : kAny(rng);
  c.new_dtype = rng.Chance(0.5) ? c.kv_dtype : kAny(rng);
  c.out_dtype = rng.Chance(0.5) ? c.q_dtype : kAny(rng);
  c.causal = rng.Pick<Causal>({Causal::kNone, Causal::kBottomRight, Causal::kTopLeft});
  c.window_left = rng.Chance(0.6) ? -1 : rng.Integer(0, 100);
  c.window_right = rng.Chance(0.8) ? -1 : rng.Integer(0, 50);
  c.lse = rng.Chance(0.5);
  c.q_layout = rng.Pick(kLayouts);
  c.kv_layout = rng.Pick(kLayouts);
  c.out_layout = rng.Pick(kLayouts);
  RandomVariants(rng, c);
  c.seed = rng.Integer(1, 1'000'000);
  c.batch_invariant = c.seed % 7 == 0;
  return Bounded(c, 10'000'000);
}

}  // namespace tandem::cases
