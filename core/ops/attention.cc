#include "core/ops/attention.h"

#include <array>
#include <cmath>
#include <string>
#include <utility>

#include "core/ops/mask.h"
#include "core/status.h"

namespace tandem {
namespace {

// Broadcast views may claim any length; half the bound each keeps cache and new keys within it.
absl::Status CheckLength(const char* name, const TensorView& view, const char* meaning) {
  if (view.dim(2) <= kMaxSequenceLength / 2) return absl::OkStatus();
  return InvalidArgument(name, " dimension 2 (", meaning, "): expected <= 2^47, got ", view.dim(2));
}

// An optional list of `count` numbers.
absl::Status CheckList(const char* name, const TensorView& list, const TensorView& q, DType dtype,
                       const char* meaning, int64_t count) {
  if (!list.present()) return absl::OkStatus();
  TANDEM_RETURN_IF_ERROR(ValidateView(name, list, 1));
  TANDEM_RETURN_IF_ERROR(CheckDType(name, list, dtype));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice(name, list, "q", q));
  return CheckDim(name, list, 0, meaning, count);
}

bool OnHost(const TensorView& view) { return view.device.kind == DeviceKind::kCpu; }

// Every entry within [low, high], if it can be read.
absl::Status CheckEntries(const char* name, const TensorView& list, int64_t low, int64_t high) {
  if (!list.present() || !OnHost(list)) return absl::OkStatus();
  for (int64_t i = 0; i < list.dim(0); ++i) {
    const int64_t value = *list.At<int32_t>(i * list.stride(0));
    if (value < low || value > high) {
      return InvalidArgument(name, "[", i, "]: expected ", low, "..", high, ", got ", value);
    }
  }
  return absl::OkStatus();
}

absl::Status CheckQueries(const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("q", args.q, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat("q", args.q));
  TANDEM_RETURN_IF_ERROR(CheckLength("q", args.q, "queries"));
  if (args.q.dim(3) == 0) return InvalidArgument("q dimension 3 (head_dim): expected >= 1, got 0");
  if (!args.q_offsets.present()) return absl::OkStatus();
  if (args.q_lens.present()) return InvalidArgument("q_lens: not together with q_offsets");
  TANDEM_RETURN_IF_ERROR(ValidateView("q_offsets", args.q_offsets, 1));
  TANDEM_RETURN_IF_ERROR(CheckDType("q_offsets", args.q_offsets, DType::kI32));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("q_offsets", args.q_offsets, "q", args.q));
  if (args.q_offsets.dim(0) < 1) {
    return InvalidArgument("q_offsets dimension 0: expected batch + 1, got 0");
  }
  TANDEM_RETURN_IF_ERROR(CheckDim("q", args.q, 0, "batch, packed by q_offsets", 1));
  if (!OnHost(args.q_offsets)) return absl::OkStatus();
  int64_t before = 0;
  for (int64_t i = 0; i < args.q_offsets.dim(0); ++i) {
    const int64_t offset = *args.q_offsets.At<int32_t>(i * args.q_offsets.stride(0));
    if (i == 0 ? offset != 0 : offset < before) {
      return InvalidArgument("q_offsets[", i, "]: expected ", i == 0 ? "" : ">= ", before, ", got ",
                             offset);
    }
    before = offset;
  }
  if (before != args.q_len()) {
    return InvalidArgument("q_offsets[", args.q_offsets.dim(0) - 1, "]: expected the rows of q, ",
                           args.q_len(), ", got ", before);
  }
  return absl::OkStatus();
}

absl::Status CheckPages(const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("page_table", args.page_table, 2));
  TANDEM_RETURN_IF_ERROR(CheckDType("page_table", args.page_table, DType::kI32));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("page_table", args.page_table, "q", args.q));
  TANDEM_RETURN_IF_ERROR(CheckDim("page_table", args.page_table, 0, "batch", args.batch()));
  if (!args.kv_lens.present()) return InvalidArgument("kv_lens: expected with page_table");
  const int64_t page_size = args.page_size();
  if (page_size < 1) return InvalidArgument("k dimension 2 (page size): expected >= 1, got 0");
  if (args.page_table.dim(1) > kMaxSequenceLength / 2 / page_size) {
    return InvalidArgument("page_table dimension 1: expected at most 2^47 keys, got ",
                           args.page_table.dim(1), " pages of ", page_size);
  }
  return absl::OkStatus();
}

// Pages in use. After CheckEntries(kv_lens): the lengths fit the table.
absl::Status CheckPageEntries(const AttentionArgs& args) {
  const TensorView& table = args.page_table;
  if (!table.present() || !OnHost(table)) return absl::OkStatus();
  for (int64_t b = 0; b < args.batch(); ++b) {
    const int64_t keys = args.Sequence(b).cache_len;
    for (int64_t i = 0; i * args.page_size() < keys; ++i) {
      const int64_t page = *table.At<int32_t>(b * table.stride(0) + i * table.stride(1));
      if (page < 0 || page >= args.k.dim(0)) {
        return InvalidArgument("page_table[", b, ", ", i, "]: expected 0..", args.k.dim(0) - 1,
                               ", got ", page);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckCache(const AttentionArgs& args) {
  const int64_t q_heads = args.q.dim(1);
  TANDEM_RETURN_IF_ERROR(ValidateView("k", args.k, 4));
  TANDEM_RETURN_IF_ERROR(ValidateView("v", args.v, 4));
  if (!IsFloat(args.k.dtype) && args.k.dtype != DType::kI8) {
    return InvalidArgument("k: expected dtype f32, f16, bf16 or i8, got ",
                           std::string(Name(args.k.dtype)));
  }
  const bool quantized = args.k.dtype == DType::kI8;
  for (const auto& [name, scale] :
       {std::pair("k_scale", &args.k_scale), std::pair("v_scale", &args.v_scale)}) {
    if (scale->present() != quantized) {
      return InvalidArgument(name, quantized ? ": expected with k of i8" : ": only with k of i8");
    }
  }
  TANDEM_RETURN_IF_ERROR(CheckDType("v", args.v, args.k.dtype));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("k", args.k, "q", args.q));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("v", args.v, "q", args.q));
  const int64_t kv_heads = args.k.dim(1);
  if (kv_heads == 0 ? q_heads != 0 : q_heads % kv_heads != 0) {
    return InvalidArgument("q dimension 1 (query heads): expected a multiple of the ", kv_heads,
                           " key/value heads of k, got ", q_heads);
  }
  TANDEM_RETURN_IF_ERROR(CheckLength("k", args.k, args.paged() ? "page size" : "keys"));
  if (args.paged()) {
    TANDEM_RETURN_IF_ERROR(CheckPages(args));
    TANDEM_RETURN_IF_ERROR(CheckDim("v", args.v, 0, "pages", args.k.dim(0)));
  } else {
    TANDEM_RETURN_IF_ERROR(CheckDim("k", args.k, 0, "batch", args.batch()));
    TANDEM_RETURN_IF_ERROR(CheckDim("v", args.v, 0, "batch", args.batch()));
  }
  TANDEM_RETURN_IF_ERROR(CheckDim("k", args.k, 3, "head_dim", args.q.dim(3)));
  TANDEM_RETURN_IF_ERROR(CheckDim("v", args.v, 1, "key/value heads", kv_heads));
  TANDEM_RETURN_IF_ERROR(
      CheckDim("v", args.v, 2, args.paged() ? "page size" : "keys", args.k.dim(2)));
  if (!quantized) return absl::OkStatus();
  for (const auto& [name, scale] :
       {std::pair("k_scale", &args.k_scale), std::pair("v_scale", &args.v_scale)}) {
    TANDEM_RETURN_IF_ERROR(ValidateView(name, *scale, 3));
    TANDEM_RETURN_IF_ERROR(CheckDType(name, *scale, DType::kF32));
    TANDEM_RETURN_IF_ERROR(CheckSameDevice(name, *scale, "q", args.q));
    TANDEM_RETURN_IF_ERROR(
        CheckDim(name, *scale, 0, args.paged() ? "pages" : "batch", args.k.dim(0)));
    TANDEM_RETURN_IF_ERROR(CheckDim(name, *scale, 1, "key/value heads", kv_heads));
    TANDEM_RETURN_IF_ERROR(
        CheckDim(name, *scale, 2, args.paged() ? "page size" : "keys", args.k.dim(2)));
  }
  return absl::OkStatus();
}

absl::Status CheckNewKeys(const AttentionArgs& args) {
  if (args.k_new.present() != args.v_new.present()) {
    return InvalidArgument("v_new: expected to be given exactly when k_new is");
  }
  if (!args.k_new.present()) return absl::OkStatus();
  const int64_t kv_heads = args.kv_heads();
  TANDEM_RETURN_IF_ERROR(ValidateView("k_new", args.k_new, 4));
  TANDEM_RETURN_IF_ERROR(ValidateView("v_new", args.v_new, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat("k_new", args.k_new));
  TANDEM_RETURN_IF_ERROR(CheckDType("v_new", args.v_new, args.k_new.dtype));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("k_new", args.k_new, "q", args.q));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("v_new", args.v_new, "q", args.q));
  TANDEM_RETURN_IF_ERROR(CheckDim("k_new", args.k_new, 0, "batch", args.batch()));
  TANDEM_RETURN_IF_ERROR(CheckDim("k_new", args.k_new, 1, "key/value heads", kv_heads));
  TANDEM_RETURN_IF_ERROR(CheckDim("k_new", args.k_new, 3, "head_dim", args.q.dim(3)));
  TANDEM_RETURN_IF_ERROR(CheckDim("v_new", args.v_new, 0, "batch", args.batch()));
  TANDEM_RETURN_IF_ERROR(CheckDim("v_new", args.v_new, 1, "key/value heads", kv_heads));
  TANDEM_RETURN_IF_ERROR(CheckDim("v_new", args.v_new, 2, "keys", args.k_new.dim(2)));
  TANDEM_RETURN_IF_ERROR(CheckDim("v_new", args.v_new, 3, "v head_dim", args.v.dim(3)));
  return CheckLength("k_new", args.k_new, "keys");
}

// Keys of the sequence that are not in this call. Each within the bound of the others' lengths, so
// that all of them together keep positions within 64 bits.
absl::Status CheckParts(const AttentionArgs& args) {
  for (const auto& [name, keys] :
       {std::pair("keys_before", args.keys_before), std::pair("keys_after", args.keys_after),
        std::pair("new_after", args.new_after)}) {
    if (keys < 0 || keys > kMaxSequenceLength / 2) {
      return InvalidArgument(name, ": expected 0..2^47, got ", keys);
    }
  }
  if (args.k_new.present() && (args.keys_after > 0 || args.new_after > 0)) {
    return InvalidArgument(
        "k_new: expected with the last rows of the cache, keys_after and new_after 0, got ",
        args.keys_after, " and ", args.new_after);
  }
  return absl::OkStatus();
}

// bias and mask: four dimensions, each whole or 1.
absl::Status CheckBroadcast(const char* name, const TensorView& view, const AttentionArgs& args,
                            int64_t columns) {
  TANDEM_RETURN_IF_ERROR(ValidateView(name, view, 4));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice(name, view, "q", args.q));
  const std::array<std::pair<const char*, int64_t>, 4> whole = {{{"batch", args.batch()},
                                                                 {"query heads", args.q_heads()},
                                                                 {"queries", args.q_len()},
                                                                 {"keys", columns}}};
  for (int axis = 0; axis < 4; ++axis) {
    const int64_t got = view.dim(axis);
    if (got == whole[axis].second) continue;
    const bool packed = axis == 3 && view.dtype == DType::kU32;
    if (got == 1 && !packed) continue;
    return InvalidArgument(name, " dimension ", axis, " (", whole[axis].first, "): expected ",
                           packed ? "" : "1 or ", whole[axis].second, ", got ", got);
  }
  return absl::OkStatus();
}

absl::Status CheckScores(const AttentionArgs& args) {
  if (args.scale && !std::isfinite(*args.scale)) {
    return InvalidArgument("scale: expected a finite number");
  }
  if (!(args.softcap >= 0.0f) || !std::isfinite(args.softcap)) {
    return InvalidArgument("softcap: expected 0 (none) or a finite number > 0, got ", args.softcap);
  }
  for (const auto& [name, list] :
       {std::pair("alibi_slopes", &args.alibi_slopes), std::pair("sinks", &args.sinks)}) {
    TANDEM_RETURN_IF_ERROR(
        CheckList(name, *list, args.q, DType::kF32, "query heads", args.q_heads()));
  }
  if (args.bias.present()) {
    TANDEM_RETURN_IF_ERROR(CheckFloat("bias", args.bias));
    TANDEM_RETURN_IF_ERROR(CheckBroadcast("bias", args.bias, args, args.kv_len()));
  }
  if (args.mask.present()) {
    if (args.mask.dtype != DType::kBool && args.mask.dtype != DType::kU32) {
      return InvalidArgument("mask: expected dtype bool or u32 (packed), got ",
                             std::string(Name(args.mask.dtype)));
    }
    TANDEM_RETURN_IF_ERROR(
        CheckBroadcast("mask", args.mask, args, MaskColumns(args.mask.dtype, args.kv_len())));
  }
  return ValidateRule("", args.Rule());
}

absl::Status CheckRagged(const AttentionArgs& args) {
  const int64_t batch = args.batch();
  for (const auto& [name, list] :
       {std::pair("q_lens", &args.q_lens), std::pair("kv_lens", &args.kv_lens),
        std::pair("kv_starts", &args.kv_starts)}) {
    TANDEM_RETURN_IF_ERROR(CheckList(name, *list, args.q, DType::kI32, "batch", batch));
  }
  TANDEM_RETURN_IF_ERROR(CheckEntries("q_lens", args.q_lens, 0, args.q_len()));
  TANDEM_RETURN_IF_ERROR(CheckEntries("kv_lens", args.kv_lens, 0, args.cache_rows()));
  TANDEM_RETURN_IF_ERROR(CheckEntries("kv_starts", args.kv_starts, 0, INT32_MAX));
  return CheckPageEntries(args);
}

absl::Status CheckOutputs(const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat("out", args.out));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("out", args.out, "q", args.q));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 0, "batch", args.q.dim(0)));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 1, "query heads", args.q_heads()));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 2, "queries", args.q.dim(2)));
  TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, 3, "v head_dim", args.v.dim(3)));
  if (args.lse.present()) {
    TANDEM_RETURN_IF_ERROR(ValidateOutput("lse", args.lse, 3));
    TANDEM_RETURN_IF_ERROR(CheckDType("lse", args.lse, DType::kF32));
    TANDEM_RETURN_IF_ERROR(CheckSameDevice("lse", args.lse, "q", args.q));
    TANDEM_RETURN_IF_ERROR(CheckDim("lse", args.lse, 0, "batch", args.q.dim(0)));
    TANDEM_RETURN_IF_ERROR(CheckDim("lse", args.lse, 1, "query heads", args.q_heads()));
    TANDEM_RETURN_IF_ERROR(CheckDim("lse", args.lse, 2, "queries", args.q.dim(2)));
    TANDEM_RETURN_IF_ERROR(CheckNoOverlap("lse", args.lse, "out", args.out));
  }
  const std::pair<const char*, const TensorView*> inputs[] = {{"q", &args.q},
                                                              {"k", &args.k},
                                                              {"v", &args.v},
                                                              {"k_new", &args.k_new},
                                                              {"v_new", &args.v_new},
                                                              {"alibi_slopes", &args.alibi_slopes},
                                                              {"bias", &args.bias},
                                                              {"mask", &args.mask},
                                                              {"sinks", &args.sinks},
                                                              {"q_lens", &args.q_lens},
                                                              {"q_offsets", &args.q_offsets},
                                                              {"kv_lens", &args.kv_lens},
                                                              {"kv_starts", &args.kv_starts},
                                                              {"page_table", &args.page_table},
                                                              {"k_scale", &args.k_scale},
                                                              {"v_scale", &args.v_scale}};
  for (const auto& [name, view] : inputs) {
    if (!view->present()) continue;
    TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, name, *view));
    if (args.lse.present()) TANDEM_RETURN_IF_ERROR(CheckNoOverlap("lse", args.lse, name, *view));
  }
  return absl::OkStatus();
}

}  // namespace

float AttentionArgs::Scale() const {
  if (scale) return *scale;
  const int64_t d = head_dim();
  return d > 0 ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(d))) : 1.0f;
}

absl::Status Validate(const AttentionArgs& args) {
  TANDEM_RETURN_IF_ERROR(CheckQueries(args));
  TANDEM_RETURN_IF_ERROR(CheckCache(args));
  TANDEM_RETURN_IF_ERROR(CheckNewKeys(args));
  TANDEM_RETURN_IF_ERROR(CheckParts(args));
  TANDEM_RETURN_IF_ERROR(CheckScores(args));
  TANDEM_RETURN_IF_ERROR(CheckRagged(args));
  return CheckOutputs(args);
}

}  // namespace tandem
