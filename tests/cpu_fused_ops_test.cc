// Fused ops beyond their cases: the bits of the ops that they stand for. And what becomes of
// numbers that an int8 cache cannot hold.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "core/tensor.h"
#include "cpu/kernels.h"
#include "cpu/stream.h"
#include "tests/cases/random.h"

namespace tandem::cpu {
namespace {

class FusedOps : public testing::Test {
 protected:
  Tensor Make(DType dtype, const Shape& shape) {
    Tensor tensor = Tensor::Allocate(*allocator_, dtype, shape).value();
    std::memset(tensor.buffer()->data(), 0x5A, static_cast<size_t>(tensor.buffer()->bytes()));
    return tensor;
  }
  Tensor Random(DType dtype, const Shape& shape) {
    Tensor tensor = Make(dtype, shape);
    DispatchFloat(dtype, [&]<typename T>() {
      for (int64_t i = 0; i < tensor.view().num_elements(); ++i) {
        tensor.As<T>()[i] = FromFloat<T>(static_cast<float>(rng_.Normal()));
      }
    });
    return tensor;
  }
  Tensor Copy(const Tensor& from) {
    Tensor tensor = Make(from.view().dtype, from.view().shape);
    std::memcpy(tensor.buffer()->data(), from.buffer()->data(),
                static_cast<size_t>(from.buffer()->bytes()));
    return tensor;
  }
  static bool SameBytes(const Tensor& a, const Tensor& b) {
    return std::memcmp(a.buffer()->data(), b.buffer()->data(),
                       static_cast<size_t>(ByteExtent(a.view()))) == 0;
  }

  // The kernel of that name; false if this machine cannot run it.
  template <typename Args>
  bool Run(std::string_view name, const Args& args) {
    EXPECT_TRUE(Validate(args).ok()) << Validate(args);
    for (const Kernel<Args>& kernel : Kernels<Args>()) {
      if (kernel.name != name) continue;
      KernelContext context = {.stream = &stream_, .workspace = nullptr};
      if (!kernel.supports(context, args).ok()) return false;
      const auto memory = *allocator_->Allocate(kernel.workspace_bytes(context, args));
      Workspace workspace(memory->data(), memory->bytes());
      context.workspace = &workspace;
      EXPECT_TRUE(kernel.run(context, args).ok());
      return true;
    }
    ADD_FAILURE() << "no kernel " << name;
    return false;
  }

  std::unique_ptr<Allocator> allocator_ = MakeHostAllocator();
  CpuStream stream_{std::make_shared<ThreadPool>(2), DetectCpu()};
  cases::Rng rng_{77};
};

TEST_F(FusedOps, KvAppendHasTheBitsOfRopeThenAppend) {
  int compared = 0;
  for (const Kernel<KvAppendArgs>& kernel : Kernels<KvAppendArgs>()) {
    for (DType x : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (DType stored : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
        for (RopePairing pairing : {RopePairing::kHalf, RopePairing::kInterleaved}) {
          SCOPED_TRACE(testing::Message() << kernel.name << " " << Name(x) << " " << Name(stored));
          const int64_t tokens = 5, capacity = 9, dim = 70, pairs = 33, position = 3;
          Tensor positions = Make(DType::kI32, {tokens});
          for (int32_t i = 0; i < tokens; ++i) positions.As<int32_t>()[i] = 1000 + 77 * i;
          Tensor inv_freq = Make(DType::kF32, {pairs});
          for (int i = 0; i < pairs; ++i) {
            inv_freq.As<float>()[i] = std::pow(10000.0f, -static_cast<float>(i) / pairs);
          }
          const Tensor k = Random(x, {2, 3, tokens, dim}), v = Random(x, {2, 3, tokens, dim});
          const Tensor q = Random(x, {2, 6, 2, dim});  // of the last two tokens
          const Shape cache_shape = {2, 3, capacity, dim}, scale_shape = {2, 3, capacity};

          KvAppendArgs fused;
          fused.k = k;
          fused.v = v;
          fused.position = position;
          fused.rope = {positions, inv_freq, pairing, 1.25f};
          fused.q = q;
          const Tensor q_out = Make(x, {2, 6, 2, dim});
          fused.q_out = q_out;
          const Tensor fused_caches[4] = {Make(stored, cache_shape), Make(stored, cache_shape),
                                          Make(DType::kF32, scale_shape),
                                          Make(DType::kF32, scale_shape)};
          const Tensor caches[4] = {Make(stored, cache_shape), Make(stored, cache_shape),
                                    Make(DType::kF32, scale_shape), Make(DType::kF32, scale_shape)};
          const auto bind = [&](KvAppendArgs& args, const Tensor* to) {
            args.k_cache = to[0];
            args.v_cache = to[1];
            if (stored == DType::kI8) {
              args.k_scale = to[2];
              args.v_scale = to[3];
            }
          };
          bind(fused, fused_caches);
          if (!Run(kernel.name, fused)) continue;

          const Tensor rotated_k = Copy(k), rotated_q = Copy(q);
          RopeArgs rope;
          rope.x = rope.out = rotated_k;
          rope.positions = positions;
          rope.inv_freq = inv_freq;
          rope.pairing = pairing;
          rope.magnitude = 1.25f;
          ASSERT_TRUE(Run(kernel.name, rope));
          rope.x = rope.out = rotated_q;
          rope.positions = Slice(positions.view(), 0, tokens - 2, 2);
          ASSERT_TRUE(Run(kernel.name, rope));
          KvAppendArgs plain;
          plain.k = rotated_k;
          plain.v = v;
          plain.position = position;
          bind(plain, caches);
          ASSERT_TRUE(Run(kernel.name, plain));

          for (int i = 0; i < 4; ++i) EXPECT_TRUE(SameBytes(fused_caches[i], caches[i])) << i;
          EXPECT_TRUE(SameBytes(q_out, rotated_q));
          ++compared;
        }
      }
    }
  }
  EXPECT_GE(compared, 2 * 24) << "at least the scalar and the reference kernel run anywhere";
}

TEST_F(FusedOps, RmsNormHasTheBitsOfAddThenRmsNorm) {
  int compared = 0;
  for (const Kernel<RmsNormArgs>& kernel : Kernels<RmsNormArgs>()) {
    for (DType x : {DType::kF32, DType::kF16, DType::kBF16}) {
      for (DType sum : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (int64_t columns : {7, 2048, 2100}) {
          SCOPED_TRACE(testing::Message() << kernel.name << " " << Name(x) << " " << Name(sum));
          const Shape shape = {3, columns};
          const Tensor a = Random(x, shape), b = Random(x, shape);
          const Tensor weight = Random(DType::kF32, {columns});
          const Tensor added = Make(sum, shape), separate = Make(x, shape);
          const Tensor fused_sum = Make(sum, shape), fused = Make(x, shape);
          RmsNormArgs args;
          args.x = a;
          args.residual = b;
          args.sum = fused_sum;
          args.weight = weight;
          args.out = fused;
          if (!Run(kernel.name, args)) continue;
          AddArgs add;
          add.a = a;
          add.b = b;
          add.out = added;
          ASSERT_TRUE(Run(kernel.name, add));
          args.x = added;
          args.residual = args.sum = {};
          args.out = separate;
          ASSERT_TRUE(Run(kernel.name, args));
          EXPECT_TRUE(SameBytes(fused_sum, added));
          EXPECT_TRUE(SameBytes(fused, separate));
          ++compared;
        }
      }
    }
  }
  EXPECT_GE(compared, 2 * 27);
}

// One row quantised by every kernel.
TEST_F(FusedOps, Int8RowsOfExtremeNumbers) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  struct Row {
    std::vector<float> x;
    float scale;
    std::vector<int> q;
  };
  const std::vector<Row> rows = {
      {{0.0f, -0.0f, 0.0f}, 0.0f, {0, 0, 0}},
      {{127.0f, -127.0f, 0.5f}, 1.0f, {127, -127, 0}},  // ties to even
      {{127.0f, 1.5f, -2.5f}, 1.0f, {127, 2, -2}},
      {{1.0f, nan, 2.0f}, nan, {0, 0, 0}},
      {{1.0f, infinity, 2.0f}, nan, {0, 0, 0}},
      {{-infinity, 1.0f, 2.0f}, nan, {0, 0, 0}},
      {{1e-44f, 0.0f, -1e-44f}, 0.0f, {0, 0, 0}},  // the scale underflows
      // A scale of one subnormal step: quotients are cut at 127.
      {{127.0f * 0x1p-149f, -190.0f * 0x1p-149f, 0x1p-149f}, 0x1p-149f, {127, -127, 1}},
      {{3e38f, -3e38f, 1e38f}, 3e38f / 127.0f, {127, -127, 42}},
  };
  for (const Kernel<KvAppendArgs>& kernel : Kernels<KvAppendArgs>()) {
    for (const Row& row : rows) {
      for (int64_t width : {3, 40}) {  // in a tail only; in a whole vector, zeros behind
        SCOPED_TRACE(testing::Message() << kernel.name << " " << row.x[0] << ", " << row.x[1]);
        const Tensor k = Make(DType::kF32, {1, 1, 1, width});
        std::fill_n(k.As<float>(), width, 0.0f);
        std::copy(row.x.begin(), row.x.end(), k.As<float>());
        const Tensor k_cache = Make(DType::kI8, {1, 1, 1, width});
        const Tensor v_cache = Make(DType::kI8, {1, 1, 1, width});
        const Tensor k_scale = Make(DType::kF32, {1, 1, 1});
        const Tensor v_scale = Make(DType::kF32, {1, 1, 1});
        KvAppendArgs args;
        args.k = k;
        args.v = k;
        args.k_cache = k_cache;
        args.v_cache = v_cache;
        args.k_scale = k_scale;
        args.v_scale = v_scale;
        if (!Run(kernel.name, args)) continue;
        const float scale = *k_scale.As<float>();
        EXPECT_TRUE(std::isnan(row.scale) ? std::isnan(scale) : scale == row.scale) << scale;
        for (size_t i = 0; i < row.q.size(); ++i) {
          EXPECT_EQ(k_cache.As<int8_t>()[i], row.q[i]) << i;
          EXPECT_EQ(v_cache.As<int8_t>()[i], row.q[i]) << i;
        }
        for (int64_t i = 3; i < width; ++i) EXPECT_EQ(k_cache.As<int8_t>()[i], 0);
      }
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
