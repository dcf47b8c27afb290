// Tiles: Intel AMX's registers of 16 rows x 64 bytes, and the products of two of them.
//
// A thread configures its tiles (TileConfig), and then has eight, tmm0 .. tmm7, each as large as
// the configuration says; the operations below name them by number. With M rows of A, N columns of
// B and a depth of K elements, C [M][N] in 32 bits += A * B:
//
//   operation        A, M rows                 B, K / 2 (K / 4) rows                        C
//   TileDotBF16      bf16 [M][K], K <= 32      bf16 pairs [K / 2][N][2]: b[2 i + j][n]       f32
//   TileDotInt8<..>  bytes [M][K], K <= 64     bytes in fours [K / 4][N][4]: b[4 i + j][n]   int32
//
// M <= 16, N <= 16. So A is row-major as it is, and B has the neighbouring elements of K that make
// 32 bits beside each other ("VNNI" layout), for each column: a bf16 panel of matmul_panels.h, and
// the steps of matmul_packed.h side by side.
//
// Numbers: bf16 products are exact and summed in f32, rounded to nearest even, subnormals taken as
// zero; integer sums are exact, modulo 2^32.
// Speed: one product of full tiles takes 16 cycles of a unit that nothing else uses, and its sums
// are ready after about 52: four tiles of sums side by side keep the unit busy. A tile is loaded in
// 8 cycles at best, so that two loads per product are what one core can do.
//
// The operations are written as assembly because no file here has ISA compiler flags, and because
// GCC 12's own _tile_loadd does not say that it reads memory: stores before it may be moved behind.
// They end the process where DetectCpu's amx_bf16 or amx_int8 is false: kernels check that first.
// Every function, library calls included (oneDNN has a configuration of its own), may change the
// tiles and their configuration: nothing is called between construction and the last store.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace tandem::cpu {

// GCC and clang from these versions on come with assemblers that know the instructions.
#if defined(__x86_64__) && ((defined(__clang__) && __clang_major__ >= 12) || \
                            (!defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 11))
#define TANDEM_HAVE_AMX 1
#else
#define TANDEM_HAVE_AMX 0
#endif

inline constexpr int kTiles = 8;
inline constexpr int kTileRows = 16;
inline constexpr int kTileRowBytes = 64;

// Are bytes of A, B signed or not?
enum class TileSigns : uint8_t { kSignedSigned, kSignedUnsigned, kUnsignedSigned };

// What `ldtilecfg` reads (palette 1). Tiles that are not set have no rows and cannot be used.
struct alignas(64) TileShapes {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  std::array<uint8_t, 14> reserved = {};
  std::array<uint16_t, 16> row_bytes_of = {};
  std::array<uint8_t, 16> rows_of = {};

  // rows in 1..16, row_bytes a multiple of 4 in 4..64.
  TileShapes& Set(int tile, int rows, int row_bytes) {
    rows_of[static_cast<size_t>(tile)] = static_cast<uint8_t>(rows);
    row_bytes_of[static_cast<size_t>(tile)] = static_cast<uint16_t>(row_bytes);
    return *this;
  }
  static TileShapes AllFull() {
    TileShapes shapes;
    for (int tile = 0; tile < kTiles; ++tile) shapes.Set(tile, kTileRows, kTileRowBytes);
    return shapes;
  }
};
static_assert(sizeof(TileShapes) == 64);

#if TANDEM_HAVE_AMX

// The calling thread's tiles while this lives: all zero at first, given back at the end (a thread
// that leaves tiles in use makes every switch of threads save them).
class TileConfig {
 public:
  explicit TileConfig(const TileShapes& shapes) {
    __asm__ volatile("ldtilecfg %0" ::"m"(shapes) : "memory");
  }
  ~TileConfig() { __asm__ volatile("tilerelease" ::: "memory"); }
  TileConfig(const TileConfig&) = delete;
  TileConfig& operator=(const TileConfig&) = delete;
};

#define TANDEM_TILE_INLINE inline __attribute__((always_inline))

template <int kTile>
TANDEM_TILE_INLINE void TileZero() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// Row r from `from` + r * stride bytes; no alignment needed, but lines that are cut in two cost.
template <int kTile>
TANDEM_TILE_INLINE void TileLoad(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
TANDEM_TILE_INLINE void TileStore(void* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(kTile) : "memory");
}
// kC += kA * kB
template <int kC, int kA, int kB>
TANDEM_TILE_INLINE void TileDotBF16() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
}
template <int kC, int kA, int kB, TileSigns kSigns>
TANDEM_TILE_INLINE void TileDotInt8() {
  if constexpr (kSigns == TileSigns::kSignedSigned) {
    __asm__ volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  } else if constexpr (kSigns == TileSigns::kSignedUnsigned) {
    __asm__ volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  } else {
    __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kC), "i"(kA), "i"(kB));
  }
}

#undef TANDEM_TILE_INLINE

#endif  // TANDEM_HAVE_AMX

}  // namespace tandem::cpu
