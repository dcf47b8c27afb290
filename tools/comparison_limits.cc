#include "tools/comparison_limits.h"

#include <algorithm>
#include <chrono>

#include "absl/strings/str_cat.h"
#include "core/backend.h"
#include "core/status.h"
#include "cpu/backend.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"
#include "tools/comparison_operands.h"

namespace tandem::tools {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Least seconds of `run`, on the device's stream and waited for.
template <typename Call>
absl::StatusOr<double> Least(Context& context, DeviceKind kind, int calls, const Call& call) {
  double least = 1e30;
  for (int i = 0; i < calls; ++i) {
    const double begin = Now();
    TANDEM_RETURN_IF_ERROR(call());
    TANDEM_RETURN_IF_ERROR(Synchronize(context, kind));
    if (i > 0) least = std::min(least, Now() - begin);
  }
  return least;
}

absl::Status AddCopies(Context& context, DeviceKind kind, ComparedDevice& device) {
  using Kind = MachineLimit::Kind;
  const int64_t bytes = int64_t{256} << 20;
  TANDEM_ASSIGN_OR_RETURN(const Tensor host,
                          Tensor::Allocate(context.host_allocator(), DType::kI8, {bytes}));
  std::fill_n(host.As<char>(), bytes, '\1');
  TANDEM_ASSIGN_OR_RETURN(const Tensor a, CopyTo(context, kind, host));
  TANDEM_ASSIGN_OR_RETURN(const Tensor b, CopyTo(context, kind, host));
  struct Way {
    Kind kind;
    const char* what;
    const Tensor* from;
    const Tensor* to;
    double bytes;
  };
  const double n = static_cast<double>(bytes);
  for (const Way& way : {Way{Kind::kBandwidth, "copies its memory at", &a, &b, 2 * n},
                         {Kind::kTransfer, "receives at", &host, &a, n},
                         {Kind::kTransfer, "sends at", &a, &host, n}}) {
    TANDEM_ASSIGN_OR_RETURN(const double seconds, Least(context, kind, 6, [&] {
                              return Copy(context, *way.from, *way.to);
                            }));
    device.limits.push_back({way.kind, way.what, way.bytes / seconds * 1e-9});
  }
  return absl::OkStatus();
}

absl::Status AddGemm(Context& context, DeviceKind kind, DType dtype, int64_t size,
                     ComparedDevice& device) {
  TANDEM_ASSIGN_OR_RETURN(const OperandPool pool,
                          OperandPool::Make(context, kind, dtype, ByteOffset(dtype, size * size)));
  TANDEM_ASSIGN_OR_RETURN(const Tensor out, AllocateOn(context, kind, dtype, {size, size}));
  MatMulArgs args;
  args.a = args.b = pool.View({size, size}, 0);
  args.out = out;
  TANDEM_ASSIGN_OR_RETURN(const double seconds,
                          Least(context, kind, 4, [&] { return MatMulInto(context, args); }));
  const double n = static_cast<double>(size);
  device.limits.push_back({MachineLimit::Kind::kCompute,
                           absl::StrCat(std::string(Name(dtype)), " product of ", size, "³"),
                           2 * n * n * n / seconds * 1e-9});
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ComparedDevice> MeasureLimits(Context& context, DeviceKind kind, bool quick) {
  ComparedDevice device;
  const Device own = context.device(kind)->backend->device();
  device.emulated = own.index == kEmulatedDevice;
  device.id = device.emulated ? Name(own) : std::string(Name(kind));
  const Backend& backend = *context.device(kind)->backend;
  device.name = backend.description();
  using Kind = MachineLimit::Kind;
  if (kind == DeviceKind::kCpu) {
    const cpu::CpuInfo info = cpu::DescribeCpu();
    const int threads = context.options().threads > 0 ? context.options().threads : info.cores;
    const cpu::Isa isa = cpu::ParseIsa(context.options().isa).value_or(info.features.isa);
    device.name = absl::StrCat(info.model, ", ", threads, threads == 1 ? " thread, " : " threads, ",
                               std::string(cpu::Name(isa)));
    device.limits = {{Kind::kBandwidth, "reads DRAM at",
                      cpu::MeasureReadBandwidth(threads, int64_t{quick ? 256 : 1024} << 20)},
                     {Kind::kCompute, "f32 multiply-adds", cpu::MeasureFmaRate(threads, isa)}};
    if (!info.caches.empty()) {
      device.limits.push_back({Kind::kBandwidth, "reads its last cache at",
                               cpu::MeasureReadBandwidth(threads, info.caches.back().bytes / 4)});
    }
    TANDEM_RETURN_IF_ERROR(AddGemm(context, kind, DType::kF32, quick ? 1024 : 2048, device));
  } else if (!device.emulated) {  // an emulator has no limits to compare with
    TANDEM_RETURN_IF_ERROR(AddCopies(context, kind, device));
    TANDEM_RETURN_IF_ERROR(AddGemm(context, kind, DType::kBF16, 4096, device));
    TANDEM_RETURN_IF_ERROR(AddGemm(context, kind, DType::kF32, 4096, device));
  }
  return device;
}

}  // namespace tandem::tools
