// The memory a case runs on: operands with guard bytes around them and poison between their
// elements.
//
//   | guard | element . element . padding . element ... | guard |
//
// Guards and padding of inputs hold NaN (all bits set), so that whatever is read beyond the
// elements shows in the result. Guards and padding of outputs hold a byte pattern that must survive
// the run; their elements hold NaN, so that an unwritten element shows.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "core/backend.h"
#include "core/tensor_view.h"
#include "tests/cases/fields.h"

namespace tandem::cases {

// How an operand lies in memory.
enum class Layout : uint8_t {
  kContiguous,
  kPadded,      // gaps between rows and planes; the first element only element-aligned
  kTransposed,  // the two dimensions before the last swapped ([B, S, H, D]); rank 2: column-major
  kBroadcast,   // stride 0 in the first dimension, inputs only
  kSpread,      // stride 2 in the last dimension
  kAligned,     // gaps between rows and planes, but every row on 32 bytes
};
template <>
inline constexpr std::array<std::string_view, 6> kEnumNames<Layout> = {
    "contiguous", "padded", "transposed", "broadcast", "spread", "aligned"};

enum class Role : uint8_t { kInput, kOutput, kInOut };

// Value of element i, row-major.
using Fill = std::function<double(int64_t i)>;

struct Operand {
  std::string name;
  Role role = Role::kInput;
  TensorView view;               // data is null; add `offset` to where the bytes are
  int64_t offset = 0;            // bytes before the first element
  std::vector<std::byte> bytes;  // initial contents, guards included

  // The view on a copy of `bytes` that begins at `base`.
  TensorView At(void* base) const;
};

// A case's operands, in host memory, before the run.
class Operands {
 public:
  // While one lives, this thread makes operands without values: enough to learn how large they are
  // and whether a kernel takes them, in a fraction of the time.
  class WithoutValues {
   public:
    WithoutValues();
    ~WithoutValues();
    WithoutValues(const WithoutValues&) = delete;
    WithoutValues& operator=(const WithoutValues&) = delete;
    static bool any();  // does one live?
  };

  // Layouts that a dtype or rank cannot have (a transposed block format) fall back to kPadded.
  // Errors (bad shapes, too large) are kept until status() is asked.
  void Input(std::string_view name, DType dtype, const Shape& shape, Layout layout,
             const Fill& fill);
  void Output(std::string_view name, DType dtype, const Shape& shape, Layout layout);
  // Written in part or in place: begins with the values of `fill`.
  void InOut(std::string_view name, DType dtype, const Shape& shape, Layout layout,
             const Fill& fill);

  const absl::Status& status() const { return status_; }
  const std::vector<Operand>& all() const { return operands_; }
  int64_t bytes() const;  // of all, guards included
  // The view of an operand on the initial contents; an absent one (rank 0) if there is none.
  TensorView View(std::string_view name) const;

 private:
  void Add(std::string_view name, Role role, DType dtype, const Shape& shape, Layout layout,
           const Fill& fill);

  absl::Status status_;
  std::vector<Operand> operands_;
};

// What Case::Bind is given: views by operand name.
class Views {
 public:
  Views() = default;
  explicit Views(const Operands& initial);
  void Add(std::string name, const TensorView& view) { views_.emplace_back(std::move(name), view); }
  // An absent view (rank 0) if there is no such operand.
  TensorView operator()(std::string_view name) const;
  // Those whose names begin with `prefix`, in order; they live as long as this object.
  std::span<const TensorView> All(std::string_view prefix) const;
  // Matrix products: the packed form of an operand, where the case asks for it.
  void AddPacked(std::string name, const PackedWeights* packed) {
    packed_.emplace_back(std::move(name), packed);
  }
  const PackedWeights* Packed(std::string_view name) const;  // or null

 private:
  std::vector<std::pair<std::string, TensorView>> views_;
  std::vector<std::pair<std::string, const PackedWeights*>> packed_;
  mutable std::list<std::vector<TensorView>> lists_;  // what All() gave out
};

// A copy of the operands in a device's memory.
class DeviceOperands {
 public:
  static absl::StatusOr<DeviceOperands> Upload(const Operands& operands, Backend& backend,
                                               Stream& stream);
  const Views& views() const { return views_; }

  // After the run and a synchronisation: fetches everything back. The problem found (a guard,
  // padding or an input was changed), or nothing.
  absl::StatusOr<std::optional<std::string>> Download(Backend& backend, Stream& stream);
  // Final contents of an operand, valid after Download.
  TensorView Result(std::string_view name) const;
  // FNV-1a over the elements of all outputs, valid after Download.
  uint64_t OutputHash() const;
  // The same over what they held before the run.
  uint64_t InitialHash() const;

 private:
  const Operands* operands_ = nullptr;
  std::vector<std::shared_ptr<Buffer>> buffers_;
  std::vector<std::vector<std::byte>> results_;
  Views views_;
};

// Scratch memory with guards, poisoned with NaN.
class GuardedWorkspace {
 public:
  static absl::StatusOr<GuardedWorkspace> Make(Backend& backend, Stream& stream, int64_t bytes);
  void* data() const;
  int64_t bytes() const { return bytes_; }
  // False if the guards were written to. After a synchronisation.
  absl::StatusOr<bool> Intact(Backend& backend, Stream& stream) const;

 private:
  std::shared_ptr<Buffer> buffer_;
  int64_t bytes_ = 0;
};

}  // namespace tandem::cases
