// The attention of `tandem bench-device`: decoding, one query per sequence, and prompts. Random
// numbers; several copies of the operands in turn, so that none is found in a cache; several calls
// as one graph, so that what is timed is the device's work and not the host's.
#include <algorithm>
#include <set>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "core/status.h"
#include "dispatch/graph.h"
#include "dispatch/ops.h"
#include "tools/device_bench.h"

namespace tandem::tools {
namespace {

constexpr int64_t kColdBytes = int64_t{128} << 20;  // more than twice the L2 cache of an H200
constexpr int64_t kMostCopies = 32;
constexpr int kMinCalls = 4;  // of a graph

// Operands of one call; `args` views them.
struct Operands {
  std::vector<Tensor> tensors;
  AttentionArgs args;
};

class Attention {
 public:
  explicit Attention(DeviceBench& bench) : bench_(bench) {}

  absl::Status Measure(const AttentionShape& shape, DType dtype) {
    const double bytes = Bytes(shape, dtype);
    const auto copies = static_cast<int64_t>(
        std::clamp(static_cast<double>(kColdBytes) / bytes + 1.0, 1.0, double{kMostCopies}));
    std::vector<Operands> operands;
    for (int64_t i = 0; i < copies; ++i) {
      TANDEM_ASSIGN_OR_RETURN(operands.emplace_back(), Make(shape, dtype));
    }
    Context& context = bench_.context();
    TANDEM_RETURN_IF_ERROR(AttentionInto(context, operands[0].args));
    const int64_t calls = std::max<int64_t>(copies, kMinCalls);
    TANDEM_ASSIGN_OR_RETURN(Graph graph, Graph::Capture(context, DeviceKind::kCuda, [&] {
                              for (int64_t i = 0; i < calls; ++i) {
                                TANDEM_RETURN_IF_ERROR(AttentionInto(
                                    context, operands[static_cast<size_t>(i % copies)].args));
                              }
                              return absl::OkStatus();
                            }));
    bool named = false;  // the first run tells the kernel
    TANDEM_ASSIGN_OR_RETURN(
        DeviceBenchRow * row,
        bench_.Measure(absl::StrFormat("attention %s, %d x %d queries, %d keys, %d/%d heads x %d%s",
                                       std::string(Name(dtype)), shape.batch, shape.q_len,
                                       shape.kv_len, shape.heads, shape.kv_heads, shape.head_dim,
                                       shape.causal && shape.q_len > 1 ? ", causal" : ""),
                       bytes, Flops(shape), [&] {
                         if (std::exchange(named, true)) return graph.Launch();
                         return AttentionInto(context, operands[0].args);
                       }));
    row->seconds /= static_cast<double>(calls);
    row->dtype = std::string(Name(dtype));
    row->attention = shape;
    return absl::OkStatus();
  }

 private:
  // Keys, values (with their scales), queries and output, each once.
  static double Bytes(const AttentionShape& s, DType dtype) {
    const auto element = static_cast<double>(BlockBytes(dtype));
    const double rows = static_cast<double>(s.batch * s.kv_heads * s.kv_len);
    const double queries = static_cast<double>(s.batch * s.heads * s.q_len * s.head_dim);
    const double scales = dtype == DType::kI8 ? 8.0 * rows : 0.0;
    return 2.0 * rows * static_cast<double>(s.head_dim) * element + scales + 4.0 * queries;
  }
  // Two products over the visible pairs; half of them if causal.
  static double Flops(const AttentionShape& s) {
    const double all = 4.0 * static_cast<double>(s.batch * s.heads * s.q_len) *
                       static_cast<double>(s.kv_len * s.head_dim);
    return s.causal && s.q_len > 1 ? all / 2 : all;
  }

  absl::StatusOr<Operands> Make(const AttentionShape& s, DType dtype) {
    Operands made;
    const auto add = [&](absl::StatusOr<Tensor> tensor, TensorView& view) {
      if (tensor.ok()) {
        view = tensor->view();
        made.tensors.push_back(*std::move(tensor));
      }
      return tensor.status();
    };
    AttentionArgs& args = made.args;
    const DType wide = dtype == DType::kI8 ? DType::kBF16 : dtype;  // of q and out
    const Shape rows = {s.batch, s.kv_heads, s.kv_len, s.head_dim};
    const Shape queries = {s.batch, s.heads, s.q_len, s.head_dim};
    TANDEM_RETURN_IF_ERROR(add(bench_.Normals(wide, queries), args.q));
    TANDEM_RETURN_IF_ERROR(add(bench_.Zeros(wide, queries), args.out));
    if (dtype == DType::kI8) {
      // Bytes of zero: no time of this kernel depends on the values.
      const Shape scales = {s.batch, s.kv_heads, s.kv_len};
      TANDEM_RETURN_IF_ERROR(add(bench_.Zeros(dtype, rows), args.k));
      TANDEM_RETURN_IF_ERROR(add(bench_.Zeros(dtype, rows), args.v));
      TANDEM_RETURN_IF_ERROR(add(bench_.Normals(DType::kF32, scales), args.k_scale));
      TANDEM_RETURN_IF_ERROR(add(bench_.Normals(DType::kF32, scales), args.v_scale));
    } else {
      TANDEM_RETURN_IF_ERROR(add(bench_.Normals(dtype, rows), args.k));
      TANDEM_RETURN_IF_ERROR(add(bench_.Normals(dtype, rows), args.v));
    }
    args.causal = s.causal ? Causal::kBottomRight : Causal::kNone;
    return made;
  }

  DeviceBench& bench_;
};

}  // namespace

absl::Status MeasureAttention(DeviceBench& bench) {
  Attention attention(bench);
  // Decoding. The caches of the longest are two operands of 2 * --bytes.
  const int64_t most = std::max<int64_t>(4 * bench.bytes() / (2 * 8 * 128 * 2), 1);  // keys
  std::set<std::pair<int64_t, int64_t>> caches = {{1, std::min<int64_t>(1024, most)}};
  for (const auto& [batch, keys] :
       {std::pair<int64_t, int64_t>{1, 4096}, {1, 32768}, {8, 1024}, {8, 4096}, {8, 32768}}) {
    if (batch * keys <= most) caches.insert({batch, keys});
  }
  for (const auto& [batch, keys] : caches) {
    for (const DType dtype : {DType::kBF16, DType::kF16, DType::kI8}) {
      TANDEM_RETURN_IF_ERROR(attention.Measure({batch, 32, 8, 1, keys, 128, true}, dtype));
    }
  }
  // Prompts.
  for (const int64_t head_dim : {128, 64, 256}) {
    const int64_t longest = std::max<int64_t>(bench.bytes() / (32 * head_dim * 2), 1);
    std::set<int64_t> lengths = {std::min<int64_t>(2048, longest)};
    for (const int64_t length : {8192, 16384}) {
      if (length <= longest) lengths.insert(length);
    }
    for (const int64_t length : lengths) {
      for (const bool causal : {false, true}) {
        TANDEM_RETURN_IF_ERROR(
            attention.Measure({1, 32, 8, length, length, head_dim, causal}, DType::kBF16));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace tandem::tools
