#include "model/hybrid.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "core/status.h"
#include "dispatch/memory_need.h"
#include "dispatch/ops.h"

namespace tandem {
namespace {

constexpr DeviceKind kGpu = DeviceKind::kCuda;

// The most workspace that a product or an attention of the model wants on the GPU.
absl::StatusOr<int64_t> WorkspaceBytes(Context& context, const DecoderPlanInputs& inputs) {
  const DecoderConfig& c = inputs.config;
  alignas(256) std::byte somewhere[256];  // whose address is as aligned as allocations are
  const auto view = [&](DType dtype, const Shape& shape) {
    return MakeView(static_cast<void*>(somewhere), dtype, shape);
  };
  const auto heads = [&](int64_t count, int64_t m, int64_t dim) {
    TensorView result = view(DType::kF32, {1, count, m, dim});
    result.strides = {count * dim, dim, count * dim, 1};
    return result;
  };
  std::vector<TensorView> matrices = {inputs.weights.output};
  for (const LayerWeights& w : inputs.weights.layers) {
    for (const TensorView* m : {&w.q, &w.k, &w.v, &w.attn_output, &w.gate, &w.up, &w.down}) {
      const auto same = [&](const TensorView& other) {
        return other.dtype == m->dtype && other.shape == m->shape;
      };
      if (std::none_of(matrices.begin(), matrices.end(), same)) matrices.push_back(*m);
    }
  }
  int64_t most = 0;
  const int64_t tokens = inputs.session.CapacityFor(c.context);
  const int64_t chunk = std::min(inputs.session.ubatch, tokens);
  for (int64_t power = 1;; power *= 2) {
    const int64_t m = std::min(power, chunk);
    for (const TensorView& matrix : matrices) {
      MatMulArgs args;
      args.a = view(DType::kF32, {m, matrix.dim(1)});
      args.b = matrix;
      args.b.data = somewhere;
      args.out = args.addend = view(DType::kF32, {m, matrix.dim(0)});
      TANDEM_ASSIGN_OR_RETURN(const int64_t bytes, WorkspaceNeed(context, kGpu, args));
      most = std::max(most, bytes);
    }
    AttentionArgs attention;
    attention.q = heads(c.heads, m, c.head_dim);
    attention.out = heads(c.heads, m, c.v_head_dim);
    attention.k = view(inputs.session.kv_dtype, {1, c.kv_heads, tokens, c.head_dim});
    attention.v = view(inputs.session.kv_dtype, {1, c.kv_heads, tokens, c.v_head_dim});
    if (inputs.session.kv_dtype == DType::kI8) {
      attention.k_scale = attention.v_scale = view(DType::kF32, {1, c.kv_heads, tokens});
    }
    TANDEM_ASSIGN_OR_RETURN(const int64_t bytes, WorkspaceNeed(context, kGpu, attention));
    most = std::max(most, bytes);
    if (m == chunk) return most;
  }
}

}  // namespace

absl::StatusOr<DecoderPlacement> PlaceDecoder(Context& context, const DecoderConfig& config,
                                              const DecoderWeights& weights,
                                              const HybridOptions& options, bool pack_in_place,
                                              bool pack_floats) {
  ContextDevice* gpu = context.device(kGpu);
  if (gpu == nullptr) {
    return absl::FailedPreconditionError("hybrid: there is no GPU that the context may use");
  }
  if (context.options().device) {
    return InvalidArgument("hybrid: every op is forced onto ",
                           std::string(Name(*context.options().device)));
  }
  if (options.gpu_memory_limit < 0) {
    return InvalidArgument("gpu_memory_limit: expected >= 0 bytes, got ", options.gpu_memory_limit);
  }
  TANDEM_RETURN_IF_ERROR(Validate(options.session));
  const Allocator& allocator = gpu->backend->allocator();
  DecoderMemory memory;
  memory.block_bytes = [](int64_t bytes) { return BlockBytes(kGpu, bytes); };
  TANDEM_ASSIGN_OR_RETURN(const MemoryInfo info, gpu->backend->memory());
  memory.gpu_bytes = info.free_bytes;
  bool limited = false;
  for (const int64_t limit : {options.gpu_memory_limit, context.options().cuda_memory_limit}) {
    if (limit == 0) continue;
    limited = true;
    // What the context has already is of its limit, too.
    memory.gpu_bytes = std::min(memory.gpu_bytes, limit - allocator.bytes_in_use());
  }
  // Modules, libraries and what other programs will want take some, too.
  if (!limited) memory.gpu_bytes -= info.free_bytes / 20;
  DecoderPlanInputs inputs = {.config = config,
                              .weights = weights,
                              .session = options.session,
                              .job = options.job,
                              .gpu_layers = options.gpu_layers};
  inputs.packed = [&](DType type) {
    return (pack_in_place && PacksInPlace(context, type)) ||
           (pack_floats && !IsBlockQuantized(type));
  };
  TANDEM_ASSIGN_OR_RETURN(memory.workspace_bytes, WorkspaceBytes(context, inputs));
  std::optional<DecoderMachine> machine;
  if (context.cost_model() != nullptr) {
    machine = DecoderMachine::Of(*context.cost_model(),
                                 context.predicts() ? &context.cost_correction() : nullptr);
  }
  TANDEM_ASSIGN_OR_RETURN(DecoderPlan plan,
                          PlanDecoder(inputs, machine ? &*machine : nullptr, memory));
  if (plan.placement.uses(kGpu)) plan.placement.gpu_workspace_bytes = memory.workspace_bytes;
  return plan.placement;
}

}  // namespace tandem
