// Rotary position embedding (Su et al. 2021).
//
// For token position p and pair i < R/2 the pair (x_a, x_b) is rotated by the angle
// t = p * inv_freq[i], m = magnitude:
//   out_a = m * (x_a cos t - x_b sin t)
//   out_b = m * (x_a sin t + x_b cos t)
//
// | pairing      | a  | b       | used by                |
// |--------------|----|---------|------------------------|
// | kInterleaved | 2i | 2i + 1  | Llama weights in GGUF  |
// | kHalf        | i  | i + R/2 | NEOX: qwen2, qwen3     |
//
// Dimensions from R = 2 * len(inv_freq) on are copied. Angles are computed in f64 and rounded once:
// at position 1e5 an f32 product would be off by 1e-2 radians.
//
// All scaling variants (linear, llama3, YaRN) are a choice of inv_freq and magnitude: see
// RopeInverseFrequencies.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/op.h"
#include "core/tensor_view.h"

namespace tandem {

enum class RopePairing : uint8_t { kInterleaved, kHalf };

// What to rotate by, where the op does more than rotate (kv_append).
struct RopeRotation {
  TensorView positions;  // [S] or [B, S] i32, >= 0
  TensorView inv_freq;   // [R/2]         f32, R <= D
  RopePairing pairing = RopePairing::kInterleaved;
  float magnitude = 1.0f;

  bool present() const { return positions.present() || inv_freq.present(); }
};

struct RopeArgs {
  static constexpr OpKind kOp = OpKind::kRope;

  TensorView x;          // [B, H, S, D]  f32, f16, bf16
  TensorView positions;  // [S] or [B, S] i32, >= 0
  TensorView inv_freq;   // [R/2]         f32, R <= D
  TensorView out;        // shape of x    f32, f16, bf16; in place allowed
  RopePairing pairing = RopePairing::kInterleaved;
  float magnitude = 1.0f;

  RopeRotation rotation() const { return {positions, inv_freq, pairing, magnitude}; }
};

absl::Status Validate(const RopeArgs& args);
// The rotation of x [B, H, S, D]; `prefix` stands before the names of its fields in messages.
absl::Status ValidateRotation(std::string_view prefix, const RopeRotation& rotation,
                              std::string_view x_name, const TensorView& x);

// How a model file says positions were stretched.
struct RopeScaling {
  enum class Kind : uint8_t { kNone, kLinear, kLlama3, kYarn };
  Kind kind = Kind::kNone;
  double factor = 1.0;            // context stretch, >= 1
  double original_context = 0.0;  // kLlama3, kYarn: training context, tokens
  double low_freq_factor = 1.0;   // kLlama3
  double high_freq_factor = 4.0;  // kLlama3
  double beta_fast =
      32.0;  // kYarn: rotations over the training context above which a pair is left alone
  double beta_slow = 1.0;         // kYarn: and below which it is fully interpolated
  double attention_factor = 1.0;  // kYarn: multiplies the magnitude
  std::vector<float>
      divisors;  // optional, one per pair: inv_freq is divided by it (rope_freqs.weight)
};

struct RopeFrequencies {
  std::vector<float> inv_freq;  // rotary_dim / 2
  float magnitude = 1.0f;
};

// inv_freq[i] = base^(-2i/R), then scaled. InvalidArgument: odd or non-positive rotary_dim, base <=
// 0, factor < 1, a wrong number of divisors or a divisor that is not positive. Sources: linear:
// Chen et al. 2023; llama3: the Llama 3.1 release; YaRN: Peng et al. 2023 (magnitude 0.1 ln factor
// + 1).
absl::StatusOr<RopeFrequencies> RopeInverseFrequencies(int64_t rotary_dim, double base,
                                                       const RopeScaling& scaling);

}  // namespace tandem
