#include "core/ops/merge_attention.h"

#include <string>
#include <string_view>

#include "core/status.h"

namespace tandem {
namespace {

// A part against the first one.
absl::Status CheckOutPart(std::string_view name, const TensorView& part, const TensorView& first) {
  TANDEM_RETURN_IF_ERROR(ValidateView(name, part, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat(name, part));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice(name, part, "out_parts[0]", first));
  if (part.shape == first.shape) return absl::OkStatus();
  return InvalidArgument(std::string(name), ": expected the shape of out_parts[0] ",
                         ToString(first.shape), ", got ", ToString(part.shape));
}

absl::Status CheckLse(std::string_view name, const TensorView& lse, const TensorView& first) {
  TANDEM_RETURN_IF_ERROR(ValidateView(name, lse, 3));
  TANDEM_RETURN_IF_ERROR(CheckDType(name, lse, DType::kF32));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice(name, lse, "out_parts[0]", first));
  TANDEM_RETURN_IF_ERROR(CheckDim(name, lse, 0, "batch", first.dim(0)));
  TANDEM_RETURN_IF_ERROR(CheckDim(name, lse, 1, "query heads", first.dim(1)));
  return CheckDim(name, lse, 2, "queries", first.dim(2));
}

// `part` may be `same` itself, else neither overlaps it.
absl::Status CheckSeparate(std::string_view same_name, const TensorView& same,
                           std::string_view other_name, const TensorView& other,
                           std::string_view name, const TensorView& part) {
  if (same.present()) TANDEM_RETURN_IF_ERROR(CheckInPlaceOrDisjoint(same_name, same, name, part));
  if (other.present()) TANDEM_RETURN_IF_ERROR(CheckNoOverlap(other_name, other, name, part));
  return absl::OkStatus();
}

// check(name, view) of every part. The name with its index is put together only for an error.
template <typename Check>
absl::Status ForEachPart(const char* name, std::span<const TensorView> parts, Check check) {
  for (size_t p = 0; p < parts.size(); ++p) {
    if (check(name, parts[p]).ok()) continue;
    return check(absl::StrCat(name, "[", p, "]"), parts[p]);
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const MergeAttentionArgs& args) {
  if (args.out_parts.empty()) return InvalidArgument("out_parts: expected at least one part");
  if (args.lse_parts.size() != args.out_parts.size()) {
    return InvalidArgument("lse_parts: expected as many as out_parts, ", args.out_parts.size(),
                           ", got ", args.lse_parts.size());
  }
  const TensorView& first = args.out_parts[0];
  TANDEM_RETURN_IF_ERROR(
      ForEachPart("out_parts", args.out_parts, [&](std::string_view name, const TensorView& part) {
        return CheckOutPart(name, part, first);
      }));
  TANDEM_RETURN_IF_ERROR(ForEachPart(
      "lse_parts", args.lse_parts,
      [&](std::string_view name, const TensorView& part) { return CheckLse(name, part, first); }));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 4));
  TANDEM_RETURN_IF_ERROR(CheckOutPart("out", args.out, first));
  if (args.lse.present()) {
    TANDEM_RETURN_IF_ERROR(ValidateOutput("lse", args.lse, 3));
    TANDEM_RETURN_IF_ERROR(CheckLse("lse", args.lse, first));
    TANDEM_RETURN_IF_ERROR(CheckNoOverlap("lse", args.lse, "out", args.out));
  }
  TANDEM_RETURN_IF_ERROR(
      ForEachPart("out_parts", args.out_parts, [&](std::string_view name, const TensorView& part) {
        return CheckSeparate("out", args.out, "lse", args.lse, name, part);
      }));
  return ForEachPart("lse_parts", args.lse_parts,
                     [&](std::string_view name, const TensorView& part) {
                       return CheckSeparate("lse", args.lse, "out", args.out, name, part);
                     });
}

}  // namespace tandem
