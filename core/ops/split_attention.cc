#include "core/ops/split_attention.h"

#include "core/ops/mask.h"
#include "core/status.h"

namespace tandem {
namespace {

absl::Status CheckCuts(const AttentionArgs& args, std::span<const int64_t> cuts) {
  const bool words = args.mask.present() && args.mask.dtype == DType::kU32;
  int64_t before = 0;
  for (size_t i = 0; i < cuts.size(); ++i) {
    if (cuts[i] < before || cuts[i] > args.cache_len()) {
      return InvalidArgument("cuts[", i, "]: expected ", before, "..", args.cache_len(), ", got ",
                             cuts[i]);
    }
    before = cuts[i];
    if (args.paged() && cuts[i] % args.page_size() != 0) {
      return InvalidArgument("cuts[", i, "]: expected a multiple of the page size, ",
                             args.page_size(), ", got ", cuts[i]);
    }
    if (words && cuts[i] % 32 != 0) {
      return InvalidArgument("cuts[", i, "]: expected a multiple of 32 with a packed mask, got ",
                             cuts[i]);
    }
  }
  if (cuts.empty() || !args.kv_lens.present() || args.new_len() == 0) return absl::OkStatus();
  for (const TensorView* columns : {&args.bias, &args.mask}) {
    if (columns->present() && columns->dim(3) > 1) {
      return InvalidArgument(columns == &args.bias ? "bias" : "mask",
                             ": expected one column for all keys to split a call with kv_lens and "
                             "k_new, got ",
                             columns->dim(3));
    }
  }
  return absl::OkStatus();
}

// Rows [begin, end) of the cache.
AttentionArgs PartOf(const AttentionArgs& args, int64_t begin, int64_t end, bool last) {
  AttentionArgs part = args;
  part.out = part.lse = {};
  part.keys_before += begin;
  part.keys_after += args.cache_len() - end;
  if (args.paged()) {
    part.page_table =
        Slice(args.page_table, 1, begin / args.page_size(), (end - begin) / args.page_size());
  } else {
    for (TensorView* cache : {&part.k, &part.v, &part.k_scale, &part.v_scale}) {
      if (cache->present()) *cache = Slice(*cache, 2, begin, end - begin);
    }
  }
  if (!last) {
    part.new_after += args.new_len();
    part.k_new = part.v_new = part.sinks = {};
  }
  for (TensorView* columns : {&part.bias, &part.mask})
    TakeKeyColumns(*columns, begin, part.kv_len());
  return part;
}

}  // namespace

void TakeKeyColumns(TensorView& view, int64_t begin, int64_t keys) {
  if (!view.present() || (view.dim(3) == 1 && view.dtype != DType::kU32)) return;
  const int64_t first = view.dtype == DType::kU32 ? begin / 32 : begin;
  view = Slice(view, 3, first, MaskColumns(view.dtype, keys));
}

absl::StatusOr<std::vector<AttentionArgs>> SplitAttention(const AttentionArgs& args,
                                                          std::span<const int64_t> cuts) {
  TANDEM_RETURN_IF_ERROR(Validate(args));
  TANDEM_RETURN_IF_ERROR(CheckCuts(args, cuts));
  std::vector<AttentionArgs> parts;
  for (size_t i = 0; i <= cuts.size(); ++i) {
    const bool last = i == cuts.size();
    parts.push_back(
        PartOf(args, i == 0 ? 0 : cuts[i - 1], last ? args.cache_len() : cuts[i], last));
  }
  return parts;
}

}  // namespace tandem
