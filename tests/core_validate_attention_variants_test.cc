// Every way in which attention's variants and merge_attention can be called wrongly.
#include <cstdint>
#include <memory>

#include "core/ops/attention.h"
#include "core/ops/merge_attention.h"
#include "core/ops/split_attention.h"
#include "tests/bad_arguments.h"

namespace tandem {
namespace {

class VariantValidation : public testing::Test {
 protected:
  using A = AttentionArgs;

  TensorView View(DType dtype, const Shape& shape) {
    memory_.push_back(std::make_unique<std::array<char, 8192>>());
    memory_.back()->fill(0);
    return MakeView(memory_.back()->data(), dtype, shape);
  }
  TensorView List(const std::vector<int32_t>& values) {
    const TensorView view = View(DType::kI32, {static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), view.As<int32_t>());
    return view;
  }
  // Two sequences of up to 3 queries and 5 + 1 keys.
  AttentionArgs Dense() {
    AttentionArgs args;
    args.q = View(DType::kF32, {2, 4, 3, 8});
    args.k = View(DType::kF16, {2, 2, 5, 8});
    args.v = View(DType::kF16, {2, 2, 5, 6});
    args.k_new = View(DType::kBF16, {2, 2, 1, 8});
    args.v_new = View(DType::kBF16, {2, 2, 1, 6});
    args.out = View(DType::kF32, {2, 4, 3, 6});
    args.lse = View(DType::kF32, {2, 4, 3});
    return args;
  }
  // A pool of 7 pages of 4 keys; sequences of 5 and 8 keys.
  AttentionArgs Paged() {
    AttentionArgs args = Dense();
    args.k = View(DType::kF16, {7, 2, 4, 8});
    args.v = View(DType::kF16, {7, 2, 4, 6});
    args.page_table = View(DType::kI32, {2, 2});
    const int32_t pages[] = {6, 0, 3, 2};
    std::copy(pages, pages + 4, args.page_table.As<int32_t>());
    args.kv_lens = List({5, 8});
    return args;
  }
  void ExpectOk(const AttentionArgs& args) {
    EXPECT_TRUE(Validate(args).ok()) << Validate(args).ToString();
  }

  std::vector<std::unique_ptr<std::array<char, 8192>>> memory_;
};

TEST_F(VariantValidation, Scores) {
  AttentionArgs good = Dense();
  good.softcap = 30.0f;
  good.alibi_slopes = View(DType::kF32, {4});
  good.sinks = View(DType::kF32, {4});
  ExpectViewIsChecked(good, &A::alibi_slopes, "alibi_slopes", /*required=*/false);
  ExpectViewIsChecked(good, &A::sinks, "sinks", /*required=*/false);
  ExpectEachRejected<A>(
      good, {
                {"softcap: expected 0 (none) or a finite number > 0, got -1",
                 [](A& a) { a.softcap = -1.0f; }},
                {"softcap: expected 0", [](A& a) { a.softcap = NAN; }},
                {"softcap: expected 0", [](A& a) { a.softcap = INFINITY; }},
                {"alibi_slopes dimension 0 (query heads): expected 4, got 3",
                 [](A& a) { a.alibi_slopes = Slice(a.alibi_slopes, 0, 0, 3); }},
                {"alibi_slopes: expected rank 1, got 3", [](A& a) { a.alibi_slopes = a.lse; }},
                {"alibi_slopes: expected dtype f32, got f16",
                 [](A& a) { a.alibi_slopes.dtype = DType::kF16; }},
                {"sinks dimension 0 (query heads): expected 4, got 1",
                 [](A& a) { a.sinks = Slice(a.sinks, 0, 0, 1); }},
                {"chunk: expected >= 0, got -1", [](A& a) { a.chunk = -1; }},
                {"prefix_len: expected >= 0, got -2", [](A& a) { a.prefix_len = -2; }},
                {"out overlaps sinks", [](A& a) { a.sinks.data = a.out.data; }},
                {"lse overlaps alibi_slopes", [](A& a) { a.alibi_slopes.data = a.lse.data; }},
            });
}

TEST_F(VariantValidation, BiasAndMask) {
  AttentionArgs good = Dense();
  good.bias = View(DType::kBF16, {2, 1, 3, 6});
  good.mask = View(DType::kBool, {1, 4, 1, 6});
  ExpectViewIsChecked(good, &A::bias, "bias", /*required=*/false);
  ExpectEachRejected<A>(
      good,
      {
          {"bias: expected dtype f32, f16 or bf16, got bool",
           [](A& a) { a.bias.dtype = DType::kBool; }},
          {"bias: expected rank 4, got 3", [](A& a) { a.bias = Select(a.bias, 0, 0); }},
          {"bias dimension 0 (batch): expected 1 or 2, got 0",
           [](A& a) { a.bias = Slice(a.bias, 0, 0, 0); }},
          {"bias dimension 2 (queries): expected 1 or 3, got 2",
           [](A& a) { a.bias = Slice(a.bias, 2, 0, 2); }},
          // The keys beside the cache have columns, too.
          {"bias dimension 3 (keys): expected 1 or 6, got 5",
           [](A& a) { a.bias = Slice(a.bias, 3, 0, 5); }},
          {"mask: expected dtype bool or u32 (packed), got i8",
           [](A& a) { a.mask.dtype = DType::kI8; }},
          {"mask dimension 1 (query heads): expected 1 or 4, got 3",
           [](A& a) { a.mask = Slice(a.mask, 1, 0, 3); }},
          {"mask dimension 3 (keys): expected 1, got 6", [](A& a) { a.mask.dtype = DType::kU32; }},
          {"mask is on cuda:0",
           [](A& a) {
             a.mask.device = {DeviceKind::kCuda, 0};
           }},
          {"mask: data is null", [](A& a) { a.mask.data = nullptr; }},
          {"out overlaps bias", [](A& a) { a.bias.data = a.out.data; }},
          {"out overlaps mask", [](A& a) { a.mask.data = a.out.data; }},
      });
  good.mask = View(DType::kU32, {2, 4, 3, 1});
  ExpectOk(good);
  good.bias.strides[2] = 0;  // expanded
  ExpectOk(good);
  good.bias = View(DType::kF32, {1, 1, 1, 1});
  ExpectOk(good);
  // Whole words even where one would do for all keys.
  good.k = View(DType::kF16, {2, 2, 40, 8});
  good.v = View(DType::kF16, {2, 2, 40, 6});
  ExpectRejected(good, "mask dimension 3 (keys): expected 2, got 1");
}

TEST_F(VariantValidation, RaggedLengths) {
  AttentionArgs good = Dense();
  good.q_lens = List({3, 0});
  good.kv_lens = List({0, 5});
  good.kv_starts = List({0, 100});
  ExpectViewIsChecked(good, &A::q_lens, "q_lens", /*required=*/false);
  ExpectViewIsChecked(good, &A::kv_lens, "kv_lens", /*required=*/false);
  ExpectViewIsChecked(good, &A::kv_starts, "kv_starts", /*required=*/false);
  ExpectEachRejected<A>(
      good,
      {
          {"q_lens[0]: expected 0..3, got 4",
           [&](A& a) {
             a.q_lens = List({4, 0});
           }},
          {"q_lens[1]: expected 0..3, got -1",
           [&](A& a) {
             a.q_lens = List({3, -1});
           }},
          {"kv_lens[1]: expected 0..5, got 6",
           [&](A& a) {
             a.kv_lens = List({5, 6});
           }},
          {"kv_lens[0]: expected 0..5, got -2147483648",
           [&](A& a) {
             a.kv_lens = List({INT32_MIN, 5});
           }},
          {"kv_starts[1]: expected 0..2147483647, got -1",
           [&](A& a) {
             a.kv_starts = List({0, -1});
           }},
          {"q_lens dimension 0 (batch): expected 2, got 3",
           [&](A& a) {
             a.q_lens = List({1, 1, 1});
           }},
          {"kv_lens: expected dtype i32, got i64", [](A& a) { a.kv_lens.dtype = DType::kI64; }},
          {"out overlaps kv_lens", [](A& a) { a.kv_lens.data = a.out.data; }},
      });
  // Lists with a stride.
  AttentionArgs strided = good;
  strided.kv_lens = List({2, 99, 5, 99});
  strided.kv_lens.shape[0] = 2;
  strided.kv_lens.strides[0] = 2;
  ExpectOk(strided);
  EXPECT_EQ(strided.Sequence(1).cache_len, 5);
  EXPECT_EQ(strided.Sequence(1).rule.kv_len, 6);
  EXPECT_EQ(strided.Sequence(1).rule.q_len, 0);
  EXPECT_EQ(strided.Sequence(1).rule.kv_begin, 100);
}

TEST_F(VariantValidation, PartsOfACache) {
  AttentionArgs good = Dense();
  good.k_new = good.v_new = {};
  good.keys_before = 10;
  good.keys_after = 20;
  good.new_after = 1;
  good.kv_lens = List({0, 35});
  ExpectEachRejected<A>(
      good, {
                {"keys_before: expected 0..2^47, got -1", [](A& a) { a.keys_before = -1; }},
                {"keys_after: expected 0..2^47, got -3", [](A& a) { a.keys_after = -3; }},
                {"new_after: expected 0..2^47, got -1", [](A& a) { a.new_after = -1; }},
                {"keys_before: expected 0..2^47", [](A& a) { a.keys_before = INT64_MAX; }},
                {"kv_lens[1]: expected 0..34, got 35", [](A& a) { a.keys_before = 9; }},
                {"k_new: expected with the last rows of the cache",
                 [&](A& a) {
                   a.k_new = Dense().k_new;
                   a.v_new = Dense().v_new;
                 }},
            });
  EXPECT_EQ(good.cache_rows(), 35);
  EXPECT_EQ(good.Sequence(0).cache_len, 0);
  EXPECT_EQ(good.Sequence(1).cache_len, 5);
  EXPECT_EQ(good.Sequence(1).rule.keys_after, 21);
  good.kv_lens = {};
  EXPECT_EQ(good.Sequence(1).rule.keys_before, 10);
  EXPECT_EQ(good.Sequence(1).rule.keys_after, 21);
  // The pages of the part alone are looked at: of 5 keys, one behind those of the part in front.
  AttentionArgs paged = Paged();
  paged.k_new = paged.v_new = {};
  paged.keys_before = 4;
  paged.page_table.As<int32_t>()[1] = -1;
  ExpectOk(paged);
}

TEST_F(VariantValidation, Splits) {
  const auto rejected = [](const AttentionArgs& args, std::vector<int64_t> cuts,
                           const std::string& message) {
    EXPECT_THAT(SplitAttention(args, cuts).status().message(), testing::HasSubstr(message));
  };
  const AttentionArgs good = Dense();
  rejected(good, {-1}, "cuts[0]: expected 0..5, got -1");
  rejected(good, {6}, "cuts[0]: expected 0..5, got 6");
  rejected(good, {3, 2}, "cuts[1]: expected 3..5, got 2");
  AttentionArgs bad = good;
  bad.softcap = -1.0f;
  rejected(bad, {2}, "softcap");
  rejected(Paged(), {4, 6}, "cuts[1]: expected a multiple of the page size, 4, got 6");
  AttentionArgs masked = good;
  masked.mask = View(DType::kU32, {1, 1, 1, 1});
  rejected(masked, {2}, "cuts[0]: expected a multiple of 32 with a packed mask");
  masked.mask = View(DType::kBool, {1, 1, 1, 6});
  masked.kv_lens = List({5, 2});
  rejected(masked, {2}, "mask: expected one column for all keys to split");
  masked.mask = View(DType::kBool, {1, 1, 3, 1});
  EXPECT_TRUE(SplitAttention(masked, std::vector<int64_t>{2}).ok());

  const auto parts = SplitAttention(good, std::vector<int64_t>{2, 2});
  ASSERT_TRUE(parts.ok());
  ASSERT_EQ(parts->size(), 3);
  EXPECT_EQ((*parts)[0].k.dim(2), 2);
  EXPECT_EQ((*parts)[0].new_after, 1);
  EXPECT_FALSE((*parts)[0].k_new.present());
  EXPECT_EQ((*parts)[1].k.dim(2), 0);
  EXPECT_EQ((*parts)[1].keys_before, 2);
  EXPECT_EQ((*parts)[1].keys_after, 3);
  EXPECT_EQ((*parts)[2].k.dim(2), 3);
  EXPECT_TRUE((*parts)[2].k_new.present());
  EXPECT_FALSE((*parts)[2].out.present());
}

TEST_F(VariantValidation, PackedQueries) {
  AttentionArgs good = Dense();
  good.q = View(DType::kF32, {1, 4, 7, 8});
  good.out = View(DType::kF32, {1, 4, 7, 6});
  good.lse = View(DType::kF32, {1, 4, 7});
  good.q_offsets = List({0, 2, 7});
  ExpectViewIsChecked(good, &A::q_offsets, "q_offsets", /*required=*/false);
  ExpectEachRejected<A>(good, {
                                  {"q_offsets[0]: expected 0, got 1",
                                   [&](A& a) {
                                     a.q_offsets = List({1, 2, 7});
                                   }},
                                  {"q_offsets[2]: expected >= 8, got 7",
                                   [&](A& a) {
                                     a.q_offsets = List({0, 8, 7});
                                   }},
                                  {"q_offsets[2]: expected the rows of q, 7, got 6",
                                   [&](A& a) {
                                     a.q_offsets = List({0, 2, 6});
                                   }},
                                  {"q_offsets dimension 0: expected batch + 1, got 0",
                                   [](A& a) { a.q_offsets = Slice(a.q_offsets, 0, 0, 0); }},
                                  {"q_lens: not together with q_offsets",
                                   [&](A& a) {
                                     a.q_lens = List({2, 5});
                                   }},
                                  {"k dimension 0 (batch): expected 3, got 2",
                                   [&](A& a) {
                                     a.q_offsets = List({0, 2, 2, 7});
                                   }},
                                  {"q dimension 0 (batch, packed by q_offsets): expected 1, got 2",
                                   [&](A& a) {
                                     a.q = View(DType::kF32, {2, 4, 7, 8});
                                   }},
                              });
  EXPECT_EQ(good.Sequence(1).q_begin, 2);
  EXPECT_EQ(good.Sequence(1).q_batch, 0);
  EXPECT_EQ(good.Sequence(1).rule.q_len, 5);
}

TEST_F(VariantValidation, Pages) {
  const AttentionArgs good = Paged();
  ExpectViewIsChecked(good, &A::page_table, "page_table", /*required=*/false);
  ExpectEachRejected<A>(
      good,
      {
          {"kv_lens: expected with page_table", [](A& a) { a.kv_lens = {}; }},
          {"page_table dimension 0 (batch): expected 2, got 1",
           [](A& a) { a.page_table = Slice(a.page_table, 0, 0, 1); }},
          {"kv_lens[1]: expected 0..4, got 8",
           [&](A& a) {
             a.page_table = Slice(a.page_table, 1, 0, 1);
             a.kv_lens = List({4, 8});
           }},
          {"page_table[0, 1]: expected 0..6, got 7",
           [](A& a) { a.page_table.As<int32_t>()[1] = 7; }},
          {"v dimension 0 (pages): expected 7, got 6", [](A& a) { a.v = Slice(a.v, 0, 0, 6); }},
          {"v dimension 2 (page size): expected 4, got 3", [](A& a) { a.v = Slice(a.v, 2, 0, 3); }},
          {"k dimension 2 (page size): expected >= 1, got 0",
           [](A& a) {
             a.k = Slice(a.k, 2, 0, 0);
             a.v = Slice(a.v, 2, 0, 0);
           }},
          {"out overlaps page_table", [](A& a) { a.page_table.data = a.out.data; }},
      });
  // good shares its table with the spoiled copies: put it right.
  good.page_table.As<int32_t>()[1] = 0;
  // Entries behind the last page in use may be anything.
  AttentionArgs unused = good;
  unused.kv_lens = List({4, 0});
  unused.page_table.As<int32_t>()[1] = -7;
  ExpectOk(unused);
  EXPECT_EQ(unused.cache_len(), 8);
  // More keys than positions can be counted.
  AttentionArgs endless = good;
  endless.page_table.shape[1] = int64_t{1} << 46;
  endless.page_table.strides[1] = 0;
  ExpectRejected(endless, "page_table dimension 1: expected at most 2^47 keys");
}

TEST_F(VariantValidation, Int8Cache) {
  AttentionArgs good = Dense();
  good.k.dtype = good.v.dtype = DType::kI8;
  good.k_scale = View(DType::kF32, {2, 2, 5});
  good.v_scale = View(DType::kF32, {2, 2, 5});
  ExpectViewIsChecked(good, &A::k_scale, "k_scale");
  ExpectViewIsChecked(good, &A::v_scale, "v_scale");
  ExpectEachRejected<A>(
      good,
      {
          {"k_scale: expected with k of i8", [](A& a) { a.k_scale = {}; }},
          {"v_scale: expected with k of i8", [](A& a) { a.v_scale = {}; }},
          {"k_scale: only with k of i8", [](A& a) { a.k.dtype = a.v.dtype = DType::kF16; }},
          {"v: expected dtype i8, got f16", [](A& a) { a.v.dtype = DType::kF16; }},
          {"k_scale dimension 2 (keys): expected 5, got 4",
           [](A& a) { a.k_scale = Slice(a.k_scale, 2, 0, 4); }},
          {"v_scale dimension 1 (key/value heads): expected 2, got 1",
           [](A& a) { a.v_scale = Slice(a.v_scale, 1, 0, 1); }},
          {"v_scale: expected dtype f32, got f16", [](A& a) { a.v_scale.dtype = DType::kF16; }},
          {"k_new: expected dtype f32, f16 or bf16, got i8",
           [](A& a) { a.k_new.dtype = a.v_new.dtype = DType::kI8; }},
          {"out overlaps k_scale", [](A& a) { a.k_scale.data = a.out.data; }},
          {"lse overlaps v_scale", [](A& a) { a.v_scale.data = a.lse.data; }},
      });
}

// What cannot be read is not judged: its lengths are on the device.
TEST_F(VariantValidation, ListsOnADeviceAreNotRead) {
  AttentionArgs args = Paged();
  args.q_lens = List({3, 0});
  for (TensorView* view : {&args.q, &args.k, &args.v, &args.k_new, &args.v_new, &args.out,
                           &args.lse, &args.page_table, &args.kv_lens, &args.q_lens}) {
    view->device = {DeviceKind::kCuda, 0};
  }
  for (TensorView* view : {&args.page_table, &args.kv_lens, &args.q_lens}) {
    view->data = reinterpret_cast<void*>(uintptr_t{4096});  // not mapped here
  }
  ExpectOk(args);
}

class MergeValidation : public VariantValidation {
 protected:
  using M = MergeAttentionArgs;

  // Three parts of [2, 4, 3, 6].
  MergeValidation() {
    for (int p = 0; p < 3; ++p) {
      outs_.push_back(View(p == 1 ? DType::kF16 : DType::kF32, {2, 4, 3, 6}));
      lses_.push_back(View(DType::kF32, {2, 4, 3}));
    }
    good_.out_parts = outs_;
    good_.lse_parts = lses_;
    good_.out = View(DType::kF32, {2, 4, 3, 6});
    good_.lse = View(DType::kF32, {2, 4, 3});
  }
  // `change` of part p alone.
  void ExpectPartRejected(std::vector<TensorView>& parts, size_t p, const std::string& message,
                          const std::function<void(TensorView&)>& change) {
    const TensorView before = parts[p];
    change(parts[p]);
    ExpectRejected(good_, message);
    parts[p] = before;
    EXPECT_TRUE(Validate(good_).ok());
  }

  std::vector<TensorView> outs_, lses_;
  MergeAttentionArgs good_;
};

TEST_F(MergeValidation, Merge) {
  ExpectViewIsChecked(good_, &M::out, "out");
  ExpectViewIsChecked(good_, &M::lse, "lse", /*required=*/false);
  ExpectEachRejected<M>(
      good_, {
                 {"out_parts: expected at least one part", [](M& m) { m.out_parts = {}; }},
                 {"lse_parts: expected as many as out_parts, 3, got 2",
                  [](M& m) { m.lse_parts = m.lse_parts.subspan(1); }},
                 {"out: expected the shape of out_parts[0] [2, 4, 3, 6], got [2, 4, 3, 5]",
                  [](M& m) { m.out = Slice(m.out, 3, 0, 5); }},
                 {"lse dimension 2 (queries): expected 3, got 2",
                  [](M& m) { m.lse = Slice(m.lse, 2, 0, 2); }},
                 {"out overlaps lse_parts[2]", [](M& m) { m.out.data = m.lse_parts[2].data; }},
                 {"out overlaps out_parts[1]", [](M& m) { m.out.data = m.out_parts[1].data; }},
                 {"lse overlaps out_parts[0]", [](M& m) { m.lse.data = m.out_parts[0].data; }},
                 {"lse overlaps out", [](M& m) { m.lse.data = m.out.data; }},
                 {"out stride 3: elements of an output must not share addresses",
                  [](M& m) { m.out.strides[3] = 0; }},
             });
  ExpectPartRejected(outs_, 2, "out_parts[2]: expected dtype f32, f16 or bf16, got i32",
                     [](TensorView& v) { v.dtype = DType::kI32; });
  ExpectPartRejected(outs_, 1, "out_parts[1]: expected the shape of out_parts[0]",
                     [](TensorView& v) { v = Slice(v, 0, 0, 1); });
  ExpectPartRejected(outs_, 0, "out_parts[0]: data is null",
                     [](TensorView& v) { v.data = nullptr; });
  ExpectPartRejected(outs_, 1, "out_parts[1] is on cuda:0", [](TensorView& v) {
    v.device = {DeviceKind::kCuda, 0};
  });
  ExpectPartRejected(lses_, 1, "lse_parts[1] dimension 1 (query heads): expected 4, got 2",
                     [](TensorView& v) { v = Slice(v, 1, 0, 2); });
  ExpectPartRejected(lses_, 2, "lse_parts[2]: expected dtype f32, got i32",
                     [](TensorView& v) { v.dtype = DType::kI32; });
  // In place.
  M in_place = good_;
  in_place.out = outs_[2];
  in_place.lse = lses_[0];
  EXPECT_TRUE(Validate(in_place).ok()) << Validate(in_place).ToString();
}

}  // namespace
}  // namespace tandem
