// Lists in device memory are not validated: whatever they hold, a kernel stays inside its tensors,
// and what it cannot place it does not write.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <climits>
#include <cmath>
#include <vector>

#include "core/status.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"

namespace tandem {
namespace {

class CudaBadLists : public testing::Test {
 protected:
  CudaBadLists() {
    ContextOptions options;
    EXPECT_TRUE(options.SetDevice("cuda:emulated").ok());
    context_ = std::move(Context::Create(options)).value();
  }

  // On the device, filled with `value`.
  Tensor Floats(const Shape& shape, float value) {
    Tensor host = Tensor::Allocate(context_->host_allocator(), DType::kF32, shape).value();
    std::fill_n(host.As<float>(), host.view().num_elements(), value);
    return CopyTo(*context_, DeviceKind::kCuda, host).value();
  }
  Tensor List(const Shape& shape, const std::vector<int32_t>& values) {
    Tensor host = Tensor::Allocate(context_->host_allocator(), DType::kI32, shape).value();
    std::copy(values.begin(), values.end(), host.As<int32_t>());
    Tensor tensor = CopyTo(*context_, DeviceKind::kCuda, host).value();
    EXPECT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
    return tensor;
  }
  std::vector<float> Read(const Tensor& tensor) {
    std::vector<float> values(static_cast<size_t>(tensor.view().num_elements()));
    EXPECT_TRUE(Copy(*context_, tensor, MakeView(values.data(), DType::kF32, tensor.shape())).ok());
    EXPECT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
    return values;
  }

  std::unique_ptr<Context> context_;
};

TEST_F(CudaBadLists, KvAppendWritesNothingOutsideTheCache) {
  constexpr int64_t kCapacity = 4;
  const Tensor fresh = Floats({5, 1, 1, 2}, 7.0f);
  const Tensor k = Floats({5, 1, kCapacity, 2}, 1.0f), v = Floats({5, 1, kCapacity, 2}, 1.0f);
  KvAppendArgs args;
  args.k = args.v = fresh;
  args.k_cache = k;
  args.v_cache = v;
  const Tensor lens = List({5}, {-1, INT_MIN, 3, 4, INT_MAX});
  args.cache_lens = lens;
  ASSERT_TRUE(KvAppendInto(*context_, args).ok());
  for (const Tensor& cache : {k, v}) {
    const std::vector<float> values = Read(cache);
    for (int64_t i = 0; i < static_cast<int64_t>(values.size()); ++i) {
      const int64_t sequence = i / (kCapacity * 2), row = i / 2 % kCapacity;
      EXPECT_EQ(values[static_cast<size_t>(i)], sequence == 2 && row == 3 ? 7.0f : 1.0f)
          << "sequence " << sequence << " row " << row;
    }
  }
}

TEST_F(CudaBadLists, KvAppendFollowsNoBadPage) {
  const Tensor fresh = Floats({3, 1, 1, 2}, 7.0f);
  const Tensor k = Floats({2, 1, 4, 2}, 1.0f), v = Floats({2, 1, 4, 2}, 1.0f);
  KvAppendArgs args;
  args.k = args.v = fresh;
  args.k_cache = k;
  args.v_cache = v;
  const Tensor lens = List({3}, {0, 0, 0}), pages = List({3, 1}, {-1, 2, INT_MAX});
  args.cache_lens = lens;
  args.page_table = pages;
  ASSERT_TRUE(KvAppendInto(*context_, args).ok());
  for (const float x : Read(k)) EXPECT_EQ(x, 1.0f);
}

TEST_F(CudaBadLists, AttentionStaysInsideItsTensors) {
  const Tensor q = Floats({4, 2, 1, 8}, 0.5f), k = Floats({4, 1, 6, 8}, 0.25f);
  const Tensor out = Floats({4, 2, 1, 8}, -1.0f);
  AttentionArgs args;
  args.q = q;
  args.k = args.v = k;
  args.out = out;
  for (const std::vector<int32_t>& bad :
       {std::vector<int32_t>{-1, INT_MIN, 7, INT_MAX}, std::vector<int32_t>{0, 6, -6, 1 << 20}}) {
    const Tensor list = List({4}, bad);
    for (TensorView AttentionArgs::*field :
         {&AttentionArgs::q_lens, &AttentionArgs::kv_lens, &AttentionArgs::kv_starts}) {
      AttentionArgs with = args;
      with.*field = list;
      ASSERT_TRUE(AttentionInto(*context_, with).ok());
      // All values are alike: a row is their mean, or 0 if it sees none.
      for (const float x : Read(out)) EXPECT_TRUE(std::fabs(x - 0.25f) < 1e-6f || x == 0.0f) << x;
    }
  }
}

TEST_F(CudaBadLists, PackedRowsOfNoSequenceAreEmpty) {
  const Tensor q = Floats({1, 2, 3, 8}, 0.5f), k = Floats({2, 1, 6, 8}, 0.25f);
  const Tensor out = Floats({1, 2, 3, 8}, -1.0f);
  AttentionArgs args;
  args.q = q;
  args.k = args.v = k;
  args.out = out;
  for (const std::vector<int32_t>& offsets :
       {std::vector<int32_t>{0, 0, 0}, std::vector<int32_t>{3, 2, 1},
        std::vector<int32_t>{-5, -4, -3}, std::vector<int32_t>{9, 10, 11}}) {
    const Tensor list = List({3}, offsets), lens = List({2}, {6, 6});
    args.q_offsets = list;
    args.kv_lens = lens;
    ASSERT_TRUE(AttentionInto(*context_, args).ok());
    for (const float x : Read(out)) EXPECT_EQ(x, 0.0f);
  }
}

TEST_F(CudaBadLists, PagedAttentionFollowsNoBadPage) {
  const Tensor q = Floats({3, 2, 1, 8}, 0.5f), pool = Floats({2, 1, 4, 8}, 0.25f);
  const Tensor out = Floats({3, 2, 1, 8}, -1.0f);
  AttentionArgs args;
  args.q = q;
  args.k = args.v = pool;
  args.out = out;
  const Tensor lens = List({3}, {4, 4, 4}), pages = List({3, 1}, {-1, 2, 1});
  args.kv_lens = lens;
  args.page_table = pages;
  ASSERT_TRUE(AttentionInto(*context_, args).ok());
  const std::vector<float> values = Read(out);
  for (size_t i = 0; i < values.size(); ++i) {
    EXPECT_NEAR(values[i], i < 32 ? 0.0f : 0.25f, 1e-6f) << i;
  }
}

}  // namespace
}  // namespace tandem
