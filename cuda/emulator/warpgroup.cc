// Layouts after the PTX ISA, "asynchronous warpgroup-level matrix instructions": fragments,
// descriptors, canonical layouts in shared memory. In units of 16 bytes (u), W = swizzle / 16:
//   K-major:   row r, unit u of K   (r % 8) * W + (r / 8) * SBO + u           (no swizzle: u * LBO)
//   MN-major:  unit u of MN, row k  (u % W) + (u / W) * LBO + (k % 8) * W + (k / 8) * SBO
//              without a swizzle:   u * SBO + (k % 8) + (k / 8) * LBO
// and the swizzle XORs bits 4.. of the address with bits 7...
#include "cuda/emulator/warpgroup.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "core/dtype.h"
#include "cuda/emulator/block.h"
#include "cuda/emulator/memory_guard.h"

namespace tandem::cuda::emulator {
namespace {

constexpr int kThreads = 128;
constexpr int kRows = 64, kDepth = 16;
constexpr uint32_t kPoison = 0xFFFFFFFFu;  // a NaN that no arithmetic makes

void PoisonAccumulators(float* data, int count) {
  RawFill(data, 0xFF, static_cast<size_t>(count) * sizeof(float));
}

bool ArePoison(const float* data, int count) {
  for (int i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, data + i, sizeof(bits));
    if (bits != kPoison) return false;
  }
  return true;
}

float Convert(uint16_t bits, bool bf16) { return bf16 ? ToFloat(BF16{bits}) : ToFloat(F16{bits}); }

struct Descriptor {
  int64_t start, leading, stride;  // bytes
  int swizzle;                     // bytes: 0, 32, 64, 128
  int base_offset;

  explicit Descriptor(uint64_t bits)
      : start(static_cast<int64_t>(bits & 0x3FFF) << 4),
        leading(static_cast<int64_t>(bits >> 16 & 0x3FFF) << 4),
        stride(static_cast<int64_t>(bits >> 32 & 0x3FFF) << 4),
        swizzle(std::array<int, 4>{0, 128, 64, 32}[bits >> 62]),
        base_offset(static_cast<int>(bits >> 49 & 7)) {}

  // Byte offset in shared memory of the 16 bytes that hold element (mn, k).
  int64_t Unit(int mn, int k, bool transposed) const {
    const int64_t width = swizzle / 16;
    int64_t at = start;
    if (!transposed) {
      at += swizzle == 0 ? (mn % 8) * 16 + (k / 8) * leading : (mn % 8) * swizzle + (k / 8) * 16;
      at += (mn / 8) * stride;
    } else if (swizzle == 0) {
      at += (mn / 8) * stride + (k % 8) * 16 + (k / 8) * leading;
    } else {
      const int64_t u = mn / 8;
      at += u % width * 16 + u / width * leading + (k % 8) * swizzle + (k / 8) * stride;
    }
    if (swizzle == 0) return at;
    return at ^ ((at >> 7 & (width - 1)) << 4);
  }
};

}  // namespace

Warpgroups::Warpgroups(Block& block, int threads)
    : block_(block), groups_(static_cast<size_t>(threads / kThreads)) {}

Warpgroups::Group& Warpgroups::Own(const char* operation, Site site) {
  const auto index = static_cast<size_t>(block_.running_thread() / kThreads);
  if (index >= groups_.size()) {
    block_.Report(absl::StrCat(operation, " at ", ToString(site),
                               ": the thread is in no whole warpgroup of 128 threads"));
  }
  return groups_[index];
}

Warpgroups::ThreadState& Warpgroups::OwnThread(Group& group) {
  return group.threads[static_cast<size_t>(block_.running_thread() % kThreads)];
}

void Warpgroups::Fence() { OwnThread(Own("wgmma.fence", {})).fenced = true; }

void Warpgroups::Multiply(const WarpgroupProduct& product, Site site) {
  Group& group = Own("wgmma", site);
  ThreadState& self = OwnThread(group);
  // PTX asks for a fence before the first wgmma and after every access to registers that it uses.
  // Asked for here once per commit group.
  if (!self.fenced) {
    block_.Report(absl::StrCat("wgmma at ", ToString(site), ": no wgmma.fence since ",
                               self.committed == 0 ? "the kernel began" : "the last commit"));
  }
  const int64_t index = self.issued++;
  self.open = true;
  while (group.first + static_cast<int64_t>(group.issues.size()) <= index) {
    Issue issue;
    issue.shape = product;
    issue.site = site;
    issue.group = self.committed;
    issue.threads.resize(kThreads);
    issue.saved.resize(kThreads);
    issue.order = std::make_unique<char>();
    group.issues.push_back(std::move(issue));
  }
  Issue& issue = group.issues[static_cast<size_t>(index - group.first)];
  if (!issue.shape.SameAs(product) || !(issue.site == site) || issue.group != self.committed) {
    block_.Report(absl::StrCat("divergent warpgroup: thread ", block_.running_thread(),
                               " issues wgmma at ", ToString(site), ", others at ",
                               ToString(issue.site),
                               issue.site == site ? " with other operands" : ""));
  }
  const auto lane = static_cast<size_t>(block_.running_thread() % kThreads);
  issue.threads[lane] = product;
  // Accumulators that a product before this one still works on have no value to take.
  const bool chained = std::any_of(
      group.issues.begin(), group.issues.begin() + (index - group.first), [&](const Issue& before) {
        return before.threads[lane].accumulators == product.accumulators;
      });
  const int count = product.n / 2;
  if (!chained) {
    issue.saved[lane].assign(product.accumulators, product.accumulators + count);
    PoisonAccumulators(product.accumulators, count);
  }
  Release(issue.order.get());
  ++issue.issued;
}

bool Warpgroups::Committed(const Group& group, int64_t count) const {
  return std::all_of(group.threads.begin(), group.threads.end(),
                     [&](const ThreadState& t) { return t.committed >= count; });
}

void Warpgroups::Commit() {
  Group& group = Own("wgmma.commit_group", {});
  ThreadState& self = OwnThread(group);
  ++self.committed;
  self.fenced = self.open = false;
  const bool now = block_.options().completion == Completion::kEager ||
                   (block_.options().completion == Completion::kRandom && block_.Random() % 3 == 0);
  if (now && Committed(group, self.committed)) ExecuteUpTo(group, self.committed);
  for (size_t i = 0; i < group.waiting.size();) {
    if (Committed(group, group.waiting[i].second)) {
      block_.MakeReady(group.waiting[i].first);
      group.waiting.erase(group.waiting.begin() + static_cast<std::ptrdiff_t>(i));
    } else {
      ++i;
    }
  }
}

void Warpgroups::Wait(int pending, Site site) {
  Group& group = Own("wgmma.wait_group", site);
  ThreadState& self = OwnThread(group);
  if (self.open) {
    block_.Report(absl::StrCat("wgmma.wait_group at ", ToString(site),
                               ": products since the last wgmma.commit_group"));
  }
  const int64_t count = self.committed - pending;
  if (count <= 0) return;
  if (!Committed(group, count)) {
    group.waiting.push_back({block_.running_thread(), count});
    block_.Suspend("its warpgroup's wgmma", nullptr, site);
  }
  ExecuteUpTo(group, count);
  Acquire(&group.order);
}

void Warpgroups::ExecuteUpTo(Group& group, int64_t count) {
  while (!group.issues.empty() && group.issues.front().group < count) {
    Issue issue = std::move(group.issues.front());
    group.issues.pop_front();
    ++group.first;
    const std::string error = Execute(group, issue);
    if (!error.empty()) {
      block_.Report(absl::StrCat("wgmma issued at ", ToString(issue.site), ": ", error));
    }
    // A later product on the same accumulators is under way: they have no value yet.
    for (size_t t = 0; t < kThreads; ++t) {
      const auto next =
          std::find_if(group.issues.begin(), group.issues.end(), [&](const Issue& later) {
            return later.threads[t].accumulators == issue.threads[t].accumulators;
          });
      if (next == group.issues.end()) continue;
      const int n = issue.shape.n / 2;
      float* data = issue.threads[t].accumulators;
      next->saved[t].assign(data, data + n);
      PoisonAccumulators(data, n);
    }
  }
  group.executed = std::max(group.executed, count);
}

std::string Warpgroups::Execute(Group& group, Issue& issue) {
  const WarpgroupProduct& shape = issue.shape;
  SharedArena& arena = block_.arena();
  if (group.proxy == nullptr) group.proxy = std::make_unique<ProxyThread>();
  std::string error;
  const auto read = [&](const Descriptor& d, int rows, bool transposed, std::vector<float>& out) {
    out.resize(static_cast<size_t>(rows * kDepth));
    for (int mn = 0; mn < rows; ++mn) {
      for (int k = 0; k < kDepth; ++k) {
        const int inner = transposed ? mn % 8 : k % 8;
        auto& value = out[static_cast<size_t>(mn * kDepth + k)];
        // Eight elements share a unit of 16 bytes: read with the first of them.
        const std::byte* unit = arena.At(d.Unit(mn, k, transposed));
        std::array<uint16_t, 8> elements;
        if (inner == 0 || transposed) {
          if (!arena.Contains(unit, 16)) {
            error = absl::StrCat("reads beyond a piece: ", arena.Describe(unit));
            return;
          }
          if (const Site* copy = block_.async().PendingWrite(unit, 16)) {
            error = absl::StrCat("reads ", arena.Describe(unit), ", which the copy issued at ",
                                 ToString(*copy), " is still writing");
            return;
          }
          if (inner == 0) NoteRead(unit, 16);
          if (!arena.AsyncRead(elements.data(), unit, 16)) {
            error = absl::StrCat("reads what was written without fence.proxy.async, ",
                                 arena.Describe(unit));
            return;
          }
          if (!transposed) {
            for (int i = 0; i < 8; ++i) {
              out[static_cast<size_t>(mn * kDepth + k + i)] =
                  Convert(elements[static_cast<size_t>(i)], shape.bf16);
            }
          } else {
            value = Convert(elements[static_cast<size_t>(inner)], shape.bf16);
          }
        }
      }
    }
  };
  std::vector<float> a, b;
  {
    const ProxyThread::Scope scope(*group.proxy);
    Acquire(issue.order.get());
    const Descriptor db(shape.b_descriptor);
    if (db.base_offset != 0) return "a descriptor with a base offset, expected 0";
    read(db, shape.n, shape.transpose_b, b);
    if (error.empty() && !shape.a_in_registers) {
      const Descriptor da(shape.a_descriptor);
      if (da.base_offset != 0) return "a descriptor with a base offset, expected 0";
      read(da, kRows, shape.transpose_a, a);
    }
    Release(&group.order);
  }
  if (!error.empty()) return error;
  if (shape.a_in_registers) {
    a.resize(kRows * kDepth);
    for (int t = 0; t < kThreads; ++t) {
      const int row = t / 32 * 16 + t % 32 / 4, column = t % 4 * 2;
      for (int r = 0; r < 4; ++r) {
        const uint32_t pair = issue.threads[static_cast<size_t>(t)].a[r];
        const auto at = static_cast<size_t>((row + r % 2 * 8) * kDepth + column + r / 2 * 8);
        a[at] = Convert(static_cast<uint16_t>(pair), shape.bf16);
        a[at + 1] = Convert(static_cast<uint16_t>(pair >> 16), shape.bf16);
      }
    }
  }
  const int count = shape.n / 2;
  for (int t = 0; t < kThreads; ++t) {
    const auto lane = static_cast<size_t>(t);
    float* d = issue.threads[lane].accumulators;
    if (!issue.saved[lane].empty()) {
      if (!ArePoison(d, count)) return "its accumulators were written before it was waited for";
      std::copy(issue.saved[lane].begin(), issue.saved[lane].end(), d);
    }
    const int row = t / 32 * 16 + t % 32 / 4;
    for (int i = 0; i < count; ++i) {
      const int m = row + (i / 2 % 2) * 8, n = i / 4 * 8 + t % 4 * 2 + i % 2;
      const float* x = a.data() + m * kDepth;
      const float* y = b.data() + n * kDepth;
      double sum = shape.accumulate ? d[i] : 0.0;
      for (int k = 0; k < kDepth; ++k) sum += static_cast<double>(x[k]) * static_cast<double>(y[k]);
      d[i] = static_cast<float>(sum);
    }
  }
  return "";
}

std::string Warpgroups::CheckExit() const {
  const auto thread = static_cast<size_t>(block_.running_thread());
  if (thread / kThreads >= groups_.size()) return "";
  const Group& group = groups_[thread / kThreads];
  const ThreadState& self = group.threads[thread % kThreads];
  if (self.issued > group.first) {
    return absl::StrCat("ends before it has waited for the wgmma issued at ",
                        ToString(group.issues.front().site));
  }
  return "";
}

}  // namespace tandem::cuda::emulator
