// Writer of GGUF model files, version 3 (the layout is described in model/gguf.h).
//
//   GgufWriter writer;
//   writer.CopyMetadata(*file);                       // 1. metadata, in order
//   writer.SetU32("general.file_type", 14);
//   writer.AddTensor("output.weight", type, shape);   // 2. the directory, in order
//   writer.Create(path);                              // 3. header and directory
//   writer.Append(bytes);                             // 4. every tensor's bytes, in any pieces
//   writer.Finish();                                  // 5. the file appears
//
// The bytes go to a temporary file beside `path`, which Finish renames: `path` is either what it
// was or the complete file. Without Finish the temporary file is removed; only a process that is
// killed leaves it behind (named `path`.partial.<pid>.<n>). Memory: the metadata and the directory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "core/shape.h"
#include "model/gguf.h"

namespace tandem {

class GgufWriter {
 public:
  GgufWriter() = default;
  ~GgufWriter();
  GgufWriter(const GgufWriter&) = delete;
  GgufWriter& operator=(const GgufWriter&) = delete;

  // Every pair of `file`, in its order, byte for byte; also its alignment of tensors.
  absl::Status CopyMetadata(const GgufFile& file);
  // One pair; replaces the value of a key that is there, in its place.
  void SetU32(std::string_view key, uint32_t value);
  void SetString(std::string_view key, std::string_view value);

  // The next tensor: ggml's type number, and the shape with the outermost extent first.
  // InvalidArgument for a shape, name or type that the reader would refuse.
  absl::Status AddTensor(std::string_view name, uint32_t type, const Shape& shape);

  // An existing `path` must be a regular file.
  absl::Status Create(const std::string& path);
  // The next bytes of the tensors' data, in the order of AddTensor.
  absl::Status Append(std::span<const std::byte> data);
  // InvalidArgument when bytes are missing.
  absl::Status Finish();

  // Bytes of the finished file.
  uint64_t bytes() const { return data_begin_ + data_bytes_; }

 private:
  struct Pair {
    std::string key;
    std::vector<std::byte> value;  // type and payload, as in the file
  };
  struct Entry {
    std::string name;
    uint32_t type;
    Shape shape;
    uint64_t offset;
    uint64_t bytes;
  };

  void Set(std::string_view key, std::vector<std::byte> value);
  absl::Status Write(std::span<const std::byte> data);
  absl::Status PadTo(uint64_t position);
  void Discard();

  std::vector<Pair> pairs_;
  absl::flat_hash_map<std::string, size_t> pair_index_;
  std::vector<Entry> tensors_;
  absl::flat_hash_map<std::string, size_t> tensor_index_;
  uint64_t alignment_ = 32;
  uint64_t data_begin_ = 0;  // set by Create
  uint64_t data_bytes_ = 0;  // of all tensors with the padding between them

  std::string path_;
  std::string temporary_;
  int fd_ = -1;
  uint64_t position_ = 0;  // bytes written
  size_t current_ = 0;     // tensor that is being written
  uint64_t written_ = 0;   // bytes of it
};

}  // namespace tandem
