// tandem bench-device: ops that memory bounds, on a CUDA device, each beside a copy within the
// device's memory in the same run; attention; and matrix products. The emulated device only
// rehearses it.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <functional>
#include <iostream>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "dispatch/copy.h"
#include "dispatch/ops.h"
#include "tools/command.h"
#include "tools/device_bench.h"
#include "tools/terminal.h"

namespace tandem::tools {
namespace {

struct Options {
  ComputeOptions compute;
  int64_t bytes = int64_t{256} << 20;
  int repeats = 11;
  bool json = false;
};

class Bench {
 public:
  Bench(Context& context, const Options& options)
      : context_(context), options_(options), bench_(context, options.bytes, options.repeats) {}

  absl::Status Run() {
    TANDEM_RETURN_IF_ERROR(MeasureCopy());
    TANDEM_RETURN_IF_ERROR(MeasureElementOps());
    TANDEM_RETURN_IF_ERROR(MeasureDecoderOps());
    TANDEM_RETURN_IF_ERROR(MeasureMasks());
    TANDEM_RETURN_IF_ERROR(MeasureAttention(bench_));
    return MeasureMatMuls(bench_, library_);
  }
  const std::vector<DeviceBenchRow>& rows() { return bench_.rows(); }
  const std::string& library() const { return library_; }

 private:
  // Zeros: none of these kernels looks at the values.
  absl::StatusOr<Tensor> Make(DType dtype, const Shape& shape) {
    return bench_.Zeros(dtype, shape);
  }
  absl::Status Measure(const std::string& what, double bytes, double flops,
                       const std::function<absl::Status()>& run) {
    return bench_.Measure(what, bytes, flops, run).status();
  }

  absl::Status MeasureCopy() {
    TANDEM_ASSIGN_OR_RETURN(const Tensor from, Make(DType::kI8, {options_.bytes}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor to, Make(DType::kI8, {options_.bytes}));
    return Measure("device copy", 2.0 * static_cast<double>(options_.bytes), 0.0,
                   [&] { return Copy(context_, from, to); });
  }

  // Tensors of `bytes` as f16 rows of 4096.
  absl::Status MeasureElementOps() {
    constexpr int64_t kColumns = 4096;
    const int64_t rows = std::max<int64_t>(options_.bytes / 2 / kColumns, 1);
    TANDEM_ASSIGN_OR_RETURN(const Tensor a, Make(DType::kF16, {rows, kColumns}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor b, Make(DType::kF16, {rows, kColumns}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor out, Make(DType::kF16, {rows, kColumns}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor weight, Make(DType::kF16, {kColumns}));
    const double one = static_cast<double>(rows * kColumns * 2);
    TANDEM_RETURN_IF_ERROR(Measure(
        "add f16", 3 * one, 0.0, [&] { return AddInto(context_, {.a = a, .b = b, .out = out}); }));
    TANDEM_RETURN_IF_ERROR(Measure("silu_mul f16", 3 * one, 0.0, [&] {
      return SiluMulInto(context_, {.gate = a, .up = b, .out = out});
    }));
    TANDEM_RETURN_IF_ERROR(Measure("rms_norm f16", 2 * one, 0.0, [&] {
      RmsNormArgs args;
      args.x = a;
      args.weight = weight;
      args.out = out;
      return RmsNormInto(context_, args);
    }));
    TANDEM_RETURN_IF_ERROR(Measure("softmax f16", 2 * one, 0.0,
                                   [&] { return SoftmaxInto(context_, {.x = a, .out = out}); }));
    TANDEM_RETURN_IF_ERROR(Measure("rms_norm with residual f16", 4 * one, 0.0, [&] {
      RmsNormArgs args;
      args.x = a;
      args.residual = args.sum = b;
      args.weight = weight;
      args.out = out;
      return RmsNormInto(context_, args);
    }));
    return MeasureCasts(a, rows, kColumns);
  }

  absl::Status MeasureCasts(const Tensor& narrow, int64_t rows, int64_t columns) {
    TANDEM_ASSIGN_OR_RETURN(const Tensor wide, Make(DType::kF32, {rows, columns}));
    const double elements = static_cast<double>(rows * columns);
    TANDEM_RETURN_IF_ERROR(Measure("cast f16 -> f32", 6 * elements, 0.0,
                                   [&] { return CastInto(context_, {.x = narrow, .out = wide}); }));
    for (const DType block : {DType::kQ8_0, DType::kQ4_0}) {
      TANDEM_ASSIGN_OR_RETURN(const Tensor blocks, Make(block, {rows, columns}));
      const double bytes =
          elements * (4.0 + static_cast<double>(BlockBytes(block)) / BlockLength(block));
      const std::string name(Name(block));
      TANDEM_RETURN_IF_ERROR(Measure("cast f32 -> " + name, bytes, 0.0, [&] {
        return CastInto(context_, {.x = wide, .out = blocks});
      }));
      TANDEM_RETURN_IF_ERROR(Measure("cast " + name + " -> f32", bytes, 0.0, [&] {
        return CastInto(context_, {.x = blocks, .out = wide});
      }));
    }
    return absl::OkStatus();
  }

  // One token per sequence or many, as in a decoder of 32 query and 8 key/value heads of 128.
  absl::Status MeasureDecoderOps() {
    constexpr int64_t kHeads = 32, kKvHeads = 8, kDim = 128;
    const int64_t tokens = std::max<int64_t>(options_.bytes / (kHeads * kDim * 2), 1);
    TANDEM_ASSIGN_OR_RETURN(const Tensor q, Make(DType::kF16, {1, kHeads, tokens, kDim}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor k, Make(DType::kF16, {1, kKvHeads, tokens, kDim}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor v, Make(DType::kF16, {1, kKvHeads, tokens, kDim}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor k_cache, Make(DType::kF16, {1, kKvHeads, tokens, kDim}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor v_cache, Make(DType::kF16, {1, kKvHeads, tokens, kDim}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor positions, Make(DType::kI32, {tokens}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor inv_freq, Make(DType::kF32, {kDim / 2}));
    const double row = static_cast<double>(tokens * kDim * 2);
    TANDEM_RETURN_IF_ERROR(Measure("rope f16", 2 * kHeads * row, 0.0, [&] {
      RopeArgs args;
      args.x = args.out = q;
      args.positions = positions;
      args.inv_freq = inv_freq;
      args.pairing = RopePairing::kHalf;
      return RopeInto(context_, args);
    }));
    TANDEM_RETURN_IF_ERROR(
        Measure("kv_append with rope f16", (2 * kHeads + 4 * kKvHeads) * row, 0.0, [&] {
          KvAppendArgs args;
          args.k = k;
          args.v = v;
          args.k_cache = k_cache;
          args.v_cache = v_cache;
          args.rope = {positions, inv_freq, RopePairing::kHalf, 1.0f};
          args.q = args.q_out = q;
          return KvAppendInto(context_, args);
        }));
    const Tensor& table = q;  // seen as rows of all heads
    TANDEM_ASSIGN_OR_RETURN(const Tensor ids, Make(DType::kI32, {tokens}));
    TANDEM_ASSIGN_OR_RETURN(const Tensor embedded, Make(DType::kF16, {tokens, kHeads * kDim}));
    TANDEM_RETURN_IF_ERROR(Measure("embedding f16, one row", kHeads * row, 0.0, [&] {
      EmbeddingArgs args;
      args.table =
          MakeView(table.view().data, DType::kF16, {tokens, kHeads * kDim}, table.view().device);
      args.ids = ids;
      args.out = embedded;
      return EmbeddingInto(context_, args);
    }));
    constexpr int64_t kVocabulary = 128256;
    for (const int64_t sequences : {1, 64}) {
      TANDEM_ASSIGN_OR_RETURN(const Tensor logits, Make(DType::kF32, {sequences, kVocabulary}));
      TANDEM_ASSIGN_OR_RETURN(const Tensor best, Make(DType::kI32, {sequences}));
      TANDEM_RETURN_IF_ERROR(Measure(absl::StrFormat("argmax f32 %d x %d", sequences, kVocabulary),
                                     static_cast<double>(sequences * kVocabulary * 4), 0.0, [&] {
                                       return ArgMaxInto(context_, {.x = logits, .out = best});
                                     }));
      if (sequences * kVocabulary * 64 * 4 > options_.bytes) break;
    }
    return absl::OkStatus();
  }

  absl::Status MeasureMasks() {
    for (const int64_t length : {1024, 4096, 8192}) {
      TANDEM_ASSIGN_OR_RETURN(const Tensor out, Make(DType::kF16, {length, length}));
      MaskArgs args;
      args.rule.q_len = args.rule.kv_len = length;
      args.out = out;
      TANDEM_RETURN_IF_ERROR(Measure(absl::StrFormat("mask f16 %d x %d", length, length),
                                     static_cast<double>(length * length * 2), 0.0,
                                     [&] { return MaskInto(context_, args); }));
      if (length * length * 4 > options_.bytes) break;
    }
    return absl::OkStatus();
  }

  Context& context_;
  const Options& options_;
  DeviceBench bench_;
  std::string library_;
};

absl::Status Run(const Options& o) {
  ComputeOptions compute = o.compute;
  if (compute.device.empty()) compute.device = "cuda";
  if (compute.device == "cpu") {
    return InvalidArgument("--device: expected cuda or cuda:emulated, got cpu");
  }
  TANDEM_ASSIGN_OR_RETURN(const ContextOptions context_options, ToContextOptions(compute));
  TANDEM_ASSIGN_OR_RETURN(const auto context, OpenContext(context_options));
  const Backend& backend = *context->device(DeviceKind::kCuda)->backend;
  Bench bench(*context, o);
  TANDEM_RETURN_IF_ERROR(bench.Run());
  const std::vector<DeviceBenchRow>& rows = bench.rows();
  const bool emulated = backend.device().index == kEmulatedDevice;
  const double copy = rows[0].bytes / rows[0].seconds;
  const std::string device = Name(backend.device()) + ", " + backend.description();
  if (o.json) {
    nlohmann::json json = {{"device", device},
                           {"virtual_clock", emulated},
                           {"matmul_library", bench.library()},
                           {"rows", nlohmann::json::array()}};
    for (const DeviceBenchRow& row : rows) {
      nlohmann::json line = {
          {"what", row.what},       {"kernel", row.kernel},
          {"seconds", row.seconds}, {"bytes", row.bytes},
          {"flops", row.flops},     {"of_device_copy", row.bytes / row.seconds / copy}};
      if (!row.by.empty()) {
        line["matmul"] = {
            {"dtype", row.dtype}, {"m", row.m}, {"n", row.n}, {"k", row.k}, {"by", row.by}};
        if (row.of_library > 0) line["matmul"]["of_library"] = row.of_library;
      }
      if (const AttentionShape& a = row.attention; a.batch > 0) {
        line["attention"] = {{"dtype", row.dtype},     {"batch", a.batch},  {"heads", a.heads},
                             {"kv_heads", a.kv_heads}, {"q_len", a.q_len},  {"kv_len", a.kv_len},
                             {"head_dim", a.head_dim}, {"causal", a.causal}};
      }
      json["rows"].push_back(std::move(line));
    }
    std::cout << json.dump(2) << "\n";
    return absl::OkStatus();
  }
  std::cout << device << "; medians of " << o.repeats << "\n";
  if (emulated) std::cout << "The emulated device's clock is virtual: these are no measurements.\n";
  std::cout << "library of matrix products: " << bench.library() << "\n";
  Table table({"what", "kernel", "us", "GB/s", "of device copy", "TFLOP/s", "of library"});
  for (const DeviceBenchRow& row : rows) {
    table.Row({row.what, row.kernel, absl::StrFormat("%.1f", row.seconds * 1e6),
               absl::StrFormat("%.1f", row.bytes / row.seconds * 1e-9),
               absl::StrFormat("%.2f", row.bytes / row.seconds / copy),
               row.flops > 0 ? absl::StrFormat("%.2f", row.flops / row.seconds * 1e-12) : "-",
               row.of_library > 0 ? absl::StrFormat("%.2f", row.of_library) : "-"});
  }
  table.Print(std::cout, UseColor(1));
  return absl::OkStatus();
}

}  // namespace

void AddBenchDevice(CLI::App& app, Action& action) {
  auto o = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "bench-device", "Time ops on a CUDA device as fractions of a copy within its memory");
  AddComputeOptions(*command, o->compute);
  command->add_option("--bytes", o->bytes, "size of one operand")
      ->check(CLI::Range(int64_t{4096}, int64_t{1} << 33))
      ->capture_default_str();
  command->add_option("--repeats", o->repeats, "timed runs of each")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_flag("--json", o->json, "machine-readable output");
  command->callback([o, &action] {
    action = [o] {
      const absl::Status status = Run(*o);
      return status.ok() ? kExitOk : Report(status);
    };
  });
}

}  // namespace tandem::tools
