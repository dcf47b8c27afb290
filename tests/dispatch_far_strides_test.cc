// 64-bit index arithmetic: operands whose rows, heads or sequences lie more than 2^31 elements
// apart. The address space is reserved without memory behind it; only the pages that hold elements
// are ever touched. The emulated device reads it too: its addresses are the host's, and only its
// own allocations are backed in full.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <memory>
#include <tuple>

#include "dispatch/context.h"
#include "dispatch/registry.h"
#include "tests/cases/all_cases.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

constexpr int64_t kFar = (int64_t{1} << 31) + 4096;  // elements; whole blocks and cache lines

class Reserved {
 public:
  explicit Reserved(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
    void* data = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    data_ = data == MAP_FAILED ? nullptr : data;
  }
  ~Reserved() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  Reserved(const Reserved&) = delete;
  Reserved& operator=(const Reserved&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
  size_t bytes_;
};

// Copies the bytes of every element (block) between two views of one shape and dtype.
void CopyElements(const TensorView& from, const TensorView& to) {
  const int64_t block = BlockLength(from.dtype);
  std::vector<char*> sources;
  const auto collect = [&](const TensorView& view) {
    std::vector<char*> addresses;
    reference::ForEachOffset(view, [&](int64_t offset) {
      if (offset % block != 0) return;
      addresses.push_back(static_cast<char*>(view.data) + ByteOffset(view.dtype, offset));
    });
    return addresses;
  };
  const std::vector<char*> source = collect(from), target = collect(to);
  ASSERT_EQ(source.size(), target.size());
  for (size_t i = 0; i < source.size(); ++i) {
    std::copy_n(source[i], BlockBytes(from.dtype), target[i]);
  }
}

// The first dimension of a few indices gets a stride beyond 2^31; -1 if there is none.
int FarAxis(const TensorView& view) {
  const int last = IsBlockQuantized(view.dtype) ? view.rank() - 1 : view.rank();
  for (int axis = 0; axis < last; ++axis) {
    if (view.dim(axis) >= 2 && view.dim(axis) <= 8 && view.stride(axis) > 1) return axis;
  }
  return -1;
}

class FarStrides : public testing::TestWithParam<std::tuple<OpKind, DeviceKind>> {};

TEST_P(FarStrides, GiveTheSameResults) {
  const auto [op, kind] = GetParam();
  ContextOptions options;
  options.cuda_emulated = kind == DeviceKind::kCuda;
  auto created = Context::Create(options);
  ASSERT_TRUE(created.ok()) << created.status().ToString();
  ContextDevice& device = *(*created)->device(kind);
  int64_t runs = 0;
  ForEachCaseType([&]<typename Case>() {
    if (Case::Args::kOp != op) return;
    for (const Case& c : Case::Grid(GridSize::kShort)) {
      if (ExpectedCode(c) != absl::StatusCode::kOk) continue;
      const auto prepared = Prepare(c);
      ASSERT_TRUE(prepared.ok()) << prepared.status().ToString();
      Views views;
      std::vector<std::unique_ptr<Reserved>> memory;
      bool any = false;
      for (const Operand& operand : prepared->operands.all()) {
        const TensorView initial = prepared->operands.View(operand.name);
        TensorView far = initial;
        const int axis = FarAxis(initial);
        if (axis >= 0) far.strides[axis] = kFar;
        any = any || axis >= 0;
        memory.push_back(std::make_unique<Reserved>(ByteExtent(far) + 4096));
        if (memory.back()->data() == nullptr) GTEST_SKIP() << "cannot reserve address space";
        far.data = memory.back()->data();
        far.device = device.backend->device();
        CopyElements(initial, far);
        views.Add(operand.name, far);
      }
      if (!any) continue;
      const typename Case::Args args = c.Bind(views);
      ASSERT_TRUE(Validate(args).ok()) << Validate(args).ToString();
      for (const auto& kernel : KernelsOf<typename Case::Args>(kind)) {
        // The library's stand-in checks that its operands are device memory; this is address space.
        // What it is told of strides is the library's to follow.
        if (kernel.name == "cublaslt" || kernel.name == "expanded") continue;
        KernelContext context{.stream = device.stream.get()};
        if (!kernel.supports(context, args).ok()) continue;
        const int64_t bytes = kernel.workspace_bytes(context, args);
        const auto scratch = device.backend->allocator().Allocate(bytes);
        ASSERT_TRUE(scratch.ok()) << scratch.status();
        Workspace workspace((*scratch)->data(), bytes);
        context.workspace = &workspace;
        for (const Operand& operand : prepared->operands.all()) {
          CopyElements(prepared->operands.View(operand.name), views(operand.name));
        }
        const absl::Status status = kernel.run(context, args);
        ASSERT_TRUE(status.ok()) << status.ToString();
        const absl::Status done = device.stream->Synchronize();
        ASSERT_TRUE(done.ok()) << done.ToString();
        for (const Expectation& expectation : prepared->expectations) {
          Outcome outcome;
          EXPECT_EQ(Compare(expectation, views(expectation.operand), outcome), "")
              << kernel.name << ": " << CaseText(c);
        }
        ++runs;
      }
    }
  });
  EXPECT_GT(runs, 0);
}

INSTANTIATE_TEST_SUITE_P(Ops, FarStrides,
                         testing::Combine(testing::Values(OpKind::kAttention, OpKind::kMatMul,
                                                          OpKind::kSoftmax, OpKind::kRmsNorm,
                                                          OpKind::kRope, OpKind::kSiluMul,
                                                          OpKind::kAdd, OpKind::kKvAppend,
                                                          OpKind::kCast, OpKind::kMergeAttention),
                                          testing::Values(DeviceKind::kCpu, DeviceKind::kCuda)),
                         [](const auto& param) {
                           return std::string(Name(std::get<0>(param.param))) + "_" +
                                  std::string(Name(std::get<1>(param.param)));
                         });

}  // namespace
}  // namespace tandem::cases
