#include "model/gguf.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <optional>

#include "core/status.h"
#include "core/tensor.h"
#include "model/gguf_format.h"

namespace tandem {
namespace {

template <typename T>
T Load(const std::byte* data) {
  T value;
  std::memcpy(&value, data, sizeof(T));
  return value;
}

// Element `index` of an integer value; nullopt when it is no integer or does not fit.
std::optional<int64_t> IntegerAt(const GgufValue& value, uint64_t index) {
  const std::byte* p = value.data.data() + index * static_cast<uint64_t>(GgufTypeBytes(value.type));
  switch (value.type) {
    case GgufType::kU8:
      return Load<uint8_t>(p);
    case GgufType::kI8:
      return Load<int8_t>(p);
    case GgufType::kU16:
      return Load<uint16_t>(p);
    case GgufType::kI16:
      return Load<int16_t>(p);
    case GgufType::kU32:
      return Load<uint32_t>(p);
    case GgufType::kI32:
      return Load<int32_t>(p);
    case GgufType::kI64:
      return Load<int64_t>(p);
    case GgufType::kU64: {
      const auto wide = Load<uint64_t>(p);
      if (wide > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
      return static_cast<int64_t>(wide);
    }
    default:
      return std::nullopt;
  }
}

std::optional<double> NumberAt(const GgufValue& value, uint64_t index) {
  const std::byte* p = value.data.data() + index * static_cast<uint64_t>(GgufTypeBytes(value.type));
  if (value.type == GgufType::kF32) return static_cast<double>(Load<float>(p));
  if (value.type == GgufType::kF64) return Load<double>(p);
  if (const auto integer = IntegerAt(value, index)) return static_cast<double>(*integer);
  return std::nullopt;
}

std::string Describe(const GgufValue& value) {
  return value.is_array ? absl::StrCat("array of ", value.count, " ", Name(value.type))
                        : Name(value.type);
}

}  // namespace

GgufFile::~GgufFile() {
  if (mapped_) munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

void GgufFile::ReleasePages(const TensorView& tensor) const {
  const auto bytes = StorageBytes("tensor", tensor.dtype, tensor.shape);
  if (!mapped_ || !bytes.ok()) return;
  // Whole pages of the tensor only: its neighbours keep theirs. The mapping starts at a page.
  const auto page = static_cast<size_t>(sysconf(_SC_PAGE_SIZE));
  const auto begin = static_cast<size_t>(tensor.As<const std::byte>() - bytes_.data());
  const size_t first = (begin + page - 1) / page * page;
  const size_t last = (begin + static_cast<size_t>(*bytes)) / page * page;
  if (first >= last || last > bytes_.size()) return;
  void* address = const_cast<std::byte*>(bytes_.data()) + first;
  // Small pages from now on, lest reading a small neighbour map 2 MiB around it again.
  (void)madvise(address, last - first, MADV_NOHUGEPAGE);
  (void)madvise(address, last - first, MADV_DONTNEED);
}

const GgufValue* GgufFile::FindValue(std::string_view key) const {
  const auto it = value_index_.find(key);
  return it == value_index_.end() ? nullptr : &metadata_[it->second];
}

const GgufTensor* GgufFile::FindTensor(std::string_view name) const {
  const auto it = tensor_index_.find(name);
  return it == tensor_index_.end() ? nullptr : &tensors_[it->second];
}

namespace {

absl::Status Missing(const GgufFile& file, std::string_view key) {
  return absl::NotFoundError(absl::StrCat(file.name(), ": the metadata has no key ", Quote(key)));
}

absl::Status WrongType(const GgufFile& file, const GgufValue& value, std::string_view expected) {
  return InvalidArgument(file.name(), ": metadata key ", Quote(value.key), ": expected ",
                         std::string(expected), ", got ", Describe(value));
}

}  // namespace

absl::StatusOr<int64_t> GgufFile::Int(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return Missing(*this, key);
  const auto integer = value->is_array ? std::nullopt : IntegerAt(*value, 0);
  if (!integer) return WrongType(*this, *value, "an integer below 2^63");
  return *integer;
}

absl::StatusOr<int64_t> GgufFile::Int(std::string_view key, int64_t fallback) const {
  if (FindValue(key) == nullptr) return fallback;
  return Int(key);
}

absl::StatusOr<double> GgufFile::Float(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return Missing(*this, key);
  const auto number = value->is_array ? std::nullopt : NumberAt(*value, 0);
  if (!number) return WrongType(*this, *value, "a number");
  if (!std::isfinite(*number)) return WrongType(*this, *value, "a finite number");
  return *number;
}

absl::StatusOr<double> GgufFile::Float(std::string_view key, double fallback) const {
  if (FindValue(key) == nullptr) return fallback;
  return Float(key);
}

absl::StatusOr<bool> GgufFile::Bool(std::string_view key, bool fallback) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return fallback;
  if (value->is_array || value->type != GgufType::kBool) return WrongType(*this, *value, "a bool");
  return Load<uint8_t>(value->data.data()) != 0;
}

absl::StatusOr<std::string_view> GgufFile::String(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return Missing(*this, key);
  if (value->is_array || value->type != GgufType::kString) {
    return WrongType(*this, *value, "a string");
  }
  return std::string_view(reinterpret_cast<const char*>(value->data.data()), value->data.size());
}

absl::StatusOr<std::string_view> GgufFile::String(std::string_view key,
                                                  std::string_view fallback) const {
  if (FindValue(key) == nullptr) return fallback;
  return String(key);
}

absl::StatusOr<std::vector<std::string_view>> GgufFile::Strings(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return Missing(*this, key);
  if (!value->is_array || value->type != GgufType::kString) {
    return WrongType(*this, *value, "an array of strings");
  }
  // The lengths were checked when the file was opened.
  std::vector<std::string_view> strings;
  strings.reserve(value->count);
  const std::byte* p = value->data.data();
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto length = Load<uint64_t>(p);
    strings.emplace_back(reinterpret_cast<const char*>(p + sizeof(uint64_t)), length);
    p += sizeof(uint64_t) + length;
  }
  return strings;
}

absl::StatusOr<std::vector<float>> GgufFile::Floats(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return Missing(*this, key);
  if (!value->is_array || (value->type != GgufType::kF32 && value->type != GgufType::kF64)) {
    return WrongType(*this, *value, "an array of floats");
  }
  std::vector<float> numbers(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    numbers[i] = static_cast<float>(*NumberAt(*value, i));
  }
  return numbers;
}

absl::StatusOr<std::vector<int64_t>> GgufFile::Ints(std::string_view key) const {
  const GgufValue* value = FindValue(key);
  if (value == nullptr) return Missing(*this, key);
  if (!value->is_array) return WrongType(*this, *value, "an array of integers");
  std::vector<int64_t> numbers;
  if (GgufTypeBytes(value->type) > 0) numbers.reserve(value->count);
  for (uint64_t i = 0; i < value->count; ++i) {
    const auto number = IntegerAt(*value, i);
    if (!number) return WrongType(*this, *value, "an array of integers below 2^63");
    numbers.push_back(*number);
  }
  return numbers;
}

absl::StatusOr<TensorView> GgufFile::Tensor(std::string_view name) const {
  const GgufTensor* tensor = FindTensor(name);
  if (tensor == nullptr) {
    return absl::NotFoundError(absl::StrCat(name_, ": there is no tensor ", Quote(name)));
  }
  const GgufTensorType* type = FindGgufTensorType(tensor->type);
  if (type == nullptr || !type->dtype) {
    return Unimplemented(name_, ": tensor ", Quote(name), " has type ",
                         GgufTensorTypeName(tensor->type),
                         "; supported are F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K and TQ2_0");
  }
  const TensorView view = MakeView(tensor->data.data(), *type->dtype, tensor->shape);
  if (absl::Status status = ValidateView(name, view); !status.ok()) {
    return InvalidArgument(name_, ": tensor ", Message(status));
  }
  return view;
}

absl::StatusOr<TensorView> GgufFile::Tensor(std::string_view name, const Shape& shape) const {
  const GgufTensor* tensor = FindTensor(name);
  if (tensor != nullptr && !(tensor->shape == shape)) {
    return InvalidArgument(name_, ": tensor ", Quote(name), ": expected shape ", ToString(shape),
                           " (outermost first), got ", ToString(tensor->shape));
  }
  return Tensor(name);
}

}  // namespace tandem
