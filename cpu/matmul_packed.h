// Quantised weights packed for integer dot products, and the pieces of that product which depend on
// the instruction set. The kernel is matmul_packed.cc; weights are packed in
// matmul_packed_weights.cc.
//
// Weights. A *panel* is kPanelColumns output features, two *groups* of 16: one lane each of a
//   512-bit vector of 32-bit sums. Along K a panel is a sequence of *units*, each of whole blocks:
//   first the scales of its blocks, feature by feature, then its quants (unsigned, with the
//   format's offset left in), arranged as a dot product instruction takes them: a *step* is 4
//   elements of K of 16 features, 64 bytes; a block of 32 elements has 8 steps. Quants of fewer
//   than 8 bits share bytes: of two nibbles the low one belongs to step 2v, the high one to
//   step 2v + 1.
//
//   | format | K   | bytes | contents; [s] sub-block of 32, [g] group, [16] features             |
//   |--------|-----|-------|---------------------------------------------------------------------|
//   | q8_0   | 64  | 2176  | d f16 [2 s][g][16]; q [2 s][8 steps][g][64]                         |
//   | q4_0   | 64  | 1152  | d f16 [2 s][g][16]; nibbles [2 s][4 pairs of steps][g][64]          |
//   | q4_k   | 256 | 4736  | d, dmin f16 [g][16]; scales, minima u8 [8 s][g][16];                |
//   |        |     |       | nibbles [8 s][4 pairs][g][64]                                       |
//   | q5_k   | 256 | 5760  | as q4_k; fifth bits [8 s][g][64]: bit i of step i                   |
//   | q6_k   | 256 | 6720  | d f16 [g][16]; scales i8 [16 halves of s][g][16];                   |
//   |        |     |       | nibbles [8 s][4 pairs][g][64]; top bits [8 s][2 fours][g][64]       |
//   | tq2_0  | 256 | 2112  | d f16 [g][16]; q [8 s][2 fours of steps][g][64]                     |
//
//   Features beyond N and blocks beyond K have scale 0. Where N is a multiple of 32 and K of a
//   unit's, the bytes are as many as those of the stored form, but for q4_k (2.8 % more) and q5_k
//   (2.3 %), whose 6-bit scales get a byte each.
//
// Activations. A *strip* is up to StripRows rows. Per 32 elements of K (BlocksOf(k) of them,
//   whole units), with R rows: q int8 [R][32], scale f32 [R], and two words [2][R] per row, from
//   the sums of q over the block's halves: see Corrections.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "core/buffer.h"
#include "core/ops/matmul.h"
#include "cpu/isa.h"
#include "cpu/matmul_epilogue.h"

namespace tandem::cpu {

inline constexpr int64_t kPanelColumns = 32;
inline constexpr int64_t kStripBlock = 32;                      // elements of K
inline constexpr int64_t kStripRowBytes = kStripBlock + 3 * 4;  // of one row of one block

// What an activation's block keeps beside q and scale.
enum class Corrections : uint8_t {
  kOffset,  // -offset * (sum of the block), 0: what a sum of products starts from
  kHalves,  // -offset * (sum of the half), for each half
  kMinima,  // scale * (sum of the block) as f32, 0: multiplies the weights' minima
};

struct PackedFormat {
  int64_t depth = 0;  // elements of K per unit
  int64_t bytes = 0;  // per unit of a panel
  Corrections corrections = Corrections::kOffset;
  int offset = 0;  // of the unsigned quants
};
// The format of a dtype; depth 0: it is not packed.
PackedFormat PackedFormatOf(DType dtype);

class Int8Weights final : public PackedWeights {
 public:
  static constexpr std::string_view kFormat = "cpu_int8_panels";

  explicit Int8Weights(std::shared_ptr<Buffer> buffer) : buffer_(std::move(buffer)) {}
  std::string_view format() const override { return kFormat; }
  int64_t bytes() const override { return buffer_->bytes(); }
  const uint8_t* data() const { return static_cast<const uint8_t*>(buffer_->data()); }

 private:
  std::shared_ptr<Buffer> buffer_;
};

// One strip by one panel, over part of K.
struct StripProduct {
  const uint8_t* units;  // of the panel
  int64_t count;         // units
  const uint8_t* activations;
  int64_t rows;
  float* tile;      // [rows][kPanelColumns] sums
  bool accumulate;  // add to the tile (else overwrite it)
  // Every 32 elements of K, this many cache lines are requested, from units + ahead on.
  int64_t prefetch_lines;
  int64_t ahead;
};

// The part that needs dot product instructions, by format. nullptr where the compiler lacks them.
using MultiplyStrip = void (*)(const StripProduct& product);
enum class DotIsa : uint8_t { kScalar, kAvx2, kAvxVnni, kAvx512Vnni };
// Rows of a strip: as many as leave registers for the weights beside the sums.
constexpr int StripRows(DotIsa isa) { return isa == DotIsa::kAvx512Vnni ? 6 : 3; }
MultiplyStrip MultiplyStripScalar(DType dtype);
MultiplyStrip MultiplyStripAvx2(DType dtype);
MultiplyStrip MultiplyStripAvxVnni(DType dtype);
MultiplyStrip MultiplyStripAvx512Vnni(DType dtype);

// The part that Highway does.
struct StripOps {
  // Rows m0.. of a as a strip. `row` is scratch for K rounded up to whole blocks.
  void (*quantize)(const TensorView& a, int64_t m0, int64_t rows, int64_t blocks,
                   const PackedFormat& format, float* row, uint8_t* strip);
  // The epilogue: out[m0.., n0..] from a tile, which is overwritten.
  void (*finish)(const MatMulArgs& args, int64_t m0, int64_t rows, int64_t n0, int64_t columns,
                 float* tile);
  // The same from the tiles of a gate and its up.
  void (*finish_gated)(const MatMulArgs& gate, const MatMulArgs& up, int64_t m0, int64_t rows,
                       int64_t n0, int64_t columns, float* gate_tile, float* up_tile);
};
const StripOps& StripOpsFor(Isa isa);

}  // namespace tandem::cpu
