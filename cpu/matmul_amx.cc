// Matrix product of many rows on AMX tiles (amx.h), in bf16: activations are rounded to bf16.
//
//   amx_packed  packed quantised weights (matmul_packed.h), dequantised a panel at a time and
//               rounded to bf16
//   amx_bf16    weights in bf16
//   amx_pairs   weights in bf16, packed in pairs (matmul_pairs.h): multiplied where they lie
//   amx_f16     weights in f16, each exactly the sum of two bf16 numbers, high and low; activations
//               likewise, of 16 bits. Three products of the four are taken: that of the low parts
//               is 2^-16 of the whole, a sixteenth of what rounding activations to f16 may change
//               (bf16 activations have no low part: two products, exact)
//
// Algorithm: Goto & van de Geijn's blocking (Anatomy of High-Performance Matrix Multiplication,
//   2008) with tiles for registers: 32 rows x 32 columns of sums are four tiles, and each step of
//   32 elements of K loads two tiles of a and two of b for four products. Rows of a are rounded and
//   laid out tile by tile beforehand, as rows one after the other (at distances of a power of two)
//   would share few sets of the cache.
// Mapping: a task is a block of rows (up to kBlockRows) by a group of panels of kPanel output
//   features. It walks K in chunks of kChunk: for each, every panel of the group in turn is made
//   (rearranged or dequantised, if it must be) and multiplied by all rows of the block. Sums go on
//   from memory at each chunk, which changes no bit of them: their order is that of K, wherever it
//   is cut. Hence groups may depend on the number of threads.
// Memory: a chunk of a block of rows (512 KiB), the sums of a group and one panel's chunk (64 KiB)
//   stay in L2. Weights are read once per block of rows.
// Range: one batch; AMX BF16 and AVX-512 BF16; float_activations only if a is bf16 as b is.
#include "cpu/matmul_amx.h"

#include <algorithm>
#include <cstring>

#include "core/status.h"
#include "cpu/amx.h"
#include "cpu/matmul_kernels.h"
#include "cpu/matmul_packed.h"
#include "cpu/matmul_pairs.h"
#include "cpu/matmul_panels.h"
#include "cpu/stream.h"

namespace tandem::cpu {
namespace {

constexpr int64_t kStep = kPairDepth;  // elements of K per tile
constexpr int64_t kTileBytes = kTileRows * kTileRowBytes;
constexpr int64_t kBlockRows = 512;  // whose chunk stays in L2; of two parts, half as many
constexpr int64_t kChunk = 512;      // elements of K; whole units of every packed format
constexpr int64_t kChunkSteps = kChunk / kStep;
constexpr int64_t kChunkBytes = kChunkSteps * kTileBytes;  // of 16 rows
constexpr int64_t kMaxGroup = 4;        // panels: each reads the rows' chunk from L2
constexpr int64_t kTasksPerWorker = 4;  // for workers to finish within 25 % of each other
constexpr int64_t kPanelBytes = kPanel * kChunk * 2;

int64_t Ceil(int64_t value, int64_t unit) { return (value + unit - 1) / unit; }

// nullptr: the weights are those of b.
const Int8Weights* Packed(const MatMulArgs& args) {
  const bool is_int8 = args.b_packed != nullptr && args.b_packed->format() == Int8Weights::kFormat;
  return is_int8 ? static_cast<const Int8Weights*>(args.b_packed) : nullptr;
}

// Are operands sums of two bf16 numbers?
bool AreSplit(const MatMulArgs& args) { return args.b.dtype == DType::kF16; }

struct Plan {
  int64_t parts = 1;  // bf16 numbers per element
  int64_t row_tiles = 0;
  int64_t block_tiles = 0;  // per block of rows
  int64_t row_blocks = 0;
  int64_t steps = 0;  // of K
  int64_t chunks = 0;
  int64_t panels = 0;
  int64_t group = 0;  // panels per task
  int64_t groups = 0;

  Plan(const MatMulArgs& args, int workers) {
    parts = AreSplit(args) ? 2 : 1;
    row_tiles = Ceil(args.m(), kTileRows);
    row_blocks = Ceil(args.m(), kBlockRows / parts);
    block_tiles = row_blocks == 0 ? 0 : Ceil(row_tiles, row_blocks);
    steps = Ceil(args.k(), kStep);
    chunks = Ceil(args.k(), kChunk);
    panels = Ceil(args.n(), kPanel);
    group = std::clamp<int64_t>(row_blocks * panels / (workers * kTasksPerWorker), 1, kMaxGroup);
    groups = Ceil(panels, group);
  }
  int64_t tile_floats() const { return block_tiles * kTileRows * kPanel; }  // of one panel
  int64_t rows_bytes() const { return chunks * row_tiles * kChunkBytes; }   // of one part
  int64_t row_elements() const { return steps * kStep; }                    // of one part
};

struct Scratch {
  char* rows = nullptr;    // [parts][chunks][row_tiles][kChunkSteps][16 rows][64 bytes]
  BF16* row = nullptr;     // [workers][parts][steps * 32]: one row as it is rounded
  char* panels = nullptr;  // [workers][parts][one chunk]
  float* tiles = nullptr;  // [workers][group][block rows][kPanel]
};
Scratch Carve(Workspace& workspace, const Plan& plan, int workers) {
  Scratch scratch;
  scratch.rows = workspace.Take<char>(plan.parts * plan.rows_bytes());
  scratch.row = workspace.Take<BF16>(workers * plan.parts * plan.row_elements());
  scratch.panels = workspace.Take<char>(workers * plan.parts * kPanelBytes);
  scratch.tiles = workspace.Take<float>(workers * plan.group * plan.tile_floats());
  return scratch;
}

// Rows of tile `tile`, rounded; rows beyond M and elements beyond K are zeros.
void LayOutRows(const MatMulArgs& args, const PanelOps& ops, const Plan& plan, int64_t tile,
                BF16* row, char* rows) {
  const int64_t m0 = tile * kTileRows;
  const int64_t k = args.k(), padded = plan.row_elements();
  const int64_t present = std::min<int64_t>(kTileRows, args.m() - m0);
  std::fill(row, row + plan.parts * padded, BF16{});
  for (int64_t r = 0; r < kTileRows; ++r) {
    if (r == present) std::fill(row, row + plan.parts * padded, BF16{});
    if (r < present && plan.parts == 1) ops.narrow_rows(args.a, 0, m0 + r, 1, k, row);
    if (r < present && plan.parts == 2) ops.split_row(args.a, 0, m0 + r, k, row, row + padded);
    for (int64_t s = 0; s < plan.parts * plan.steps; ++s) {
      const int64_t part = s / plan.steps, step = s % plan.steps;
      char* to = rows + part * plan.rows_bytes() +
                 (step / kChunkSteps * plan.row_tiles + tile) * kChunkBytes +
                 step % kChunkSteps * kTileBytes;
      std::memcpy(to + r * kTileRowBytes, row + s * kStep, kTileRowBytes);
    }
  }
}

// Cache lines of weights to request while others are multiplied.
class Request {
 public:
  Request() = default;
  // The weights that MakePanel will read.
  Request(const MatMulArgs& args, int64_t n0, int64_t k0) {
    const int64_t depth = std::min(kChunk, args.k() - k0);
    if (const Int8Weights* packed = Packed(args)) {
      const PackedFormat format = PackedFormatOf(packed->dtype);
      const int64_t panels = Ceil(args.n(), kPanelColumns), first = n0 / kPanelColumns;
      rows_ = std::min(kPanel / kPanelColumns, panels - first);
      stride_ = Ceil(args.k(), format.depth) * format.bytes;
      bytes_ = Ceil(depth, format.depth) * format.bytes;
      from_ = packed->data() + first * stride_ + k0 / format.depth * format.bytes;
    } else if (const PairWeights* pairs = PairsOf(args)) {
      rows_ = 1;
      bytes_ = PaddedPairDepth(depth) * kPanel * 2;
      from_ = reinterpret_cast<const uint8_t*>(pairs->panel(n0) + k0 * kPanel);
    } else {
      rows_ = std::min(kPanel, args.n() - n0);
      stride_ = args.b.stride(-2) * 2;
      bytes_ = depth * 2;
      from_ = args.b.As<uint8_t>() + n0 * stride_ + k0 * 2;
    }
  }
  int64_t lines() const { return rows_ * Ceil(bytes_, 64); }
  void Next(int64_t lines) {
    for (; lines > 0 && rows_ > 0; --lines) {
      __builtin_prefetch(from_ + byte_, 0, 2);
      byte_ += 64;
      if (byte_ < bytes_) continue;
      byte_ = 0;
      from_ += stride_;
      --rows_;
    }
  }

 private:
  const uint8_t* from_ = nullptr;
  int64_t rows_ = 0, stride_ = 0, bytes_ = 0;
  int64_t byte_ = 0;  // of the present row
};

// Chunk k0.. of the panel of output features n0.., in pairs, made in `panel`; of weights in two
// parts, the low ones kPanelBytes on.
void MakePanel(const MatMulArgs& args, const PanelOps& ops, int64_t n0, int64_t k0, char* panel) {
  const int64_t depth = std::min(kChunk, args.k() - k0);
  const Int8Weights* packed = Packed(args);
  const int64_t columns = std::min(kPanel, args.n() - n0);
  if (AreSplit(args)) {
    return ops.split_panel(args.b, k0, n0, columns, depth, reinterpret_cast<BF16*>(panel),
                           reinterpret_cast<BF16*>(panel + kPanelBytes));
  }
  if (packed == nullptr) {
    return ops.pair_panel(args.b, k0, n0, columns, depth, reinterpret_cast<BF16*>(panel));
  }
  const PackedFormat format = PackedFormatOf(packed->dtype);
  const ExpandUnits expand = ExpandUnitsFor(packed->dtype);
  const int64_t panel_bytes = Ceil(args.k(), format.depth) * format.bytes;
  const int64_t blocks = Ceil(depth, kStripBlock);
  for (int64_t n = n0; n < n0 + kPanel; n += kPanelColumns) {
    char* to = panel + (n - n0) * 4;
    if (n < args.n()) {
      expand(packed->data() + n / kPanelColumns * panel_bytes + k0 / format.depth * format.bytes,
             blocks, format.offset, to);
      continue;
    }
    for (int64_t pair = 0; pair < blocks * kStripBlock / 2; ++pair) {
      std::memset(to + pair * kPanel * 4, 0, kPanelColumns * 4);
    }
  }
}

// The same, made or where it lies.
const char* ChunkOfPanel(const MatMulArgs& args, const PanelOps& ops, int64_t n0, int64_t k0,
                         char* panel) {
  if (const PairWeights* pairs = PairsOf(args)) {
    return reinterpret_cast<const char*>(pairs->panel(n0) + k0 * kPanel);
  }
  MakePanel(args, ops, n0, k0, panel);
  return panel;
}

#if TANDEM_HAVE_AMX

constexpr int64_t kPairRow = kPanel * 4;  // bytes of a panel's row of pairs

// Where the sums of tiles 0 .. 3 lie among those of a panel.
struct Sums {
  float* at[4];

  void Start(bool accumulate) const {
    if (accumulate) {
      TileLoad<0>(at[0], kStride);
      TileLoad<1>(at[1], kStride);
      TileLoad<2>(at[2], kStride);
      TileLoad<3>(at[3], kStride);
    } else {
      TileZero<0>();
      TileZero<1>();
      TileZero<2>();
      TileZero<3>();
    }
  }
  void Store() const {
    TileStore<0>(at[0], kStride);
    TileStore<1>(at[1], kStride);
    TileStore<2>(at[2], kStride);
    TileStore<3>(at[3], kStride);
  }

  static constexpr int64_t kStride = kPanel * sizeof(float);
};

// 32 rows x 32 columns: tiles 0 .. 3 are sums, 4 and 5 b, 6 and 7 a.
void MultiplySquare(const char* upper, const char* lower, const char* panel, int64_t steps,
                    bool accumulate, float* sums, Request& request, int64_t lines) {
  float* const below = sums + kTileRows * kPanel;
  const Sums four = {{sums, sums + 16, below, below + 16}};
  four.Start(accumulate);
  for (int64_t s = 0; s < steps; ++s) {
    const char* b = panel + s * kTileRows * kPairRow;
    TileLoad<4>(b, kPairRow);
    TileLoad<6>(upper + s * kTileBytes, kTileRowBytes);
    TileDotBF16<0, 6, 4>();
    TileLoad<5>(b + 64, kPairRow);
    TileDotBF16<1, 6, 5>();
    request.Next(lines);
    TileLoad<7>(lower + s * kTileBytes, kTileRowBytes);
    TileDotBF16<2, 7, 4>();
    TileDotBF16<3, 7, 5>();
  }
  four.Store();
}

// 16 rows x 64 columns: tiles 0 .. 3 are sums, 4 is a, 5 and 6 b in turns.
void MultiplyStrip16(const char* rows, const char* panel, int64_t steps, bool accumulate,
                     float* sums, Request& request, int64_t lines) {
  const Sums four = {{sums, sums + 16, sums + 32, sums + 48}};
  four.Start(accumulate);
  for (int64_t s = 0; s < steps; ++s) {
    const char* b = panel + s * kTileRows * kPairRow;
    TileLoad<4>(rows + s * kTileBytes, kTileRowBytes);
    TileLoad<5>(b, kPairRow);
    TileDotBF16<0, 4, 5>();
    TileLoad<6>(b + 64, kPairRow);
    TileDotBF16<1, 4, 6>();
    request.Next(lines);
    TileLoad<5>(b + 128, kPairRow);
    TileDotBF16<2, 4, 5>();
    TileLoad<6>(b + 192, kPairRow);
    TileDotBF16<3, 4, 6>();
  }
  four.Store();
}

// sums [row_tiles * 16][kPanel] = or += rows x panel, over `steps` steps of a chunk of K.
void Multiply(const char* rows, const char* panel, int64_t steps, int64_t row_tiles,
              bool accumulate, float* sums, Request request) {
  const TileConfig config(TileShapes::AllFull());
  // Of each step; a square, of half of the columns, has as many as a last tile of rows.
  const int64_t lines = Ceil(request.lines(), row_tiles * steps);
  int64_t t = 0;
  for (; t + 2 <= row_tiles; t += 2) {
    const char* upper = rows + t * kChunkBytes;
    float* to = sums + t * kTileRows * kPanel;
    for (int64_t half = 0; half < 2; ++half) {
      MultiplySquare(upper, upper + kChunkBytes, panel + half * 128, steps, accumulate,
                     to + half * 32, request, lines);
    }
  }
  if (t < row_tiles) {
    MultiplyStrip16(rows + t * kChunkBytes, panel, steps, accumulate, sums + t * kTileRows * kPanel,
                    request, lines);
  }
}

#else

void Multiply(const char*, const char*, int64_t, int64_t, bool, float*, Request) {}

#endif  // TANDEM_HAVE_AMX

int64_t WorkspaceBytes(const KernelContext& context, const MatMulArgs& args) {
  const int workers = CpuStream::Of(context).pool().size();
  Workspace counting = Workspace::Counting();
  Carve(counting, Plan(args, workers), workers);
  return counting.bytes_used();
}

// One block of rows by one group of panels.
void RunTask(const MatMulArgs& args, const PanelOps& ops, const Plan& plan, int64_t task,
             const char* all_rows, char* panel, float* tiles) {
  const int64_t first_panel = task % plan.groups * plan.group;
  const int64_t panels = std::min(plan.group, plan.panels - first_panel);
  const int64_t first_tile = task / plan.groups * plan.block_tiles;
  const int64_t row_tiles = std::min(plan.block_tiles, plan.row_tiles - first_tile);
  const int64_t m0 = first_tile * kTileRows;
  const int64_t present = std::min(row_tiles * kTileRows, args.m() - m0);
  // What is made after panel p of a chunk; after the last, likely the next task's first.
  const auto following = [&](int64_t chunk, int64_t p) {
    if (p + 1 < panels) return Request(args, (first_panel + p + 1) * kPanel, chunk * kChunk);
    if (chunk + 1 < plan.chunks) return Request(args, first_panel * kPanel, (chunk + 1) * kChunk);
    const int64_t next = (first_panel + panels) * kPanel;
    return next < args.n() ? Request(args, next, 0) : Request();
  };
  if (plan.steps == 0) std::fill_n(tiles, panels * plan.tile_floats(), 0.0f);
  for (int64_t chunk = 0; chunk < std::max<int64_t>(1, plan.chunks); ++chunk) {
    const int64_t steps = std::min(kChunkSteps, plan.steps - chunk * kChunkSteps);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t n0 = (first_panel + p) * kPanel;
      float* tile = tiles + p * plan.tile_floats();
      if (steps > 0) {
        const char* b = ChunkOfPanel(args, ops, n0, chunk * kChunk, panel);
        const char* rows = all_rows + (chunk * plan.row_tiles + first_tile) * kChunkBytes;
        Multiply(rows, b, steps, row_tiles, chunk > 0, tile, following(chunk, p));
        if (plan.parts == 2) {
          Multiply(rows, b + kPanelBytes, steps, row_tiles, true, tile, Request());
        }
        if (plan.parts == 2 && args.a.dtype != DType::kBF16) {
          Multiply(rows + plan.rows_bytes(), b, steps, row_tiles, true, tile, Request());
        }
      }
      if (chunk + 1 < plan.chunks) continue;
      ops.finish_tile(args, MatMulOperands(args), 0, m0, present, n0,
                      std::min(kPanel, args.n() - n0), tile);
    }
  }
}

absl::Status Run(const KernelContext& context, const MatMulArgs& args) {
  if (args.out.empty()) return absl::OkStatus();
  const CpuStream& stream = CpuStream::Of(context);
  ThreadPool& pool = stream.pool();
  const PanelOps& ops = PanelOpsFor(stream.features().isa);
  const Plan plan(args, pool.size());
  const Scratch scratch = Carve(*context.workspace, plan, pool.size());
  if (!context.workspace->ok()) return absl::InternalError("amx: workspace too small");
  pool.ParallelFor(
      plan.row_tiles,
      [&](int64_t tile, int worker) {
        LayOutRows(args, ops, plan, tile, scratch.row + worker * plan.parts * plan.row_elements(),
                   scratch.rows);
      },
      args.m() * args.k() * 4);
  pool.ParallelFor(plan.row_blocks * plan.groups, [&](int64_t task, int worker) {
    RunTask(args, ops, plan, task, scratch.rows, scratch.panels + worker * plan.parts * kPanelBytes,
            scratch.tiles + worker * plan.group * plan.tile_floats());
  });
  return absl::OkStatus();
}

// Below, making panels takes longer than multiplying.
constexpr int64_t kMinRows = 33;
// Where they are there already: below, `pairs_*` wait for the weights alone and round nothing.
constexpr int64_t kMinPairsRows = 9;

// What all kernels need.
absl::Status SupportsShape(const KernelContext& context, const MatMulArgs& args, int64_t least) {
  if (args.m() < least) return Unimplemented("takes from ", least, " rows, got ", args.m());
  if (args.out.rank() != 2) return Unimplemented("takes no batches");
  const CpuFeatures& features = CpuStream::Of(context).features();
  if (!features.amx_bf16) {
    return Unimplemented(
        "needs AMX BF16, which the processor, the system or the stream's limit does not allow");
  }
  return absl::OkStatus();
}

absl::Status SupportsPacked(const KernelContext& context, const MatMulArgs& args) {
  const Int8Weights* packed = Packed(args);
  if (packed == nullptr) {
    // The usual answer where weights are floats: copying it allocates nothing.
    static const absl::Status kNeedsPacked = Unimplemented("needs packed quantised weights");
    return kNeedsPacked;
  }
  if (args.float_activations) {
    return Unimplemented("rounds activations to bf16, but float_activations is set");
  }
  if (ExpandUnitsFor(packed->dtype) == nullptr) {
    return Unimplemented("needs AVX-512 VBMI and BF16 to dequantise");
  }
  return SupportsShape(context, args, kMinRows);
}

absl::Status SupportsBF16(const KernelContext& context, const MatMulArgs& args) {
  if (!args.b.present() || args.b.dtype != DType::kBF16) {
    return Unimplemented("needs bf16 weights in b");
  }
  if (args.float_activations && args.a.dtype != DType::kBF16) {
    return Unimplemented("rounds activations to bf16, but float_activations is set");
  }
  if (args.b.stride(-1) != 1 && args.k() > 1) {
    return Unimplemented("needs b with contiguous rows, got stride ", args.b.stride(-1));
  }
  if (PairsOf(args) != nullptr) return Unimplemented("b is packed in pairs: amx_pairs");
  return SupportsShape(context, args, kMinRows);
}

absl::Status SupportsF16(const KernelContext& context, const MatMulArgs& args) {
  if (!args.b.present() || args.b.dtype != DType::kF16) {
    return Unimplemented("needs f16 weights in b");
  }
  if (args.a.dtype == DType::kF16) {
    return Unimplemented("leaves out products of low parts, which f16 activations have");
  }
  if (args.float_activations && args.a.dtype != DType::kBF16) {
    return Unimplemented("rounds activations to 16 bits, but float_activations is set");
  }
  if (args.b.stride(-1) != 1 && args.k() > 1) {
    return Unimplemented("needs b with contiguous rows, got stride ", args.b.stride(-1));
  }
  return SupportsShape(context, args, kMinRows);
}

absl::Status SupportsPairs(const KernelContext& context, const MatMulArgs& args) {
  if (PairsOf(args) == nullptr) return Unimplemented("needs bf16 weights packed in pairs");
  if (args.float_activations && args.a.dtype != DType::kBF16) {
    return Unimplemented("rounds activations to bf16, but float_activations is set");
  }
  return SupportsShape(context, args, kMinPairsRows);
}

// Few rows (every token generated) must find the next kernel without words.
bool AppliesPacked(const MatMulArgs& args) {
  return args.m() >= kMinRows && Packed(args) != nullptr && !args.float_activations;
}
bool AppliesPairs(const MatMulArgs& args) {
  return args.m() >= kMinPairsRows && PairsOf(args) != nullptr;
}
bool AppliesF16(const MatMulArgs& args) {
  return args.m() >= kMinRows && args.b.dtype == DType::kF16 && args.a.dtype != DType::kF16 &&
         (args.a.dtype == DType::kBF16 || !args.float_activations);
}
bool AppliesBF16(const MatMulArgs& args) {
  return args.b.dtype == DType::kBF16 && (args.a.dtype == DType::kBF16 || !args.float_activations);
}

}  // namespace

Kernel<MatMulArgs> AmxPackedMatMul() {
  return {"amx_packed", DeviceKind::kCpu, SupportsPacked, WorkspaceBytes, Run, AppliesPacked};
}
Kernel<MatMulArgs> AmxPairsMatMul() {
  return {"amx_pairs", DeviceKind::kCpu, SupportsPairs, WorkspaceBytes, Run, AppliesPairs};
}
Kernel<MatMulArgs> AmxBF16MatMul() {
  return {"amx_bf16", DeviceKind::kCpu, SupportsBF16, WorkspaceBytes, Run, AppliesBF16};
}
Kernel<MatMulArgs> AmxF16MatMul() {
  return {"amx_f16", DeviceKind::kCpu, SupportsF16, WorkspaceBytes, Run, AppliesF16};
}

}  // namespace tandem::cpu
