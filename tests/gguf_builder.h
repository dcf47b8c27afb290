// Writes GGUF files into memory, field by field, also wrong ones: for tests of readers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include "model/gguf.h"

namespace tandem {

// Little-endian bytes.
class ByteWriter {
 public:
  template <typename T>
  ByteWriter& Put(T value) {
    static_assert(std::is_arithmetic_v<T>);
    const auto* begin = reinterpret_cast<const std::byte*>(&value);
    bytes_.insert(bytes_.end(), begin, begin + sizeof(T));
    return *this;
  }
  ByteWriter& String(std::string_view text) {
    Put(static_cast<uint64_t>(text.size()));
    return Raw(std::as_bytes(std::span(text)));
  }
  ByteWriter& Raw(std::span<const std::byte> bytes) {
    bytes_.insert(bytes_.end(), bytes.begin(), bytes.end());
    return *this;
  }
  void PadTo(size_t alignment) {
    while (bytes_.size() % alignment != 0) bytes_.push_back(std::byte{0});
  }
  size_t size() const { return bytes_.size(); }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::vector<std::byte> bytes_;
};

class GgufBuilder {
 public:
  // Header fields; the counts default to what was added.
  std::string magic = "GGUF";
  uint32_t version = 3;
  std::optional<uint64_t> tensor_count;
  std::optional<uint64_t> pair_count;
  size_t alignment = 32;  // of the data section; does not add general.alignment

  template <typename T>
  GgufBuilder& Number(std::string_view key, T value) {
    Key(key, TypeOf<T>());
    if constexpr (std::is_same_v<T, bool>) {
      pairs_.Put(static_cast<uint8_t>(value));
    } else {
      pairs_.Put(value);
    }
    return *this;
  }
  GgufBuilder& String(std::string_view key, std::string_view value) {
    Key(key, GgufType::kString);
    pairs_.String(value);
    return *this;
  }
  GgufBuilder& Strings(std::string_view key, const std::vector<std::string>& values) {
    Array(key, GgufType::kString, values.size());
    for (const std::string& value : values) pairs_.String(value);
    return *this;
  }
  template <typename T>
  GgufBuilder& Numbers(std::string_view key, const std::vector<T>& values) {
    Array(key, TypeOf<T>(), values.size());
    for (T value : values) pairs_.Put(value);
    return *this;
  }
  // A pair with any type number and payload.
  GgufBuilder& RawPair(std::string_view key, uint32_t type, std::span<const std::byte> payload) {
    Key(key, static_cast<GgufType>(type));
    pairs_.Raw(payload);
    return *this;
  }

  // Extents innermost first, as in the file. The offset defaults to the next free one; `data` is
  // placed there.
  GgufBuilder& Tensor(std::string_view name, const std::vector<uint64_t>& extents, uint32_t type,
                      std::span<const std::byte> data,
                      std::optional<uint64_t> offset = std::nullopt) {
    data_.PadTo(alignment);
    directory_.String(name).Put(static_cast<uint32_t>(extents.size()));
    for (uint64_t extent : extents) directory_.Put(extent);
    directory_.Put(type).Put(offset.value_or(data_.size()));
    data_.Raw(data);
    ++num_tensors_;
    return *this;
  }
  GgufBuilder& TensorF32(std::string_view name, const std::vector<uint64_t>& extents,
                         const std::vector<float>& data,
                         std::optional<uint64_t> offset = std::nullopt) {
    return Tensor(name, extents, 0, std::as_bytes(std::span(data)), offset);
  }

  std::vector<std::byte> Build() const {
    ByteWriter file;
    file.Raw(std::as_bytes(std::span(magic))).Put(version);
    file.Put(tensor_count.value_or(num_tensors_)).Put(pair_count.value_or(num_pairs_));
    file.Raw(pairs_.bytes()).Raw(directory_.bytes());
    if (num_tensors_ > 0) {
      file.PadTo(alignment);
      file.Raw(data_.bytes());
    }
    return file.bytes();
  }

 private:
  template <typename T>
  static constexpr GgufType TypeOf() {
    if constexpr (std::is_same_v<T, bool>) return GgufType::kBool;
    if constexpr (std::is_same_v<T, uint8_t>) return GgufType::kU8;
    if constexpr (std::is_same_v<T, int8_t>) return GgufType::kI8;
    if constexpr (std::is_same_v<T, uint16_t>) return GgufType::kU16;
    if constexpr (std::is_same_v<T, int16_t>) return GgufType::kI16;
    if constexpr (std::is_same_v<T, uint32_t>) return GgufType::kU32;
    if constexpr (std::is_same_v<T, int32_t>) return GgufType::kI32;
    if constexpr (std::is_same_v<T, uint64_t>) return GgufType::kU64;
    if constexpr (std::is_same_v<T, int64_t>) return GgufType::kI64;
    if constexpr (std::is_same_v<T, float>) return GgufType::kF32;
    if constexpr (std::is_same_v<T, double>) return GgufType::kF64;
  }
  void Key(std::string_view key, GgufType type) {
    pairs_.String(key).Put(static_cast<uint32_t>(type));
    ++num_pairs_;
  }
  void Array(std::string_view key, GgufType type, uint64_t count) {
    Key(key, GgufType::kArray);
    pairs_.Put(static_cast<uint32_t>(type)).Put(count);
  }

  ByteWriter pairs_;
  ByteWriter directory_;
  ByteWriter data_;
  uint64_t num_pairs_ = 0;
  uint64_t num_tensors_ = 0;
};

}  // namespace tandem
