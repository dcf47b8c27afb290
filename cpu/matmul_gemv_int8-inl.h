// The inner loops of matmul_gemv_int8.h over a Machine: one instruction set's vectors of
// Machine::kBlocks (4 or 2) 16-byte pieces, one piece per block of 32 activations. Included by one
// file per Machine, inside namespace tandem::cpu and its anonymous namespace, within
// HWY_PUSH_ATTRIBUTES: hence no includes here, no lambdas, no library calls.
//
// Algorithm: weights are unpacked to unsigned bytes, piece by piece, and multiplied by the signed
//   activations of the same piece. A piece gives four sums, of its block's first half and then,
//   added to them, of its second half. Sums times weight scale times activation scale are added up
//   in f32. Per quad and activation row: two dot products, a conversion, a multiplication and a
//   multiply-add for 128 products.
// Memory: the weight rows are walked in order; what lies kAheadBytes further on is requested.

#define TANDEM_GEMV_INLINE inline __attribute__((always_inline))

constexpr int64_t kAheadBytes = 8192;  // from a prefetch to its use: 200 ns at 40 GB/s
// Activations of one pass over a strip: they stay in L1.
constexpr int64_t kPassBytes = 32768;

template <int64_t kBytes>
TANDEM_GEMV_INLINE void PrefetchAhead(const uint8_t* from) {
#pragma GCC unroll 4
  for (int64_t byte = 0; byte < kBytes; byte += 64) {
    __builtin_prefetch(from + kAheadBytes + byte, 0, 2);
  }
}

// sum[m] += the products of a vector of pieces, whose activations begin at `quad`, scaled.
template <class M, int kRows>
TANDEM_GEMV_INLINE void AddPieces(typename M::Bytes first, typename M::Bytes second,
                                  typename M::Floats scale, const uint8_t* quad, int64_t row_bytes,
                                  typename M::Floats (&sum)[kRows]) {
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    const uint8_t* x = quad + m * row_bytes;
    const typename M::Ints dots =
        M::Dot(M::Dot(M::ZeroInts(), first, M::LoadBytes(x)), second, M::LoadBytes(x + 64));
    sum[m] = M::MulAdd(M::ToFloats(dots), M::Mul(scale, M::LoadFloats(x + 128)), sum[m]);
  }
}

// --- q8_0, q4_0 ---

struct StripQ8_0 {
  static constexpr int64_t kBytes = 34, kBlocksPerUnit = 4, kUnitBytes = 256;
  template <class M, int kRows>
  static TANDEM_GEMV_INLINE void AddUnit(const uint8_t* w, const uint8_t* x,
                                         typename M::Floats (&sum)[kRows]) {
#pragma GCC unroll 2
    for (int v = 0; v < 4 / M::kBlocks; ++v) {
      const uint8_t* blocks = w + v * M::kBlocks * kBytes;
      typename M::Bytes first, second;
      M::template LoadHalves<kBytes>(blocks + 2, first, second);
      const typename M::Floats scale = M::template LoadScales<kBytes>(blocks);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const uint8_t* at = x + m * kUnitBytes + v * M::kBlocks * 16;
        const typename M::Ints dots = M::DotSigned(first, second, at, at + 64, at + 192);
        sum[m] = M::MulAdd(M::ToFloats(dots), M::Mul(scale, M::LoadFloats(at + 128)), sum[m]);
      }
    }
  }
};

struct StripQ4_0 {
  static constexpr int64_t kBytes = 18, kBlocksPerUnit = 4, kUnitBytes = 256;
  template <class M, int kRows>
  static TANDEM_GEMV_INLINE void AddUnit(const uint8_t* w, const uint8_t* x,
                                         typename M::Floats (&sum)[kRows]) {
#pragma GCC unroll 2
    for (int v = 0; v < 4 / M::kBlocks; ++v) {
      const uint8_t* blocks = w + v * M::kBlocks * kBytes;
      const typename M::Bytes both = M::template LoadPieces<kBytes>(blocks + 2);
      const typename M::Bytes first = M::Mask(both, 15);
      const typename M::Bytes second = M::Mask(M::template ShiftRight<4>(both), 15);
      const typename M::Floats scale = M::template LoadScales<kBytes>(blocks);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        const uint8_t* at = x + m * kUnitBytes + v * M::kBlocks * 16;
        const typename M::Ints dots = M::Dot(M::Dot(M::LoadInts(at + 192), first, M::LoadBytes(at)),
                                             second, M::LoadBytes(at + 64));
        sum[m] = M::MulAdd(M::ToFloats(dots), M::Mul(scale, M::LoadFloats(at + 128)), sum[m]);
      }
    }
  }
};

// --- q4_k, q5_k: low nibbles are blocks 0 2 4 6, high nibbles 1 3 5 7 ---

struct StripQ4_K {
  static constexpr int64_t kBytes = 144, kBlocksPerUnit = 1, kUnitBytes = 448;
  static constexpr int64_t kQuants = 16;
  template <class M, bool kHigh, int kSet>
  static TANDEM_GEMV_INLINE void AddFifthBit(const uint8_t*, typename M::Bytes&,
                                             typename M::Bytes&) {}
};

struct StripQ5_K {
  static constexpr int64_t kBytes = 176, kBlocksPerUnit = 1, kUnitBytes = 448;
  static constexpr int64_t kQuants = 48;
  // Bit s of byte i is the fifth bit of element i of block s.
  template <class M, bool kHigh, int kSet>
  static TANDEM_GEMV_INLINE void AddFifthBit(const uint8_t* w, typename M::Bytes& first,
                                             typename M::Bytes& second) {
    constexpr int kBase = kHigh + 2 * M::kBlocks * kSet - 4;
    first = M::OrMasked(
        first, M::template ShiftPieces<kBase, kBase + 2, kBase + 4, kBase + 6>(M::Repeat(w + 16)),
        16);
    second = M::OrMasked(
        second, M::template ShiftPieces<kBase, kBase + 2, kBase + 4, kBase + 6>(M::Repeat(w + 32)),
        16);
  }
};

template <class M, class F, int kRows, int kSet>
TANDEM_GEMV_INLINE void AddNibbleSet(const uint8_t* w, const uint8_t* x,
                                     const typename M::MinScales& scales,
                                     typename M::Floats (&sum)[kRows]) {
  typename M::Bytes first, second;
  M::template LoadHalves<32>(w + F::kQuants + kSet * 32 * M::kBlocks, first, second);
  typename M::Bytes low_first = M::Mask(first, 15), low_second = M::Mask(second, 15);
  F::template AddFifthBit<M, false, kSet>(w, low_first, low_second);
  AddPieces<M, kRows>(low_first, low_second, scales.template Of<0, kSet>(),
                      x + kSet * 16 * M::kBlocks, F::kUnitBytes, sum);
  typename M::Bytes high_first = M::Mask(M::template ShiftRight<4>(first), 15);
  typename M::Bytes high_second = M::Mask(M::template ShiftRight<4>(second), 15);
  F::template AddFifthBit<M, true, kSet>(w, high_first, high_second);
  AddPieces<M, kRows>(high_first, high_second, scales.template Of<1, kSet>(),
                      x + 192 + kSet * 16 * M::kBlocks, F::kUnitBytes, sum);
}

template <class M, class F, int kRows>
TANDEM_GEMV_INLINE void AddNibbles(const uint8_t* w, const uint8_t* x,
                                   typename M::Floats (&sum)[kRows]) {
  const typename M::MinScales scales(w);
  AddNibbleSet<M, F, kRows, 0>(w, x, scales, sum);
  if constexpr (M::kBlocks == 2) AddNibbleSet<M, F, kRows, 1>(w, x, scales, sum);
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    sum[m] = scales.AddCorrection(x + m * F::kUnitBytes + 384, sum[m]);
  }
}

// --- q6_k, tq2_0: fields of 64, or of 32, elements are blocks 0 1 4 5 and 2 3 6 7 ---

struct StripQ6_K {
  static constexpr int64_t kBytes = 210, kBlocksPerUnit = 1, kUnitBytes = 448;
};

// Half blocks have scales of their own: whole numbers, so that they are applied to whole numbers.
template <class M, int kRows, int kQuad, int kSet>
TANDEM_GEMV_INLINE void AddSixBits(typename M::Bytes first, typename M::Bytes second,
                                   const uint8_t* x, const typename M::SixScales& scales,
                                   typename M::Floats (&sum)[kRows]) {
  const typename M::Ints scale_first = scales.template Of<kQuad, kSet, 0>();
  const typename M::Ints scale_second = scales.template Of<kQuad, kSet, 1>();
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    const uint8_t* at = x + m * StripQ6_K::kUnitBytes + kQuad * 192 + kSet * 16 * M::kBlocks;
    const typename M::Ints dots =
        M::AddInts(M::MulInts(M::Dot(M::ZeroInts(), first, M::LoadBytes(at)), scale_first),
                   M::MulInts(M::Dot(M::ZeroInts(), second, M::LoadBytes(at + 64)), scale_second));
    sum[m] = M::MulAdd(M::ToFloats(dots), M::Mul(scales.d, M::LoadFloats(at + 128)), sum[m]);
  }
}

template <class M, int kRows, int kSet>
TANDEM_GEMV_INLINE void AddSixBitSet(const uint8_t* w, const uint8_t* x,
                                     const typename M::SixScales& scales,
                                     typename M::Floats (&sum)[kRows]) {
  typename M::Bytes first, second, top_first, top_second;
  M::template LoadHalves<32>(w + kSet * 64, first, second);
  M::template LoadPairs<kSet>(w + 128, top_first, top_second);
  AddSixBits<M, kRows, 0, kSet>(
      M::OrMasked(M::Mask(first, 15), M::template ShiftPieces<-4, -2, -4, -2>(top_first), 48),
      M::OrMasked(M::Mask(second, 15), M::template ShiftPieces<-4, -2, -4, -2>(top_second), 48), x,
      scales, sum);
  AddSixBits<M, kRows, 1, kSet>(M::OrMasked(M::Mask(M::template ShiftRight<4>(first), 15),
                                            M::template ShiftPieces<0, 2, 0, 2>(top_first), 48),
                                M::OrMasked(M::Mask(M::template ShiftRight<4>(second), 15),
                                            M::template ShiftPieces<0, 2, 0, 2>(top_second), 48),
                                x, scales, sum);
}

struct StripTQ2_0 {
  static constexpr int64_t kBytes = 66, kBlocksPerUnit = 1, kUnitBytes = 448;
};

template <class M, int kRows, int kSet>
TANDEM_GEMV_INLINE void AddTernarySet(const uint8_t* w, const uint8_t* x, typename M::Floats d,
                                      typename M::Floats (&sum)[kRows]) {
  typename M::Bytes first, second;
  M::template LoadPairs<kSet>(w, first, second);
  first = M::template ShiftPieces<0, 2, 0, 2>(first);
  second = M::template ShiftPieces<0, 2, 0, 2>(second);
  const uint8_t* at = x + kSet * 16 * M::kBlocks;
  AddPieces<M, kRows>(M::Mask(first, 3), M::Mask(second, 3), d, at, StripTQ2_0::kUnitBytes, sum);
  AddPieces<M, kRows>(M::Mask(M::template ShiftRight<4>(first), 3),
                      M::Mask(M::template ShiftRight<4>(second), 3), d, at + 192,
                      StripTQ2_0::kUnitBytes, sum);
}

// One unit of one weight row.
template <class M, class F, int kRows>
struct Unit {
  static TANDEM_GEMV_INLINE void Add(const uint8_t* w, const uint8_t* x,
                                     typename M::Floats (&sum)[kRows]) {
    F::template AddUnit<M, kRows>(w, x, sum);
  }
};
template <class M, int kRows>
struct Unit<M, StripQ4_K, kRows> {
  static TANDEM_GEMV_INLINE void Add(const uint8_t* w, const uint8_t* x,
                                     typename M::Floats (&sum)[kRows]) {
    AddNibbles<M, StripQ4_K, kRows>(w, x, sum);
  }
};
template <class M, int kRows>
struct Unit<M, StripQ5_K, kRows> {
  static TANDEM_GEMV_INLINE void Add(const uint8_t* w, const uint8_t* x,
                                     typename M::Floats (&sum)[kRows]) {
    AddNibbles<M, StripQ5_K, kRows>(w, x, sum);
  }
};
template <class M, int kRows>
struct Unit<M, StripQ6_K, kRows> {
  static TANDEM_GEMV_INLINE void Add(const uint8_t* w, const uint8_t* x,
                                     typename M::Floats (&sum)[kRows]) {
    const typename M::SixScales scales(w + 192);
    AddSixBitSet<M, kRows, 0>(w, x, scales, sum);
    if constexpr (M::kBlocks == 2) AddSixBitSet<M, kRows, 1>(w, x, scales, sum);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      sum[m] = scales.AddCorrection(x + m * StripQ6_K::kUnitBytes + 384, sum[m]);
    }
  }
};
template <class M, int kRows>
struct Unit<M, StripTQ2_0, kRows> {
  static TANDEM_GEMV_INLINE void Add(const uint8_t* w, const uint8_t* x,
                                     typename M::Floats (&sum)[kRows]) {
    const typename M::Floats d = M::BroadcastHalf(w + 64);
    AddTernarySet<M, kRows, 0>(w, x, d, sum);
    if constexpr (M::kBlocks == 2) AddTernarySet<M, kRows, 1>(w, x, d, sum);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      sum[m] = M::AddUpperProduct(d, x + m * StripTQ2_0::kUnitBytes + 384, sum[m]);
    }
  }
};

// Weight rows at a time: two share the activations that are loaded.
template <class M, int kRows>
constexpr int kTogether = kRows == 1 || M::kBlocks == 2 ? 1 : 2;

template <class M, class F, int kRows, int kCount>
TANDEM_GEMV_INLINE void AddRows(const Int8StripArgs& args, int64_t n, int64_t begin, int64_t end,
                                int64_t blocks_left) {
  const uint8_t* w = args.b + n * args.row_bytes + begin * F::kBlocksPerUnit * F::kBytes;
  const uint8_t* x = args.units + begin * kRows * F::kUnitBytes;
  typename M::Floats sum[kCount][kRows];
#pragma GCC unroll 2
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) sum[r][m] = M::ZeroFloats();
  }
  for (int64_t unit = begin; unit < end; ++unit) {
#pragma GCC unroll 2
    for (int r = 0; r < kCount; ++r) {
      PrefetchAhead<F::kBlocksPerUnit * F::kBytes>(w + r * args.row_bytes);
      Unit<M, F, kRows>::Add(w + r * args.row_bytes, x, sum[r]);
    }
    w += F::kBlocksPerUnit * F::kBytes;
    x += kRows * F::kUnitBytes;
  }
  if (blocks_left > 0) {  // less than a unit: the rest of it is zeros
#pragma GCC unroll 2
    for (int r = 0; r < kCount; ++r) {
      uint8_t last[F::kBlocksPerUnit * F::kBytes] = {};
      __builtin_memcpy(last, w + r * args.row_bytes, static_cast<size_t>(blocks_left * F::kBytes));
      Unit<M, F, kRows>::Add(last, x, sum[r]);
    }
  }
#pragma GCC unroll 2
  for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      float* to = args.tile + m * args.tile_stride + n + r;
      const float part = M::Sum(sum[r][m]);
      *to = begin == 0 ? part : *to + part;
    }
  }
}

template <class M, class F, int kRows>
void RunStrip(const Int8StripArgs& args) {
  constexpr int64_t kPass = kPassBytes / (kRows * F::kUnitBytes);
  constexpr int kCount = kTogether<M, kRows>;
  const int64_t units = args.blocks / F::kBlocksPerUnit;
  const int64_t left = args.blocks % F::kBlocksPerUnit;
  int64_t begin = 0;
  do {
    const int64_t end = units - begin < kPass ? units : begin + kPass;
    const int64_t left_now = end == units ? left : 0;
    int64_t n = 0;
    for (; n + kCount <= args.columns; n += kCount) {
      AddRows<M, F, kRows, kCount>(args, n, begin, end, left_now);
    }
    for (; n < args.columns; ++n) AddRows<M, F, kRows, 1>(args, n, begin, end, left_now);
    begin = end;
  } while (begin < units);
}

template <class M, class F>
Int8Strip StripOf(int64_t rows) {
  switch (rows) {
    case 1:
      return RunStrip<M, F, 1>;
    case 2:
      return RunStrip<M, F, 2>;
    case 4:
      return RunStrip<M, F, 4>;
    default:
      return RunStrip<M, F, 8>;
  }
}

template <class M>
Int8Strip StripOf(DType dtype, int64_t rows) {
  switch (dtype) {
    case DType::kQ4_0:
      return StripOf<M, StripQ4_0>(rows);
    case DType::kQ4_K:
      return StripOf<M, StripQ4_K>(rows);
    case DType::kQ5_K:
      return StripOf<M, StripQ5_K>(rows);
    case DType::kQ6_K:
      return StripOf<M, StripQ6_K>(rows);
    case DType::kTQ2_0:
      return StripOf<M, StripTQ2_0>(rows);
    default:
      return StripOf<M, StripQ8_0>(rows);
  }
}
