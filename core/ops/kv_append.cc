#include "core/ops/kv_append.h"

#include <string>
#include <utility>

#include "core/ops/mask_rule.h"
#include "core/status.h"

namespace tandem {
namespace {

bool OnHost(const TensorView& list) { return list.device.kind == DeviceKind::kCpu; }

absl::Status CheckNew(const KvAppendArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("k", args.k, 4));
  TANDEM_RETURN_IF_ERROR(ValidateView("v", args.v, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat("k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckFloat("v", args.v));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("v", args.v, "k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckDim("v", args.v, 0, "batch", args.k.dim(0)));
  TANDEM_RETURN_IF_ERROR(CheckDim("v", args.v, 1, "key/value heads", args.k.dim(1)));
  return CheckDim("v", args.v, 2, "new tokens", args.k.dim(2));
}

absl::Status CheckScale(const char* name, const TensorView& scale, const KvAppendArgs& args) {
  if (!args.quantized()) {
    if (!scale.present()) return absl::OkStatus();
    return InvalidArgument(name, ": only with k_cache of i8");
  }
  TANDEM_RETURN_IF_ERROR(ValidateOutput(name, scale, 3));
  TANDEM_RETURN_IF_ERROR(CheckDType(name, scale, DType::kF32));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice(name, scale, "k", args.k));
  const TensorView& cache = args.k_cache;
  TANDEM_RETURN_IF_ERROR(CheckDim(name, scale, 0, args.paged() ? "pages" : "batch", cache.dim(0)));
  TANDEM_RETURN_IF_ERROR(CheckDim(name, scale, 1, "key/value heads", cache.dim(1)));
  return CheckDim(name, scale, 2, args.paged() ? "page size" : "capacity", cache.dim(2));
}

absl::Status CheckCaches(const KvAppendArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateOutput("k_cache", args.k_cache, 4));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("v_cache", args.v_cache, 4));
  if (!IsFloat(args.k_cache.dtype) && !args.quantized()) {
    return InvalidArgument("k_cache: expected dtype f32, f16, bf16 or i8, got ",
                           std::string(Name(args.k_cache.dtype)));
  }
  if (args.quantized() && (!args.k_scale.present() || !args.v_scale.present())) {
    return InvalidArgument("k_cache: i8 needs k_scale and v_scale");
  }
  TANDEM_RETURN_IF_ERROR(CheckDType("v_cache", args.v_cache, args.k_cache.dtype));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("k_cache", args.k_cache, "k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("v_cache", args.v_cache, "k", args.k));
  const TensorView& cache = args.k_cache;
  if (args.paged()) {
    TANDEM_RETURN_IF_ERROR(CheckDim("v_cache", args.v_cache, 0, "pages", cache.dim(0)));
  } else {
    TANDEM_RETURN_IF_ERROR(CheckDim("k_cache", cache, 0, "batch", args.k.dim(0)));
    TANDEM_RETURN_IF_ERROR(CheckDim("v_cache", args.v_cache, 0, "batch", args.k.dim(0)));
  }
  TANDEM_RETURN_IF_ERROR(CheckDim("k_cache", cache, 1, "key/value heads", args.k.dim(1)));
  TANDEM_RETURN_IF_ERROR(CheckDim("v_cache", args.v_cache, 1, "key/value heads", args.k.dim(1)));
  TANDEM_RETURN_IF_ERROR(CheckDim("k_cache", cache, 3, "head_dim", args.k.dim(3)));
  TANDEM_RETURN_IF_ERROR(CheckDim("v_cache", args.v_cache, 3, "v head_dim", args.v.dim(3)));
  TANDEM_RETURN_IF_ERROR(
      CheckDim("v_cache", args.v_cache, 2, args.paged() ? "page size" : "capacity", cache.dim(2)));
  TANDEM_RETURN_IF_ERROR(CheckScale("k_scale", args.k_scale, args));
  return CheckScale("v_scale", args.v_scale, args);
}

// An optional list of indices, in host memory or beside the cache.
absl::Status CheckIndices(const char* name, const TensorView& list, int rank,
                          const KvAppendArgs& args) {
  if (!list.present()) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(ValidateView(name, list, rank));
  TANDEM_RETURN_IF_ERROR(CheckDType(name, list, DType::kI32));
  if (!OnHost(list)) TANDEM_RETURN_IF_ERROR(CheckSameDevice(name, list, "k", args.k));
  return CheckDim(name, list, 0, "batch", args.k.dim(0));
}

absl::Status CheckPlaces(const KvAppendArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckIndices("cache_lens", args.cache_lens, 1, args));
  TANDEM_RETURN_IF_ERROR(CheckIndices("page_table", args.page_table, 2, args));
  const int64_t tokens = args.k.dim(2);
  if (args.paged()) {
    const int64_t page_size = args.k_cache.dim(2);
    if (page_size < 1) {
      return InvalidArgument("k_cache dimension 2 (page size): expected >= 1, got 0");
    }
    if (args.page_table.dim(1) > kMaxSequenceLength / page_size) {
      return InvalidArgument("page_table dimension 1: expected at most 2^48 rows, got ",
                             args.page_table.dim(1), " pages of ", page_size);
    }
  }
  const int64_t last = args.capacity() - tokens;
  if (args.cache_lens.present()) {
    if (args.position != 0) {
      return InvalidArgument("position: expected 0 with cache_lens, got ", args.position);
    }
    for (int64_t b = 0; OnHost(args.cache_lens) && b < args.k.dim(0); ++b) {
      if (args.FirstRow(b) < 0 || args.FirstRow(b) > last) {
        return InvalidArgument("cache_lens[", b, "]: expected 0..capacity - new tokens = ", last,
                               ", got ", args.FirstRow(b));
      }
    }
  } else if (args.position < 0 || args.position > last) {
    return InvalidArgument("position: expected 0..capacity - new tokens = ", last, ", got ",
                           args.position);
  }
  if (!args.paged() || args.k.dim(1) == 0 || tokens == 0) return absl::OkStatus();
  if (!OnHost(args.page_table) || (args.cache_lens.present() && !OnHost(args.cache_lens))) {
    return absl::OkStatus();
  }
  const int64_t page_size = args.k_cache.dim(2);
  for (int64_t b = 0; b < args.k.dim(0); ++b) {
    const int64_t first = args.FirstRow(b);
    for (int64_t i = first / page_size; i * page_size < first + tokens; ++i) {
      const int64_t page = args.PlaceOf(b, i * page_size).batch;
      if (page < 0 || page >= args.k_cache.dim(0)) {
        return InvalidArgument("page_table[", b, ", ", i, "]: expected 0..",
                               args.k_cache.dim(0) - 1, ", got ", page);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckRope(const KvAppendArgs& args) {
  if (!args.rope.present()) {
    if (args.q.present()) return InvalidArgument("q: only with rope");
    if (args.q_out.present()) return InvalidArgument("q_out: only with q");
    return absl::OkStatus();
  }
  TANDEM_RETURN_IF_ERROR(ValidateRotation("rope.", args.rope, "k", args.k));
  if (args.q.present() != args.q_out.present()) {
    return InvalidArgument("q_out: expected to be given exactly when q is");
  }
  if (!args.q.present()) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(ValidateView("q", args.q, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat("q", args.q));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("q", args.q, "k", args.k));
  TANDEM_RETURN_IF_ERROR(CheckDim("q", args.q, 0, "batch", args.k.dim(0)));
  TANDEM_RETURN_IF_ERROR(CheckDim("q", args.q, 3, "head_dim", args.k.dim(3)));
  if (args.q.dim(2) > args.k.dim(2)) {
    return InvalidArgument("q dimension 2 (queries): expected at most the new tokens, ",
                           args.k.dim(2), ", got ", args.q.dim(2));
  }
  TANDEM_RETURN_IF_ERROR(ValidateOutput("q_out", args.q_out, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat("q_out", args.q_out));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("q_out", args.q_out, "k", args.k));
  for (int i = 0; i < 4; ++i) {
    TANDEM_RETURN_IF_ERROR(CheckDim("q_out", args.q_out, i, "shape of q", args.q.dim(i)));
  }
  return CheckInPlaceOrDisjoint("q_out", args.q_out, "q", args.q);
}

// No output shares memory with an input or another output (but q_out with q).
absl::Status CheckOverlaps(const KvAppendArgs& args) {
  const std::pair<const char*, const TensorView*> inputs[] = {
      {"k", &args.k},
      {"v", &args.v},
      {"cache_lens", &args.cache_lens},
      {"page_table", &args.page_table},
      {"rope.positions", &args.rope.positions},
      {"rope.inv_freq", &args.rope.inv_freq},
      {"q", &args.q}};
  const std::pair<const char*, const TensorView*> outputs[] = {{"k_cache", &args.k_cache},
                                                               {"v_cache", &args.v_cache},
                                                               {"k_scale", &args.k_scale},
                                                               {"v_scale", &args.v_scale},
                                                               {"q_out", &args.q_out}};
  for (const auto& [out_name, out] : outputs) {
    if (!out->present()) continue;
    for (const auto& [in_name, in] : inputs) {
      if (!in->present() || (out == &args.q_out && in == &args.q)) continue;
      TANDEM_RETURN_IF_ERROR(CheckNoOverlap(out_name, *out, in_name, *in));
    }
    for (const auto& [other_name, other] : outputs) {
      if (other == out) break;
      if (other->present()) {
        TANDEM_RETURN_IF_ERROR(CheckNoOverlap(out_name, *out, other_name, *other));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const KvAppendArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckNew(args));
  TANDEM_RETURN_IF_ERROR(CheckCaches(args));
  TANDEM_RETURN_IF_ERROR(CheckPlaces(args));
  TANDEM_RETURN_IF_ERROR(CheckRope(args));
  return CheckOverlaps(args);
}

}  // namespace tandem
