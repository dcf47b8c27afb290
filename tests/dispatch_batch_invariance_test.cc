// AttentionArgs::batch_invariant: by every kernel that accepts it, a sequence alone gives the bits
// that it gives in a batch, whatever the others are and however much room its cache has.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "dispatch/facts.h"
#include "dispatch/ops.h"
#include "dispatch/registry.h"
#include "tests/cases/attention_cases.h"
#include "tests/emulated_context.h"
#include "tests/sanitizers.h"

namespace tandem::cases {
namespace {

constexpr DType kF32 = DType::kF32, kF16 = DType::kF16, kBF16 = DType::kBF16, kI8 = DType::kI8;

TensorView Narrow(TensorView view, int axis, int64_t begin, int64_t count) {
  if (!view.present()) return view;
  // An empty view stays where it is: behind it there may be no memory at all.
  const int64_t offset = view.empty() ? 0 : begin * view.stride(axis);
  view.data = static_cast<char*>(view.data) + ByteOffset(view.dtype, offset);
  view.shape.dims[axis] = count;
  return view;
}

int64_t Entry(const TensorView& list, int64_t i) { return *list.At<int32_t>(i * list.stride(0)); }

// Sequence b of a batch as a call of its own. `lengths`: the same call in host memory, whose lists
// can be read; if `tight`, the cache ends with the sequence's last key.
AttentionArgs Alone(AttentionArgs args, const AttentionArgs& lengths, int64_t b, bool tight) {
  if (args.q_offsets.present()) {  // one sequence needs no offsets
    const int64_t begin = Entry(lengths.q_offsets, b);
    const int64_t count = Entry(lengths.q_offsets, b + 1) - begin;
    for (TensorView* view : {&args.q, &args.out, &args.lse}) *view = Narrow(*view, 2, begin, count);
    for (TensorView* view : {&args.bias, &args.mask}) {
      if (view->present() && view->dim(2) > 1) *view = Narrow(*view, 2, begin, count);
    }
    args.q_offsets = {};
  } else {
    for (TensorView* view : {&args.q, &args.out, &args.lse}) *view = Narrow(*view, 0, b, 1);
  }
  for (TensorView* view : {&args.bias, &args.mask}) {
    if (view->present() && view->dim(0) > 1) *view = Narrow(*view, 0, b, 1);
  }
  for (TensorView* view :
       {&args.k_new, &args.v_new, &args.q_lens, &args.kv_lens, &args.kv_starts, &args.page_table}) {
    *view = Narrow(*view, 0, b, 1);
  }
  if (!args.paged()) {
    for (TensorView* view : {&args.k, &args.v, &args.k_scale, &args.v_scale}) {
      *view = Narrow(*view, 0, b, 1);
    }
  }
  if (!tight || !args.kv_lens.present()) return args;
  const int64_t length = Entry(lengths.kv_lens, b);
  if (args.paged()) {
    args.page_table =
        Narrow(args.page_table, 1, 0, (length + args.page_size() - 1) / args.page_size());
  } else {
    for (TensorView* view : {&args.k, &args.v, &args.k_scale, &args.v_scale}) {
      *view = Narrow(*view, 2, 0, length);
    }
  }
  for (TensorView* view : {&args.bias, &args.mask}) {
    if (view->present() && view->dim(3) > 1) *view = Narrow(*view, 3, 0, args.kv_len());
  }
  return args;
}

// The bits of a host view.
std::string Bits(const TensorView& view) {
  std::string bits;
  const int64_t bytes = BlockBytes(view.dtype);
  const auto each = [&](auto&& self, int axis, int64_t offset) -> void {
    if (axis == view.rank()) {
      bits.append(static_cast<const char*>(view.data) + offset * bytes, static_cast<size_t>(bytes));
      return;
    }
    for (int64_t i = 0; i < view.dim(axis); ++i) {
      self(self, axis + 1, offset + i * view.stride(axis));
    }
  };
  each(each, 0, 0);
  return bits;
}

class BatchInvarianceTest : public testing::Test {
 protected:
  BatchInvarianceTest() {
    ContextOptions options;
    options.threads = 2;
    options.kernel_profile = "off";
    cpu_ = std::move(Context::Create(options)).value();
    cuda_ = EmulatedContext(/*forced=*/true);
  }

  // Runs one kernel on operands of its own; empty if it declines.
  std::unique_ptr<DeviceOperands> Run(Context& context, const Kernel<AttentionArgs>& kernel,
                                      const Prepared<AttentionCase>& prepared, int64_t alone,
                                      bool tight) {
    ContextDevice& device = *context.device(kernel.device);
    auto operands = std::make_unique<DeviceOperands>(
        DeviceOperands::Upload(prepared.operands, *device.backend, *device.stream).value());
    AttentionArgs args = prepared.c.Bind(operands->views());
    const Views host(prepared.operands);
    if (alone >= 0) args = Alone(args, prepared.c.Bind(host), alone, tight);
    KernelContext kernel_context{.stream = device.stream.get()};
    const absl::Status supports = kernel.supports(kernel_context, args);
    if (!supports.ok()) {
      EXPECT_TRUE(absl::IsUnimplemented(supports)) << supports;
      return nullptr;
    }
    auto scratch = GuardedWorkspace::Make(*device.backend, *device.stream,
                                          kernel.workspace_bytes(kernel_context, args));
    EXPECT_TRUE(scratch.ok()) << scratch.status();
    Workspace workspace(scratch->data(), scratch->bytes());
    kernel_context.workspace = &workspace;
    const absl::Status status = kernel.run(kernel_context, args);
    EXPECT_TRUE(status.ok()) << status;
    EXPECT_TRUE(device.stream->Synchronize().ok());
    EXPECT_EQ(operands->Download(*device.backend, *device.stream).value().value_or(""), "");
    return operands;
  }

  // Every sequence of the case, alone, by every kernel that takes the whole.
  void Check(Context& context, DeviceKind device, const AttentionCase& c) {
    SCOPED_TRACE(CaseText(c));
    const auto prepared = Prepare(c);
    ASSERT_TRUE(prepared.ok()) << prepared.status();
    const Views host(prepared->operands);
    const AttentionArgs lengths = c.Bind(host);
    for (const Kernel<AttentionArgs>& kernel : KernelsOf<AttentionArgs>(device)) {
      SCOPED_TRACE(std::string(kernel.name));
      const auto whole = Run(context, kernel, *prepared, -1, false);
      if (whole == nullptr) continue;
      const auto results = [&](const DeviceOperands& operands) {
        AttentionArgs args = lengths;
        args.out = operands.Result("out");
        if (c.lse) args.lse = operands.Result("lse");
        return args;
      };
      for (int64_t b = 0; b < c.batch; ++b) {
        for (const bool tight : {false, true}) {
          const AttentionArgs in_batch = Alone(results(*whole), lengths, b, tight);
          if (in_batch.q_len() == 0) continue;
          const auto single = Run(context, kernel, *prepared, b, tight);
          if (single == nullptr) continue;  // hopper: too few queries for it
          const AttentionArgs by_itself = Alone(results(*single), lengths, b, tight);
          EXPECT_TRUE(Bits(by_itself.out) == Bits(in_batch.out)) << "sequence " << b;
          if (c.lse) {
            EXPECT_TRUE(Bits(by_itself.lse) == Bits(in_batch.lse)) << "lse, sequence " << b;
          }
          tested_.insert(std::string(kernel.name));
        }
      }
    }
  }

  std::unique_ptr<Context> cpu_, cuda_;
  std::set<std::string> tested_;  // kernels
};

// Batches of 2 to 9 sequences with lengths of their own, few queries.
std::vector<AttentionCase> FewQueries() {
  std::vector<AttentionCase> cases;
  for (int64_t batch = 2; batch <= 9; batch += kSanitized ? 3 : 1) {
    AttentionCase c = {.batch = batch, .q_heads = 6, .kv_heads = 2, .q_len = 1 + batch % 4};
    c.kv_len = 300 * batch;
    c.head_dim = batch % 3 == 0 ? 40 : 64;
    c.kv_dtype = std::vector{kF16, kI8, kBF16, kF32}[static_cast<size_t>(batch % 4)];
    if (c.kv_dtype == kI8) c.head_dim = 64;
    c.q_dtype = c.kv_dtype == kBF16 ? kBF16 : kF32;
    c.new_len = batch % 3 - 1;
    c.new_dtype = c.q_dtype;
    c.window_left = batch % 2 == 0 ? 700 : -1;
    c.page_size = batch % 3 == 1 ? 16 : 0;
    c.sinks = batch == 5;
    c.softcap = batch == 6 ? 20.0f : 0.0f;
    c.queries = batch % 4 == 3 ? AttentionQueries::kRagged : AttentionQueries::kWhole;
    c.ragged_kv = c.lse = c.batch_invariant = true;
    c.seed = 100 + batch;
    cases.push_back(c);
  }
  return cases;
}

// Many queries: row tiles, and keys that are packed ahead, cut, or skipped.
std::vector<AttentionCase> ManyQueries() {
  std::vector<AttentionCase> cases;
  for (const AttentionQueries queries :
       {AttentionQueries::kWhole, AttentionQueries::kRagged, AttentionQueries::kPacked}) {
    for (const DType dtype : {kBF16, kF16, kF32}) {
      AttentionCase c = {.batch = 4, .q_heads = 3, .q_len = 70, .kv_len = 1300};
      c.q_dtype = c.kv_dtype = dtype;
      c.queries = queries;
      c.window_left = dtype == kBF16 ? 500 : -1;
      c.ragged_kv = c.lse = c.batch_invariant = true;
      c.seed = 200 + static_cast<int64_t>(cases.size());
      cases.push_back(c);
    }
  }
  return cases;
}

TEST_F(BatchInvarianceTest, Cpu) {
  std::vector<AttentionCase> cases = FewQueries();
  for (const AttentionCase& c : ManyQueries()) cases.push_back(c);
  for (const AttentionCase& c : cases) Check(*cpu_, DeviceKind::kCpu, c);
  EXPECT_TRUE(tested_.contains("reference"));
  EXPECT_TRUE(tested_.contains("decode_scalar"));
  EXPECT_TRUE(tested_.contains("prefill_scalar"));
}

TEST_F(BatchInvarianceTest, CudaFewQueries) {
  for (AttentionCase c : FewQueries()) {
    c.kv_len = std::min<int64_t>(c.kv_len, 1500);
    Check(*cuda_, DeviceKind::kCuda, c);
  }
  EXPECT_TRUE(tested_.contains("decode"));
}

TEST_F(BatchInvarianceTest, CudaManyQueries) {
  for (AttentionCase c : ManyQueries()) {
    c.kv_len = 400;
    c.q_heads = 1;
    c.batch = 3;
    Check(*cuda_, DeviceKind::kCuda, c);
  }
  for (const char* kernel : {"hopper", "prefill", "generic"}) {
    EXPECT_TRUE(tested_.contains(kernel)) << kernel;
  }
}

// Without it, the same call depends on the others: the test would show it.
TEST_F(BatchInvarianceTest, IsNotWhatHappensAnyway) {
  AttentionCase c = {.batch = 9, .q_heads = 2, .kv_heads = 1, .kv_len = 3000};
  c.kv_dtype = kF16;
  c.ragged_kv = true;
  const auto prepared = Prepare(c);
  ASSERT_TRUE(prepared.ok());
  for (Context* context : {cpu_.get(), cuda_.get()}) {
    const DeviceKind kind = context == cpu_.get() ? DeviceKind::kCpu : DeviceKind::kCuda;
    for (const Kernel<AttentionArgs>& kernel : KernelsOf<AttentionArgs>(kind)) {
      if (kernel.name != "decode" && kernel.name != "decode_scalar") continue;
      const auto whole = Run(*context, kernel, *prepared, -1, false);
      ASSERT_NE(whole, nullptr);
      bool differs = false;
      for (int64_t b = 0; b < c.batch; ++b) {
        const auto single = Run(*context, kernel, *prepared, b, false);
        ASSERT_NE(single, nullptr);
        differs = differs || Bits(Narrow(single->Result("out"), 0, b, 1)) !=
                                 Bits(Narrow(whole->Result("out"), 0, b, 1));
      }
      EXPECT_TRUE(differs) << std::string(kernel.name);
    }
  }
}

// What depends on how many queries are packed declines; the measured choice is left aside.
TEST_F(BatchInvarianceTest, KernelsOfPackedCallsDoNotDependOnTheBatch) {
  for (const int64_t q_len : {1, 4, 100}) {
    AttentionCase c = {.batch = 3, .q_heads = 2, .q_len = q_len, .kv_len = 120};
    c.q_dtype = c.kv_dtype = kBF16;
    c.queries = AttentionQueries::kPacked;
    c.batch_invariant = true;
    c.seed = 3;
    const auto prepared = Prepare(c);
    ASSERT_TRUE(prepared.ok());
    const Views host(prepared->operands);
    const AttentionArgs args = c.Bind(host);
    AttentionCase any = c;
    any.batch_invariant = false;
    const auto prepared_any = Prepare(any);
    ASSERT_TRUE(prepared_any.ok());
    for (const Kernel<AttentionArgs>& kernel : KernelsOf<AttentionArgs>(DeviceKind::kCuda)) {
      const std::string name(kernel.name);
      const bool runs = Run(*cuda_, kernel, *prepared, -1, false) != nullptr;
      const bool takes = Run(*cuda_, kernel, *prepared_any, -1, false) != nullptr;
      EXPECT_EQ(runs, takes && name != "decode" && name != "hopper") << name << " " << q_len;
      if (name == "prefill" || name == "generic") {
        EXPECT_TRUE(takes) << name << " " << q_len;
      }
    }
    EXPECT_TRUE(FactsOf(args).batch_invariant);
  }
}

}  // namespace
}  // namespace tandem::cases
