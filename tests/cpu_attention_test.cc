// Attention kernels of the CPU against a plain fp64 loop: layouts, masks, dtypes, and the
// properties that a grid of random cases does not show (NaN handling, determinism, no allocation).
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "core/ops/attention.h"
#include "core/ops/online_softmax.h"
#include "cpu/kernels.h"
#include "cpu/stream.h"
#include "tests/allocation_counter.h"
#include "tests/cpu_attention_testing.h"

namespace tandem::cpu {
namespace {

TEST(CpuAttention, RandomProblems) {
  Machine machine(2);
  std::mt19937 random(20240611);
  const auto pick = [&](auto... options) {
    const std::array values = {options...};
    return values[random() % values.size()];
  };
  for (int n = 0; n < 150; ++n) {
    Problem p;
    p.seed = random();
    p.batch = pick(1, 1, 2);
    p.kv_heads = pick(1, 2, 3);
    p.q_heads = p.kv_heads * pick(1, 2, 3, 4, 5, 7, 8, 12, 16);
    p.q_len = pick(1, 1, 1, 2, 3, 8, 9, 17, 70);
    p.cache = pick(0, 1, 2, 3, 7, 16, 33, 127, 128, 129, 200, 300, 700);
    p.fresh = pick(0, 0, 1, 5, 40);
    p.head_dim = pick(1, 5, 16, 32, 40, 63, 64, 80, 96, 128, 192);
    p.v_head_dim = pick(p.head_dim, p.head_dim, int64_t{1}, int64_t{17}, int64_t{72}, int64_t{96});
    p.q_type = pick(DType::kF32, DType::kF16, DType::kBF16);
    p.kv_type = pick(DType::kF32, DType::kF16, DType::kBF16);
    p.new_type = pick(DType::kF32, DType::kF16, DType::kBF16);
    p.out_type = pick(DType::kF32, DType::kF16, DType::kBF16);
    p.causal = pick(Causal::kNone, Causal::kBottomRight, Causal::kBottomRight, Causal::kTopLeft);
    p.window_left = pick(-1, -1, 0, 3, 20, 150);
    p.window_right = pick(-1, -1, 0, 2, 40);
    p.pad = pick(0, 1, 16);
    p.transposed = pick(false, true);
    CheckAllKernels(p, machine);
    if (HasFailure()) break;
  }
}

TEST(CpuAttention, LongCacheInManyChunks) {
  Machine machine(2);
  for (DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    Problem p;
    p.q_heads = 8;
    p.kv_heads = 1;
    p.cache = 5000;
    p.kv_type = dtype;
    CheckAllKernels(p, machine);
    p.q_len = 5;
    CheckAllKernels(p, machine);
  }
}

TEST(CpuAttention, EveryDecodeBlockShape) {
  Machine machine(1);
  for (int64_t group = 1; group <= 20; ++group) {
    Problem p;
    p.kv_heads = 2;
    p.q_heads = 2 * group;
    p.cache = 37;
    p.head_dim = 24;
    CheckAllKernels(p, machine);
  }
}

TEST(CpuAttention, BitIdenticalAtAnyThreadCount) {
  for (int64_t q_len : {int64_t{1}, int64_t{4}, int64_t{150}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      p.q_heads = 6;
      p.cache = 1500;
      p.fresh = 3;
      p.q_len = q_len;
      p.kv_type = DType::kF16;
      std::vector<uint8_t> first_out, first_lse;
      for (int threads : {1, 2, 3, 5}) {
        Machine machine(threads);
        Tensors tensors(p);
        const AttentionArgs args = tensors.Args(p);
        if (!machine.Supports(kernel, args).ok()) continue;
        ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
        if (threads == 1) {
          first_out = tensors.out.bytes();
          first_lse = tensors.lse.bytes();
        }
        EXPECT_EQ(tensors.out.bytes(), first_out) << kernel.name << " threads " << threads;
        EXPECT_EQ(tensors.lse.bytes(), first_lse) << kernel.name << " threads " << threads;
      }
    }
  }
}

TEST(CpuAttention, MaskedNanNeverLeaksAndVisibleNanPropagates) {
  Machine machine(2);
  for (int64_t q_len : {int64_t{1}, int64_t{6}, int64_t{100}}) {
    for (int64_t poisoned = 0; poisoned < 130; poisoned += q_len == 100 ? 13 : 9) {
      for (const bool in_k : {true, false}) {
        for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
          Problem p;
          p.q_len = q_len;
          p.cache = 130;
          p.window_left = 50;
          Tensors tensors(p);
          const AttentionArgs args = tensors.Args(p);
          if (!machine.Supports(kernel, args).ok()) continue;
          // One kv head only: the other one's rows must stay clean.
          TestTensor& t = in_k ? tensors.k : tensors.v;
          t.Set(t.Offset(0, 1, poisoned, 7), kNan);
          const std::string what =
              absl::StrCat(std::string(kernel.name), " key ", poisoned, in_k ? " k " : " v ") +
              p.ToString();
          ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus()) << what;
          ExpectMatches(tensors, args, what);
        }
      }
    }
  }
}

TEST(CpuAttention, NanInQueryMakesItsRowNan) {
  Machine machine(2);
  for (int64_t q_len : {int64_t{1}, int64_t{40}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      p.q_len = q_len;
      Tensors tensors(p);
      const AttentionArgs args = tensors.Args(p);
      if (!machine.Supports(kernel, args).ok()) continue;
      tensors.q.Set(tensors.q.Offset(0, 1, q_len - 1, 3), kNan);
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
      ExpectMatches(tensors, args, std::string(kernel.name));
      EXPECT_TRUE(std::isnan(tensors.out.Get(tensors.out.Offset(0, 1, q_len - 1, 0))));
      EXPECT_FALSE(std::isnan(tensors.out.Get(tensors.out.Offset(0, 0, q_len - 1, 0))));
    }
  }
}

TEST(CpuAttention, RowsThatSeeNothingAreZeroWithLseMinusInfinity) {
  Machine machine(2);
  for (int64_t cache : {int64_t{0}, int64_t{3}}) {
    for (int64_t q_len : {int64_t{6}, int64_t{30}}) {
      for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
        Problem p;
        p.cache = cache;
        p.q_len = q_len;  // more queries than keys: the first ones see none
        Tensors tensors(p);
        const AttentionArgs args = tensors.Args(p);
        if (!machine.Supports(kernel, args).ok()) continue;
        ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
        ExpectMatches(tensors, args, std::string(kernel.name));
        for (int64_t i = 0; i < q_len - cache; ++i) {
          EXPECT_EQ(std::bit_cast<uint32_t>(tensors.out.Get(tensors.out.Offset(0, 2, i, 5))), 0u);
          EXPECT_EQ(tensors.lse.Get(tensors.lse.Offset(0, 2, i)), kNegInf);
        }
      }
    }
  }
}

TEST(CpuAttention, ScoresBeyondTheRangeOfF16) {
  Machine machine(1);
  for (int64_t q_len : {int64_t{1}, int64_t{20}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      p.q_type = p.kv_type = DType::kF16;
      p.q_len = q_len;
      p.amplitude = 400.0f;  // scores of a few hundred thousand
      Tensors tensors(p);
      const AttentionArgs args = tensors.Args(p);
      if (!machine.Supports(kernel, args).ok()) continue;
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
      const Expected expected = Reference(args);
      size_t n = 0;
      double worst = 0.0;
      tensors.out.ForEach([&](int64_t offset) {
        worst = std::max(worst, std::abs(tensors.out.Get(offset) - expected.out[n++]));
      });
      // One score of 4e5 in f32 is good to 0.03, and so are the weights.
      EXPECT_LE(worst, 0.1) << kernel.name;
      EXPECT_GT(*std::max_element(expected.lse.begin(), expected.lse.end()), 70000.0);
    }
  }
}

TEST(CpuAttention, NewKeysBesideTheCacheEqualAppendedOnes) {
  Machine machine(2);
  for (int64_t q_len : {int64_t{1}, int64_t{4}, int64_t{33}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem beside;
      beside.cache = 300 - q_len;
      beside.fresh = q_len;
      beside.q_len = q_len;
      Tensors split(beside);
      Problem appended = beside;
      appended.cache = 300;
      appended.fresh = 0;
      Tensors whole(appended);
      for (auto [part, fresh, all] : {std::tuple(&split.k, &split.k_new, &whole.k),
                                      std::tuple(&split.v, &split.v_new, &whole.v)}) {
        for (int64_t h = 0; h < beside.kv_heads; ++h)
          for (int64_t j = 0; j < 300; ++j)
            for (int64_t d = 0; d < beside.head_dim; ++d)
              all->Set(all->Offset(0, h, j, d),
                       j < beside.cache ? part->Get(part->Offset(0, h, j, d))
                                        : fresh->Get(fresh->Offset(0, h, j - beside.cache, d)));
      }
      const AttentionArgs split_args = split.Args(beside);
      if (!machine.Supports(kernel, split_args).ok()) continue;
      ASSERT_EQ(machine.Run(kernel, split_args), absl::OkStatus());
      ASSERT_EQ(machine.Run(kernel, whole.Args(appended)), absl::OkStatus());
      double worst = 0.0;
      split.out.ForEach([&](int64_t offset) {
        worst = std::max(
            worst, static_cast<double>(std::abs(split.out.Get(offset) - whole.out.Get(offset))));
      });
      EXPECT_LE(worst, 2e-6) << kernel.name;
    }
  }
}

TEST(CpuAttention, BroadcastKeysAndQueries) {
  Machine machine(2);
  for (int64_t q_len : {int64_t{2}, int64_t{20}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      p.batch = 3;
      p.kv_heads = 2;
      p.q_len = q_len;
      Tensors tensors(p);
      AttentionArgs args = tensors.Args(p);
      args.k.strides[0] = 0;  // all sequences share one cache
      args.v.strides[0] = 0;
      args.q.strides[1] = 0;  // all heads ask the same
      ASSERT_EQ(Validate(args), absl::OkStatus());
      if (!machine.Supports(kernel, args).ok()) continue;
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
      ExpectMatches(tensors, args, std::string(kernel.name));
    }
  }
}

TEST(CpuAttention, StridedHeadDimensionOnlyByTheReference) {
  Machine machine(1);
  Problem p;
  p.head_dim = 2 * 64;  // every other element
  Tensors tensors(p);
  AttentionArgs args = tensors.Args(p);
  args.q.shape.dims[3] = args.k.shape.dims[3] = 64;
  args.q.strides[3] = args.k.strides[3] = 2;
  ASSERT_EQ(Validate(args), absl::OkStatus());
  for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
    const absl::Status can = machine.Supports(kernel, args);
    if (kernel.name == "reference") {
      ASSERT_EQ(can, absl::OkStatus());
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
      ExpectMatches(tensors, args, "reference");
    } else {
      EXPECT_EQ(can.code(), absl::StatusCode::kUnimplemented) << kernel.name;
      EXPECT_THAT(std::string(can.message()), testing::HasSubstr("stride")) << kernel.name;
    }
  }
}

TEST(CpuAttention, ExplicitScaleAndNoLse) {
  Machine machine(1);
  for (int64_t q_len : {int64_t{1}, int64_t{20}}) {
    for (float scale : {0.0f, -0.3f, 0.5f}) {
      for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
        Problem p;
        p.q_len = q_len;
        Tensors tensors(p);
        AttentionArgs args = tensors.Args(p);
        args.scale = scale;
        args.lse = {};
        if (!machine.Supports(kernel, args).ok()) continue;
        ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
        ExpectMatches(tensors, args, absl::StrCat(std::string(kernel.name), " scale ", scale));
      }
    }
  }
}

TEST(CpuAttention, EmptyDimensionsWriteNothing) {
  Machine machine(2);
  for (int which = 0; which < 4; ++which) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      if (which == 0) p.q_len = 0;
      if (which == 1) p.batch = 0;
      if (which == 2) p.q_heads = p.kv_heads = 0;
      if (which == 3) p.v_head_dim = 0;
      Tensors tensors(p);
      const AttentionArgs args = tensors.Args(p);
      ASSERT_EQ(Validate(args), absl::OkStatus());
      if (!machine.Supports(kernel, args).ok()) continue;
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus()) << kernel.name << which;
      EXPECT_EQ(tensors.out.DamagedElements(), 0);
      if (which == 3) ExpectMatches(tensors, args, std::string(kernel.name));
    }
  }
}

// Keys 2^31 elements apart: offsets that need 64 bits. The address range is reserved, not used.
TEST(CpuAttention, OffsetsBeyond32Bits) {
  constexpr int64_t kStride = int64_t{1} << 31;
  constexpr int64_t kKeys = 5, kDim = 64;
  const size_t bytes = static_cast<size_t>(kStride * kKeys) * sizeof(F16);
  void* region = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (region == MAP_FAILED) GTEST_SKIP() << "cannot reserve " << bytes << " bytes of addresses";
  F16* data = static_cast<F16*>(region);
  std::mt19937 random(7);
  std::normal_distribution<float> normal;
  for (int64_t key = 0; key < kKeys; ++key) {
    for (int64_t d = 0; d < 2 * kDim; ++d) data[key * kStride + d] = ToF16(normal(random));
  }
  Machine machine(2);
  for (int64_t q_len : {int64_t{1}, int64_t{5}, int64_t{12}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      p.q_heads = 2;
      p.kv_heads = 1;
      p.q_len = q_len;
      p.kv_type = DType::kF16;
      Tensors tensors(p);
      AttentionArgs args = tensors.Args(p);
      args.k = MakeView(static_cast<void*>(data), DType::kF16, {1, 1, kKeys, kDim});
      args.k.strides[2] = kStride;
      args.v = args.k;
      args.v.data = data + kDim;
      ASSERT_EQ(Validate(args), absl::OkStatus());
      if (!machine.Supports(kernel, args).ok()) continue;
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
      ExpectMatches(tensors, args, std::string(kernel.name));
    }
  }
  munmap(region, bytes);
}

TEST(CpuAttention, RunAllocatesNothing) {
  Machine machine(2);
  for (int64_t q_len : {int64_t{1}, int64_t{64}}) {
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      Problem p;
      p.q_len = q_len;
      p.cache = 700;
      Tensors tensors(p);
      const AttentionArgs args = tensors.Args(p);
      if (!machine.Supports(kernel, args).ok()) continue;
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());  // sizes the workspace
      const int64_t before = AllocationCount();
      ASSERT_EQ(machine.Run(kernel, args), absl::OkStatus());
      EXPECT_EQ(AllocationCount(), before) << kernel.name;
    }
  }
}

TEST(CpuAttention, TooSmallWorkspaceIsAnError) {
  for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
    Problem p;
    p.q_len = 2;
    Tensors tensors(p);
    const AttentionArgs args = tensors.Args(p);
    CpuStream stream(std::make_shared<ThreadPool>(1), DetectCpu());
    if (!kernel.supports({&stream, nullptr}, args).ok()) continue;
    Workspace none;
    EXPECT_EQ(kernel.run({&stream, &none}, args).code(), absl::StatusCode::kInternal)
        << kernel.name;
    EXPECT_TRUE(std::isnan(tensors.out.Get(0)));
  }
}

TEST(CpuAttention, EachInstructionSetHasItsKernels) {
  Problem p;
  Tensors tensors(p);
  const AttentionArgs args = tensors.Args(p);
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (DetectCpu().isa < isa) continue;
    CpuStream stream(std::make_shared<ThreadPool>(1), Restrict(DetectCpu(), isa));
    for (const Kernel<AttentionArgs>& kernel : Kernels<AttentionArgs>()) {
      if (!kernel.supports({&stream, nullptr}, args).ok()) continue;
      EXPECT_EQ(std::string(kernel.name), "decode_" + std::string(Name(isa)));
      break;
    }
  }
}

}  // namespace
}  // namespace tandem::cpu
