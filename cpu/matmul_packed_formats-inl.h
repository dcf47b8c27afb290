// The block formats of the packed layout (matmul_packed.h), one struct each: how the quants and
// scales of a unit are loaded, over a Machine (matmul_packed_tile-inl.h). Included inside namespace
// tandem::cpu and an anonymous namespace, where TANDEM_TILE_INLINE is defined.
//
// Load<M, kPair>: steps 2 kPair and 2 kPair + 1 of 16 features. kMax: largest unsigned quant.

// Steps 2v and 2v + 1 out of the nibbles of one vector.
template <class M>
TANDEM_TILE_INLINE void LoadNibbles(const uint8_t* pairs, typename M::Bytes& even,
                                    typename M::Bytes& odd) {
  const typename M::Bytes both = M::LoadBytes(pairs);
  even = M::Mask(both, 15);
  odd = M::Mask(M::template ShiftRight<4>(both), 15);
}

struct TileQ8_0 {
  static constexpr int kBlocks = 2, kHalves = 1, kMax = 255;
  static constexpr bool kOffset = true, kMinima = false;
  static constexpr int64_t kBytes = 2176;
  template <class M, int kPair>
  static TANDEM_TILE_INLINE void Load(const uint8_t* unit, int block, int group,
                                      typename M::Bytes& even, typename M::Bytes& odd) {
    const uint8_t* steps = unit + 128 + block * 1024 + kPair * 256 + group * 64;
    even = M::LoadBytes(steps);
    odd = M::LoadBytes(steps + 128);
  }
  template <class M>
  static TANDEM_TILE_INLINE typename M::Floats Scale(const uint8_t* unit, int block, int,
                                                     int group) {
    return M::LoadHalfFloats(unit + block * 64 + group * 32);
  }
};

struct TileQ4_0 {
  static constexpr int kBlocks = 2, kHalves = 1, kMax = 15;
  static constexpr bool kOffset = true, kMinima = false;
  static constexpr int64_t kBytes = 1152;
  template <class M, int kPair>
  static TANDEM_TILE_INLINE void Load(const uint8_t* unit, int block, int group,
                                      typename M::Bytes& even, typename M::Bytes& odd) {
    LoadNibbles<M>(unit + 128 + block * 512 + kPair * 128 + group * 64, even, odd);
  }
  template <class M>
  static TANDEM_TILE_INLINE typename M::Floats Scale(const uint8_t* unit, int block, int,
                                                     int group) {
    return M::LoadHalfFloats(unit + block * 64 + group * 32);
  }
};

// Bits kFrom.. of every byte moved to kTo.., and the others masked off.
template <class M, int kFrom, int kTo>
TANDEM_TILE_INLINE typename M::Bytes MoveBits(typename M::Bytes x, int mask) {
  if constexpr (kFrom > kTo) return M::Mask(M::template ShiftRight<kFrom - kTo>(x), mask);
  if constexpr (kFrom < kTo) return M::Mask(M::template ShiftLeft<kTo - kFrom>(x), mask);
  return M::Mask(x, mask);
}

// q4_k, and what q5_k shares with it.
struct TileQ4_K {
  static constexpr int kBlocks = 8, kHalves = 1, kMax = 15;
  static constexpr bool kOffset = false, kMinima = true;
  static constexpr int64_t kBytes = 4736;
  template <class M, int kPair>
  static TANDEM_TILE_INLINE void Load(const uint8_t* unit, int block, int group,
                                      typename M::Bytes& even, typename M::Bytes& odd) {
    LoadNibbles<M>(unit + 640 + block * 512 + kPair * 128 + group * 64, even, odd);
  }
  template <class M>
  static TANDEM_TILE_INLINE typename M::Floats Scale(const uint8_t* unit, int block, int,
                                                     int group) {
    return M::Mul(M::LoadHalfFloats(unit + group * 32),
                  M::LoadUnsignedBytes(unit + 128 + block * 32 + group * 16));
  }
  template <class M>
  static TANDEM_TILE_INLINE typename M::Floats Minima(const uint8_t* unit, int block, int group) {
    return M::Mul(M::LoadHalfFloats(unit + 64 + group * 32),
                  M::LoadUnsignedBytes(unit + 384 + block * 32 + group * 16));
  }
};

struct TileQ5_K : TileQ4_K {
  static constexpr int kMax = 31;
  static constexpr int64_t kBytes = 5760;
  template <class M, int kPair>
  static TANDEM_TILE_INLINE void Load(const uint8_t* unit, int block, int group,
                                      typename M::Bytes& even, typename M::Bytes& odd) {
    TileQ4_K::Load<M, kPair>(unit, block, group, even, odd);
    const typename M::Bytes high = M::LoadBytes(unit + 4736 + block * 128 + group * 64);
    even = M::Or(even, MoveBits<M, 2 * kPair, 4>(high, 16));
    odd = M::Or(odd, MoveBits<M, 2 * kPair + 1, 4>(high, 16));
  }
};

struct TileQ6_K {
  static constexpr int kBlocks = 8, kHalves = 2, kMax = 63;
  static constexpr bool kOffset = true, kMinima = false;
  static constexpr int64_t kBytes = 6720;
  template <class M, int kPair>
  static TANDEM_TILE_INLINE void Load(const uint8_t* unit, int block, int group,
                                      typename M::Bytes& even, typename M::Bytes& odd) {
    LoadNibbles<M>(unit + 576 + block * 512 + kPair * 128 + group * 64, even, odd);
    const typename M::Bytes high =
        M::LoadBytes(unit + 4672 + block * 256 + kPair / 2 * 128 + group * 64);
    even = M::Or(even, MoveBits<M, kPair % 2 * 4, 4>(high, 48));
    odd = M::Or(odd, MoveBits<M, kPair % 2 * 4 + 2, 4>(high, 48));
  }
  template <class M>
  static TANDEM_TILE_INLINE typename M::Floats Scale(const uint8_t* unit, int block, int half,
                                                     int group) {
    return M::Mul(M::LoadHalfFloats(unit + group * 32),
                  M::LoadSignedBytes(unit + 64 + (block * 2 + half) * 32 + group * 16));
  }
};

struct TileTQ2_0 {
  static constexpr int kBlocks = 8, kHalves = 1, kMax = 3;
  static constexpr bool kOffset = true, kMinima = false;
  static constexpr int64_t kBytes = 2112;
  template <class M, int kPair>
  static TANDEM_TILE_INLINE void Load(const uint8_t* unit, int block, int group,
                                      typename M::Bytes& even, typename M::Bytes& odd) {
    const typename M::Bytes four =
        M::LoadBytes(unit + 64 + block * 256 + kPair / 2 * 128 + group * 64);
    even = MoveBits<M, kPair % 2 * 4, 0>(four, 3);
    odd = MoveBits<M, kPair % 2 * 4 + 2, 0>(four, 3);
  }
  template <class M>
  static TANDEM_TILE_INLINE typename M::Floats Scale(const uint8_t* unit, int, int, int group) {
    return M::LoadHalfFloats(unit + group * 32);
  }
};
