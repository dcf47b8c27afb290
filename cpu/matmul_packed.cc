// Matrix product with packed quantised weights: integer dot products for any number of rows.
//
// Algorithm: as in ggml, activations are rounded to 8 bits with one f32 step per 32 elements of K,
//   products of a block are summed as integers, exactly, and blocks as floats (docs/numerics.md).
//   Layouts are in matmul_packed.h, the inner loops in matmul_packed_tile-inl.h.
// Mapping: rows are cut into strips of about equal length (up to 6), strips into blocks of up to
//   kMaxBlockRows rows. A task is one block of rows by one panel of 32 output features. It walks
//   the panel in chunks that fit L1: a chunk is multiplied by all strips of the block before the
//   next. The cut depends on the arguments alone. Products that share a (grouped_matmul) are one
//   list of tasks, and share strips where their formats take activations alike; a panel of a gate
//   is done together with that of its up.
// Memory: the packed weights are one stream, read once per block of rows and requested ahead; with
//   one strip (decoding) that is all there is. Activations (44 bytes per 32 elements) are read once
//   per panel, from L2 or L3.
// Range: b_packed made by PackWeights from a quantised matrix; any a, bias, addend, out; rank 2.
#include "cpu/matmul_packed.h"

#include <algorithm>
#include <array>

#include "core/status.h"
#include "cpu/matmul_group.h"
#include "cpu/matmul_kernels.h"
#include "cpu/stream.h"

namespace tandem::cpu {
namespace {

constexpr int64_t kMaxBlockRows = 504;     // whose tile (63 KiB) stays in L2
constexpr int64_t kMinBlockRows = 48;      // below, reading the weights would take longer
constexpr int64_t kWantedTasks = 32;       // enough for 8 cores to finish within 25 % of each other
constexpr int64_t kChunkBytes = 18 << 10;  // of weights; the rest of L1 is for activations
// From a request to its use where one strip takes all of a chunk: 200 ns at 40 GB/s. Measured for
// 1..6 rows; 4 KiB and 16 KiB are within 3 %.
constexpr int64_t kAheadBytes = 8 << 10;

int64_t Ceil(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// How a product is cut.
struct Plan {
  PackedFormat format;
  int64_t m = 0, k = 0;
  int64_t units = 0;         // of K
  int64_t blocks = 0;        // of 32 elements of K
  int64_t strips = 0;        // of rows
  int64_t block_strips = 0;  // per block of rows
  int64_t row_blocks = 0;
  int64_t panels = 0;

  Plan() = default;
  Plan(const MatMulArgs& args, int64_t strip_rows)
      : format(PackedFormatOf(args.b_packed->dtype)), m(args.m()), k(args.k()) {
    units = Ceil(k, format.depth);
    blocks = units * format.depth / kStripBlock;
    panels = Ceil(args.n(), kPanelColumns);
    strips = Ceil(m, strip_rows);
    block_strips = std::max<int64_t>(1, std::min(strips, kMaxBlockRows / strip_rows));
    while (block_strips * strip_rows >= 2 * kMinBlockRows &&
           Ceil(strips, block_strips) * panels < kWantedTasks) {
      block_strips = Ceil(block_strips, 2);
    }
    row_blocks = Ceil(strips, block_strips);
  }
  // Strips differ by at most one row.
  int64_t first_row(int64_t strip) const { return strip * m / strips; }
  int64_t strip_offset(int64_t strip) const { return first_row(strip) * blocks * kStripRowBytes; }
  int64_t rows_per_block() const { return Ceil(m, strips) * block_strips; }
  int64_t weight_bytes() const { return panels * units * format.bytes * row_blocks; }
  // Do both multiply the same strips of activations?
  bool SharesStrips(const Plan& other) const {
    return blocks == other.blocks && format.corrections == other.format.corrections &&
           format.offset == other.format.offset;
  }
};

// Units that all of `strips` multiply before the next ones. Few strips are as fast as what they
// request from memory, and a chunk requests one of its own length: chunks of one length then, if K
// has such. Measured for q4_k, K = 2048, 8 rows: 2 2 2 2 units 18 GB/s, 3 3 2 units 15.
int64_t ChunkUnits(const Plan& plan, int64_t strips) {
  if (strips == 1) return plan.units;
  const int64_t most = std::max<int64_t>(1, kChunkBytes / plan.format.bytes);
  if (strips > 4) return most;
  for (int64_t units = most; units > most / 2; --units) {
    if (plan.units % units == 0) return units;
  }
  return most;
}

struct GroupPlan {
  std::array<Plan, GroupedMatMulArgs::kMaxProducts> plans;
  std::array<size_t, GroupedMatMulArgs::kMaxProducts> strips_of;  // whose strips a product takes
  int64_t tile_floats = 0;                                        // of one product
  int64_t most_blocks = 0;

  GroupPlan(const MatMulGroup& group, int64_t strip_rows) {
    for (size_t i = 0; i < group.size(); ++i) {
      plans[i] = Plan(group.products[i], strip_rows);
      strips_of[i] = i;
      for (size_t j = i; j-- > 0;) {
        if (plans[i].SharesStrips(plans[j])) strips_of[i] = j;
      }
      if (plans[i].strips > 0) {
        tile_floats = std::max(tile_floats, plans[i].rows_per_block() * kPanelColumns);
      }
      most_blocks = std::max(most_blocks, plans[i].blocks);
    }
  }
};

struct Scratch {
  std::array<uint8_t*, GroupedMatMulArgs::kMaxProducts> strips = {};
  float* rows = nullptr;   // one of K per worker
  float* tiles = nullptr;  // one per worker; with a gate two
};
Scratch Carve(Workspace& workspace, const MatMulGroup& group, const GroupPlan& plan, int workers) {
  Scratch scratch;
  if (group.first().m() == 0) return scratch;
  for (size_t i = 0; i < group.size(); ++i) {
    const Plan& own = plan.plans[i];
    scratch.strips[i] = plan.strips_of[i] == i
                            ? workspace.Take<uint8_t>(own.m * own.blocks * kStripRowBytes)
                            : scratch.strips[plan.strips_of[i]];
  }
  scratch.rows = workspace.Take<float>(workers * plan.most_blocks * kStripBlock);
  scratch.tiles = workspace.Take<float>(workers * plan.tile_floats * (group.gated ? 2 : 1));
  return scratch;
}

template <DotIsa kIsa>
MultiplyStrip Multiply(DType dtype) {
  switch (kIsa) {
    case DotIsa::kAvx512Vnni:
      return MultiplyStripAvx512Vnni(dtype);
    case DotIsa::kAvxVnni:
      return MultiplyStripAvxVnni(dtype);
    case DotIsa::kAvx2:
      return MultiplyStripAvx2(dtype);
    default:
      return MultiplyStripScalar(dtype);
  }
}

// Rows of strips first .. last of one product by one panel of it, into a tile.
void MultiplyPanel(const Plan& plan, const MatMulArgs& args, MultiplyStrip multiply,
                   const uint8_t* activations, int64_t first, int64_t last, int64_t panel,
                   float* tile) {
  const int64_t unit_blocks = plan.format.depth / kStripBlock;
  const int64_t unit_lines = Ceil(Ceil(plan.format.bytes, 64), unit_blocks);  // per 32 of K
  const uint8_t* units = static_cast<const Int8Weights*>(args.b_packed)->data() +
                         panel * plan.units * plan.format.bytes;
  const int64_t m0 = plan.first_row(first);
  const bool single = last - first == 1;
  const int64_t chunk = ChunkUnits(plan, last - first);
  if (plan.units == 0) std::fill_n(tile, plan.rows_per_block() * kPanelColumns, 0.0f);
  for (int64_t u = 0; u < plan.units; u += chunk) {
    const int64_t count = std::min(chunk, plan.units - u);
    for (int64_t strip = first; strip < last; ++strip) {
      StripProduct product;
      product.units = units + u * plan.format.bytes;
      product.count = count;
      product.rows = plan.first_row(strip + 1) - plan.first_row(strip);
      product.activations =
          activations + plan.strip_offset(strip) + u * unit_blocks * product.rows * kStripRowBytes;
      product.tile = tile + (plan.first_row(strip) - m0) * kPanelColumns;
      product.accumulate = u > 0;
      // The first strips request the next chunk, or what follows the panel: likely the next one.
      const int64_t requesting = std::min<int64_t>(last - first, 4);
      const int64_t lines = Ceil(unit_lines, requesting);
      const int64_t share = strip - first < requesting ? lines : 0;
      product.prefetch_lines = share;
      product.ahead =
          single ? kAheadBytes
                 : count * plan.format.bytes + (strip - first) * lines * unit_blocks * count * 64;
      multiply(product);
    }
  }
}

template <DotIsa kIsa>
int64_t WorkspaceOf(const KernelContext& context, const MatMulGroup& group) {
  Workspace counting = Workspace::Counting();
  Carve(counting, group, GroupPlan(group, StripRows(kIsa)), CpuStream::Of(context).pool().size());
  return counting.bytes_used();
}

template <DotIsa kIsa>
absl::Status RunGroup(const KernelContext& context, const MatMulGroup& group) {
  const GroupPlan plan(group, StripRows(kIsa));
  const CpuStream& stream = CpuStream::Of(context);
  const StripOps& ops = StripOpsFor(stream.features().isa);
  const Scratch scratch = Carve(*context.workspace, group, plan, stream.pool().size());
  if (!context.workspace->ok()) return absl::InternalError("int8: workspace too small");

  int64_t weight_bytes = 0;
  for (size_t i = 0; i < group.size(); ++i) {
    const Plan& own = plan.plans[i];
    weight_bytes += own.weight_bytes();
    if (plan.strips_of[i] != i) continue;
    stream.pool().ParallelFor(
        own.strips,
        [&](int64_t strip, int worker) {
          const int64_t m0 = own.first_row(strip);
          ops.quantize(group.first().a, m0, own.first_row(strip + 1) - m0, own.blocks, own.format,
                       scratch.rows + worker * plan.most_blocks * kStripBlock,
                       scratch.strips[i] + own.strip_offset(strip));
        },
        own.m * own.k * 4);
  }

  const GroupTasks tasks(group, [&](const MatMulArgs& args) {
    const Plan& own = plan.plans[static_cast<size_t>(&args - group.products.data())];
    return own.row_blocks * own.panels;
  });
  const auto run = [&](int64_t task, int worker) {
    const GroupTasks::Place place = tasks.At(task);
    const Plan& own = plan.plans[place.product];
    const MatMulArgs& args = group.products[place.product];
    const int64_t panel = place.task % own.panels;
    const int64_t first = place.task / own.panels * own.block_strips;
    const int64_t last = std::min(first + own.block_strips, own.strips);
    const int64_t m0 = own.first_row(first), rows = own.first_row(last) - m0;
    const int64_t n0 = panel * kPanelColumns, columns = std::min(kPanelColumns, args.n() - n0);
    float* tile = scratch.tiles + worker * plan.tile_floats * (group.gated ? 2 : 1);
    const auto multiply = [&](size_t i, float* to) {
      MultiplyPanel(plan.plans[i], group.products[i],
                    Multiply<kIsa>(group.products[i].b_packed->dtype), scratch.strips[i], first,
                    last, panel, to);
    };
    multiply(place.product, tile);
    if (!group.gated) return ops.finish(args, m0, rows, n0, columns, tile);
    float* up_tile = tile + plan.tile_floats;
    multiply(1, up_tile);
    ops.finish_gated(args, group.products[1], m0, rows, n0, columns, tile, up_tile);
  };
  stream.pool().ParallelFor(tasks.total(), run, weight_bytes);
  return absl::OkStatus();
}

template <DotIsa kIsa>
int64_t WorkspaceBytes(const KernelContext& context, const MatMulArgs& args) {
  return WorkspaceOf<kIsa>(context, GroupOf(args));
}
template <DotIsa kIsa>
absl::Status Run(const KernelContext& context, const MatMulArgs& args) {
  if (args.out.empty()) return absl::OkStatus();
  return RunGroup<kIsa>(context, GroupOf(args));
}
template <DotIsa kIsa>
int64_t GroupedWorkspaceBytes(const KernelContext& context, const GroupedMatMulArgs& args) {
  return WorkspaceOf<kIsa>(context, GroupedProducts(args).group());
}
template <DotIsa kIsa>
absl::Status RunGrouped(const KernelContext& context, const GroupedMatMulArgs& args) {
  if (args.m() == 0) return absl::OkStatus();
  return RunGroup<kIsa>(context, GroupedProducts(args).group());
}

absl::Status CheckFeature(bool present, const char* name) {
  if (present) return absl::OkStatus();
  return Unimplemented("needs ", name,
                       ", which the processor or the stream's limit does not allow");
}

template <DotIsa kIsa>
absl::Status Supports(const KernelContext& context, const MatMulArgs& args) {
  if (args.b_packed == nullptr) {
    // The usual answer where weights are floats: copying it allocates nothing.
    static const absl::Status kNeedsPacked = Unimplemented("needs b_packed");
    return kNeedsPacked;
  }
  if (args.b_packed->format() != Int8Weights::kFormat) {
    return Unimplemented("b_packed has format '", std::string(args.b_packed->format()),
                         "', expected '", std::string(Int8Weights::kFormat), "'");
  }
  if (args.float_activations) {
    return Unimplemented("rounds activations to 8 bits, but float_activations is set");
  }
  if (Multiply<kIsa>(args.b_packed->dtype) == nullptr) {
    return Unimplemented("not compiled for these instructions");
  }
  const CpuFeatures& features = CpuStream::Of(context).features();
  switch (kIsa) {
    case DotIsa::kAvx512Vnni:
      return CheckFeature(features.avx512_vnni, "AVX-512 VNNI");
    case DotIsa::kAvxVnni:
      return CheckFeature(features.avx_vnni, "AVX-VNNI");
    case DotIsa::kAvx2:
      return CheckIsa(context, Isa::kAvx2);
    default:
      return absl::OkStatus();
  }
}

bool Applies(const MatMulArgs& args) { return args.b_packed != nullptr; }

constexpr std::string_view NameOf(DotIsa isa) {
  switch (isa) {
    case DotIsa::kAvx512Vnni:
      return "int8_avx512vnni";
    case DotIsa::kAvxVnni:
      return "int8_avxvnni";
    case DotIsa::kAvx2:
      return "int8_avx2";
    default:
      return "int8_scalar";
  }
}

template <DotIsa kIsa>
struct Entry {
  static Kernel<MatMulArgs> Single() {
    return {NameOf(kIsa),         DeviceKind::kCpu, Supports<kIsa>,
            WorkspaceBytes<kIsa>, Run<kIsa>,        Applies};
  }
  static Kernel<GroupedMatMulArgs> Grouped() {
    return {NameOf(kIsa),
            DeviceKind::kCpu,
            SupportsGroup<Supports<kIsa>>,
            GroupedWorkspaceBytes<kIsa>,
            RunGrouped<kIsa>,
            AppliesToGroup<Applies>};
  }
};

}  // namespace

Kernel<MatMulArgs> Int8MatMul(DotIsa isa) {
  switch (isa) {
    case DotIsa::kAvx512Vnni:
      return Entry<DotIsa::kAvx512Vnni>::Single();
    case DotIsa::kAvxVnni:
      return Entry<DotIsa::kAvxVnni>::Single();
    case DotIsa::kAvx2:
      return Entry<DotIsa::kAvx2>::Single();
    default:
      return Entry<DotIsa::kScalar>::Single();
  }
}

Kernel<GroupedMatMulArgs> GroupedInt8MatMul(DotIsa isa) {
  switch (isa) {
    case DotIsa::kAvx512Vnni:
      return Entry<DotIsa::kAvx512Vnni>::Grouped();
    case DotIsa::kAvxVnni:
      return Entry<DotIsa::kAvxVnni>::Grouped();
    case DotIsa::kAvx2:
      return Entry<DotIsa::kAvx2>::Grouped();
    default:
      return Entry<DotIsa::kScalar>::Grouped();
  }
}

}  // namespace tandem::cpu
