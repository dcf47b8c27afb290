// A cache in two memories holds what a cache in one does.
#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/ops/kv_append.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"
#include "dispatch/split_cache.h"
#include "tests/append_keys.h"
#include "tests/cases/random.h"
#include "tests/emulated_context.h"
#include "tests/scoped_env.h"

namespace tandem::cases {
namespace {

constexpr int64_t kBatch = 2, kHeads = 2, kDim = 8, kValueDim = 4, kCapacity = 160;

KvCacheShape ShapeOf(DType dtype) {
  return {.batch = kBatch,
          .kv_heads = kHeads,
          .capacity = kCapacity,
          .head_dim = kDim,
          .v_head_dim = kValueDim,
          .dtype = dtype};
}

Tensor Random(Context& context, Rng& rng, const Shape& shape) {
  Tensor tensor = AllocateOn(context, DeviceKind::kCpu, DType::kF32, shape).value();
  for (int64_t i = 0; i < tensor.view().num_elements(); ++i) {
    tensor.As<float>()[i] = static_cast<float>(rng.Normal());
  }
  return tensor;
}

// The rows of a cache in host memory, all bytes in a row.
std::string Bytes(const TensorView& view) {
  std::string bytes;
  if (!view.present()) return bytes;
  const auto row = static_cast<size_t>(ByteOffset(view.dtype, view.stride(2)));
  for (int64_t b = 0; b < view.dim(0); ++b) {
    for (int64_t h = 0; h < view.dim(1); ++h) {
      for (int64_t r = 0; r < view.dim(2); ++r) {
        const int64_t at = b * view.stride(0) + h * view.stride(1) + r * view.stride(2);
        bytes.append(static_cast<const char*>(view.data) + ByteOffset(view.dtype, at), row);
      }
    }
  }
  return bytes;
}
template <typename Rows>
std::string AllBytes(const Rows& rows) {
  return Bytes(rows.k) + Bytes(rows.v) + Bytes(rows.k_scale) + Bytes(rows.v_scale);
}
SplitKvCache::Part RowsOf(const KvCache& cache) {
  return {0, cache.length(), cache.Keys(), cache.Values(), cache.KeyScales(), cache.ValueScales()};
}

class SplitCacheTest : public testing::Test {
 protected:
  SplitCacheTest() : context_(EmulatedContext(/*forced=*/false)) {
    ContextOptions options;
    options.threads = 1;
    options.kernel_profile = "off";
    const WithoutGpu unless_asked_for;
    host_ = Context::Create(options).value();
  }

  // The same tokens to both caches; `home`: where they are.
  void Append(SplitKvCache& split, KvCache& whole, DeviceKind home, int64_t tokens) {
    const Tensor k = Random(*host_, rng_, {kBatch, kHeads, tokens, kDim});
    const Tensor v = Random(*host_, rng_, {kBatch, kHeads, tokens, kValueDim});
    ASSERT_TRUE(AppendKeys(*host_, whole, k, v).ok());
    const Tensor own_k = CopyTo(*context_, home, k).value();
    const Tensor own_v = CopyTo(*context_, home, v).value();
    const absl::Status status = split.Append({.k = own_k, .v = own_v});
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
  }

  std::unique_ptr<Context> context_, host_;
  Rng rng_{1};
};

TEST_F(SplitCacheTest, HoldsWhatAWholeCacheDoes) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
    for (const int64_t gpu_rows : {int64_t{0}, int64_t{64}, kCapacity}) {
      for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
        SCOPED_TRACE(absl::StrCat(std::string(Name(dtype)), ", ", gpu_rows, " rows on the GPU, ",
                                  "tokens on ", std::string(Name(home))));
        auto split = SplitKvCache::Create(*context_, ShapeOf(dtype), gpu_rows);
        ASSERT_TRUE(split.ok()) << split.status();
        KvCache whole = KvCache::Create(host_->host_allocator(), ShapeOf(dtype)).value();
        // Within the GPU's part, over its end, truncated to before it, over it again, full.
        for (const int64_t tokens : {60, 9, 1, -30, 50, 40, 30}) {
          if (tokens < 0) {
            ASSERT_TRUE(split->Truncate(split->length() + tokens).ok());
            ASSERT_TRUE(whole.Truncate(whole.length() + tokens).ok());
          } else {
            Append(*split, whole, home, tokens);
            if (HasFatalFailure()) return;
          }
          EXPECT_EQ(split->part(DeviceKind::kCuda).rows, std::min(gpu_rows, whole.length()));
          EXPECT_EQ(split->part(DeviceKind::kCpu).rows,
                    std::max<int64_t>(whole.length() - gpu_rows, 0));
        }
        EXPECT_EQ(split->length(), kCapacity);
        EXPECT_EQ(split->bytes(DeviceKind::kCuda) + split->bytes(DeviceKind::kCpu), whole.bytes());
        EXPECT_EQ(split->bytes(DeviceKind::kCuda), gpu_rows * split->row_bytes());
        EXPECT_EQ(split->row_bytes() * kCapacity, whole.bytes());
        ASSERT_TRUE(split->Move(0).ok());
        EXPECT_EQ(AllBytes(split->part(DeviceKind::kCpu)), AllBytes(RowsOf(whole)));
      }
    }
  }
}

// Rotated on the way, queries too: what kv_append with rope gives, on either device to within its
// tolerance (the CPU's rows: bit for bit).
TEST_F(SplitCacheTest, RotatesKeysAndQueries) {
  const Tensor inv_freq = Random(*host_, rng_, {kDim / 2});
  for (int64_t i = 0; i < kDim / 2; ++i) inv_freq.As<float>()[i] = 1.0f / static_cast<float>(1 + i);
  for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
    for (const int64_t queries : {int64_t{40}, int64_t{3}}) {
      for (const int64_t gpu_rows : {int64_t{0}, int64_t{32}, kCapacity}) {
        SCOPED_TRACE(absl::StrCat(std::string(Name(home)), ", ", queries, " queries, ", gpu_rows));
        constexpr int64_t kTokens = 40;
        auto split = SplitKvCache::Create(*context_, ShapeOf(DType::kF32), gpu_rows);
        ASSERT_TRUE(split.ok()) << split.status();
        KvCache whole = KvCache::Create(host_->host_allocator(), ShapeOf(DType::kF32)).value();
        const Tensor k = Random(*host_, rng_, {kBatch, kHeads, kTokens, kDim});
        const Tensor v = Random(*host_, rng_, {kBatch, kHeads, kTokens, kValueDim});
        const Tensor q = Random(*host_, rng_, {kBatch, 4, queries, kDim});
        Tensor positions = AllocateOn(*host_, DeviceKind::kCpu, DType::kI32, {kTokens}).value();
        for (int32_t i = 0; i < kTokens; ++i) positions.As<int32_t>()[i] = 5 + i;
        Tensor want_q = Random(*host_, rng_, {kBatch, 4, queries, kDim});
        KvAppendArgs append;
        append.k = k;
        append.v = v;
        append.k_cache = whole.k();
        append.v_cache = whole.v();
        append.rope.positions = positions;
        append.rope.inv_freq = inv_freq;
        append.q = q;
        append.q_out = want_q;
        ASSERT_TRUE(KvAppendInto(*host_, append).ok());
        ASSERT_TRUE(whole.Advance(kTokens).ok());
        const auto at_home = [&](const Tensor& t) { return CopyTo(*context_, home, t).value(); };
        const Tensor own_k = at_home(k), own_v = at_home(v), own_q = at_home(q),
                     own_positions = at_home(positions), own_freq = at_home(inv_freq);
        CacheAppendArgs args = {.k = own_k, .v = own_v, .q = own_q, .q_out = own_q};
        args.rope.positions = own_positions;
        args.rope.inv_freq = own_freq;
        const absl::Status status = split->Append(args);
        ASSERT_TRUE(status.ok()) << status;
        ASSERT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
        const Tensor got_q = CopyTo(*context_, DeviceKind::kCpu, own_q).value();
        ASSERT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
        for (int64_t i = 0; i < want_q.view().num_elements(); ++i) {
          ASSERT_NEAR(got_q.As<float>()[i], want_q.As<float>()[i], 1e-5) << i;
        }
        ASSERT_TRUE(split->Move(0).ok());
        const SplitKvCache::Part rows = split->part(DeviceKind::kCpu);
        for (int64_t h = 0; h < kBatch * kHeads; ++h) {
          for (int64_t i = 0; i < kTokens * kDim; ++i) {
            const float got = rows.k.As<float>()[h * rows.k.stride(1) + i];
            const float want = whole.k().As<float>()[h * whole.k().stride(1) + i];
            if (i / kDim >= gpu_rows) {
              ASSERT_EQ(got, want) << h << ", " << i;
            } else {
              ASSERT_NEAR(got, want, 1e-5) << h << ", " << i;
            }
          }
        }
      }
    }
  }
}

TEST_F(SplitCacheTest, MovesToAndFro) {
  for (const DType dtype : {DType::kF16, DType::kI8}) {
    auto split = SplitKvCache::Create(*context_, ShapeOf(dtype), 64);
    ASSERT_TRUE(split.ok()) << split.status();
    KvCache whole = KvCache::Create(host_->host_allocator(), ShapeOf(dtype)).value();
    Append(*split, whole, DeviceKind::kCpu, 100);
    EXPECT_EQ(split->MovedBytes(128), 36 * split->row_bytes());
    EXPECT_EQ(split->MovedBytes(32), 32 * split->row_bytes());
    for (const int64_t gpu_rows : {128, 32, 96, 0, 160, 64, 0}) {
      const absl::Status status = split->Move(gpu_rows);
      ASSERT_TRUE(status.ok()) << status;
      EXPECT_EQ(split->gpu_rows(), gpu_rows);
      EXPECT_EQ(split->bytes(DeviceKind::kCuda), gpu_rows * split->row_bytes());
      // And goes on from there.
      Append(*split, whole, DeviceKind::kCuda, 3);
    }
    EXPECT_EQ(AllBytes(split->part(DeviceKind::kCpu)), AllBytes(RowsOf(whole)));
  }
}

// A move that fails, whatever fails in it, leaves the cache as it was. An append that fails is done
// by the CPU, with the cache; where the device is lost, and rows with it, the cache is as it was,
// and an empty one is the host's.
TEST_F(SplitCacheTest, FailuresLoseNothing) {
  using Kind = cuda::Fault::Kind;
  cuda::EmulatedRuntime& runtime = RuntimeOf(*context_);
  context_->health().SetLog({});
  const auto run = [&](bool move, Kind kind, DeviceKind home, int64_t filled) {
    SCOPED_TRACE(absl::StrCat(move ? "move" : "append", ", kind ", static_cast<int>(kind), ", ",
                              std::string(Name(home)), ", ", filled));
    int64_t failures = 0, fallbacks = 0;
    bool happened = true;
    for (int64_t ordinal = 1; happened; ++ordinal) {
      ASSERT_LT(ordinal, 500);
      auto split = SplitKvCache::Create(*context_, ShapeOf(DType::kI8), 64);
      ASSERT_TRUE(split.ok()) << split.status();
      KvCache whole = KvCache::Create(host_->host_allocator(), ShapeOf(DType::kI8)).value();
      if (filled > 0) Append(*split, whole, DeviceKind::kCpu, filled);
      const Tensor k = Random(*host_, rng_, {kBatch, kHeads, 30, kDim});
      const Tensor v = Random(*host_, rng_, {kBatch, kHeads, 30, kValueDim});
      const Tensor k_home = CopyTo(*context_, home, k).value();
      const Tensor v_home = CopyTo(*context_, home, v).value();
      ASSERT_TRUE(Synchronize(*context_, DeviceKind::kCuda).ok());
      const FaultCounters before = context_->health().counters();
      runtime.Inject({.ordinal = ordinal, .kind = kind});
      const absl::Status status =
          move ? split->Move(32) : split->Append({.k = k_home, .v = v_home});
      happened = runtime.fault_happened();
      runtime.Heal();
      const int64_t fell_back =
          context_->health().counters().all_fallbacks() - before.all_fallbacks();
      ASSERT_TRUE(context_->Revive(DeviceKind::kCuda).ok());
      EXPECT_EQ(split->fallbacks(), fell_back);
      fallbacks += fell_back;
      if (!status.ok()) {
        ++failures;
        EXPECT_EQ(split->length(), filled);
        EXPECT_EQ(split->gpu_rows(), 64);
        EXPECT_EQ(context_->health().counters().failed, before.failed + (move ? 0 : 1));
      } else if (!move) {
        ASSERT_TRUE(AppendKeys(*host_, whole, k, v).ok());
        EXPECT_EQ(split->length(), filled + 30);
        EXPECT_EQ(split->gpu_rows(), fell_back > 0 ? 0 : 64);
      }
      ASSERT_TRUE(split->Move(0).ok());
      EXPECT_EQ(AllBytes(split->part(DeviceKind::kCpu)), AllBytes(RowsOf(whole)));
    }
    if (move || (kind == Kind::kDeviceLost && (filled > 0 || home == DeviceKind::kCuda))) {
      EXPECT_GT(failures, home == DeviceKind::kCpu ? 2 : 0);
    } else {
      EXPECT_EQ(failures, 0);
      EXPECT_TRUE(fallbacks > 0 || kind == Kind::kOutOfMemory);
    }
  };
  for (const Kind kind : {Kind::kError, Kind::kOutOfMemory, Kind::kDeviceLost}) {
    if (kind != Kind::kDeviceLost) run(true, kind, DeviceKind::kCpu, 50);
    for (const DeviceKind home : {DeviceKind::kCpu, DeviceKind::kCuda}) {
      for (const int64_t filled : {0, 50}) run(false, kind, home, filled);
    }
  }
}

TEST_F(SplitCacheTest, BadArguments) {
  const auto code = [](const auto& result) { return result.status().code(); };
  constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
  EXPECT_EQ(code(SplitKvCache::Create(*context_, ShapeOf(DType::kF16), -1)), kInvalid);
  EXPECT_EQ(code(SplitKvCache::Create(*context_, ShapeOf(DType::kF16), kCapacity + 1)), kInvalid);
  EXPECT_EQ(code(SplitKvCache::Create(*context_, KvCacheShape(), 0)), kInvalid);
  EXPECT_EQ(code(SplitKvCache::Create(*context_, ShapeOf(DType::kI32), 0)), kInvalid);
  EXPECT_EQ(code(SplitKvCache::Create(*host_, ShapeOf(DType::kF16), 64)), kInvalid);
  const auto forced = EmulatedContext(/*forced=*/true);
  EXPECT_EQ(code(SplitKvCache::Create(*forced, ShapeOf(DType::kF16), 64)), kInvalid);
  EXPECT_TRUE(SplitKvCache::Create(*forced, ShapeOf(DType::kF16), kCapacity).ok());

  auto split = SplitKvCache::Create(*context_, ShapeOf(DType::kF16), 70);
  ASSERT_TRUE(split.ok()) << split.status();
  EXPECT_EQ(split->gpu_rows(), 64);  // whole words of packed masks
  const auto append = [&](const Shape& k, const Shape& v) {
    const Tensor own_k = Random(*host_, rng_, k), own_v = Random(*host_, rng_, v);
    return split->Append({.k = own_k, .v = own_v}).code();
  };
  EXPECT_EQ(append({kBatch, kHeads, 3, kDim + 1}, {kBatch, kHeads, 3, kValueDim}), kInvalid);
  EXPECT_EQ(append({kBatch, kHeads, 3, kDim}, {kBatch, kHeads, 4, kValueDim}), kInvalid);
  EXPECT_EQ(append({1, kHeads, 3, kDim}, {1, kHeads, 3, kValueDim}), kInvalid);
  EXPECT_EQ(append({kBatch, kHeads, 161, kDim}, {kBatch, kHeads, 161, kValueDim}), kInvalid);
  const Tensor k = Random(*host_, rng_, {kBatch, kHeads, 3, kDim});
  const Tensor v = Random(*host_, rng_, {kBatch, kHeads, 3, kValueDim});
  EXPECT_EQ(split->Append({.k = k, .v = v, .q = k, .q_out = k}).code(), kInvalid);
  EXPECT_EQ(split->length(), 0);
  EXPECT_EQ(split->Truncate(1).code(), kInvalid);
  EXPECT_EQ(split->Truncate(-1).code(), kInvalid);
  EXPECT_EQ(split->Move(-1).code(), kInvalid);
}

}  // namespace
}  // namespace tandem::cases
