#include "model/quantize.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>

#include "core/status.h"
#include "core/tensor.h"
#include "dispatch/ops.h"
#include "model/gguf_format.h"
#include "model/gguf_writer.h"

namespace tandem {
namespace {

constexpr int64_t kSliceElements = 4 << 20;  // 16 MiB of f32
constexpr float kLargestF16 = 65504.0f;
constexpr uint32_t kQuantizationVersion = 2;  // of ggml's block formats

struct Plan {
  const GgufTensor* tensor = nullptr;
  std::optional<DType> to;  // nullopt: copied
  std::string fallback;
};

std::string Str(std::string_view text) { return std::string(text); }

bool IsMatrix(const GgufTensor& tensor) {
  return tensor.shape.rank >= 2 && tensor.name.ends_with(".weight") &&
         !tensor.name.ends_with("_norm.weight") && !tensor.name.ends_with("gate_inp.weight");
}

std::optional<DType> DTypeOfTensor(const GgufTensor& tensor) {
  const GgufTensorType* type = FindGgufTensorType(tensor.type);
  return type != nullptr ? type->dtype : std::nullopt;
}

DType ChosenType(const GgufFile& in, const GgufTensor& tensor, const QuantizeOptions& options) {
  DType chosen = options.type;
  const bool is_output =
      tensor.name == "output.weight" ||
      (tensor.name == "token_embd.weight" && in.FindTensor("output.weight") == nullptr);
  if (is_output && options.output_type) chosen = *options.output_type;
  for (const auto& [text, type] : options.tensor_types) {
    if (tensor.name.find(text) != std::string_view::npos) chosen = type;
  }
  return chosen;
}

absl::StatusOr<Plan> PlanFor(const GgufFile& in, const GgufTensor& tensor,
                             const QuantizeOptions& options) {
  Plan plan{&tensor, std::nullopt, ""};
  const std::optional<DType> from = DTypeOfTensor(tensor);
  const std::string field = absl::StrCat(in.name(), ": tensor ", Quote(tensor.name));
  if (!IsMatrix(tensor)) {
    if (from && IsFloat(*from)) plan.to = DType::kF32;
    if (FindGgufTensorType(tensor.type) == nullptr) {
      return Unimplemented(field, " has ", GgufTensorTypeName(tensor.type),
                           ", whose size is not known");
    }
    return plan;
  }
  if (options.keep_embeddings && tensor.name == "token_embd.weight") return plan;
  DType to = ChosenType(in, tensor, options);
  const int64_t row = tensor.shape[tensor.shape.rank - 1];
  if (row % BlockLength(to) != 0) {
    const DType chosen = to;
    to = row % BlockLength(DType::kQ8_0) == 0 ? DType::kQ8_0 : DType::kF16;
    plan.fallback = absl::StrCat("rows of ", row, " are not whole blocks of ", Str(Name(chosen)),
                                 " (", BlockLength(chosen), ")");
  }
  if (from == to) return plan;
  if (!from || !IsFloat(*from)) {
    return InvalidArgument(field, ": expected F32, F16, BF16 or the chosen type ", Str(Name(to)),
                           ", got ", GgufTensorTypeName(tensor.type));
  }
  plan.to = to;
  return plan;
}

const GgufTensorType& TypeOf(const Plan& plan) {
  return plan.to ? *FindGgufTensorType(*plan.to) : *FindGgufTensorType(plan.tensor->type);
}

// ggml.h, enum llama_ftype: what most of the file is.
uint32_t FileType(DType type, bool mixed) {
  switch (type) {
    case DType::kF16:
      return 1;
    case DType::kQ4_0:
      return 2;
    case DType::kQ8_0:
      return 7;
    case DType::kQ4_K:
      return mixed ? 15 : 14;  // "medium": with some tensors in a larger type
    case DType::kQ5_K:
      return mixed ? 17 : 16;
    case DType::kQ6_K:
      return 18;
    case DType::kBF16:
      return 32;
    case DType::kTQ2_0:
      return 37;
    default:
      return 0;
  }
}

// Element of a slice that a type with f16 numbers cannot hold; -1: none.
int64_t FirstUnfit(const float* x, int64_t count) {
  bool fits = true;
  for (int64_t i = 0; i < count; ++i) fits &= std::fabs(x[i]) <= kLargestF16;
  if (fits) return -1;
  return std::find_if(x, x + count, [](float v) { return !(std::fabs(v) <= kLargestF16); }) - x;
}

class Quantizer {
 public:
  Quantizer(Context& context, const GgufFile& in, const QuantizeOptions& options)
      : context_(context), in_(in), options_(options) {}

  absl::StatusOr<QuantizeStats> Run(const std::string& path) {
    TANDEM_RETURN_IF_ERROR(CheckArguments(path));
    std::vector<Plan> plans;
    for (const GgufTensor& tensor : in_.tensors()) {
      TANDEM_ASSIGN_OR_RETURN(Plan plan, PlanFor(in_, tensor, options_));
      plans.push_back(std::move(plan));
    }
    TANDEM_RETURN_IF_ERROR(WriteHeader(plans, path));
    for (const Plan& plan : plans) TANDEM_RETURN_IF_ERROR(WriteTensor(plan));
    TANDEM_RETURN_IF_ERROR(writer_.Finish());
    return QuantizeStats{in_.bytes(), static_cast<int64_t>(writer_.bytes())};
  }

 private:
  absl::Status CheckArguments(const std::string& path) const {
    const auto check = [](const std::string& name, DType type) {
      if (IsFloat(type) || IsBlockQuantized(type)) return absl::OkStatus();
      return InvalidArgument(name, ": expected a float or block dtype, got ", Str(Name(type)));
    };
    TANDEM_RETURN_IF_ERROR(check("type", options_.type));
    if (options_.output_type) {
      TANDEM_RETURN_IF_ERROR(check("output_type", *options_.output_type));
    }
    for (const auto& [text, type] : options_.tensor_types) {
      TANDEM_RETURN_IF_ERROR(check("tensor_types '" + text + "'", type));
      const bool matches = std::any_of(
          in_.tensors().begin(), in_.tensors().end(), [&, &wanted = text](const GgufTensor& t) {
            return IsMatrix(t) && t.name.find(wanted) != std::string_view::npos;
          });
      if (!matches) return InvalidArgument("tensor_types '", text, "': no matrix has such a name");
    }
    if (in_.FindValue("split.count") != nullptr) {
      TANDEM_ASSIGN_OR_RETURN(const int64_t parts, in_.Int("split.count"));
      if (parts > 1) {
        return Unimplemented(in_.name(), ": is one of ", parts, " parts; join them first");
      }
    }
    struct stat from, to;
    if (stat(in_.name().c_str(), &from) == 0 && stat(path.c_str(), &to) == 0 &&
        from.st_dev == to.st_dev && from.st_ino == to.st_ino) {
      return InvalidArgument(path, ": the output is the input file");
    }
    return absl::OkStatus();
  }

  absl::Status WriteHeader(const std::vector<Plan>& plans, const std::string& path) {
    TANDEM_RETURN_IF_ERROR(writer_.CopyMetadata(in_));
    bool blocks = false, mixed = false;
    for (const Plan& plan : plans) {
      const std::optional<DType> type = TypeOf(plan).dtype;
      blocks |= TypeOf(plan).block_length > 1;
      mixed |= IsMatrix(*plan.tensor) && type != options_.type;
    }
    writer_.SetU32("general.file_type", FileType(options_.type, mixed));
    if (blocks) writer_.SetU32("general.quantization_version", kQuantizationVersion);
    for (const Plan& plan : plans) {
      const absl::Status added =
          writer_.AddTensor(plan.tensor->name, TypeOf(plan).number, plan.tensor->shape);
      if (!added.ok()) return InvalidArgument(in_.name(), ": ", Message(added));
    }
    return writer_.Create(path);
  }

  absl::Status WriteTensor(const Plan& plan) {
    const GgufTensor& tensor = *plan.tensor;
    const GgufTensorType& type = TypeOf(plan);
    const int64_t columns = tensor.shape[tensor.shape.rank - 1];
    const int64_t rows = *NumElements(tensor.shape) / columns;
    const int64_t row_bytes = columns / type.block_length * type.block_bytes;
    if (options_.on_tensor) {
      options_.on_tensor({tensor.name, tensor.shape, GgufTensorTypeName(tensor.type),
                          Str(type.name), rows * row_bytes, plan.fallback});
    }
    const std::optional<DType> from = DTypeOfTensor(tensor);
    if (!plan.to || *plan.to == *from) return Copy(tensor.data);
    const TensorView view = MakeView(tensor.data.data(), *from, {rows, columns});
    const int64_t step = std::max<int64_t>(1, kSliceElements / columns);
    for (int64_t row = 0; row < rows; row += step) {
      const int64_t count = std::min(step, rows - row);
      TANDEM_RETURN_IF_ERROR(WriteRows(plan, Slice(view, 0, row, count), row));
    }
    return absl::OkStatus();
  }

  // In slices too, so that the progress moves.
  absl::Status Copy(std::span<const std::byte> data) {
    while (!data.empty()) {
      const size_t count = std::min<size_t>(data.size(), kSliceElements * sizeof(float));
      TANDEM_RETURN_IF_ERROR(Append(data.first(count)));
      data = data.subspan(count);
    }
    return absl::OkStatus();
  }

  // Rows row0.. of a matrix, by way of f32: block formats are made from nothing else, and f16 must
  // be checked.
  absl::Status WriteRows(const Plan& plan, const TensorView& rows, int64_t row0) {
    const int64_t count = rows.dim(0), columns = rows.dim(1);
    TensorView floats = rows;
    if (rows.dtype != DType::kF32) {
      TANDEM_ASSIGN_OR_RETURN(floats, Buffer(floats_, DType::kF32, count, columns));
      TANDEM_RETURN_IF_ERROR(CastInto(context_, {rows, floats}));
    }
    if (*plan.to != DType::kF32 && *plan.to != DType::kBF16) {
      const int64_t unfit = FirstUnfit(floats.As<float>(), count * columns);
      if (unfit >= 0) {
        return InvalidArgument(in_.name(), ": tensor ", Quote(plan.tensor->name), " [",
                               row0 + unfit / columns, ", ", unfit % columns,
                               "]: expected a number of magnitude <= 65504 for ",
                               Str(Name(*plan.to)), ", got ", floats.As<float>()[unfit]);
      }
    }
    TensorView result = floats;
    if (*plan.to != DType::kF32) {
      TANDEM_ASSIGN_OR_RETURN(result, Buffer(result_, *plan.to, count, columns));
      TANDEM_RETURN_IF_ERROR(CastInto(context_, {floats, result}));
    }
    return Append({static_cast<const std::byte*>(result.data),
                   static_cast<size_t>(ByteOffset(result.dtype, count * columns))});
  }

  // A [rows, columns] view of a buffer that grows to the largest slice.
  absl::StatusOr<TensorView> Buffer(Tensor& buffer, DType dtype, int64_t rows, int64_t columns) {
    TANDEM_ASSIGN_OR_RETURN(const int64_t bytes, StorageBytes("slice", dtype, {rows, columns}));
    if (!buffer.view().present() || buffer.view().dim(0) < bytes) {
      buffer = Tensor();
      TANDEM_ASSIGN_OR_RETURN(buffer,
                              Tensor::Allocate(context_.host_allocator(), DType::kI8, {bytes}));
    }
    return MakeView(buffer.view().data, dtype, {rows, columns});
  }

  absl::Status Append(std::span<const std::byte> data) {
    TANDEM_RETURN_IF_ERROR(writer_.Append(data));
    done_ += static_cast<int64_t>(data.size());
    if (options_.on_progress) options_.on_progress(done_, static_cast<int64_t>(writer_.bytes()));
    return absl::OkStatus();
  }

  Context& context_;
  const GgufFile& in_;
  const QuantizeOptions& options_;
  GgufWriter writer_;
  Tensor floats_, result_;
  int64_t done_ = 0;
};

}  // namespace

absl::StatusOr<QuantizeStats> QuantizeGguf(Context& context, const GgufFile& in,
                                           const std::string& path,
                                           const QuantizeOptions& options) {
  return Quantizer(context, in, options).Run(path);
}

}  // namespace tandem
