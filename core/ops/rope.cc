#include "core/ops/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "core/status.h"

namespace tandem {
namespace {

// Llama 3.1: wavelengths longer than the training context / low_freq_factor are stretched by
// factor, those shorter than context / high_freq_factor are kept, those between are blended.
double Llama3(double inv_freq, const RopeScaling& s) {
  const double wavelength = 2.0 * std::numbers::pi / inv_freq;
  if (wavelength < s.original_context / s.high_freq_factor) return inv_freq;
  if (wavelength > s.original_context / s.low_freq_factor) return inv_freq / s.factor;
  const double keep = (s.original_context / wavelength - s.low_freq_factor) /
                      (s.high_freq_factor - s.low_freq_factor);
  return (1.0 - keep) * inv_freq / s.factor + keep * inv_freq;
}

// YaRN: the pair index at which a wave makes `rotations` turns over the training context.
double YarnDimension(double rotations, double rotary_dim, double base, double context) {
  return rotary_dim * std::log(context / (rotations * 2.0 * std::numbers::pi)) /
         (2.0 * std::log(base));
}

}  // namespace

absl::Status ValidateRotation(std::string_view prefix, const RopeRotation& rotation,
                              std::string_view x_name, const TensorView& x) {
  const std::string before(prefix);
  const std::string positions_name = before + "positions", inv_freq_name = before + "inv_freq";
  const TensorView& positions = rotation.positions;
  const TensorView& inv_freq = rotation.inv_freq;
  TANDEM_RETURN_IF_ERROR(ValidateView(positions_name, positions));
  if (positions.rank() != 1 && positions.rank() != 2) {
    return InvalidArgument(positions_name, ": expected rank 1 or 2, got ", positions.rank());
  }
  TANDEM_RETURN_IF_ERROR(CheckDType(positions_name, positions, DType::kI32));
  TANDEM_RETURN_IF_ERROR(
      CheckDim(positions_name, positions, positions.rank() - 1, "tokens", x.dim(2)));
  if (positions.rank() == 2) {
    TANDEM_RETURN_IF_ERROR(CheckDim(positions_name, positions, 0, "batch", x.dim(0)));
  }
  TANDEM_RETURN_IF_ERROR(CheckSameDevice(positions_name, positions, x_name, x));
  TANDEM_RETURN_IF_ERROR(ValidateView(inv_freq_name, inv_freq, 1));
  TANDEM_RETURN_IF_ERROR(CheckDType(inv_freq_name, inv_freq, DType::kF32));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice(inv_freq_name, inv_freq, x_name, x));
  if (inv_freq.dim(0) > x.dim(3) / 2) {
    return InvalidArgument(inv_freq_name,
                           " dimension 0 (pairs): expected <= head_dim / 2 = ", x.dim(3) / 2,
                           ", got ", inv_freq.dim(0));
  }
  if (rotation.pairing > RopePairing::kHalf) {
    return InvalidArgument(before, "pairing: unknown value ", static_cast<int>(rotation.pairing));
  }
  if (!std::isfinite(rotation.magnitude)) {
    return InvalidArgument(before, "magnitude: expected a finite number");
  }
  return absl::OkStatus();
}

absl::Status Validate(const RopeArgs& args) {
  TANDEM_RETURN_IF_ERROR(ValidateView("x", args.x, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat("x", args.x));
  TANDEM_RETURN_IF_ERROR(ValidateRotation("", args.rotation(), "x", args.x));
  TANDEM_RETURN_IF_ERROR(ValidateOutput("out", args.out, 4));
  TANDEM_RETURN_IF_ERROR(CheckFloat("out", args.out));
  TANDEM_RETURN_IF_ERROR(CheckSameDevice("out", args.out, "x", args.x));
  for (int i = 0; i < 4; ++i) {
    TANDEM_RETURN_IF_ERROR(CheckDim("out", args.out, i, "shape of x", args.x.dim(i)));
  }
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "positions", args.positions));
  TANDEM_RETURN_IF_ERROR(CheckNoOverlap("out", args.out, "inv_freq", args.inv_freq));
  return CheckInPlaceOrDisjoint("out", args.out, "x", args.x);
}

absl::StatusOr<RopeFrequencies> RopeInverseFrequencies(int64_t rotary_dim, double base,
                                                       const RopeScaling& scaling) {
  using Kind = RopeScaling::Kind;
  if (rotary_dim < 2 || rotary_dim % 2 != 0 || rotary_dim > (1 << 20)) {
    return InvalidArgument("rotary_dim: expected an even number in 2..2^20, got ", rotary_dim);
  }
  if (!(base > 0.0) || !std::isfinite(base)) {
    return InvalidArgument("base: expected a finite number > 0, got ", base);
  }
  if (scaling.kind != Kind::kNone && !(scaling.factor >= 1.0 && std::isfinite(scaling.factor))) {
    return InvalidArgument("factor: expected a finite number >= 1, got ", scaling.factor);
  }
  const int64_t pairs = rotary_dim / 2;
  if (!scaling.divisors.empty() && static_cast<int64_t>(scaling.divisors.size()) != pairs) {
    return InvalidArgument("divisors: expected ", pairs, " values, got ", scaling.divisors.size());
  }
  const bool needs_context = scaling.kind == Kind::kLlama3 || scaling.kind == Kind::kYarn;
  if (needs_context && !(scaling.original_context > 0.0)) {
    return InvalidArgument("original_context: expected > 0, got ", scaling.original_context);
  }
  if (scaling.kind == Kind::kLlama3 &&
      !(scaling.high_freq_factor > scaling.low_freq_factor && scaling.low_freq_factor > 0.0)) {
    return InvalidArgument("high_freq_factor: expected > low_freq_factor > 0, got ",
                           scaling.high_freq_factor, " and ", scaling.low_freq_factor);
  }

  RopeFrequencies result;
  const double dim = static_cast<double>(rotary_dim);
  double ramp_begin = 0.0, ramp_end = 0.0;
  if (scaling.kind == Kind::kYarn) {
    const double context = scaling.original_context;
    ramp_begin = std::max(0.0, std::floor(YarnDimension(scaling.beta_fast, dim, base, context)));
    ramp_end = std::min(dim - 1.0, std::ceil(YarnDimension(scaling.beta_slow, dim, base, context)));
    result.magnitude =
        static_cast<float>(scaling.attention_factor * (1.0 + 0.1 * std::log(scaling.factor)));
  }
  if (!std::isfinite(result.magnitude)) {
    return InvalidArgument("attention_factor: expected a finite number, got ",
                           scaling.attention_factor);
  }
  for (int64_t i = 0; i < pairs; ++i) {
    double f = std::pow(base, -2.0 * static_cast<double>(i) / dim);
    if (!scaling.divisors.empty()) {
      const float divisor = scaling.divisors[static_cast<size_t>(i)];
      if (!(divisor > 0.0f) || !std::isfinite(divisor)) {
        return InvalidArgument("divisors: expected finite numbers > 0 at index ", i);
      }
      f /= divisor;
    }
    switch (scaling.kind) {
      case Kind::kNone:
        break;
      case Kind::kLinear:
        f /= scaling.factor;
        break;
      case Kind::kLlama3:
        f = Llama3(f, scaling);
        break;
      case Kind::kYarn: {
        const double width = std::max(0.001, ramp_end - ramp_begin);
        const double interpolate =
            std::clamp((static_cast<double>(i) - ramp_begin) / width, 0.0, 1.0);
        f = f / scaling.factor * interpolate + f * (1.0 - interpolate);
        break;
      }
    }
    // Absurd parameters (a base of 1 under YaRN, 1e-300, ...) meet here.
    const auto rounded = static_cast<float>(f);
    if (!std::isfinite(rounded)) {
      return InvalidArgument("base ", base, " and the scaling parameters give no finite frequency ",
                             "at pair ", i);
    }
    result.inv_freq.push_back(rounded);
  }
  return result;
}

}  // namespace tandem
