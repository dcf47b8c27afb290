// Reading of the header, the metadata and the tensor directory: one pass, every step bounded by the
// bytes that are left.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <utility>

#include "core/status.h"
#include "model/gguf.h"
#include "model/gguf_format.h"

static_assert(std::endian::native == std::endian::little, "GGUF files are little-endian");

namespace tandem {
namespace {

constexpr uint64_t kDefaultAlignment = 32;
constexpr uint64_t kMaxAlignment = uint64_t{1} << 20;
constexpr uint64_t kMaxKeyLength = 65535;       // of the specification
constexpr uint64_t kMaxTensorNameLength = 255;  // the specification says 64
// Bytes of the smallest possible pair (empty key, one byte) and directory entry (no name, one
// extent): bounds for the counts in the header.
constexpr uint64_t kMinPairBytes = 8 + 4 + 1;
constexpr uint64_t kMinTensorBytes = 8 + 4 + 8 + 4 + 8;

}  // namespace

class GgufParser {
 public:
  explicit GgufParser(GgufFile& file) : file_(file), bytes_(file.bytes_) {}

  absl::Status Parse() {
    TANDEM_RETURN_IF_ERROR(ParseHeader());
    file_.metadata_.reserve(pairs_);
    for (uint64_t i = 0; i < pairs_; ++i) TANDEM_RETURN_IF_ERROR(ParsePair(i));
    TANDEM_RETURN_IF_ERROR(ParseAlignment());
    file_.tensors_.reserve(tensors_);
    for (uint64_t i = 0; i < tensors_; ++i) TANDEM_RETURN_IF_ERROR(ParseTensor(i));
    return PlaceTensors();
  }

 private:
  uint64_t left() const { return bytes_.size() - position_; }

  template <typename... Parts>
  absl::Status Invalid(const Parts&... parts) const {
    return InvalidArgument(file_.name_, ": ", parts...);
  }

  absl::Status Truncated(const std::string& field, uint64_t needed) const {
    return absl::DataLossError(absl::StrCat(file_.name_, ": the file ends within ", field, ": ",
                                            needed, " bytes expected at offset ", position_, ", ",
                                            left(), " left"));
  }

  template <typename T>
  absl::StatusOr<T> Read(const std::string& field) {
    if (left() < sizeof(T)) return Truncated(field, sizeof(T));
    T value;
    std::memcpy(&value, bytes_.data() + position_, sizeof(T));
    position_ += sizeof(T);
    return value;
  }

  absl::StatusOr<std::span<const std::byte>> ReadBytes(const std::string& field, uint64_t count) {
    if (left() < count) return Truncated(field, count);
    const auto part = bytes_.subspan(position_, count);
    position_ += count;
    return part;
  }

  absl::StatusOr<std::string_view> ReadString(const std::string& field, uint64_t max_length) {
    TANDEM_ASSIGN_OR_RETURN(const uint64_t length, Read<uint64_t>(field));
    if (length > max_length) {
      return Invalid(field, ": expected at most ", max_length, " bytes, got ", length);
    }
    TANDEM_ASSIGN_OR_RETURN(const auto bytes, ReadBytes(field, length));
    return std::string_view(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }

  absl::Status ParseHeader() {
    TANDEM_ASSIGN_OR_RETURN(const auto magic, ReadBytes("the magic number", 4));
    if (std::memcmp(magic.data(), "GGUF", 4) != 0) {
      return Invalid("not a GGUF file: it does not begin with \"GGUF\"");
    }
    TANDEM_ASSIGN_OR_RETURN(file_.version_, Read<uint32_t>("the version"));
    if (file_.version_ != 0 && (file_.version_ & 0xFFFFu) == 0) {
      return Invalid("version: the file is big-endian; expected a little-endian file");
    }
    if (file_.version_ != 2 && file_.version_ != 3) {
      return Invalid("version: expected 2 or 3, got ", file_.version_);
    }
    TANDEM_ASSIGN_OR_RETURN(tensors_, Read<uint64_t>("the tensor count"));
    TANDEM_ASSIGN_OR_RETURN(pairs_, Read<uint64_t>("the metadata count"));
    if (pairs_ > left() / kMinPairBytes) {
      return Invalid("metadata count: ", pairs_, " pairs do not fit into the remaining ", left(),
                     " bytes");
    }
    if (tensors_ > left() / kMinTensorBytes) {
      return Invalid("tensor count: ", tensors_, " tensors do not fit into the remaining ", left(),
                     " bytes");
    }
    return absl::OkStatus();
  }

  absl::Status ParsePair(uint64_t index) {
    const std::string field = absl::StrCat("metadata pair ", index);
    GgufValue value;
    TANDEM_ASSIGN_OR_RETURN(value.key, ReadString(field + " (key)", kMaxKeyLength));
    if (value.key.empty()) return Invalid(field, ": the key is empty");
    const std::string key = absl::StrCat("metadata key ", Quote(value.key));
    TANDEM_ASSIGN_OR_RETURN(const uint32_t type, Read<uint32_t>(key));
    value.type = static_cast<GgufType>(type);
    if (value.type == GgufType::kArray) {
      TANDEM_RETURN_IF_ERROR(ParseArray(key, value));
    } else if (value.type == GgufType::kString) {
      TANDEM_ASSIGN_OR_RETURN(const uint64_t length, Read<uint64_t>(key));
      TANDEM_ASSIGN_OR_RETURN(value.data, ReadBytes(key, length));
    } else if (const int size = GgufTypeBytes(value.type)) {
      TANDEM_ASSIGN_OR_RETURN(value.data, ReadBytes(key, static_cast<uint64_t>(size)));
      if (value.type == GgufType::kBool && std::to_integer<int>(value.data[0]) > 1) {
        return Invalid(key, ": expected a bool 0 or 1, got ", std::to_integer<int>(value.data[0]));
      }
    } else {
      return Invalid(key, ": unknown value type ", type);
    }
    if (!file_.value_index_.emplace(value.key, file_.metadata_.size()).second) {
      return Invalid(key, ": occurs twice");
    }
    file_.metadata_.push_back(value);
    return absl::OkStatus();
  }

  absl::Status ParseArray(const std::string& key, GgufValue& value) {
    value.is_array = true;
    TANDEM_ASSIGN_OR_RETURN(const uint32_t type, Read<uint32_t>(key));
    TANDEM_ASSIGN_OR_RETURN(value.count, Read<uint64_t>(key));
    value.type = static_cast<GgufType>(type);
    if (value.type == GgufType::kArray) return Invalid(key, ": nested arrays are not supported");
    if (value.type == GgufType::kString) {
      const uint64_t begin = position_;
      if (value.count > left() / sizeof(uint64_t)) {
        return Truncated(absl::StrCat(key, " (", value.count, " strings)"), value.count);
      }
      for (uint64_t i = 0; i < value.count; ++i) {
        if (left() < sizeof(uint64_t)) return Truncated(key, sizeof(uint64_t));
        uint64_t length;
        std::memcpy(&length, bytes_.data() + position_, sizeof(length));
        position_ += sizeof(length);
        if (length > left()) return Truncated(absl::StrCat(key, " string ", i), length);
        position_ += length;
      }
      value.data = bytes_.subspan(begin, position_ - begin);
      return absl::OkStatus();
    }
    const int size = GgufTypeBytes(value.type);
    if (size == 0) return Invalid(key, ": unknown array element type ", type);
    if (value.count > left() / static_cast<uint64_t>(size)) {
      return Truncated(absl::StrCat(key, " (array of ", value.count, " ", Name(value.type), ")"),
                       value.count);
    }
    TANDEM_ASSIGN_OR_RETURN(value.data, ReadBytes(key, value.count * static_cast<uint64_t>(size)));
    return absl::OkStatus();
  }

  absl::Status ParseAlignment() {
    TANDEM_ASSIGN_OR_RETURN(const int64_t alignment,
                            file_.Int("general.alignment", int64_t{kDefaultAlignment}));
    alignment_ = static_cast<uint64_t>(alignment);
    if (alignment < 8 || alignment_ > kMaxAlignment || !std::has_single_bit(alignment_)) {
      return Invalid("metadata key 'general.alignment': expected a power of two in 8..",
                     kMaxAlignment, ", got ", alignment);
    }
    return absl::OkStatus();
  }

  absl::Status ParseTensor(uint64_t index) {
    GgufTensor tensor;
    TANDEM_ASSIGN_OR_RETURN(
        tensor.name, ReadString(absl::StrCat("tensor ", index, " (name)"), kMaxTensorNameLength));
    if (tensor.name.empty()) return Invalid("tensor ", index, ": the name is empty");
    const std::string field = absl::StrCat("tensor ", Quote(tensor.name));
    TANDEM_ASSIGN_OR_RETURN(const uint32_t rank, Read<uint32_t>(field));
    if (rank < 1 || rank > 4) return Invalid(field, ": expected 1..4 dimensions, got ", rank);
    tensor.shape.rank = static_cast<int32_t>(rank);
    for (uint32_t i = 0; i < rank; ++i) {
      TANDEM_ASSIGN_OR_RETURN(const uint64_t extent, Read<uint64_t>(field));
      if (extent < 1 || extent > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        return Invalid(field, " dimension ", i, " (innermost first): expected 1..2^63-1, got ",
                       extent);
      }
      tensor.shape.dims[rank - 1 - i] = static_cast<int64_t>(extent);
    }
    if (!NumElements(tensor.shape)) {
      return Invalid(field, ": the number of elements of ", ToString(tensor.shape),
                     " overflows 64 bits");
    }
    TANDEM_ASSIGN_OR_RETURN(tensor.type, Read<uint32_t>(field));
    TANDEM_ASSIGN_OR_RETURN(tensor.offset, Read<uint64_t>(field));
    if (!file_.tensor_index_.emplace(tensor.name, file_.tensors_.size()).second) {
      return Invalid(field, ": occurs twice");
    }
    file_.tensors_.push_back(tensor);
    return absl::OkStatus();
  }

  // Checks offsets and sizes against the data section, and that no two tensors share bytes.
  absl::Status PlaceTensors() {
    if (file_.tensors_.empty()) return absl::OkStatus();
    const uint64_t padding = (alignment_ - position_ % alignment_) % alignment_;
    if (padding > left()) return Truncated("the padding before the tensor data", padding);
    const auto data = bytes_.subspan(position_ + padding);
    for (GgufTensor& tensor : file_.tensors_) {
      const std::string field = absl::StrCat("tensor ", Quote(tensor.name));
      if (tensor.offset % alignment_ != 0) {
        return Invalid(field, ": expected an offset that is a multiple of the alignment ",
                       alignment_, ", got ", tensor.offset);
      }
      if (tensor.offset > data.size()) {
        return Invalid(field, ": offset ", tensor.offset, " is beyond the ", data.size(),
                       " bytes of tensor data");
      }
      const GgufTensorType* type = FindGgufTensorType(tensor.type);
      if (type == nullptr) continue;  // its size is unknown: listed, but cannot be used
      const int64_t row = tensor.shape.dims[tensor.shape.rank - 1];
      if (row % type->block_length != 0) {
        return Invalid(field, " dimension 0 (innermost): expected a multiple of ",
                       type->block_length, " for ", std::string(type->name), ", got ", row);
      }
      const auto bytes =
          CheckedMul(*NumElements(tensor.shape) / type->block_length, type->block_bytes);
      const uint64_t room = data.size() - tensor.offset;
      if (!bytes || static_cast<uint64_t>(*bytes) > room) {
        return absl::DataLossError(absl::StrCat(
            file_.name_, ": ", field, " ", ToString(tensor.shape), " ", std::string(type->name),
            " needs ", bytes ? absl::StrCat(*bytes) : "more than 2^63", " bytes at offset ",
            tensor.offset, ", but ", room, " are left in the file"));
      }
      tensor.data = data.subspan(tensor.offset, static_cast<uint64_t>(*bytes));
    }
    std::vector<const GgufTensor*> order;
    order.reserve(file_.tensors_.size());
    for (const GgufTensor& tensor : file_.tensors_) {
      if (!tensor.data.empty()) order.push_back(&tensor);
    }
    std::sort(order.begin(), order.end(), [](const GgufTensor* a, const GgufTensor* b) {
      return a->data.data() < b->data.data();
    });
    for (size_t i = 1; i < order.size(); ++i) {
      const auto& before = order[i - 1]->data;
      if (before.data() + before.size() > order[i]->data.data()) {
        return Invalid("tensor ", Quote(order[i]->name), " overlaps tensor ",
                       Quote(order[i - 1]->name));
      }
    }
    return absl::OkStatus();
  }

  GgufFile& file_;
  std::span<const std::byte> bytes_;
  uint64_t position_ = 0;
  uint64_t pairs_ = 0;
  uint64_t tensors_ = 0;
  uint64_t alignment_ = kDefaultAlignment;
};

namespace {

absl::Status Errno(int error, const std::string& path, std::string_view action) {
  return absl::ErrnoToStatus(error, absl::StrCat(path, ": ", std::string(action)));
}

class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) close(fd_);
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

}  // namespace

absl::StatusOr<std::shared_ptr<const GgufFile>> GgufFile::Open(const std::string& path) {
  // O_NONBLOCK: opening a pipe must fail below, not wait for a writer.
  const FileDescriptor fd(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK));
  if (fd.get() < 0) return Errno(errno, path, "cannot open");
  struct stat status;
  if (fstat(fd.get(), &status) != 0) return Errno(errno, path, "cannot read the size");
  if (!S_ISREG(status.st_mode)) return InvalidArgument(path, ": expected a regular file");
  if (status.st_size == 0) return absl::DataLossError(absl::StrCat(path, ": the file is empty"));
  const auto size = static_cast<size_t>(status.st_size);
  void* address = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (address == MAP_FAILED) return Errno(errno, path, "cannot map");
  std::shared_ptr<GgufFile> file(new GgufFile());
  file->name_ = path;
  file->bytes_ = {static_cast<const std::byte*>(address), size};
  file->mapped_ = true;
  TANDEM_RETURN_IF_ERROR(GgufParser(*file).Parse());
  // Read ahead in the background; if the system declines, pages are read when they are touched.
  madvise(address, size, MADV_WILLNEED);
  // 6 % more read bandwidth than with small pages (Zen 5), where the kernel has them for files.
  madvise(address, size, MADV_HUGEPAGE);
  return std::shared_ptr<const GgufFile>(std::move(file));
}

absl::StatusOr<std::shared_ptr<const GgufFile>> GgufFile::FromMemory(
    std::span<const std::byte> bytes, const std::string& name) {
  std::shared_ptr<GgufFile> file(new GgufFile());
  file->name_ = name;
  file->bytes_ = bytes;
  TANDEM_RETURN_IF_ERROR(GgufParser(*file).Parse());
  return std::shared_ptr<const GgufFile>(std::move(file));
}

}  // namespace tandem
