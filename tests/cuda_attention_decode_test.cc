// Decode attention on the emulated device: how keys are split and merged again, in every order of
// threads and completions; what a captured launch does when sequences grow. That it computes the
// right thing for all arguments is tested by cuda_cases_test.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/emulator/launch.h"
#include "cuda/kernels.h"
#include "cuda/kernels/attention_decode.h"
#include "cuda/runtime/handles.h"
#include "cuda/stream.h"
#include "tests/cases/attention_cases.h"
#include "tests/cases/operands.h"
#include "tests/emulated_device.h"
#include "tests/sanitizers.h"

namespace tandem::cuda {
namespace {

using cases::AttentionCase;
using cases::AttentionExtents;
using cases::AttentionQueries;
using cases::DeviceOperands;
using cases::Prepare;
using cases::Prepared;

// --- the planner

DecodePlanInput Input(int64_t capacity, int64_t sequences, int64_t kv_heads,
                      int64_t multiprocessors) {
  return {capacity, sequences, kv_heads, multiprocessors, 2, false};
}

TEST(DecodePlanner, FillsTheDeviceWithoutEmptySplits) {
  for (const int64_t multiprocessors : {1, 4, 84, 108, 132, 148}) {
    for (const int64_t sequences : {0, 1, 2, 3, 7, 8, 16, 33, 64, 200, 1000}) {
      for (const int64_t kv_heads : {1, 2, 8, 12, 32, 128}) {
        for (const int64_t capacity : {0, 1, 63, 64, 65, 200, 1024, 4096, 32768, 131072, 1 << 24}) {
          const DecodePlanInput in = Input(capacity, sequences, kv_heads, multiprocessors);
          const DecodePlan plan = PlanDecode(in);
          const int64_t tiles = std::max<int64_t>((capacity + kDecodeTile - 1) / kDecodeTile, 1);
          ASSERT_GE(plan.splits, 1);
          ASSERT_LE(plan.splits, std::min(tiles, kDecodeMaxSplits));
          ASSERT_EQ(plan.fixed_tiles, 0);
          // With work enough for all, three quarters of the device's time are used.
          const int64_t slots = 2 * multiprocessors,
                        base = std::max<int64_t>(sequences, 1) * kv_heads;
          if (tiles < 64 * slots || base * kDecodeMaxSplits < slots) continue;
          const int64_t blocks = base * plan.splits, waves = (blocks + slots - 1) / slots;
          ASSERT_GE(4 * blocks, 3 * waves * slots)
              << multiprocessors << " " << sequences << " " << kv_heads << " " << capacity << ": "
              << plan.splits;
        }
      }
    }
  }
}

TEST(DecodePlanner, SplitsShortCaches) {
  // 8 heads of an H200: one wave of 264 blocks; as many splits as the cache has tiles, or as fit.
  EXPECT_EQ(PlanDecode(Input(1024, 1, 8, 132)).splits, 16);
  EXPECT_EQ(PlanDecode(Input(128, 1, 8, 132)).splits, 2);
  EXPECT_EQ(PlanDecode(Input(64, 1, 8, 132)).splits, 1);
  const int64_t long_one = PlanDecode(Input(32768, 1, 8, 132)).splits;
  EXPECT_GE(long_one, 26);
  EXPECT_LE(long_one, 33);
  // Enough sequences: nothing to split.
  EXPECT_EQ(PlanDecode(Input(4096, 33, 8, 132)).splits, 1);
}

TEST(DecodePlanner, BatchInvariantPlansAreThoseOfTheCapacityAlone) {
  for (const int64_t capacity : {0, 1, 512, 513, 4096, 100000}) {
    DecodePlanInput in = Input(capacity, 1, 8, 132);
    in.batch_invariant = true;
    const DecodePlan plan = PlanDecode(in);
    EXPECT_EQ(plan.fixed_tiles, kDecodeFixedTiles);
    EXPECT_GE(plan.splits * kDecodeFixedTiles * kDecodeTile, capacity);
    for (const int64_t other : {2, 17, 400}) {
      in.sequences = in.kv_heads = in.multiprocessors = other;
      EXPECT_EQ(PlanDecode(in).splits, plan.splits);
    }
  }
}

// --- the kernel

// A device, and what it counted.
class DecodeDevice {
 public:
  explicit DecodeDevice(const std::string& mode = "fifo") : device_(mode, &statistics_) {}

  const emulator::EmulatorStatistics& statistics() const { return statistics_; }
  Backend& backend() { return device_.backend(); }
  CudaStream& stream() { return device_.stream(); }
  KernelContext context() { return {.stream = &stream(), .workspace = &workspace_}; }

  // Takes what a call needs; it starts as NaN.
  void MakeWorkspace(const AttentionArgs& args, const DecodePlan* plan) {
    const int64_t bytes = DecodeWorkspaceBytes(context(), args, plan);
    scratch_ = backend().allocator().Allocate(std::max<int64_t>(bytes, 1)).value();
    EXPECT_TRUE(stream().runtime().Fill(stream().handle(), scratch_->data(), 0xFF, bytes).ok());
    Rewind();
  }
  void Rewind() { workspace_ = Workspace(scratch_->data(), scratch_->bytes()); }

  // Runs the case and compares; the outputs' hash.
  uint64_t Run(const Prepared<AttentionCase>& prepared, const DecodePlan* plan) {
    auto operands = DeviceOperands::Upload(prepared.operands, backend(), stream());
    EXPECT_TRUE(operands.ok()) << operands.status();
    const AttentionArgs args = prepared.c.Bind(operands->views());
    const absl::Status supports = SupportsDecode(context(), args);
    EXPECT_TRUE(supports.ok()) << supports;
    MakeWorkspace(args, plan);
    const absl::Status status = RunDecode(context(), args, plan);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(stream().Synchronize().ok());
    const auto damage = operands->Download(backend(), stream());
    EXPECT_TRUE(damage.ok()) << damage.status();
    EXPECT_EQ(damage->value_or(""), "");
    cases::Outcome outcome;
    for (const cases::Expectation& expectation : prepared.expectations) {
      EXPECT_EQ(Compare(expectation, operands->Result(expectation.operand), outcome), "");
    }
    return operands->OutputHash();
  }

 private:
  emulator::EmulatorStatistics statistics_;
  cases::EmulatedDevice device_;
  std::shared_ptr<Buffer> scratch_;
  Workspace workspace_;
};

constexpr DType kF32 = DType::kF32, kF16 = DType::kF16, kBF16 = DType::kBF16, kI8 = DType::kI8;

Prepared<AttentionCase> Prepared16(AttentionCase c) {
  auto prepared = Prepare(c);
  EXPECT_TRUE(prepared.ok()) << prepared.status();
  return *std::move(prepared);
}

// 1 to 133 splits of sequences that have from none to all of the keys, so that many are empty.
TEST(CudaDecode, CombinesAnyNumberOfSplits) {
  AttentionCase c = {.batch = 3, .q_heads = 4, .kv_heads = 2, .kv_len = 8600, .head_dim = 32};
  c.kv_dtype = kF16;
  c.ragged_kv = c.lse = true;
  c.seed = 5;  // one sequence of all keys
  const Prepared<AttentionCase> ragged = Prepared16(c);
  c = {.q_heads = 2, .kv_heads = 1, .kv_len = 8512, .new_len = 2, .head_dim = 32};
  c.kv_dtype = kBF16;
  c.lse = c.sinks = true;
  c.window_left = 5000;  // the first splits' keys are hidden
  const Prepared<AttentionCase> window = Prepared16(c);
  DecodeDevice device;
  for (const int64_t splits : {1, 2, 3, 5, 16, 31, 32, 33, 64, 65, 132, 133}) {
    SCOPED_TRACE(splits);
    const DecodePlan plan = {splits, 0};
    device.Run(ragged, &plan);
    device.Run(window, &plan);
  }
}

TEST(CudaDecode, RepeatsBitForBitInEveryOrder) {
  AttentionCase c = {.batch = 2, .q_heads = 8, .kv_heads = 2, .q_len = 3, .kv_len = 400};
  c.new_len = 3;
  c.lse = true;
  for (const auto& [q, kv] : {std::pair(kF32, kF16), std::pair(kBF16, kBF16), std::pair(kF32, kI8),
                              std::pair(kF32, kF32)}) {
    c.q_dtype = q;
    c.kv_dtype = kv;
    const Prepared<AttentionCase> prepared = Prepared16(c);
    const DecodePlan plan = {5, 0};
    uint64_t first = 0;
    std::vector<std::string> modes;
    for (const char* completion : {"", ",eager", ",random"}) {
      for (const char* order : {"fifo", "lifo", "reverse", "random:1", "random:2"}) {
        modes.push_back(std::string(order) + completion);
      }
    }
    if (kThreadSanitized) modes = {"fifo", "random:1,random"};
    for (const std::string& mode : modes) {
      DecodeDevice device(mode);
      const uint64_t hash = device.Run(prepared, &plan);
      if (first == 0) first = hash;
      EXPECT_EQ(hash, first) << mode;
      EXPECT_EQ(device.Run(prepared, &plan), first) << mode;
    }
  }
}

TEST(CudaDecode, HasNoBankConflicts) {
  for (const int64_t head_dim : {16, 40, 64, 80, 96, 112, 128, 192, 256}) {
    for (const DType kv : {kF16, kBF16, kI8}) {
      if (kv == kI8 && head_dim == 40) continue;  // rows are not on 16 bytes
      for (const int64_t q_len : {1, 4}) {
        AttentionCase c = {.q_heads = 4, .kv_len = 130, .head_dim = head_dim, .kv_dtype = kv};
        c.q_len = q_len;
        DecodeDevice device;
        device.Run(Prepared16(c), nullptr);
        EXPECT_GT(device.statistics().matrix_moves, 0);
        EXPECT_EQ(device.statistics().bank_conflicts, 0)
            << head_dim << " " << Name(kv) << " " << q_len;
      }
    }
  }
}

// A NaN that one column sees and another does not, in a tile of both.
TEST(CudaDecode, NanReachesOnlyTheColumnsThatSeeIt) {
  for (const DType kv : {kF16, kBF16, kI8}) {
    AttentionCase c = {.q_heads = 3, .q_len = 4, .kv_len = 90, .head_dim = 64};
    c.q_dtype = c.new_dtype = kBF16;
    c.kv_dtype = kv;
    c.lse = true;
    c.values = cases::AttentionValues::kNanLast;
    DecodeDevice device;
    device.Run(Prepared16(c), nullptr);
    c.causal = Causal::kNone;
    c.mask = AttentionExtents::kFull;
    c.values = cases::AttentionValues::kNanFirst;
    device.Run(Prepared16(c), nullptr);
  }
}

// What a decoder does: one captured launch for a capacity, replayed while the lengths grow.
TEST(CudaDecode, ACapturedLaunchFollowsTheLengths) {
  constexpr int64_t kCapacity = 1500, kBatch = 3;
  AttentionCase c = {.batch = kBatch, .q_heads = 4, .kv_heads = 1, .kv_len = kCapacity};
  c.head_dim = 32;
  c.kv_dtype = kF16;
  c.ragged_kv = c.lse = true;
  const Prepared<AttentionCase> prepared = Prepared16(c);
  DecodeDevice device;
  Runtime& runtime = device.stream().runtime();
  const StreamHandle stream = device.stream().handle();
  auto operands = DeviceOperands::Upload(prepared.operands, device.backend(), device.stream());
  ASSERT_TRUE(operands.ok());
  const AttentionArgs args = c.Bind(operands->views());
  device.MakeWorkspace(args, nullptr);
  ASSERT_GT(PlanOfDecode(device.context(), args).splits, 1);
  ASSERT_TRUE(runtime.BeginCapture(stream).ok());
  ASSERT_TRUE(RunDecode(device.context(), args).ok());
  const auto graph = MakeGraph(runtime, stream);
  ASSERT_TRUE(graph.ok());

  // The cache whole: what was NaN because no length reached it must not be.
  cases::Operands host(prepared.operands);
  for (const char* name : {"k", "v"}) {
    const TensorView view = host.View(name);
    auto* data = static_cast<F16*>(view.data);
    for (int64_t i = 0; i < view.num_elements(); ++i) {
      data[i] = ToF16(std::sin(0.1f * static_cast<float>(i % 7919)));
    }
  }
  for (const char* name : {"k", "v"}) {
    ASSERT_TRUE(device.backend()
                    .Copy(device.stream(), operands->views()(name).data, host.View(name).data,
                          ByteExtent(host.View(name)))
                    .ok());
  }
  for (const int32_t length : {0, 1, 64, 65, 700, 1499, 1500}) {
    const std::vector<int32_t> lengths = {length, length / 2,
                                          static_cast<int32_t>(kCapacity) - length};
    ASSERT_TRUE(device.backend()
                    .Copy(device.stream(), args.kv_lens.data, lengths.data(),
                          static_cast<int64_t>(lengths.size() * sizeof(int32_t)))
                    .ok());
    ASSERT_TRUE(runtime.LaunchGraph(graph->get(), stream).ok());
    ASSERT_TRUE(device.stream().Synchronize().ok());
    std::memcpy(host.View("kv_lens").data, lengths.data(), lengths.size() * sizeof(int32_t));
    ASSERT_TRUE(operands->Download(device.backend(), device.stream()).ok());
    cases::Outcome outcome;
    for (const cases::Expectation& expectation : c.Expect(c.Bind(cases::Views(host)))) {
      EXPECT_EQ(Compare(expectation, operands->Result(expectation.operand), outcome), "")
          << "length " << length;
    }
  }
}

TEST(CudaDecode, TakesTheShapesOfDecoding) {
  DecodeDevice device;
  // Before what takes everything.
  EXPECT_NE(Kernels<AttentionArgs>().back().name, "decode");
  for (const DType kv : {kF16, kBF16, kI8, kF32}) {
    for (const int64_t head_dim : {64, 128, 256}) {
      for (const int64_t page_size : {0, 16}) {
        AttentionCase c = {.batch = 2, .q_heads = 8, .kv_heads = 2, .kv_len = 70};
        c.head_dim = head_dim;
        c.kv_dtype = kv;
        c.page_size = page_size;
        const Prepared<AttentionCase> prepared = Prepared16(c);
        const auto operands =
            DeviceOperands::Upload(prepared.operands, device.backend(), device.stream());
        ASSERT_TRUE(operands.ok());
        EXPECT_TRUE(SupportsDecode(device.context(), c.Bind(operands->views())).ok());
      }
    }
  }
}

}  // namespace
}  // namespace tandem::cuda
