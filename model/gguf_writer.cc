#include "model/gguf_writer.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "core/status.h"
#include "model/gguf_format.h"

namespace tandem {
namespace {

constexpr uint32_t kVersion = 3;
constexpr size_t kMaxTensorName = 255;  // what the reader takes

template <typename T>
void Put(std::vector<std::byte>& bytes, T value) {
  const auto* begin = reinterpret_cast<const std::byte*>(&value);
  bytes.insert(bytes.end(), begin, begin + sizeof(T));
}

void PutString(std::vector<std::byte>& bytes, std::string_view text) {
  Put(bytes, static_cast<uint64_t>(text.size()));
  const auto* begin = reinterpret_cast<const std::byte*>(text.data());
  bytes.insert(bytes.end(), begin, begin + text.size());
}

std::vector<std::byte> Encode(const GgufValue& value) {
  std::vector<std::byte> bytes;
  if (value.is_array) {
    Put(bytes, static_cast<uint32_t>(GgufType::kArray));
    Put(bytes, static_cast<uint32_t>(value.type));
    Put(bytes, value.count);
  } else {
    Put(bytes, static_cast<uint32_t>(value.type));
    if (value.type == GgufType::kString) Put(bytes, static_cast<uint64_t>(value.data.size()));
  }
  bytes.insert(bytes.end(), value.data.begin(), value.data.end());
  return bytes;
}

uint64_t RoundUp(uint64_t x, uint64_t multiple) { return (x + multiple - 1) / multiple * multiple; }

absl::Status Errno(int error, const std::string& path, const char* action) {
  return absl::ErrnoToStatus(error, absl::StrCat(path, ": ", action));
}

}  // namespace

GgufWriter::~GgufWriter() { Discard(); }

void GgufWriter::Discard() {
  if (fd_ < 0) return;
  close(fd_);
  fd_ = -1;
  unlink(temporary_.c_str());
}

void GgufWriter::Set(std::string_view key, std::vector<std::byte> value) {
  const auto [it, inserted] = pair_index_.emplace(std::string(key), pairs_.size());
  if (inserted) {
    pairs_.push_back({std::string(key), std::move(value)});
  } else {
    pairs_[it->second].value = std::move(value);
  }
}

absl::Status GgufWriter::CopyMetadata(const GgufFile& file) {
  for (const GgufValue& value : file.metadata()) Set(value.key, Encode(value));
  TANDEM_ASSIGN_OR_RETURN(const int64_t alignment,
                          file.Int("general.alignment", static_cast<int64_t>(alignment_)));
  alignment_ = static_cast<uint64_t>(alignment);  // the reader has checked it
  return absl::OkStatus();
}

void GgufWriter::SetU32(std::string_view key, uint32_t value) {
  std::vector<std::byte> bytes;
  Put(bytes, static_cast<uint32_t>(GgufType::kU32));
  Put(bytes, value);
  Set(key, std::move(bytes));
}

void GgufWriter::SetString(std::string_view key, std::string_view value) {
  std::vector<std::byte> bytes;
  Put(bytes, static_cast<uint32_t>(GgufType::kString));
  PutString(bytes, value);
  Set(key, std::move(bytes));
}

absl::Status GgufWriter::AddTensor(std::string_view name, uint32_t type, const Shape& shape) {
  const std::string field = absl::StrCat("tensor ", Quote(name));
  if (fd_ >= 0) return absl::FailedPreconditionError(field + ": the directory is written already");
  if (name.empty() || name.size() > kMaxTensorName) {
    return InvalidArgument(field, ": expected a name of 1..", kMaxTensorName, " bytes, got ",
                           name.size());
  }
  const GgufTensorType* known = FindGgufTensorType(type);
  if (known == nullptr) return InvalidArgument(field, ": unknown type number ", type);
  if (shape.rank < 1 || shape.rank > 4) {
    return InvalidArgument(field, ": expected 1..4 dimensions, got ", shape.rank);
  }
  for (int i = 0; i < shape.rank; ++i) {
    if (shape[i] < 1) {
      return InvalidArgument(field, " dimension ", i, ": expected >= 1, got ", shape[i]);
    }
  }
  const int64_t row = shape[shape.rank - 1];
  if (row % known->block_length != 0) {
    return InvalidArgument(field, ": expected rows of a multiple of ", known->block_length, " for ",
                           std::string(known->name), ", got ", row);
  }
  const auto elements = NumElements(shape);
  const auto bytes =
      elements ? CheckedMul(*elements / known->block_length, known->block_bytes) : std::nullopt;
  if (!bytes) return InvalidArgument(field, ": the size of ", ToString(shape), " overflows");
  if (!tensor_index_.emplace(std::string(name), tensors_.size()).second) {
    return InvalidArgument(field, ": occurs twice");
  }
  const uint64_t offset = RoundUp(data_bytes_, alignment_);
  data_bytes_ = offset + static_cast<uint64_t>(*bytes);
  tensors_.push_back({std::string(name), type, shape, offset, static_cast<uint64_t>(*bytes)});
  return absl::OkStatus();
}

absl::Status GgufWriter::Create(const std::string& path) {
  if (fd_ >= 0) return absl::FailedPreconditionError(path + ": the writer has a file already");
  struct stat existing;
  if (stat(path.c_str(), &existing) == 0 && !S_ISREG(existing.st_mode)) {
    return InvalidArgument(path, ": exists and is not a regular file");
  }
  path_ = path;
  for (int n = 0; fd_ < 0; ++n) {
    temporary_ = absl::StrCat(path, ".partial.", getpid(), ".", n);
    fd_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ < 0 && errno != EEXIST) return Errno(errno, path, "cannot create");
  }
  std::vector<std::byte> header;
  for (char c : {'G', 'G', 'U', 'F'}) Put(header, c);
  Put(header, kVersion);
  Put(header, static_cast<uint64_t>(tensors_.size()));
  Put(header, static_cast<uint64_t>(pairs_.size()));
  for (const Pair& pair : pairs_) {
    PutString(header, pair.key);
    header.insert(header.end(), pair.value.begin(), pair.value.end());
  }
  for (const Entry& tensor : tensors_) {
    PutString(header, tensor.name);
    Put(header, static_cast<uint32_t>(tensor.shape.rank));
    for (int i = tensor.shape.rank - 1; i >= 0; --i) {
      Put(header, static_cast<uint64_t>(tensor.shape[i]));
    }
    Put(header, tensor.type);
    Put(header, tensor.offset);
  }
  data_begin_ = tensors_.empty() ? header.size() : RoundUp(header.size(), alignment_);
  TANDEM_RETURN_IF_ERROR(Write(header));
  return PadTo(data_begin_);
}

absl::Status GgufWriter::Write(std::span<const std::byte> data) {
  while (!data.empty()) {
    const ssize_t count = write(fd_, data.data(), data.size());
    if (count < 0) {
      if (errno == EINTR) continue;
      return Errno(errno, path_, "cannot write");
    }
    position_ += static_cast<uint64_t>(count);
    data = data.subspan(static_cast<size_t>(count));
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::PadTo(uint64_t position) {
  static constexpr std::array<std::byte, 4096> kZeros{};
  while (position_ < position) {
    const auto count = std::min<uint64_t>(position - position_, kZeros.size());
    TANDEM_RETURN_IF_ERROR(Write(std::span(kZeros).first(count)));
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::Append(std::span<const std::byte> data) {
  if (fd_ < 0) return absl::FailedPreconditionError("GgufWriter: Append without Create");
  while (!data.empty()) {
    if (current_ == tensors_.size()) {
      return InvalidArgument(path_, ": ", data.size(), " bytes after the last tensor");
    }
    const Entry& tensor = tensors_[current_];
    if (written_ == 0) TANDEM_RETURN_IF_ERROR(PadTo(data_begin_ + tensor.offset));
    const auto count = std::min<uint64_t>(data.size(), tensor.bytes - written_);
    TANDEM_RETURN_IF_ERROR(Write(data.first(count)));
    data = data.subspan(count);
    written_ += count;
    if (written_ == tensor.bytes) {
      ++current_;
      written_ = 0;
    }
  }
  return absl::OkStatus();
}

absl::Status GgufWriter::Finish() {
  if (fd_ < 0) return absl::FailedPreconditionError("GgufWriter: Finish without Create");
  if (current_ != tensors_.size()) {
    return InvalidArgument(path_, ": tensor ", Quote(tensors_[current_].name), ": expected ",
                           tensors_[current_].bytes, " bytes, got ", written_);
  }
  if (fsync(fd_) != 0) return Errno(errno, path_, "cannot write");
  if (rename(temporary_.c_str(), path_.c_str()) != 0) {
    return Errno(errno, path_, "cannot put the finished file there");
  }
  const int fd = std::exchange(fd_, -1);
  if (close(fd) != 0) return Errno(errno, path_, "cannot write");
  return absl::OkStatus();
}

}  // namespace tandem
