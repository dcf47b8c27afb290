#include "tests/cases/operands.h"

#include <algorithm>
#include <cstring>

#include "core/status.h"
#include "core/tensor.h"
#include "tests/reference/elements.h"

namespace tandem::cases {
namespace {

constexpr int64_t kGuardBytes = 512;  // a multiple of the allocation alignment
constexpr int64_t kMaxOperandBytes = int64_t{1} << 30;
constexpr std::byte kPoison{0xFF};  // NaN in every float type, also as a block's scale

// Not a constant: a kernel that copies a neighbouring byte must not restore the pattern by chance.
std::byte Pattern(size_t i) { return static_cast<std::byte>((i * 151 + 43) & 0xFF); }

// Strides in elements and the first element's offset.
struct Placement {
  std::array<int64_t, kMaxRank> strides{};
  int64_t offset = 0;
};

Placement Place(DType dtype, const Shape& shape, Layout layout, Role role) {
  const int rank = shape.rank;
  const int64_t block = BlockLength(dtype);
  const bool moves_last = layout == Layout::kSpread ||
                          (layout == Layout::kTransposed && rank == 2) ||
                          (layout == Layout::kBroadcast && rank == 1);
  if (block > 1 && moves_last) {
    layout = Layout::kPadded;
  }
  if (layout == Layout::kTransposed && rank < 2) layout = Layout::kPadded;
  if (layout == Layout::kBroadcast && role != Role::kInput) layout = Layout::kContiguous;
  Placement placement;
  placement.strides = ContiguousStrides(shape);
  auto& strides = placement.strides;
  switch (layout) {
    case Layout::kContiguous:
      break;
    case Layout::kPadded: {
      // Odd gaps for plain types: no row but the first is aligned for vectors.
      int64_t stride = 1;
      for (int i = rank - 1; i >= 0; --i) {
        strides[i] = stride;
        stride = stride * std::max<int64_t>(shape[i], i == rank - 1 ? block : 1) +
                 (i == rank - 1 ? 3 : 5) * block;
      }
      placement.offset = block;
      break;
    }
    case Layout::kAligned: {
      constexpr int64_t kElements = 32;  // of any plain type: a multiple of 32 bytes
      int64_t stride = 1;
      for (int i = rank - 1; i >= 0; --i) {
        strides[i] = stride;
        stride *= std::max<int64_t>(shape[i], 1);
        stride = (stride / std::max(kElements, block) + 2) * std::max(kElements, block);
      }
      break;
    }
    case Layout::kTransposed: {
      Shape stored = shape;
      const int axis = rank == 2 ? 0 : rank - 3;
      std::swap(stored[axis], stored[axis + 1]);
      strides = ContiguousStrides(stored);
      std::swap(strides[axis], strides[axis + 1]);
      break;
    }
    case Layout::kBroadcast:
      strides[0] = 0;
      break;
    case Layout::kSpread:
      for (int i = 0; i < rank; ++i) strides[i] *= 2;
      break;
  }
  return placement;
}

// Calls fn(begin, bytes) for the bytes of each element (block) of an operand.
template <typename Fn>
void ForEachElement(const Operand& operand, Fn&& fn) {
  const int64_t block = BlockLength(operand.view.dtype);
  const auto bytes = static_cast<size_t>(BlockBytes(operand.view.dtype));
  reference::ForEachOffset(operand.view, [&](int64_t offset) {
    if (offset % block != 0) return;
    fn(static_cast<size_t>(operand.offset + ByteOffset(operand.view.dtype, offset)), bytes);
  });
}

thread_local int without_values = 0;

constexpr uint64_t kHashSeed = 14695981039346656037u;  // FNV-1a

// Of outputs only.
void HashElements(const Operand& operand, const std::vector<std::byte>& contents, uint64_t& hash) {
  if (operand.role == Role::kInput) return;
  ForEachElement(operand, [&](size_t begin, size_t bytes) {
    for (size_t i = begin; i < begin + bytes; ++i) {
      hash = (hash ^ static_cast<uint64_t>(contents[i])) * 1099511628211u;
    }
  });
}

}  // namespace

std::vector<std::string> SplitWords(std::string_view text) {
  std::vector<std::string> words;
  std::string word;
  for (char c : text) {
    if (c != ' ' && c != '\t' && c != '\n') {
      word += c;
    } else if (!word.empty()) {
      words.push_back(std::exchange(word, {}));
    }
  }
  if (!word.empty()) words.push_back(word);
  return words;
}

TensorView Operand::At(void* base) const {
  TensorView result = view;
  result.data = static_cast<char*>(base) + offset;
  return result;
}

Operands::WithoutValues::WithoutValues() { ++without_values; }
Operands::WithoutValues::~WithoutValues() { --without_values; }
bool Operands::WithoutValues::any() { return without_values > 0; }

int64_t Operands::bytes() const {
  int64_t bytes = 0;
  for (const Operand& operand : operands_) bytes += static_cast<int64_t>(operand.bytes.size());
  return bytes;
}

void Operands::Input(std::string_view name, DType dtype, const Shape& shape, Layout layout,
                     const Fill& fill) {
  Add(name, Role::kInput, dtype, shape, layout, fill);
}
void Operands::Output(std::string_view name, DType dtype, const Shape& shape, Layout layout) {
  Add(name, Role::kOutput, dtype, shape, layout, nullptr);
}
void Operands::InOut(std::string_view name, DType dtype, const Shape& shape, Layout layout,
                     const Fill& fill) {
  Add(name, Role::kInOut, dtype, shape, layout, fill);
}

void Operands::Add(std::string_view name, Role role, DType dtype, const Shape& shape, Layout layout,
                   const Fill& fill) {
  if (!status_.ok()) return;
  const absl::StatusOr<int64_t> dense = StorageBytes(name, dtype, shape);
  if (!dense.ok() || *dense > kMaxOperandBytes) {
    status_ = dense.ok() ? InvalidArgument(std::string(name), ": ", *dense, " bytes are more than ",
                                           kMaxOperandBytes)
                         : dense.status();
    return;
  }
  const Placement placement = Place(dtype, shape, layout, role);
  Operand operand;
  operand.name = name;
  operand.role = role;
  operand.view.dtype = dtype;
  operand.view.shape = shape;
  operand.view.strides = placement.strides;
  operand.offset = kGuardBytes + ByteOffset(dtype, placement.offset);
  operand.bytes.resize(
      static_cast<size_t>(operand.offset + ByteExtent(operand.view) + kGuardBytes));
  if (WithoutValues::any()) {
    operands_.push_back(std::move(operand));
    return;
  }
  for (size_t i = 0; i < operand.bytes.size(); ++i) {
    operand.bytes[i] = role == Role::kInput ? kPoison : Pattern(i);
  }
  ForEachElement(operand, [&](size_t begin, size_t bytes) {
    std::fill_n(operand.bytes.begin() + static_cast<int64_t>(begin), bytes, kPoison);
  });
  if (fill) reference::WriteAll(operand.At(operand.bytes.data()), fill);
  operands_.push_back(std::move(operand));
}

TensorView Operands::View(std::string_view name) const {
  for (const Operand& operand : operands_) {
    if (operand.name == name) return operand.At(const_cast<std::byte*>(operand.bytes.data()));
  }
  return {};
}

Views::Views(const Operands& initial) {
  for (const Operand& operand : initial.all()) Add(operand.name, initial.View(operand.name));
}

TensorView Views::operator()(std::string_view name) const {
  for (const auto& [own_name, view] : views_) {
    if (own_name == name) return view;
  }
  return {};
}

const PackedWeights* Views::Packed(std::string_view name) const {
  for (const auto& [own_name, packed] : packed_) {
    if (own_name == name) return packed;
  }
  return nullptr;
}

std::span<const TensorView> Views::All(std::string_view prefix) const {
  std::vector<TensorView>& list = lists_.emplace_back();
  for (const auto& [name, view] : views_) {
    if (std::string_view(name).starts_with(prefix)) list.push_back(view);
  }
  return list;
}

absl::StatusOr<DeviceOperands> DeviceOperands::Upload(const Operands& operands, Backend& backend,
                                                      Stream& stream) {
  DeviceOperands result;
  result.operands_ = &operands;
  for (const Operand& operand : operands.all()) {
    const auto bytes = static_cast<int64_t>(operand.bytes.size());
    TANDEM_ASSIGN_OR_RETURN(std::shared_ptr<Buffer> buffer, backend.allocator().Allocate(bytes));
    TANDEM_RETURN_IF_ERROR(backend.Copy(stream, buffer->data(), operand.bytes.data(), bytes));
    TensorView view = operand.At(buffer->data());
    view.device = backend.device();
    result.views_.Add(operand.name, view);
    result.buffers_.push_back(std::move(buffer));
  }
  return result;
}

absl::StatusOr<std::optional<std::string>> DeviceOperands::Download(Backend& backend,
                                                                    Stream& stream) {
  results_.clear();
  for (size_t i = 0; i < buffers_.size(); ++i) {
    auto& bytes = results_.emplace_back(operands_->all()[i].bytes.size());
    TANDEM_RETURN_IF_ERROR(
        backend.Copy(stream, bytes.data(), buffers_[i]->data(), buffers_[i]->bytes()));
  }
  TANDEM_RETURN_IF_ERROR(stream.Synchronize());
  for (size_t i = 0; i < results_.size(); ++i) {
    const Operand& operand = operands_->all()[i];
    // What may have changed is put back; everything else must be as it was.
    std::vector<std::byte> untouched = results_[i];
    if (operand.role != Role::kInput) {
      ForEachElement(operand, [&](size_t begin, size_t bytes) {
        std::memcpy(&untouched[begin], &operand.bytes[begin], bytes);
      });
    }
    const auto [now, before] =
        std::mismatch(untouched.begin(), untouched.end(), operand.bytes.begin());
    if (now == untouched.end()) continue;
    const int64_t at = (now - untouched.begin()) - operand.offset;
    return std::optional<std::string>(
        absl::StrCat(operand.role == Role::kInput ? "input " : "guard or padding bytes of ",
                     operand.name, operand.role == Role::kInput ? "" : " were",
                     " changed, at byte ", at, " from its first element"));
  }
  return std::optional<std::string>();
}

TensorView DeviceOperands::Result(std::string_view name) const {
  for (size_t i = 0; i < results_.size(); ++i) {
    const Operand& operand = operands_->all()[i];
    if (operand.name == name) return operand.At(const_cast<std::byte*>(results_[i].data()));
  }
  return {};
}

uint64_t DeviceOperands::OutputHash() const {
  uint64_t hash = kHashSeed;
  for (size_t i = 0; i < results_.size(); ++i) HashElements(operands_->all()[i], results_[i], hash);
  return hash;
}

uint64_t DeviceOperands::InitialHash() const {
  uint64_t hash = kHashSeed;
  for (const Operand& operand : operands_->all()) HashElements(operand, operand.bytes, hash);
  return hash;
}

absl::StatusOr<GuardedWorkspace> GuardedWorkspace::Make(Backend& backend, Stream& stream,
                                                        int64_t bytes) {
  const auto total = bytes < 0 ? std::nullopt : CheckedAdd(bytes, 2 * kGuardBytes);
  if (!total) return InvalidArgument("workspace_bytes: expected >= 0, got ", bytes);
  GuardedWorkspace workspace;
  workspace.bytes_ = bytes;
  TANDEM_ASSIGN_OR_RETURN(workspace.buffer_, backend.allocator().Allocate(*total));
  const std::vector<std::byte> poison(static_cast<size_t>(*total), kPoison);
  TANDEM_RETURN_IF_ERROR(backend.Copy(stream, workspace.buffer_->data(), poison.data(), *total));
  TANDEM_RETURN_IF_ERROR(stream.Synchronize());
  return workspace;
}

void* GuardedWorkspace::data() const { return static_cast<char*>(buffer_->data()) + kGuardBytes; }

absl::StatusOr<bool> GuardedWorkspace::Intact(Backend& backend, Stream& stream) const {
  std::vector<std::byte> guard(kGuardBytes);
  for (int64_t begin : {int64_t{0}, kGuardBytes + bytes_}) {
    const char* source = static_cast<const char*>(buffer_->data()) + begin;
    TANDEM_RETURN_IF_ERROR(backend.Copy(stream, guard.data(), source, kGuardBytes));
    TANDEM_RETURN_IF_ERROR(stream.Synchronize());
    for (std::byte byte : guard) {
      if (byte != kPoison) return false;
    }
  }
  return true;
}

}  // namespace tandem::cases
