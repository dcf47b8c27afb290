#include "core/ops/grouped_matmul.h"

#include <string>
#include <string_view>

#include "core/status.h"

namespace tandem {
namespace {

using Args = GroupedMatMulArgs;

std::string NameOf(int product, const char* operand) {
  return absl::StrCat("products[", product, "].", operand);
}

// The first product that out_i must not share memory with, in words; OK if there is none. Names are
// put together only for an error.
absl::Status CheckOutApart(const Args& args, int i) {
  const TensorView& out = args.out(i);
  for (int j = 0; j < args.num_products; ++j) {
    const Args::Product& other = args.products[static_cast<size_t>(j)];
    if (i == j) continue;  // its own operands have been compared
    if (other.b.present() && Overlaps(out, other.b)) {
      return CheckNoOverlap(NameOf(i, "out"), out, NameOf(j, "b"), other.b);
    }
    if (other.bias.present() && Overlaps(out, other.bias)) {
      return CheckNoOverlap(NameOf(i, "out"), out, NameOf(j, "bias"), other.bias);
    }
    if (j < i && other.out.present() && Overlaps(out, other.out)) {
      return CheckNoOverlap(NameOf(i, "out"), out, NameOf(j, "out"), other.out);
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status Validate(const GroupedMatMulArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("a", args.a, 2));
  TANDEM_RETURN_IF_ERROR(CheckFloat("a", args.a));
  if (args.num_products < 1 || args.num_products > Args::kMaxProducts) {
    return InvalidArgument("num_products: expected 1..", Args::kMaxProducts, ", got ",
                           args.num_products);
  }
  if (args.epilogue > GroupEpilogue::kSiluMultiply) {
    return InvalidArgument("epilogue: unknown value ", static_cast<int>(args.epilogue));
  }
  if (args.gated() && args.num_products != 2) {
    return InvalidArgument("num_products: expected 2 with silu_multiply, got ", args.num_products);
  }
  if (args.gated() && args.products[1].out.present()) {
    return InvalidArgument(
        "products[1].out: expected none with silu_multiply, which writes the first product's");
  }
  for (int i = 0; i < args.num_products; ++i) {
    const absl::Status status = Validate(args.ProductArgs(i));
    if (status.ok()) continue;
    // The second product of silu_multiply has been given the first one's out.
    constexpr std::string_view kOverlaps = "out overlaps ";
    const std::string message = Message(status);
    if (args.gated() && i == 1 && message.starts_with(kOverlaps)) {
      return InvalidArgument("products[0].out overlaps products[1].",
                             message.substr(kOverlaps.size()));
    }
    return InvalidArgument("products[", i, "].", message);
  }
  for (int i = 0; i < (args.gated() ? 1 : args.num_products); ++i) {
    TANDEM_RETURN_IF_ERROR(CheckOutApart(args, i));
  }
  return absl::OkStatus();
}

}  // namespace tandem
