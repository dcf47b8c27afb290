// Ops captured into a graph: recorded once, replayed on new contents of the same tensors. Lists
// that were in host memory when the op was captured may have changed or gone since.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "core/status.h"
#include "cuda/kernels/device_list.h"
#include "cuda/runtime/handles.h"
#include "dispatch/run.h"
#include "tests/cases/all_cases.h"
#include "tests/emulated_context.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

// As they were before the run.
absl::Status Restore(const Operands& operands, const Views& views, ContextDevice& device) {
  for (const Operand& operand : operands.all()) {
    void* begin = static_cast<char*>(views(operand.name).data) - operand.offset;
    TANDEM_RETURN_IF_ERROR(device.backend->Copy(*device.stream, begin, operand.bytes.data(),
                                                static_cast<int64_t>(operand.bytes.size())));
  }
  return absl::OkStatus();
}

template <typename Case>
void CaptureAndReplay(Context& context, const Prepared<Case>& prepared) {
  SCOPED_TRACE(CaseText(prepared.c));
  ContextDevice& device = *context.device(DeviceKind::kCuda);
  cuda::EmulatedRuntime& runtime = RuntimeOf(context);
  const cuda::StreamHandle stream = static_cast<cuda::CudaStream&>(*device.stream).handle();
  auto operands = DeviceOperands::Upload(prepared.operands, *device.backend, *device.stream);
  ASSERT_TRUE(operands.ok()) << operands.status();
  auto lists = std::make_unique<Operands>(prepared.operands);
  const Views views = WithHostLists(Case::Args::kOp, *lists, operands->views());
  const auto args = prepared.c.Bind(views);
  // The first call grows the workspace.
  ASSERT_TRUE(RunOp(context, args).ok());
  ASSERT_TRUE(Restore(prepared.operands, operands->views(), device).ok());
  ASSERT_TRUE(device.stream->Synchronize().ok());

  ASSERT_TRUE(runtime.BeginCapture(stream).ok());
  const absl::Status captured = RunOp(context, args);
  auto graph = cuda::MakeGraph(runtime, stream);
  ASSERT_TRUE(captured.ok()) << captured;
  ASSERT_TRUE(graph.ok()) << graph.status();
  ASSERT_TRUE(operands->Download(*device.backend, *device.stream).ok());
  ASSERT_EQ(operands->OutputHash(), operands->InitialHash()) << "recorded, not run";

  for (const Operand& operand : lists->all()) {
    if (!IsList(Case::Args::kOp, operand)) continue;
    const TensorView list = lists->View(operand.name);
    reference::ForEachOffset(list, [&](int64_t at) { *list.At<int32_t>(at) = 0x7FFFFFFF; });
  }
  lists.reset();
  for (int replay = 0; replay < 2; ++replay) {
    ASSERT_TRUE(runtime.LaunchGraph(graph->get(), stream).ok());
    const auto damage = operands->Download(*device.backend, *device.stream);
    ASSERT_TRUE(damage.ok()) << damage.status();
    EXPECT_EQ(damage->value_or(""), "");
    Outcome outcome;
    for (const Expectation& expectation : prepared.expectations) {
      EXPECT_EQ(Compare(expectation, operands->Result(expectation.operand), outcome), "")
          << "replay " << replay;
    }
    ASSERT_TRUE(Restore(prepared.operands, operands->views(), device).ok());
  }
}

TEST(CudaGraphs, EveryOpCanBeCapturedAndReplayed) {
  const auto context = EmulatedContext(/*forced=*/false);
  int64_t cases = 0, with_lists = 0;
  ForEachCaseType([&]<typename Case>() {
    for (const Prepared<Case>& prepared : FaultCases<Case>()) {
      CaptureAndReplay(*context, prepared);
      if (HasFatalFailure()) return;
      ++cases;
    }
    for (const Prepared<Case>& prepared : ListCases<Case>()) {
      CaptureAndReplay(*context, prepared);
      if (HasFatalFailure()) return;
      ++with_lists;
    }
  });
  EXPECT_GE(cases, 2 * kNumOps);
  EXPECT_GE(with_lists, 2);
  EXPECT_EQ(RuntimeOf(*context).stats().graphs, 0);
}

// Longer than a launch carries, with gaps; written to device memory behind work that is still
// running, and changed by the host meanwhile.
TEST(CudaLists, AreTakenWithoutWaiting) {
  const auto context = EmulatedContext(/*forced=*/false);
  ContextDevice& device = *context->device(DeviceKind::kCuda);
  cuda::EmulatedRuntime& runtime = RuntimeOf(*context);
  const cuda::StreamHandle stream = static_cast<cuda::CudaStream&>(*device.stream).handle();
  constexpr int64_t kRows = 3, kColumns = 1111, kRowStride = 2500, kStride = 2;
  std::vector<int32_t> host(kRows * kRowStride, -1);
  TensorView table = MakeView(host.data(), DType::kI32, {kRows, kColumns});
  table.strides = {kRowStride, kStride};
  std::vector<int32_t> expected;
  for (int64_t i = 0; i < kRows; ++i) {
    for (int64_t j = 0; j < kColumns; ++j) {
      expected.push_back(static_cast<int32_t>(32'500 + i * 100'000 + j));
      *table.At<int32_t>(i * kRowStride + j * kStride) = expected.back();
    }
  }
  Workspace counting = Workspace::Counting();
  cuda::CountList(counting, table);
  const auto scratch = device.backend->allocator().Allocate(counting.bytes_used());
  ASSERT_TRUE(scratch.ok());
  Workspace workspace((*scratch)->data(), counting.bytes_used());

  // Opened by the host afterwards; by itself if the host waits for it.
  struct Gate {
    std::atomic<bool> open = false, passed = false;
  } gate;
  const auto wait = [](void* data) {
    auto& own = *static_cast<Gate*>(data);
    for (int i = 0; i < 5000 && !own.open; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    own.passed = true;
  };
  ASSERT_TRUE(runtime.HostFunction(stream, wait, &gate).ok());
  const auto staged = cuda::StageTable({device.stream.get(), &workspace}, table);
  ASSERT_TRUE(staged.ok()) << staged.status();
  EXPECT_FALSE(gate.passed) << "the host waited for the stream";
  std::fill(host.begin(), host.end(), -2);
  gate.open = true;

  std::vector<int32_t> got(expected.size());
  EXPECT_EQ(staged->row_stride, kColumns);
  EXPECT_EQ(staged->stride, 1);
  ASSERT_TRUE(device.backend
                  ->Copy(*device.stream, got.data(), staged->data,
                         static_cast<int64_t>(got.size() * sizeof(int32_t)))
                  .ok());
  EXPECT_EQ(got, expected);
  // A workspace that is too small is found before anything is queued.
  Workspace small((*scratch)->data(), 64);
  EXPECT_EQ(cuda::StageTable({device.stream.get(), &small}, table).status().code(),
            absl::StatusCode::kInternal);
}

}  // namespace
}  // namespace tandem::cases
