// Shapes, views, tensors, buffers, workspace, KV cache.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>

#include "core/buffer.h"
#include "core/kernel.h"
#include "core/kv_cache.h"
#include "core/status.h"
#include "core/tensor.h"
#include "core/tensor_view.h"
#include "core/workspace.h"
#include "tests/cases/random.h"
#include "tests/reference/elements.h"

namespace tandem {
namespace {

using ::testing::HasSubstr;

TEST(Shape, CountsAndOverflow) {
  EXPECT_EQ(NumElements({}), 1);
  EXPECT_EQ(NumElements({2, 3, 4}), 24);
  EXPECT_EQ(NumElements({2, 0, 4}), 0);
  EXPECT_EQ(NumElements({INT64_MAX, 0, INT64_MAX}), 0) << "empty, whatever else it claims";
  EXPECT_EQ(NumElements({INT64_MAX, 1}), INT64_MAX);
  EXPECT_EQ(NumElements({int64_t{1} << 32, int64_t{1} << 31}), std::nullopt);
  EXPECT_EQ(NumElements({0, -1}), std::nullopt);
  EXPECT_EQ(NumElements({-1, -1}), std::nullopt);
  EXPECT_EQ(NumElements({1, 1, 1, 1, 1, 1}), std::nullopt) << "rank 6";
  Shape negative_rank;
  negative_rank.rank = -1;
  EXPECT_EQ(NumElements(negative_rank), std::nullopt);
  EXPECT_EQ(ToString(Shape{2, 8, 1, 64}), "[2, 8, 1, 64]");
  EXPECT_EQ(ToString(Shape{}), "[]");
  EXPECT_TRUE((Shape{2, 3} == Shape{2, 3}));
  EXPECT_FALSE((Shape{2, 3} == Shape{2, 3, 1}));
  EXPECT_FALSE((Shape{2, 3} == Shape{2, 4}));
}

TEST(Shape, CheckedArithmetic) {
  EXPECT_EQ(CheckedMul(1 << 20, 1 << 20), int64_t{1} << 40);
  EXPECT_EQ(CheckedMul(INT64_MAX, 2), std::nullopt);
  EXPECT_EQ(CheckedMul(INT64_MIN, -1), std::nullopt);
  EXPECT_EQ(CheckedAdd(INT64_MAX, 0), INT64_MAX);
  EXPECT_EQ(CheckedAdd(INT64_MAX, 1), std::nullopt);
}

std::vector<float> Iota(int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  return values;
}

TEST(TensorView, Parts) {
  std::vector<float> memory = Iota(24);
  const TensorView x = MakeView(memory.data(), DType::kF32, {2, 3, 4});
  EXPECT_TRUE(IsContiguous(x));
  EXPECT_EQ(x.dim(-1), 4);
  EXPECT_EQ(x.stride(-2), 4);
  EXPECT_EQ(ByteExtent(x), 96);
  EXPECT_EQ(ToString(x), "f32 [2, 3, 4]");

  const TensorView slice = Slice(x, 1, 1, 2);
  EXPECT_THAT(reference::ReadAll(slice),
              testing::ElementsAre(4, 5, 6, 7, 8, 9, 10, 11, 16, 17, 18, 19, 20, 21, 22, 23));
  EXPECT_FALSE(IsContiguous(slice));
  EXPECT_THAT(reference::ReadAll(Select(x, 0, 1)),
              testing::ElementsAre(12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23));
  EXPECT_THAT(reference::ReadAll(Select(Select(x, 2, 3), 0, 0)), testing::ElementsAre(3, 7, 11));
  const TensorView transposed = Transpose(Select(x, 0, 0), 0, 1);
  EXPECT_THAT(reference::ReadAll(transposed),
              testing::ElementsAre(0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11));
  const TensorView split = SplitDim(x, 2, 2, 2);
  EXPECT_TRUE((split.shape == Shape{2, 3, 2, 2}));
  EXPECT_EQ(reference::ReadAll(split), reference::ReadAll(x));
  EXPECT_THAT(reference::ReadAll(Transpose(SplitDim(Select(x, 0, 0), 1, 2, 2), 0, 1)),
              testing::ElementsAre(0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11));
  const TensorView empty = Slice(x, 0, 2, 0);
  EXPECT_EQ(empty.data, x.data) << "the pointer of an empty slice stays inside";
  EXPECT_EQ(ByteExtent(empty), 0);
}

TEST(TensorView, ContiguityIgnoresExtentsOfOneAndEmptyViews) {
  std::vector<float> memory(64);
  TensorView x = MakeView(memory.data(), DType::kF32, {1, 4, 1, 2});
  x.strides = {77, 2, 99, 1};
  EXPECT_TRUE(IsContiguous(x));
  x.strides[1] = 3;
  EXPECT_FALSE(IsContiguous(x));
  x.shape[3] = 0;
  EXPECT_TRUE(IsContiguous(x));
}

TEST(TensorView, BlockFormatsAreAddressedByBlocks) {
  std::vector<BlockQ4_0> memory(6);
  const TensorView x = MakeView(memory.data(), DType::kQ4_0, {2, 96});
  EXPECT_TRUE(ValidateView("x", x).ok());
  EXPECT_EQ(ByteExtent(x), 6 * 18);
  EXPECT_EQ(static_cast<char*>(Slice(x, 0, 1, 1).data) - static_cast<char*>(x.data), 54);
  EXPECT_EQ(static_cast<char*>(Slice(x, 1, 32, 32).data) - static_cast<char*>(x.data), 18);
  EXPECT_TRUE(ValidateView("x", Slice(x, 1, 32, 64)).ok());
  EXPECT_FALSE(ValidateView("x", Slice(x, 1, 0, 33)).ok());
  EXPECT_TRUE(ValidateView("x", MakeView(memory.data(), DType::kQ8_0, {100, 0})).ok());
}

TEST(TensorView, Overlap) {
  std::vector<float> memory(100);
  const TensorView a = MakeView(memory.data(), DType::kF32, {10});
  const TensorView next = MakeView(memory.data() + 10, DType::kF32, {10});
  const TensorView crossing = MakeView(memory.data() + 9, DType::kF32, {10});
  EXPECT_FALSE(Overlaps(a, next));
  EXPECT_TRUE(Overlaps(a, crossing));
  EXPECT_TRUE(Overlaps(crossing, a));
  EXPECT_FALSE(Overlaps(a, MakeView(memory.data() + 5, DType::kF32, {0})));
  TensorView elsewhere = a;
  elsewhere.device = {DeviceKind::kCuda, 0};
  EXPECT_FALSE(Overlaps(a, elsewhere));
  EXPECT_TRUE(SameElements(a, a));
  EXPECT_FALSE(SameElements(a, crossing));
  TensorView row = MakeView(memory.data(), DType::kF32, {1, 10});
  TensorView same_row = row;
  same_row.strides[0] = 50;  // never stepped over
  EXPECT_TRUE(SameElements(row, same_row));
}

// ValidateOutput against the definition: no two indices share an address.
TEST(TensorView, OutputsThatShareAddressesAreRejected) {
  cases::Rng rng(5);
  std::vector<float> memory(4096);
  int accepted = 0, rejected = 0, conservative = 0;
  for (int i = 0; i < 3000; ++i) {
    TensorView view = MakeView(memory.data(), DType::kF32,
                               {rng.Integer(1, 4), rng.Integer(1, 4), rng.Integer(1, 4)});
    for (int axis = 0; axis < 3; ++axis) view.strides[axis] = rng.Integer(0, 20);
    std::vector<int64_t> offsets;
    reference::ForEachOffset(view, [&](int64_t offset) { offsets.push_back(offset); });
    std::sort(offsets.begin(), offsets.end());
    const bool shared = std::adjacent_find(offsets.begin(), offsets.end()) != offsets.end();
    const bool ok = ValidateOutput("out", view, 3).ok();
    EXPECT_FALSE(ok && shared) << "shape " << ToString(view.shape) << " strides " << view.strides[0]
                               << ", " << view.strides[1] << ", " << view.strides[2];
    accepted += ok;
    rejected += !ok;
    conservative += !ok && !shared;  // interleaved dimensions: allowed to be refused
  }
  EXPECT_GT(accepted, 300);
  EXPECT_GT(rejected, 300);
  EXPECT_LT(conservative, rejected / 2);
}

TEST(Tensor, AllocateChecksAndAligns) {
  const std::unique_ptr<Allocator> allocator = MakeHostAllocator();
  {
    const auto x = Tensor::Allocate(*allocator, DType::kF16, {3, 5});
    ASSERT_TRUE(x.ok());
    EXPECT_EQ(reinterpret_cast<uintptr_t>(x->view().data) % kBufferAlignment, 0u);
    EXPECT_EQ(allocator->bytes_in_use(), 30);
    const Tensor shared = *x;
    EXPECT_EQ(shared.view().data, x->view().data);
    EXPECT_EQ(allocator->bytes_in_use(), 30) << "a copy shares the memory";
    const auto blocks = Tensor::Allocate(*allocator, DType::kQ8_0, {2, 64});
    ASSERT_TRUE(blocks.ok());
    EXPECT_EQ(blocks->buffer()->bytes(), 4 * 34);
    const auto empty = Tensor::Allocate(*allocator, DType::kF32, {0, 5});
    ASSERT_TRUE(empty.ok());
    EXPECT_TRUE(empty->view().empty());
  }
  EXPECT_EQ(allocator->bytes_in_use(), 0);
  const auto message = [&](DType dtype, const Shape& shape) {
    const auto tensor = Tensor::Allocate(*allocator, dtype, shape);
    EXPECT_EQ(tensor.status().code(), absl::StatusCode::kInvalidArgument);
    return Message(tensor.status());
  };
  EXPECT_THAT(message(DType::kF32, {-1}), HasSubstr("negative"));
  EXPECT_THAT(message(DType::kF32, {}), HasSubstr("rank"));
  EXPECT_THAT(message(DType::kF32, {1, 1, 1, 1, 1, 1}), HasSubstr("rank"));
  EXPECT_THAT(message(DType::kQ4_0, {33}), HasSubstr("block"));
  EXPECT_THAT(message(DType::kF32, {INT64_MAX, 2}), HasSubstr("64 bits"));
  EXPECT_THAT(message(DType::kF32, {INT64_MAX / 2}), HasSubstr("64 bits"));
  EXPECT_THAT(message(static_cast<DType>(99), {1}), HasSubstr("unknown dtype"));
}

// An allocator without memory, as a device may be.
class NoMemory final : public Allocator {
 public:
  Device device() const override { return {DeviceKind::kCuda, 3}; }
  int64_t bytes_in_use() const override { return 0; }

 protected:
  absl::StatusOr<void*> AllocateBytes(int64_t) override { return nullptr; }
  void Free(void*, int64_t) override {}
};

TEST(Allocator, OutOfMemoryIsResourceExhausted) {
  NoMemory none;
  const auto buffer = none.Allocate(100);
  EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(Message(buffer.status()), HasSubstr("100 bytes on cuda:3"));
  EXPECT_TRUE(none.Allocate(0).ok());
  EXPECT_EQ(none.Allocate(-1).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(KvCache::Create(none, {.kv_heads = 1, .capacity = 8, .head_dim = 4}).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(Allocator, LargeBlocksAreUsableToTheLastByte) {
  const std::unique_ptr<Allocator> allocator = MakeHostAllocator();
  for (int64_t bytes : {kHugePageThreshold - 1, kHugePageThreshold, kHugePageThreshold + 1}) {
    const auto buffer = allocator->Allocate(bytes);
    ASSERT_TRUE(buffer.ok());
    EXPECT_EQ((*buffer)->bytes(), bytes);
    std::memset((*buffer)->data(), 7, static_cast<size_t>(bytes));
  }
  EXPECT_FALSE(allocator->Allocate(INT64_MAX).ok());
  EXPECT_EQ(allocator->bytes_in_use(), 0);
}

TEST(Workspace, CountingAndCarvingAgree) {
  const auto carve = [](Workspace& w) {
    std::vector<void*> parts = {w.Take<float>(3), w.Take<char>(65), w.Take<double>(0),
                                w.Take<int64_t>(8)};
    return parts;
  };
  Workspace counter = Workspace::Counting();
  for (void* part : carve(counter)) EXPECT_EQ(part, nullptr);
  EXPECT_TRUE(counter.ok());
  EXPECT_EQ(counter.bytes_used(), 64 + 128 + 0 + 64);

  alignas(64) char memory[256];
  Workspace workspace(memory, 256);
  const std::vector<void*> parts = carve(workspace);
  EXPECT_TRUE(workspace.ok());
  EXPECT_EQ(parts[0], memory);
  EXPECT_EQ(parts[1], memory + 64);
  EXPECT_EQ(parts[3], memory + 192);
  EXPECT_EQ(workspace.bytes_used(), counter.bytes_used());
  EXPECT_EQ(workspace.Take<char>(1), nullptr) << "full";
  EXPECT_FALSE(workspace.ok());
}

TEST(Workspace, AbsurdSizesAreRefused) {
  for (int64_t count : {int64_t{-1}, INT64_MAX, INT64_MAX / 4, INT64_MIN}) {
    Workspace counter = Workspace::Counting();
    EXPECT_EQ(counter.Take<double>(count), nullptr);
    EXPECT_FALSE(counter.ok()) << count;
    EXPECT_EQ(counter.bytes_used(), 0);
  }
  Workspace nothing;
  EXPECT_EQ(nothing.Take<float>(0), nullptr);
  EXPECT_TRUE(nothing.ok());
  EXPECT_EQ(nothing.Take<float>(1), nullptr);
  EXPECT_FALSE(nothing.ok());
}

TEST(KvCache, FillsAndForgets) {
  const std::unique_ptr<Allocator> allocator = MakeHostAllocator();
  auto cache = KvCache::Create(*allocator, {.batch = 2,
                                            .kv_heads = 3,
                                            .capacity = 10,
                                            .head_dim = 8,
                                            .v_head_dim = 6,
                                            .dtype = DType::kBF16});
  ASSERT_TRUE(cache.ok()) << cache.status().ToString();
  EXPECT_EQ(cache->capacity(), 10);
  EXPECT_EQ(cache->length(), 0);
  EXPECT_EQ(cache->bytes(), 2 * 3 * 10 * (8 + 6) * 2);
  EXPECT_TRUE(cache->Keys().empty());
  ASSERT_TRUE(cache->Advance(4).ok());
  ASSERT_TRUE(cache->Advance(6).ok());
  EXPECT_TRUE((cache->Keys().shape == Shape{2, 3, 10, 8}));
  EXPECT_TRUE((cache->Values().shape == Shape{2, 3, 10, 6}));
  for (int64_t tokens : {int64_t{1}, int64_t{-1}, INT64_MAX, INT64_MIN}) {
    const absl::Status status = cache->Advance(tokens);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(Message(status), HasSubstr("tokens: expected 0..0"));
  }
  EXPECT_EQ(cache->length(), 10);
  ASSERT_TRUE(cache->Truncate(3).ok());
  EXPECT_TRUE((cache->Keys().shape == Shape{2, 3, 3, 8}));
  EXPECT_EQ(cache->Keys().data, cache->k().data);
  for (int64_t length : {int64_t{4}, int64_t{-1}}) {
    EXPECT_THAT(Message(cache->Truncate(length)), HasSubstr("length: expected 0..3"));
  }
  EXPECT_EQ(cache->length(), 3);
}

TEST(KvCache, Int8HasScales) {
  const std::unique_ptr<Allocator> allocator = MakeHostAllocator();
  auto cache = KvCache::Create(
      *allocator, {.batch = 2, .kv_heads = 3, .capacity = 16, .head_dim = 8, .dtype = DType::kI8});
  ASSERT_TRUE(cache.ok()) << cache.status().ToString();
  EXPECT_EQ(cache->bytes(), 2 * (2 * 3 * 16 * 8 + 2 * 3 * 16 * 4));
  ASSERT_TRUE(cache->Advance(5).ok());
  EXPECT_TRUE((cache->k_scale().shape == Shape{2, 3, 16}));
  EXPECT_TRUE((cache->KeyScales().shape == Shape{2, 3, 5}));
  EXPECT_TRUE((cache->ValueScales().shape == Shape{2, 3, 5}));
  EXPECT_NE(cache->k_scale().data, cache->v_scale().data);
  const auto plain = KvCache::Create(*allocator, {.kv_heads = 1, .capacity = 4, .head_dim = 8});
  ASSERT_TRUE(plain.ok());
  EXPECT_FALSE(plain->k_scale().present());
  EXPECT_FALSE(plain->KeyScales().present());
}

TEST(KvCache, BadSizesAreRejected) {
  const std::unique_ptr<Allocator> allocator = MakeHostAllocator();
  const auto code = [&](const KvCacheShape& shape) {
    return KvCache::Create(*allocator, shape).status().code();
  };
  const KvCacheShape good{.kv_heads = 1, .capacity = 4, .head_dim = 8};
  EXPECT_EQ(code(good), absl::StatusCode::kOk);
  const auto with = [&](auto field, auto value) {
    KvCacheShape shape = good;
    shape.*field = value;
    return code(shape);
  };
  const auto invalid = absl::StatusCode::kInvalidArgument;
  for (int64_t value : {int64_t{0}, int64_t{-1}, INT64_MIN, INT64_MAX}) {
    EXPECT_EQ(with(&KvCacheShape::batch, value), invalid) << value;
    EXPECT_EQ(with(&KvCacheShape::kv_heads, value), invalid) << value;
    EXPECT_EQ(with(&KvCacheShape::capacity, value), invalid) << value;
    EXPECT_EQ(with(&KvCacheShape::head_dim, value), invalid) << value;
  }
  EXPECT_EQ(with(&KvCacheShape::v_head_dim, int64_t{-1}), invalid);
  EXPECT_EQ(with(&KvCacheShape::v_head_dim, INT64_MAX), invalid);
  EXPECT_EQ(with(&KvCacheShape::dtype, DType::kQ8_0), invalid);
  EXPECT_EQ(with(&KvCacheShape::dtype, static_cast<DType>(50)), invalid);
  EXPECT_EQ(allocator->bytes_in_use(), 0);
}

}  // namespace
}  // namespace tandem
