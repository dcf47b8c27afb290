// Every way in which the arguments of kv_append can be bad.
#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <utility>
#include <vector>

#include "core/ops/kv_append.h"
#include "tests/bad_arguments.h"

namespace tandem {
namespace {

class KvAppendValidation : public testing::Test {
 protected:
  // A view of its own memory.
  TensorView View(DType dtype, const Shape& shape) {
    memory_.push_back(std::make_unique<std::array<char, 8192>>());
    return MakeView(memory_.back()->data(), dtype, shape);
  }

  std::vector<std::unique_ptr<std::array<char, 8192>>> memory_;
};

TEST_F(KvAppendValidation, Plain) {
  KvAppendArgs good;
  good.k = View(DType::kF32, {2, 3, 4, 8});
  good.v = View(DType::kBF16, {2, 3, 4, 6});
  good.k_cache = View(DType::kF16, {2, 3, 10, 8});
  good.v_cache = View(DType::kF16, {2, 3, 10, 6});
  good.position = 6;
  using A = KvAppendArgs;
  ExpectViewIsChecked(good, &A::k, "k");
  ExpectViewIsChecked(good, &A::v, "v");
  ExpectViewIsChecked(good, &A::k_cache, "k_cache");
  ExpectViewIsChecked(good, &A::v_cache, "v_cache");
  ExpectEachRejected<A>(
      good,
      {
          {"position: expected 0..capacity - new tokens = 6, got 7", [](A& a) { a.position = 7; }},
          {"position: expected 0..", [](A& a) { a.position = -1; }},
          {"position: expected 0..", [](A& a) { a.position = INT64_MAX; }},
          {"position: expected 0..capacity - new tokens = -1",
           [](A& a) {  // more tokens than the cache holds
             a.k_cache = Slice(a.k_cache, 2, 0, 3);
             a.v_cache = Slice(a.v_cache, 2, 0, 3);
             a.position = 0;
           }},
          {"v dimension 2 (new tokens): expected 4, got 3",
           [](A& a) { a.v = Slice(a.v, 2, 0, 3); }},
          {"k_cache dimension 0 (batch)", [](A& a) { a.k_cache = Slice(a.k_cache, 0, 0, 1); }},
          {"v dimension 1 (key/value heads)", [](A& a) { a.v = Slice(a.v, 1, 0, 2); }},
          {"k_cache dimension 3 (head_dim): expected 8, got 7",
           [](A& a) { a.k_cache = Slice(a.k_cache, 3, 0, 7); }},
          {"v_cache dimension 3 (v head_dim): expected 6, got 5",
           [](A& a) { a.v_cache = Slice(a.v_cache, 3, 0, 5); }},
          {"v_cache dimension 2 (capacity): expected 10, got 9",
           [](A& a) { a.v_cache = Slice(a.v_cache, 2, 0, 9); }},
          {"v_cache: expected dtype f16, got bf16", [](A& a) { a.v_cache.dtype = DType::kBF16; }},
          {"k_cache overlaps k", [](A& a) { a.k_cache.data = a.k.data; }},
          {"k_cache overlaps v", [](A& a) { a.k_cache.data = a.v.data; }},
          {"v_cache overlaps v", [](A& a) { a.v_cache.data = a.v.data; }},
          {"v_cache overlaps k_cache", [](A& a) { a.v_cache.data = a.k_cache.data; }},
      });
  ExpectEachRejected<A>(
      good,
      {
          {"k_cache: expected dtype f32, f16, bf16 or i8, got u32",
           [](A& a) { a.k_cache.dtype = DType::kU32; }},
          {"k_cache: i8 needs k_scale and v_scale", [](A& a) { a.k_cache.dtype = DType::kI8; }},
          {"k_scale: only with k_cache of i8", [](A& a) { a.k_scale = a.k; }},
          {"v_scale: only with k_cache of i8", [](A& a) { a.v_scale = a.k; }},
          {"q: only with rope", [](A& a) { a.q = a.k; }},
          {"q_out: only with q", [](A& a) { a.q_out = a.k; }},
      });
}

TEST_F(KvAppendValidation, Quantized) {
  KvAppendArgs good;
  good.k = View(DType::kF32, {2, 3, 4, 8});
  good.v = View(DType::kBF16, {2, 3, 4, 6});
  good.k_cache = View(DType::kI8, {2, 3, 10, 8});
  good.v_cache = View(DType::kI8, {2, 3, 10, 6});
  good.k_scale = View(DType::kF32, {2, 3, 10});
  good.v_scale = View(DType::kF32, {2, 3, 10});
  using A = KvAppendArgs;
  ExpectViewIsChecked(good, &A::k_scale, "k_scale", /*required=*/false);
  ExpectViewIsChecked(good, &A::v_scale, "v_scale", /*required=*/false);
  ExpectEachRejected<A>(
      good,
      {
          {"v_cache: expected dtype i8, got f16", [](A& a) { a.v_cache.dtype = DType::kF16; }},
          {"k_cache: i8 needs k_scale and v_scale", [](A& a) { a.k_scale = {}; }},
          {"k_cache: i8 needs k_scale and v_scale", [](A& a) { a.v_scale = {}; }},
          {"k_scale: expected dtype f32, got f16", [](A& a) { a.k_scale.dtype = DType::kF16; }},
          {"k_scale: expected rank 3, got 2", [](A& a) { a.k_scale = Select(a.k_scale, 0, 0); }},
          {"v_scale dimension 0 (batch): expected 2, got 1",
           [](A& a) { a.v_scale = Slice(a.v_scale, 0, 0, 1); }},
          {"v_scale dimension 1 (key/value heads): expected 3, got 2",
           [](A& a) { a.v_scale = Slice(a.v_scale, 1, 0, 2); }},
          {"k_scale dimension 2 (capacity): expected 10, got 9",
           [](A& a) { a.k_scale = Slice(a.k_scale, 2, 0, 9); }},
          {"k_scale stride 2", [](A& a) { a.k_scale.strides[2] = 0; }},
          {"k_scale overlaps k", [](A& a) { a.k_scale.data = a.k.data; }},
          {"v_scale overlaps k_cache", [](A& a) { a.v_scale.data = a.k_cache.data; }},
          {"v_scale overlaps k_scale", [](A& a) { a.v_scale.data = a.k_scale.data; }},
      });
}

TEST_F(KvAppendValidation, RaggedAndPaged) {
  KvAppendArgs good;
  good.k = View(DType::kF32, {2, 3, 4, 8});
  good.v = View(DType::kF32, {2, 3, 4, 6});
  good.k_cache = View(DType::kF16, {5, 3, 4, 8});  // pages of 4 rows
  good.v_cache = View(DType::kF16, {5, 3, 4, 6});
  good.cache_lens = View(DType::kI32, {2});
  good.page_table = View(DType::kI32, {2, 3});
  const auto lens = [&](int32_t a, int32_t b) {
    good.cache_lens.As<int32_t>()[0] = a;
    good.cache_lens.As<int32_t>()[1] = b;
  };
  const std::array<int32_t, 6> pages = {4, 1, -7, -7, 2, 3};  // sequence 0: rows 2..5, 1: 8..11
  std::copy(pages.begin(), pages.end(), good.page_table.As<int32_t>());
  lens(2, 8);
  using A = KvAppendArgs;
  ExpectViewIsChecked(good, &A::cache_lens, "cache_lens", /*required=*/false);
  ExpectViewIsChecked(good, &A::page_table, "page_table", /*required=*/false);
  const auto entry = [](A& a, int64_t i) -> int32_t& { return a.page_table.As<int32_t>()[i]; };
  ExpectEachRejected<A>(
      good,
      {
          {"cache_lens is on cuda:0 but k is on cpu",
           [](A& a) {
             a.cache_lens.device = {DeviceKind::kCuda, 0};
           }},
          {"page_table is on cuda:0 but k is on cpu",
           [](A& a) {
             a.page_table.device = {DeviceKind::kCuda, 0};
           }},
          {"cache_lens dimension 0 (batch): expected 2, got 1",
           [](A& a) { a.cache_lens = Slice(a.cache_lens, 0, 0, 1); }},
          {"page_table dimension 0 (batch): expected 2, got 1",
           [](A& a) { a.page_table = Slice(a.page_table, 0, 0, 1); }},
          {"page_table: expected rank 2, got 1",
           [](A& a) { a.page_table = Select(a.page_table, 0, 0); }},
          {"page_table dimension 1: expected at most 2^48 rows, got 281474976710656 pages of 4",
           [](A& a) {
             a.page_table.shape[1] = int64_t{1} << 48;
             a.page_table.strides[1] = 0;
           }},
          {"position: expected 0 with cache_lens, got 1", [](A& a) { a.position = 1; }},
          {"v_cache dimension 0 (pages): expected 5, got 4",
           [](A& a) { a.v_cache = Slice(a.v_cache, 0, 0, 4); }},
          {"v_cache dimension 2 (page size): expected 4, got 3",
           [](A& a) { a.v_cache = Slice(a.v_cache, 2, 0, 3); }},
          {"k_cache dimension 2 (page size): expected >= 1, got 0",
           [](A& a) {
             a.k_cache = Slice(a.k_cache, 2, 0, 0);
             a.v_cache = Slice(a.v_cache, 2, 0, 0);
           }},
          {"position: expected 0..capacity - new tokens = 8, got 9",
           [](A& a) {
             a.cache_lens = {};
             a.position = 9;
           }},
          {"page_table[0, 2]: expected 0..4, got -7",  // rows 8..11
           [](A& a) {
             a.cache_lens = {};
             a.position = 8;
           }},
          {"k_cache overlaps page_table", [](A& a) { a.k_cache.data = a.page_table.data; }},
          {"v_cache overlaps cache_lens", [](A& a) { a.v_cache.data = a.cache_lens.data; }},
      });
  // The contents of the lists.
  lens(2, 9);
  ExpectRejected(good, "cache_lens[1]: expected 0..capacity - new tokens = 8, got 9");
  lens(-1, 8);
  ExpectRejected(good, "cache_lens[0]: expected 0..capacity - new tokens = 8, got -1");
  lens(2, 8);
  for (int64_t i : {0, 1, 5}) {
    const int32_t before = std::exchange(entry(good, i), 5);
    ExpectRejected(good, "expected 0..4, got 5");
    entry(good, i) = before;
  }
  ExpectEachRejected<A>(good, {});
}

TEST_F(KvAppendValidation, WithRope) {
  KvAppendArgs good;
  good.k = View(DType::kF32, {2, 3, 4, 8});
  good.v = View(DType::kF32, {2, 3, 4, 6});
  good.k_cache = View(DType::kF16, {2, 3, 10, 8});
  good.v_cache = View(DType::kF16, {2, 3, 10, 6});
  good.rope.positions = View(DType::kI32, {4});
  good.rope.inv_freq = View(DType::kF32, {4});
  good.q = View(DType::kBF16, {2, 6, 3, 8});
  good.q_out = View(DType::kF32, {2, 6, 3, 8});
  using A = KvAppendArgs;
  ExpectViewIsChecked(good, &A::q, "q", /*required=*/false);
  ExpectViewIsChecked(good, &A::q_out, "q_out");
  ExpectEachRejected<A>(
      good,
      {
          {"rope.positions: expected rank 1 or 2, got 3",
           [](A& a) { a.rope.positions = Select(a.k, 3, 0); }},
          {"rope.positions: expected rank 1..", [](A& a) { a.rope.positions = {}; }},
          {"rope.positions dimension 0 (tokens): expected 4, got 3",
           [](A& a) { a.rope.positions = Slice(a.rope.positions, 0, 0, 3); }},
          {"rope.positions: expected dtype i32",
           [](A& a) { a.rope.positions.dtype = DType::kF32; }},
          {"rope.positions is on cuda:0",
           [](A& a) {
             a.rope.positions.device = {DeviceKind::kCuda, 0};
           }},
          {"rope.inv_freq: expected rank 1, got 0", [](A& a) { a.rope.inv_freq = {}; }},
          {"rope.inv_freq dimension 0 (pairs): expected <= head_dim / 2 = 4, got 5",
           [](A& a) { a.rope.inv_freq.shape[0] = 5; }},
          {"rope.pairing: unknown value 9",
           [](A& a) { a.rope.pairing = static_cast<RopePairing>(9); }},
          {"rope.magnitude: expected a finite number", [](A& a) { a.rope.magnitude = INFINITY; }},
          {"q: only with rope", [](A& a) { a.rope = {}; }},
          {"q_out: expected to be given exactly when q is", [](A& a) { a.q = {}; }},
          {"q dimension 0 (batch): expected 2, got 1", [](A& a) { a.q = Slice(a.q, 0, 0, 1); }},
          {"q dimension 2 (queries): expected at most the new tokens, 4, got 5",
           [](A& a) { a.q.shape[2] = 5; }},
          {"q dimension 3 (head_dim): expected 8, got 7", [](A& a) { a.q = Slice(a.q, 3, 0, 7); }},
          {"q_out dimension 2 (shape of q): expected 3, got 2",
           [](A& a) { a.q_out = Slice(a.q_out, 2, 0, 2); }},
          {"q_out overlaps q", [](A& a) { a.q_out.data = a.q.data; }},  // other dtype
          {"q_out overlaps k", [](A& a) { a.q_out.data = a.k.data; }},
          {"q_out overlaps v_cache", [](A& a) { a.q_out.data = a.v_cache.data; }},
          {"k_cache overlaps rope.positions", [](A& a) { a.k_cache.data = a.rope.positions.data; }},
          {"v_cache overlaps rope.inv_freq", [](A& a) { a.v_cache.data = a.rope.inv_freq.data; }},
          {"k_cache overlaps q", [](A& a) { a.k_cache.data = a.q.data; }},
      });
  good.q_out = good.q;
  EXPECT_TRUE(Validate(good).ok()) << "in place";
}

}  // namespace
}  // namespace tandem
