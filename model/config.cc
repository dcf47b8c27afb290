#include "model/config.h"

#include <limits>

#include "core/status.h"
#include "model/gguf_format.h"

namespace tandem {
namespace {

// Largest extents taken from a file. Far above any model, far below overflow of their products.
constexpr int64_t kMaxExtent = int64_t{1} << 24;
constexpr int64_t kMaxContext = int64_t{1} << 30;

constexpr struct {
  std::string_view name;
  Architecture architecture;
} kArchitectures[] = {{"llama", Architecture::kLlama},
                      {"qwen2", Architecture::kQwen2},
                      {"qwen3", Architecture::kQwen3}};

class ConfigReader {
 public:
  ConfigReader(const GgufFile& file, std::string_view architecture)
      : file_(file), prefix_(absl::StrCat(std::string(architecture), ".")) {}

  std::string Key(std::string_view name) const { return prefix_ + std::string(name); }
  bool Has(std::string_view name) const { return file_.FindValue(Key(name)) != nullptr; }

  absl::Status Extent(std::string_view name, int64_t& value, int64_t max = kMaxExtent) const {
    TANDEM_ASSIGN_OR_RETURN(value, file_.Int(Key(name)));
    if (value < 1 || value > max) {
      return InvalidArgument(file_.name(), ": ", Key(name), ": expected 1..", max, ", got ", value);
    }
    return absl::OkStatus();
  }
  absl::Status Extent(std::string_view name, int64_t& value, int64_t fallback, int64_t max) const {
    if (Has(name)) return Extent(name, value, max);
    value = fallback;
    return absl::OkStatus();
  }

  absl::Status Real(std::string_view name, double& value, double min, double max) const {
    TANDEM_ASSIGN_OR_RETURN(value, file_.Float(Key(name), value));
    if (!(value >= min && value <= max)) {
      return InvalidArgument(file_.name(), ": ", Key(name), ": expected a number in ", min, "..",
                             max, ", got ", value);
    }
    return absl::OkStatus();
  }

  absl::Status Scaling(DecoderConfig::Rope& rope, int64_t context) const {
    RopeScaling& scaling = rope.scaling;
    constexpr double kMaxFactor = 1e6;
    TANDEM_ASSIGN_OR_RETURN(const std::string_view type,
                            file_.String(Key("rope.scaling.type"), ""));
    // Files from before rope.scaling.type have only this factor.
    if (type.empty() && Has("rope.scale_linear")) {
      scaling.kind = RopeScaling::Kind::kLinear;
      return Real("rope.scale_linear", scaling.factor, 1.0, kMaxFactor);
    }
    if (type.empty() || type == "none") return absl::OkStatus();
    if (type == "linear") {
      scaling.kind = RopeScaling::Kind::kLinear;
    } else if (type == "yarn") {
      scaling.kind = RopeScaling::Kind::kYarn;
    } else {
      return Unimplemented(file_.name(), ": ", Key("rope.scaling.type"),
                           ": expected none, linear or yarn, got ", Quote(type));
    }
    if (!Has("rope.scaling.factor")) {
      return absl::NotFoundError(absl::StrCat(file_.name(), ": the metadata has no key ",
                                              Quote(Key("rope.scaling.factor")),
                                              ", which the scaling type needs"));
    }
    TANDEM_RETURN_IF_ERROR(Real("rope.scaling.factor", scaling.factor, 1.0, kMaxFactor));
    scaling.original_context = static_cast<double>(context);
    TANDEM_RETURN_IF_ERROR(Real("rope.scaling.original_context_length", scaling.original_context,
                                1.0, static_cast<double>(kMaxContext)));
    TANDEM_RETURN_IF_ERROR(
        Real("rope.scaling.attn_factor", scaling.attention_factor, 1e-6, kMaxFactor));
    TANDEM_RETURN_IF_ERROR(
        Real("rope.scaling.yarn_beta_fast", scaling.beta_fast, 1e-3, kMaxFactor));
    return Real("rope.scaling.yarn_beta_slow", scaling.beta_slow, 1e-3, kMaxFactor);
  }

 private:
  const GgufFile& file_;
  std::string prefix_;
};

absl::Status LoadDivisors(const GgufFile& file, DecoderConfig::Rope& rope) {
  constexpr std::string_view kName = "rope_freqs.weight";
  if (file.FindTensor(kName) == nullptr) return absl::OkStatus();
  TANDEM_ASSIGN_OR_RETURN(const TensorView view, file.Tensor(kName, {rope.rotary_dim / 2}));
  if (view.dtype != DType::kF32) {
    return InvalidArgument(file.name(), ": tensor ", Quote(kName), ": expected F32, got ",
                           std::string(Name(view.dtype)));
  }
  rope.scaling.divisors.assign(view.As<float>(), view.As<float>() + view.dim(0));
  return absl::OkStatus();
}

}  // namespace

std::string_view Name(Architecture architecture) {
  return kArchitectures[static_cast<size_t>(architecture)].name;
}

absl::StatusOr<DecoderConfig> DecoderConfig::Load(const GgufFile& file) {
  TANDEM_ASSIGN_OR_RETURN(const std::string_view architecture, file.String("general.architecture"));
  DecoderConfig c;
  bool known = false;
  for (const auto& entry : kArchitectures) {
    if (entry.name != architecture) continue;
    known = true;
    c.architecture = entry.architecture;
  }
  if (!known) {
    return Unimplemented(file.name(),
                         ": general.architecture: expected llama, qwen2 or qwen3, got ",
                         Quote(architecture));
  }
  TANDEM_ASSIGN_OR_RETURN(const std::string_view name, file.String("general.name", ""));
  c.name = name;

  const ConfigReader reader(file, architecture);
  // Every layer has tensors of its own, so their number bounds the layers.
  TANDEM_RETURN_IF_ERROR(reader.Extent("block_count", c.layers));
  if (c.layers > static_cast<int64_t>(file.tensors().size())) {
    return InvalidArgument(file.name(), ": ", reader.Key("block_count"), ": ", c.layers,
                           " layers, but the file has only ", file.tensors().size(), " tensors");
  }
  TANDEM_RETURN_IF_ERROR(reader.Extent("embedding_length", c.hidden));
  TANDEM_RETURN_IF_ERROR(reader.Extent("feed_forward_length", c.ffn));
  TANDEM_RETURN_IF_ERROR(reader.Extent("attention.head_count", c.heads));
  TANDEM_RETURN_IF_ERROR(reader.Extent("attention.head_count_kv", c.kv_heads, c.heads, kMaxExtent));
  if (c.heads % c.kv_heads != 0) {
    return InvalidArgument(file.name(), ": ", reader.Key("attention.head_count"),
                           ": expected a multiple of the ", c.kv_heads, " key/value heads, got ",
                           c.heads);
  }
  const bool has_lengths =
      reader.Has("attention.key_length") && reader.Has("attention.value_length");
  if (!has_lengths && c.hidden % c.heads != 0) {
    return InvalidArgument(file.name(), ": ", reader.Key("embedding_length"),
                           ": expected a multiple of the ", c.heads, " heads, got ", c.hidden);
  }
  const int64_t even_share = c.hidden / c.heads;
  TANDEM_RETURN_IF_ERROR(reader.Extent("attention.key_length", c.head_dim, even_share, 1 << 16));
  TANDEM_RETURN_IF_ERROR(
      reader.Extent("attention.value_length", c.v_head_dim, even_share, 1 << 16));
  TANDEM_RETURN_IF_ERROR(reader.Extent("context_length", c.context, kMaxContext));
  if (!reader.Has("attention.layer_norm_rms_epsilon")) {
    return file.Float(reader.Key("attention.layer_norm_rms_epsilon")).status();
  }
  double eps = 0.0;
  TANDEM_RETURN_IF_ERROR(reader.Real("attention.layer_norm_rms_epsilon", eps, 1e-30, 1.0));
  c.rms_eps = static_cast<float>(eps);

  TANDEM_RETURN_IF_ERROR(
      reader.Extent("rope.dimension_count", c.rope.rotary_dim, c.head_dim, 1 << 16));
  if (c.rope.rotary_dim % 2 != 0 || c.rope.rotary_dim > c.head_dim) {
    return InvalidArgument(file.name(), ": ", reader.Key("rope.dimension_count"),
                           ": expected an even number up to the head dimension ", c.head_dim,
                           ", got ", c.rope.rotary_dim);
  }
  TANDEM_RETURN_IF_ERROR(reader.Real("rope.freq_base", c.rope.base, 1e-3, 1e12));
  c.rope.pairing =
      c.architecture == Architecture::kLlama ? RopePairing::kInterleaved : RopePairing::kHalf;
  TANDEM_RETURN_IF_ERROR(reader.Scaling(c.rope, c.context));
  TANDEM_RETURN_IF_ERROR(LoadDivisors(file, c.rope));
  // The frequencies are computed again when they are needed; here their inputs are checked.
  if (const auto frequencies =
          RopeInverseFrequencies(c.rope.rotary_dim, c.rope.base, c.rope.scaling);
      !frequencies.ok()) {
    return InvalidArgument(file.name(), ": RoPE: ", Message(frequencies.status()));
  }

  if (reader.Has("expert_count")) {
    TANDEM_ASSIGN_OR_RETURN(const int64_t experts, file.Int(reader.Key("expert_count")));
    if (experts != 0) {
      return Unimplemented(file.name(), ": ", reader.Key("expert_count"), ": ", experts,
                           " experts; mixtures of experts are not supported");
    }
  }
  const GgufTensor* embedding = file.FindTensor("token_embd.weight");
  if (embedding == nullptr) return file.Tensor("token_embd.weight").status();
  if (embedding->shape.rank != 2 || embedding->shape[0] > std::numeric_limits<int32_t>::max()) {
    return InvalidArgument(file.name(),
                           ": tensor 'token_embd.weight': expected shape [below 2^31, ", c.hidden,
                           "], got ", ToString(embedding->shape));
  }
  c.vocabulary = embedding->shape[0];
  return c;
}

}  // namespace tandem
