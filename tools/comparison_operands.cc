#include "tools/comparison_operands.h"

#include <random>
#include <utility>

#include "core/status.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"

namespace tandem::tools {
namespace {

// Beyond the last-level cache of most machines (and the L2 cache of an H200), copies taken
// together.
constexpr int64_t kColdBytes = int64_t{96} << 20;
constexpr int64_t kMostCopies = 64;

int64_t StoredBytes(const GridSeries& s, int64_t x) {
  switch (s.op) {
    case OpKind::kAttention:
      return ByteOffset(s.stored, kGridKvHeads * x * kGridHeadDim);
    case OpKind::kMatMul:
      return ByteOffset(s.stored, s.n * s.k);
    default:
      return ByteOffset(s.stored, x * MaskColumns(s.stored, x));
  }
}
// Rotation would change nothing where computing takes the time.
bool Rotates(const GridSeries& s) { return s.op != OpKind::kMask && !s.prefill; }

}  // namespace

absl::StatusOr<OperandPool> OperandPool::Make(Context& context, DeviceKind where, DType dtype,
                                              int64_t bytes) {
  constexpr int64_t kRows = 64, kColumns = 4096;  // of the numbers that repeat
  const int64_t period = ByteOffset(dtype, kRows * kColumns);
  Allocator& host = context.host_allocator();
  TANDEM_ASSIGN_OR_RETURN(Tensor memory, Tensor::Allocate(host, DType::kI8, {bytes}));
  char* data = memory.As<char>();
  std::mt19937 random(1);
  if (IsFloat(dtype) || IsBlockQuantized(dtype)) {
    TANDEM_ASSIGN_OR_RETURN(const Tensor numbers,
                            Tensor::Allocate(host, DType::kF32, {kRows, kColumns}));
    std::normal_distribution<float> normal;
    for (int64_t i = 0; i < kRows * kColumns; ++i) numbers.As<float>()[i] = normal(random);
    TANDEM_ASSIGN_OR_RETURN(const Tensor pattern, Tensor::Allocate(host, dtype, {kRows, kColumns}));
    ContextOptions cpu = context.options();
    cpu.device = DeviceKind::kCpu;
    cpu.cuda = cpu.cuda_emulated = false;
    TANDEM_ASSIGN_OR_RETURN(const auto converter, Context::Create(cpu));
    TANDEM_RETURN_IF_ERROR(CastInto(*converter, {.x = numbers, .out = pattern}));
    std::copy_n(pattern.As<char>(), std::min(period, bytes), data);
  } else {
    for (int64_t i = 0; i < std::min(period, bytes); ++i) {
      data[i] = static_cast<char>(static_cast<int>(random() % 255) - 127);
    }
  }
  for (int64_t done = period; done < bytes; done += period) {
    std::copy_n(data, std::min(period, bytes - done), data + done);
  }
  OperandPool pool;
  pool.dtype_ = dtype;
  pool.memory_ = memory;
  if (where != DeviceKind::kCpu) {
    TANDEM_ASSIGN_OR_RETURN(pool.memory_, CopyTo(context, where, memory));
    TANDEM_RETURN_IF_ERROR(Synchronize(context, where));
  }
  return pool;
}

TensorView OperandPool::View(const Shape& shape, int64_t copy) const {
  const int64_t each = ByteOffset(dtype_, NumElements(shape).value());
  const int64_t room =
      std::max<int64_t>(memory_.view().num_elements() / std::max<int64_t>(each, 1), 1);
  return MakeView(memory_.As<char>() + (copy % room) * each, dtype_, shape, memory_.view().device);
}

int64_t CopiesOf(const GridSeries& s, int64_t x) {
  if (!Rotates(s)) return 1;
  const int64_t both = (s.op == OpKind::kAttention ? 2 : 1) * StoredBytes(s, x);
  return std::clamp<int64_t>(kColdBytes / both + 1, 1, kMostCopies);
}

absl::StatusOr<GridOperands> MakeOperands(Context& context, DeviceKind where, const GridSeries& s,
                                          int64_t longest) {
  GridOperands made;
  const auto make = [&](OperandPool& pool, DType dtype, int64_t bytes) {
    absl::StatusOr<OperandPool> result =
        OperandPool::Make(context, where, dtype, std::max<int64_t>(bytes, 64));
    if (result.ok()) pool = *std::move(result);
    return result.status();
  };
  const int64_t one = StoredBytes(s, longest);
  if (s.op == OpKind::kMask) {
    TANDEM_RETURN_IF_ERROR(make(made.stored, s.stored, one));
    return made;
  }
  int64_t bytes = one;  // of the copies of any length
  for (const int64_t x : s.x) {
    if (x <= longest) bytes = std::max(bytes, CopiesOf(s, x) * StoredBytes(s, x));
  }
  TANDEM_RETURN_IF_ERROR(make(made.stored, s.stored, bytes));
  if (s.op == OpKind::kMatMul) {
    TANDEM_RETURN_IF_ERROR(
        make(made.small, s.activations, ByteOffset(s.activations, longest * s.k)));
    TANDEM_RETURN_IF_ERROR(
        make(made.small_out, s.activations, ByteOffset(s.activations, longest * s.n)));
    return made;
  }
  TANDEM_RETURN_IF_ERROR(make(made.stored_v, s.stored, bytes));
  const int64_t queries =
      ByteOffset(s.activations, kGridHeads * (s.prefill ? longest : 1) * kGridHeadDim);
  TANDEM_RETURN_IF_ERROR(make(made.small, s.activations, queries));
  TANDEM_RETURN_IF_ERROR(make(made.small_out, s.activations, queries));
  if (s.stored == DType::kI8) {
    TANDEM_RETURN_IF_ERROR(make(made.scales, DType::kF32, kGridKvHeads * longest * 4));
  }
  return made;
}

}  // namespace tandem::tools
