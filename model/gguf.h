// Reader of GGUF model files, versions 2 and 3 (github.com/ggml-org/ggml, docs/gguf.md).
//
//   header     magic "GGUF", version, number of tensors, number of metadata pairs
//   metadata   key, type, value; values are numbers, booleans, strings and arrays of those
//   directory  per tensor: name, extents (innermost first), type, offset
//   data       from the next multiple of general.alignment (32 unless stated)
//
// The file is mapped read-only and nothing is copied: strings and tensors are views of the mapping
// and live as long as the GgufFile. A mapped file must not be truncated by others while in use.
//
// The file is not trusted. Every count, length, type and offset is checked against the bytes that
// are left before it is used, so that time and memory are bounded by the size of the file. Refused:
// nested arrays, repeated keys or tensor names, zero dimensions, tensors that overlap or leave the
// file. Errors: DataLoss when the file ends too early, InvalidArgument for a bad field, NotFound
// for something missing; each names the file, the field and what was expected.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "core/tensor_view.h"

namespace tandem {

enum class GgufType : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64,
};

// "uint32", "string", ...; "type 77" for a number that is no type.
std::string Name(GgufType type);

struct GgufValue {
  std::string_view key;
  GgufType type = GgufType::kU8;  // of the elements, for an array
  bool is_array = false;
  uint64_t count = 1;               // elements
  std::span<const std::byte> data;  // as in the file
};

struct GgufTensor {
  std::string_view name;
  uint32_t type = 0;  // ggml's number of the element type
  Shape shape;        // outermost first, unlike in the file
  uint64_t offset = 0;
  // The tensor's bytes; empty for a type number whose block size is unknown here.
  std::span<const std::byte> data;
};

// "Q4_K", or "type 77" for a number that is not known.
std::string GgufTensorTypeName(uint32_t type);

class GgufFile {
 public:
  static absl::StatusOr<std::shared_ptr<const GgufFile>> Open(const std::string& path);
  // `bytes` must outlive the result and start at a multiple of 8. `name` stands for the path in
  // errors.
  static absl::StatusOr<std::shared_ptr<const GgufFile>> FromMemory(
      std::span<const std::byte> bytes, const std::string& name);

  ~GgufFile();
  GgufFile(const GgufFile&) = delete;
  GgufFile& operator=(const GgufFile&) = delete;

  const std::string& name() const { return name_; }
  uint32_t version() const { return version_; }
  int64_t bytes() const { return static_cast<int64_t>(bytes_.size()); }
  const std::vector<GgufValue>& metadata() const { return metadata_; }
  const std::vector<GgufTensor>& tensors() const { return tensors_; }

  // nullptr if the file has no such key or tensor.
  const GgufValue* FindValue(std::string_view key) const;
  const GgufTensor* FindTensor(std::string_view name) const;

  // One metadata value. NotFound when it is missing (the second forms then return `fallback`),
  // InvalidArgument when it has another type. Any integer type serves for Int if the value fits,
  // any number for Float.
  absl::StatusOr<int64_t> Int(std::string_view key) const;
  absl::StatusOr<int64_t> Int(std::string_view key, int64_t fallback) const;
  absl::StatusOr<double> Float(std::string_view key) const;
  absl::StatusOr<double> Float(std::string_view key, double fallback) const;
  absl::StatusOr<bool> Bool(std::string_view key, bool fallback) const;
  absl::StatusOr<std::string_view> String(std::string_view key) const;
  absl::StatusOr<std::string_view> String(std::string_view key, std::string_view fallback) const;
  // Arrays, in time and memory linear in their size.
  absl::StatusOr<std::vector<std::string_view>> Strings(std::string_view key) const;
  absl::StatusOr<std::vector<float>> Floats(std::string_view key) const;
  absl::StatusOr<std::vector<int64_t>> Ints(std::string_view key) const;

  // A tensor as a view of the mapping. NotFound when it is missing, Unimplemented when its type is
  // none of F32, F16, BF16, Q8_0, Q4_0, Q4_K, Q5_K, Q6_K, TQ2_0.
  absl::StatusOr<TensorView> Tensor(std::string_view name) const;
  // And of exactly this shape (outermost first), else InvalidArgument.
  absl::StatusOr<TensorView> Tensor(std::string_view name, const Shape& shape) const;

  // A tensor of this file will hardly be read again: its pages need not stay in memory. They come
  // back from the file if it is.
  void ReleasePages(const TensorView& tensor) const;

 private:
  friend class GgufParser;

  GgufFile() = default;

  std::string name_;
  std::span<const std::byte> bytes_;
  bool mapped_ = false;
  uint32_t version_ = 0;
  std::vector<GgufValue> metadata_;
  std::vector<GgufTensor> tensors_;
  absl::flat_hash_map<std::string_view, size_t> value_index_;
  absl::flat_hash_map<std::string_view, size_t> tensor_index_;
};

}  // namespace tandem
