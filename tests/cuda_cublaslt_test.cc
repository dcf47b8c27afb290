// cuBLASLt as it is loaded at run time: what is said when it is not there, and, with a library of
// our own in its place, every call that is made of it.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/status.h"
#include "cuda/backend.h"
#include "cuda/blas/cublaslt.h"
#include "cuda/blas/device_blas.h"
#include "cuda/blas/fake_cublaslt/fake_cublaslt.h"
#include "cuda/device_probe.h"
#include "cuda/kernels.h"
#include "cuda/runtime/emulated_runtime.h"
#include "cuda/stream.h"
#include "tests/cases/matmul_cases.h"
#include "tests/cases/run.h"
#include "tests/emulated_device.h"
#include "tests/sanitizers.h"

namespace tandem::cuda {
namespace {

using ::testing::AnyOf;
using ::testing::HasSubstr;

const NativeStream kNoStream = [](StreamHandle) -> absl::StatusOr<void*> { return nullptr; };

const Kernel<MatMulArgs>& CublasLtKernel() {
  for (const Kernel<MatMulArgs>& kernel : Kernels<MatMulArgs>()) {
    if (kernel.name == "cublaslt") return kernel;
  }
  ADD_FAILURE() << "no kernel named cublaslt";
  return Kernels<MatMulArgs>()[0];
}

TEST(CublasLtLoader, ALibraryThatIsNotThereIsAStatusThatSaysWhatWasTried) {
  const auto message = [](const std::string& path) {
    const absl::Status status = MakeCublasLt(kNoStream, path).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << path;
    return Message(status);
  };
  // A build without the header says that instead.
  const char* const no_header = "no cublasLt.h";
  EXPECT_THAT(message("/nowhere/libcublasLt.so.13"),
              AnyOf(HasSubstr("/nowhere/libcublasLt.so.13"), HasSubstr(no_header)));
  const std::string folder = testing::TempDir() + "tandem_no_cublaslt";
  std::filesystem::create_directories(folder);
  EXPECT_THAT(message(folder),
              AnyOf(HasSubstr(folder + "/libcublasLt.so.12"), HasSubstr(no_header)));
  const std::string file = folder + "/libcublasLt.so.13";
  std::ofstream(file) << "not a library";
  EXPECT_THAT(message(folder), AnyOf(HasSubstr(file), HasSubstr(no_header)));
  std::filesystem::remove_all(folder);
  // A library, but another one.
  EXPECT_THAT(message("libdl.so.2"),
              AnyOf(HasSubstr("has no function"), HasSubstr("not found"), HasSubstr(no_header)));
}

TEST(CublasLtLoader, WithoutADriverTheRealOneSaysSo) {
  if (!ProbeDevices().devices.empty()) GTEST_SKIP() << "this machine has a CUDA device";
  if (kSanitized) GTEST_SKIP() << "cublasLtCreate leaks 192 bytes when it finds no driver (13.1.0)";
  // Whatever this machine has of it: nothing, or a library that finds no driver.
  const absl::Status status = MakeCublasLt(kNoStream, "").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << status;
  EXPECT_THAT(Message(status),
              AnyOf(HasSubstr("cuBLASLt was not found"), HasSubstr("no cublasLt.h"),
                    HasSubstr("cublasLtCreate: CUBLAS_STATUS_NOT_INITIALIZED")));
}

// The kernel's reason is the library's.
TEST(CublasLtKernel, SaysWhyThereIsNoLibrary) {
  EmulatedRuntimeOptions options;
  options.make_blas = [](EmulatedRuntime&) {
    return MakeCublasLt(kNoStream, "/nowhere/libcublasLt.so.13");
  };
  const cases::EmulatedDevice device(options);
  const cases::Outcome outcome =
      RunCase(cases::MatMulCase{.m = 8, .n = 8, .k = 8}, CublasLtKernel(), device.target());
  EXPECT_EQ(outcome.kind, cases::Outcome::Kind::kUnsupported);
  EXPECT_THAT(outcome.message, HasSubstr("cuBLASLt"));
}

#ifdef TANDEM_FAKE_CUBLASLT

using fake_cublaslt::Algorithm;
using fake_cublaslt::Control;

// Numbers of cublasLt.h and cublas_api.h, which tests do not include.
constexpr uint64_t kFma = 1, kHmma = 2, kAccumulator16F = 1 << 8, kAccumulator32F = 2 << 8;
constexpr uint64_t kInput16F = 1 << 16, kInputTF32 = 4 << 16, kInput32F = 8 << 16;
constexpr uint32_t kInPlace = 1, kComputeType = 2, kOutputType = 4;
constexpr int kAllocFailed = 3, kExecutionFailed = 13, kNotSupported = 15;
constexpr int kCompute32F = 68;

class FakeCublasLt : public testing::Test {
 protected:
  void SetUp() override {
    library_ = dlopen(TANDEM_FAKE_CUBLASLT, RTLD_NOW | RTLD_LOCAL);
    ASSERT_NE(library_, nullptr) << dlerror();
    const auto get =
        reinterpret_cast<fake_cublaslt::GetControl>(dlsym(library_, "fake_cublaslt_control"));
    ASSERT_NE(get, nullptr);
    control_ = get();
    *control_ = Control();
  }
  void TearDown() override {
    EXPECT_EQ(control_->live, 0) << "handles or descriptors are left";
    dlclose(library_);
  }

  static absl::StatusOr<std::unique_ptr<Blas>> Make() {
    return MakeCublasLt([](StreamHandle stream) -> absl::StatusOr<void*> { return stream.value; },
                        TANDEM_FAKE_CUBLASLT);
  }

  void* library_ = nullptr;
  Control* control_ = nullptr;
};

BlasProblem Square(DType dtype) {
  BlasProblem problem;
  problem.m = problem.n = problem.k = 2;
  problem.a = problem.b = problem.d = {.dtype = dtype, .ld = 2};
  problem.max_workspace_bytes = 4096;
  return problem;
}

TEST_F(FakeCublasLt, AsksTheHeuristicsForWhatTheContractNeeds) {
  const auto blas = *Make();
  EXPECT_EQ(blas->name(), "cuBLASLt 13.7.42");
  BlasProblem problem = Square(DType::kF16);
  problem.a.alignment = 8;
  problem.b.alignment = 4;
  problem.d.alignment = 2;
  const auto plan = blas->MakePlan(problem);
  ASSERT_TRUE(plan.ok()) << plan.status();
  EXPECT_THAT((*plan)->description(), HasSubstr("algorithm 40"));
  EXPECT_EQ(control_->compute_type, kCompute32F);
  EXPECT_EQ(control_->reduction_mask, kComputeType);
  EXPECT_EQ(control_->max_workspace_bytes, 4096u);
  EXPECT_THAT(control_->alignments, testing::ElementsAre(8, 4, 2, 2));
}

TEST_F(FakeCublasLt, TakesTheFirstAlgorithmThatKeepsTheContract) {
  const auto blas = *Make();
  alignas(16) std::array<float, 4> a = {1, 2, 3, 4}, b = {1, 0, 0, 1}, d = {};
  alignas(16) std::array<char, 64> workspace = {};
  const auto used = [&](DType dtype, const std::vector<Algorithm>& algorithms) {
    control_->algorithms = algorithms;
    const auto plan = blas->MakePlan(Square(dtype));
    if (!plan.ok()) return plan.status().ToString();
    EXPECT_EQ((*plan)->workspace_bytes(), 32);
    const absl::Status status = blas->MatMul({&d}, **plan,
                                             {.a = a.data(),
                                              .b = b.data(),
                                              .d = d.data(),
                                              .workspace = workspace.data(),
                                              .workspace_bytes = 32});
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_EQ(control_->stream, &d);
    return std::to_string(control_->used_algorithm);
  };
  const Algorithm tf32 = {kHmma | kAccumulator32F | kInputTF32, 0, 32};
  const Algorithm half_input = {kHmma | kAccumulator32F | kInput16F, 0, 32};
  const Algorithm half_sums = {kHmma | kAccumulator16F | kInput16F, 0, 32};
  const Algorithm in_place = {kFma | kAccumulator32F | kInput32F, kInPlace, 32};
  const Algorithm rounded_parts = {kFma | kAccumulator32F | kInput32F, kOutputType, 32};
  const Algorithm too_large = {kFma | kAccumulator32F | kInput32F, 0, 5000};
  const Algorithm split = {kFma | kAccumulator32F | kInput32F, kComputeType, 32};
  const Algorithm plain = {kFma | kAccumulator32F | kInput32F, 0, 32};
  EXPECT_EQ(used(DType::kF32, {plain, split}), "0");
  EXPECT_EQ(used(DType::kF32,
                 {tf32, half_input, half_sums, in_place, rounded_parts, too_large, split, plain}),
            "6");
  EXPECT_EQ(d, a);
  EXPECT_EQ(used(DType::kF16, {half_sums, in_place, half_input, plain}), "2");
  EXPECT_THAT(
      used(DType::kF32, {tf32, half_sums}),
      HasSubstr("UNIMPLEMENTED: cuBLASLt has no algorithm with f32 sums for f32 [2, 2] x f32 "
                "[2, 2] -> f32 (2 offered)"));
  EXPECT_THAT(used(DType::kF32, {}), HasSubstr("UNIMPLEMENTED: cublasLtMatmulAlgoGetHeuristic"));
}

TEST_F(FakeCublasLt, EveryCallMayFail) {
  BlasProblem problem = Square(DType::kF32);
  problem.bias = true;
  problem.batch = 1;
  alignas(16) std::array<float, 4> a = {}, d = {};
  const auto run = [&]() -> absl::Status {
    TANDEM_ASSIGN_OR_RETURN(const auto blas, Make());
    TANDEM_ASSIGN_OR_RETURN(const auto plan, blas->MakePlan(problem));
    return blas->MatMul({}, *plan, {.a = a.data(), .b = a.data(), .d = d.data(), .bias = a.data()});
  };
  for (const char* call : {"cublasLtCreate", "cublasLtMatmulDescCreate",
                           "cublasLtMatmulDescSetAttribute", "cublasLtMatrixLayoutCreate",
                           "cublasLtMatmulPreferenceCreate", "cublasLtMatmulPreferenceSetAttribute",
                           "cublasLtMatmulAlgoGetHeuristic", "cublasLtMatmul"}) {
    for (int ordinal = 1;; ++ordinal) {
      SCOPED_TRACE(std::string(call) + " " + std::to_string(ordinal));
      control_->failing_call = call;
      control_->failing_ordinal = ordinal;
      control_->failing_status = kAllocFailed;
      const absl::Status status = run();
      ASSERT_EQ(control_->live, 0);
      if (!control_->failing_call.empty()) {
        control_->failing_call.clear();
        EXPECT_TRUE(status.ok()) << status;
        EXPECT_GT(ordinal, 1) << "it is never called";
        break;
      }
      EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
      EXPECT_THAT(Message(status),
                  HasSubstr(std::string(call) + ": CUBLAS_STATUS_ALLOC_FAILED: as"));
    }
  }
  // An algorithm that cannot be asked about is not taken.
  control_->failing_call = "cublasLtMatmulAlgoCapGetAttribute";
  control_->failing_status = kExecutionFailed;
  EXPECT_TRUE(absl::IsUnimplemented(run()));
  for (const auto& [code, expected] :
       {std::pair(kExecutionFailed, absl::StatusCode::kInternal),
        std::pair(kNotSupported, absl::StatusCode::kUnimplemented)}) {
    control_->failing_call = "cublasLtMatmul";
    control_->failing_ordinal = 1;
    control_->failing_status = code;
    EXPECT_EQ(run().code(), expected);
  }
}

// All of the kernel's calls of the library, judged by their results: the shared cases on the
// emulated device, whose memory the library on the host can read.
TEST_F(FakeCublasLt, SharedCases) {
  EmulatedRuntimeOptions options;
  options.make_blas = [](EmulatedRuntime& runtime) {
    const auto in_order = [&runtime](StreamHandle stream) -> absl::StatusOr<void*> {
      TANDEM_RETURN_IF_ERROR(runtime.Synchronize(stream));
      return stream.value;
    };
    return MakeCublasLt(in_order, TANDEM_FAKE_CUBLASLT);
  };
  control_->algorithms = {{.workspace_bytes = 1000}};
  {
    const cases::EmulatedDevice device(options);
    int64_t passed = 0;
    std::vector<cases::MatMulCase> all = cases::MatMulCase::Grid(cases::GridSize::kFull);
    cases::Rng rng(7);
    for (int i = 0; i < 100; ++i) all.push_back(cases::MatMulCase::Random(rng));
    for (const cases::MatMulCase& c : all) {
      if (c.m * c.n * c.k > 4'000'000) continue;
      const cases::Outcome outcome = RunCase(c, CublasLtKernel(), device.target());
      EXPECT_FALSE(outcome.failed()) << outcome.message;
      passed += outcome.passed() ? 1 : 0;
    }
    EXPECT_GT(passed, 50);
    EXPECT_EQ(control_->matmuls, passed);
  }
}

#endif  // TANDEM_FAKE_CUBLASLT

}  // namespace
}  // namespace tandem::cuda
