// Decode attention over an i8 cache with integer dot products (vpdpbusd: four products of unsigned
// and signed bytes and their sum in each 32-bit lane), in place of widening to f32.
//
//   q        rounded to 16 bits, with one step per row: two digits of 8 bits, q = step * (256 h +
//   l) K        a tile is copied with 128 added to each byte (unsigned), rows behind each other;
//   the
//            sums start at -128 times the sum of q's digits, which takes that away again, exactly
//   scores   lanes are rows: digit by row (by part of D, with 4 rows). A few bytes of a key are
//            broadcast to all lanes, which takes no arithmetic, and there are no sums over lanes.
//   weights  times the scale of V, rounded to 16 bits with one step per row and tile, two digits
//   V        a tile is copied with 128 added and the bytes of four neighbouring keys beside each
//            other; a lane is a column. What the 128 add is 128 times the sum of the weights.
//
// Two digits make 4 byte products in the place of each multiply-add of 16 floats, so both products
// take half the instructions, and no conversions. Sums are exact; over 64 keys and 512 elements of
// D they fit 32 bits. The sum that normalises the weights is that of the unrounded ones. A row
// with an infinity or a NaN in q, or in a weight times its scale, has a step of NaN.
//
// Everything else is common to all caches. AVX-512 with VNNI only.
#if defined(TANDEM_CPU_ATTENTION_DECODE_INT8_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_ATTENTION_DECODE_INT8_INL_H_
#undef TANDEM_CPU_ATTENTION_DECODE_INT8_INL_H_
#else
#define TANDEM_CPU_ATTENTION_DECODE_INT8_INL_H_
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "cpu/attention_decode_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// Rows of bytes are copied in pieces of this many.
inline constexpr int64_t kStagedBytes = 64;
// For each worker, of `dim` columns.
inline int64_t StagedTileBytes(int64_t dim) {
  return kTileKeys * ((dim + kStagedBytes - 1) / kStagedBytes * kStagedBytes);
}
// What a row of q must be padded to: 4 or 8.
inline int Int8BlockRows(int padded) { return std::max(padded, 4); }

#if HWY_TARGET == HWY_AVX3

// The largest number of two signed digits: 256 * 127 + 127.
inline constexpr float kLargestInt16 = 32639.0f;

// sum + dot products of four unsigned bytes with four signed ones.
HWY_INLINE __m512i DotBytes(__m512i sum, __m512i u, __m512i s) {
  asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  return sum;
}

// What numbers of the largest magnitude `largest` (its bits: NaN and infinity are the largest) are
// multiplied by to fit two digits, and the step that undoes it.
HWY_INLINE void StepOf(__m512i largest, __m512& inverse, __m512& step) {
  const __m512 m = _mm512_castsi512_ps(largest);
  const __m512 limit = _mm512_set1_ps(kLargestInt16);
  const __mmask16 finite = _mm512_cmp_epi32_mask(largest, _mm512_set1_epi32(0x7F800000), 1);
  // Below, the inverse would overflow, and the numbers are as good as 0.
  const __mmask16 usual = finite & _mm512_cmp_ps_mask(m, _mm512_set1_ps(1e-33f), _CMP_GE_OQ);
  inverse = _mm512_maskz_div_ps(usual, limit, m);
  step = _mm512_maskz_div_ps(usual, m, limit);
  step = _mm512_mask_mov_ps(_mm512_set1_ps(std::numeric_limits<float>::quiet_NaN()), finite, step);
}

// The maximum, or sum, over the lanes of each row (lane % RT) in every lane of it.
template <int RT, bool kSum>
HWY_INLINE __m512i FoldRows(__m512i x) {
  const auto fold = [](__m512i a, __m512i b)
                        HWY_ATTR { return kSum ? _mm512_add_epi32(a, b) : _mm512_max_epu32(a, b); };
  x = fold(x, _mm512_shuffle_i32x4(x, x, 0x4E));
  if constexpr (RT == 4) x = fold(x, _mm512_shuffle_i32x4(x, x, 0xB1));
  return x;
}

// Rows of q [RT][stride], f32, as ScoresInt8 reads them: [D / (32 / RT)][digit][row][8 / RT] groups
// of four bytes, zeros behind D up to whole pieces; steps[row].
template <int RT>
HWY_NOINLINE void PackRowsInt8(const float* HWY_RESTRICT rows, int64_t stride, int64_t head_dim,
                               float* HWY_RESTRICT out, float* HWY_RESTRICT steps) {
  constexpr int kParts = 8 / RT;
  const int64_t padded = (head_dim + kStagedBytes - 1) / kStagedBytes * kStagedBytes;
  std::memset(out, 0, static_cast<size_t>(padded / (4 * kParts) * 64));
  char* const bytes = reinterpret_cast<char*>(out);
  for (int r = 0; r < RT; ++r) {
    const float* row = rows + r * stride;  // zeros up to a whole vector
    __m512i largest = _mm512_setzero_si512();
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      const __m512i bits = _mm512_castps_si512(_mm512_loadu_ps(row + i));
      largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF)));
    }
    largest = _mm512_set1_epi32(static_cast<int>(_mm512_reduce_max_epu32(largest)));
    __m512 inverse, step;
    StepOf(largest, inverse, step);
    steps[r] = _mm512_cvtss_f32(step);
    for (int64_t i = 0; i < head_dim; i += kLanes) {
      const __m512i x = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(row + i), inverse));
      // 256 * high + low, low signed: rounding x / 256 to nearest.
      const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
      alignas(16) uint32_t digits[2][4];
      _mm_store_si128(reinterpret_cast<__m128i*>(digits[0]), _mm512_cvtepi32_epi8(high));
      _mm_store_si128(reinterpret_cast<__m128i*>(digits[1]), _mm512_cvtepi32_epi8(x));
      for (int64_t g = 0; g < 4; ++g) {
        const int64_t group = i / 4 + g;
        for (int digit = 0; digit < 2; ++digit) {
          const int64_t lane = digit * 8 + r * kParts + group % kParts;
          std::memcpy(bytes + (group / kParts * 16 + lane) * 4, &digits[digit][g], 4);
        }
      }
    }
  }
}

// 64 bytes of a row, plus 128 each; kTail: only those of `mask`.
template <bool kTail>
HWY_INLINE __m512i LoadUnsigned(const int8_t* HWY_RESTRICT row, __mmask64 mask) {
  const __m512i x = kTail ? _mm512_maskz_loadu_epi8(mask, row) : _mm512_loadu_si512(row);
  return _mm512_xor_si512(x, _mm512_set1_epi8(-128));
}
// Of the columns in the last piece of a row.
HWY_INLINE __mmask64 TailMask(int64_t dim) {
  return dim % kStagedBytes == 0 ? 0 : (__mmask64{1} << dim % kStagedBytes) - 1;
}

// staged[key][head_dim in whole pieces]: K plus 128.
HWY_NOINLINE inline void StageKeys(const int8_t* const* HWY_RESTRICT k, int64_t keys,
                                   int64_t head_dim, uint8_t* HWY_RESTRICT staged) {
  const int64_t whole = head_dim / kStagedBytes * kStagedBytes;
  const __mmask64 tail = TailMask(head_dim);
  for (int64_t key = 0; key < keys; ++key) {
    const int8_t* HWY_RESTRICT row = k[key];
    for (int64_t e = 0; e < whole; e += kStagedBytes, staged += kStagedBytes) {
      _mm512_store_si512(staged, LoadUnsigned<false>(row + e, 0));
    }
    if (tail != 0) {
      _mm512_store_si512(staged, LoadUnsigned<true>(row + whole, tail));
      staged += kStagedBytes;
    }
  }
}

// staged[keys / 4][columns / 64][4]: V plus 128, four keys beside each other. Part i has, in block
// b of four lanes, the columns 16 b + 4 i .. 16 b + 4 i + 3 of its 64. Behind the last key that
// again.
HWY_NOINLINE inline void StageValues(const int8_t* const* HWY_RESTRICT v, int64_t keys,
                                     int64_t columns, uint8_t* HWY_RESTRICT staged) {
  const int64_t whole = columns / kStagedBytes * kStagedBytes;
  const __mmask64 tail = TailMask(columns);
  const auto stage = [&](__m512i a, __m512i b, __m512i x, __m512i y) HWY_ATTR {
    const __m512i ab_low = _mm512_unpacklo_epi8(a, b), ab_high = _mm512_unpackhi_epi8(a, b);
    const __m512i xy_low = _mm512_unpacklo_epi8(x, y), xy_high = _mm512_unpackhi_epi8(x, y);
    _mm512_store_si512(staged, _mm512_unpacklo_epi16(ab_low, xy_low));
    _mm512_store_si512(staged + 64, _mm512_unpackhi_epi16(ab_low, xy_low));
    _mm512_store_si512(staged + 128, _mm512_unpacklo_epi16(ab_high, xy_high));
    _mm512_store_si512(staged + 192, _mm512_unpackhi_epi16(ab_high, xy_high));
    staged += 4 * kStagedBytes;
  };
  for (int64_t key = 0; key < keys; key += 4) {
    const int8_t* HWY_RESTRICT a = v[key];
    const int8_t* HWY_RESTRICT b = v[std::min(key + 1, keys - 1)];
    const int8_t* HWY_RESTRICT x = v[std::min(key + 2, keys - 1)];
    const int8_t* HWY_RESTRICT y = v[std::min(key + 3, keys - 1)];
    for (int64_t c = 0; c < whole; c += kStagedBytes) {
      stage(LoadUnsigned<false>(a + c, 0), LoadUnsigned<false>(b + c, 0),
            LoadUnsigned<false>(x + c, 0), LoadUnsigned<false>(y + c, 0));
    }
    if (tail != 0) {
      stage(LoadUnsigned<true>(a + whole, tail), LoadUnsigned<true>(b + whole, tail),
            LoadUnsigned<true>(x + whole, tail), LoadUnsigned<true>(y + whole, tail));
    }
  }
}

// 256 * high + low of lanes [digit][8] of two keys: [key][8].
HWY_INLINE __m512i JoinDigits(__m512i a, __m512i b) {
  return _mm512_add_epi32(_mm512_slli_epi32(_mm512_shuffle_i32x4(a, b, 0x44), 8),
                          _mm512_shuffle_i32x4(a, b, 0xEE));
}

// As Scores. kStride: bytes of a row of `staged`, 0: any number of pieces.
template <int RT, int kStride>
HWY_NOINLINE void ScoresInt8(const uint8_t* HWY_RESTRICT staged, int64_t keys, int64_t stride,
                             const float* HWY_RESTRICT q, const float* HWY_RESTRICT steps,
                             float* HWY_RESTRICT scores, Fetcher<int8_t>& ahead) {
  constexpr int kKeys = 16, kBytes = 32 / RT;  // keys at a time, bytes of each
  if constexpr (kStride > 0) stride = kStride;
  HWY_ALIGN float step_of_lane[kLanes];
  for (int i = 0; i < kLanes; ++i) step_of_lane[i] = steps[i % RT];
  const __m512 step = _mm512_load_ps(step_of_lane);
  __m512i sums = _mm512_setzero_si512();
  for (int64_t e = 0; e < stride; e += kBytes) {
    sums = DotBytes(sums, _mm512_set1_epi8(1), _mm512_load_si512(q + e / kBytes * kLanes));
  }
  const __m512i start = _mm512_slli_epi32(_mm512_sub_epi32(_mm512_setzero_si512(), sums), 7);
  Fetcher<int8_t> fetch = ahead;  // a copy, to be kept in registers
  for (int64_t key = 0; key < keys; key += kKeys, staged += kKeys * stride, scores += kKeys * RT) {
    __m512i acc[kKeys];
    TANDEM_UNROLL
    for (int j = 0; j < kKeys; ++j) acc[j] = start;
    // Two neighbouring pieces of a key after each other: rows lie in the same banks of the cache,
    // which serves two loads in a cycle only from different ones.
    const float* HWY_RESTRICT digits = q;
    for (int64_t e = 0; e < stride; e += 16, digits += 16 / kBytes * kLanes) {
      fetch.template Fetch<kKeys * 16>(e / 16);
      __m512i qv[16 / kBytes];
      TANDEM_UNROLL
      for (int i = 0; i < 16 / kBytes; ++i) qv[i] = _mm512_load_si512(digits + i * kLanes);
      TANDEM_UNROLL
      for (int j = 0; j < kKeys; ++j) {
        TANDEM_UNROLL
        for (int i = 0; i < 16 / kBytes; ++i) {
          // Of 4-byte pieces first those of one half of each 8.
          const int piece = RT == 8 ? i / 2 + i % 2 * 2 : i;
          const uint8_t* from = staged + j * stride + e + piece * kBytes;
          __m512i k;
          if constexpr (RT == 8) {
            int32_t x;
            std::memcpy(&x, from, sizeof(x));
            k = _mm512_set1_epi32(x);
          } else {
            int64_t x;
            std::memcpy(&x, from, sizeof(x));
            k = _mm512_set1_epi64(x);
          }
          acc[j] = DotBytes(acc[j], k, qv[piece]);
        }
      }
    }
    const auto store = [&](__m512i x, float* to) HWY_ATTR {
      _mm512_store_ps(to, _mm512_mul_ps(_mm512_cvtepi32_ps(x), step));
    };
    if constexpr (RT == 8) {
      TANDEM_UNROLL
      for (int j = 0; j < kKeys; j += 2) store(JoinDigits(acc[j], acc[j + 1]), scores + j * RT);
    } else {
      const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
      TANDEM_UNROLL
      for (int j = 0; j < kKeys; j += 4) {
        const __m512 ab = _mm512_castsi512_ps(JoinDigits(acc[j], acc[j + 1]));
        const __m512 cd = _mm512_castsi512_ps(JoinDigits(acc[j + 2], acc[j + 3]));
        const __m512i both = _mm512_add_epi32(_mm512_castps_si512(_mm512_shuffle_ps(ab, cd, 0x88)),
                                              _mm512_castps_si512(_mm512_shuffle_ps(ab, cd, 0xDD)));
        store(_mm512_permutexvar_epi64(order, both), scores + j * RT);
      }
    }
  }
  ahead = fetch;
}

// Weights of a tile, [key][RT], as digits: [keys / 4][RT] times 16 bytes: the high digits of four
// keys, the low ones, and 8 unused. Also the steps and sums (in steps) of the rows, in all lanes of
// each. weights are made 0 behind the last key up to a multiple of four.
template <int RT>
HWY_NOINLINE void WeightsToInt8(float* HWY_RESTRICT weights, int64_t keys,
                                uint8_t* HWY_RESTRICT digits, __m512& steps, __m512i& sums) {
  constexpr int kWidth = BlockLayout<RT>::kWidth;
  const int64_t count = (keys + 3) / 4 * 4 * RT;
  const int64_t written = (keys + kWidth - 1) / kWidth * kLanes;
  if (written < count) std::fill(weights + written, weights + count, 0.0f);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t i = 0; i < count; i += kLanes) {
    const __m512i bits = _mm512_castps_si512(_mm512_load_ps(weights + i));
    largest = _mm512_max_epu32(largest, _mm512_and_si512(bits, _mm512_set1_epi32(0x7FFFFFFF)));
  }
  __m512 inverse;
  StepOf(FoldRows<RT, false>(largest), inverse, steps);
  const __m512i by_row = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i low_rows =
      _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
  const __m512i high_rows = _mm512_add_epi32(low_rows, _mm512_set1_epi32(4));
  // Of 128 + weight, the byte above is the high digit, the lowest the low one plus 128.
  const __m512i pick = _mm512_broadcast_i32x4(
      _mm_setr_epi8(1, 5, 9, 13, 0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1));
  const __m512i flip = _mm512_set1_epi64(static_cast<int64_t>(0x8080808000000000ULL));
  const __m512i half = _mm512_set1_epi32(128);
  const auto rounded = [&](int64_t i) HWY_ATTR {
    return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_load_ps(weights + i), inverse));
  };
  const auto store = [&](__m512i x, uint8_t* to) HWY_ATTR {
    _mm512_store_si512(to, _mm512_xor_si512(_mm512_shuffle_epi8(x, pick), flip));
  };
  sums = _mm512_setzero_si512();
  if constexpr (RT == 4) {
    for (int64_t i = 0; i < count; i += kLanes, digits += 64) {
      const __m512i x = rounded(i);
      sums = _mm512_add_epi32(sums, x);
      store(_mm512_permutexvar_epi32(by_row, _mm512_add_epi32(x, half)), digits);
    }
  } else {
    for (int64_t i = 0; i < count; i += 2 * kLanes, digits += 128) {
      const __m512i x = rounded(i), y = rounded(i + kLanes);
      sums = _mm512_add_epi32(sums, _mm512_add_epi32(x, y));
      const __m512i a = _mm512_add_epi32(x, half), b = _mm512_add_epi32(y, half);
      store(_mm512_permutex2var_epi32(a, low_rows, b), digits);
      store(_mm512_permutex2var_epi32(a, high_rows, b), digits + 64);
    }
  }
  sums = FoldRows<RT, true>(sums);
}

// As Values.
template <int RT>
HWY_NOINLINE void ValuesInt8(const uint8_t* HWY_RESTRICT staged, int64_t keys, int64_t columns,
                             float* HWY_RESTRICT weights, const float* HWY_RESTRICT factor,
                             float* HWY_RESTRICT acc, int64_t acc_stride, Fetcher<int8_t>& ahead) {
  constexpr int kRows = 4;
  HWY_ALIGN uint8_t digits[kTileKeys / 4 * RT * 16];
  __m512 step_lanes;
  __m512i sum_lanes;
  WeightsToInt8<RT>(weights, keys, digits, step_lanes, sum_lanes);
  HWY_ALIGN float steps[kLanes];
  HWY_ALIGN int32_t offsets[kLanes];  // what adding 128 to V has added
  _mm512_store_ps(steps, step_lanes);
  _mm512_store_si512(offsets, _mm512_slli_epi32(sum_lanes, 7));
  const int64_t groups = (keys + 3) / 4;
  const int64_t row_bytes = (columns + kStagedBytes - 1) / kStagedBytes * 4 * kStagedBytes;
  Fetcher<int8_t> fetch = ahead;
  for (int64_t c = 0; c < columns; c += kStagedBytes, staged += 4 * kStagedBytes) {
    for (int first = 0; first < RT; first += kRows) {
      __m512i total[kRows][4];
      TANDEM_UNROLL
      for (int part = 0; part < 4; part += 2) {
        __m512i high[kRows][2], low[kRows][2];
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) {
          TANDEM_UNROLL
          for (int i = 0; i < 2; ++i) high[r][i] = low[r][i] = _mm512_setzero_si512();
        }
        const uint8_t* HWY_RESTRICT values = staged + part * 64;
        const uint8_t* HWY_RESTRICT w = digits + first * 16;
        for (int64_t g = 0; g < groups; ++g, values += row_bytes, w += RT * 16) {
          // Of 64 columns and 4 keys one half; of several blocks of rows each its share.
          fetch.template Fetch<512 / RT>(g);
          const __m512i x = _mm512_load_si512(values), y = _mm512_load_si512(values + 64);
          TANDEM_UNROLL
          for (int r = 0; r < kRows; ++r) {
            int32_t h, l;
            std::memcpy(&h, w + r * 16, sizeof(h));
            std::memcpy(&l, w + r * 16 + 4, sizeof(l));
            const __m512i hv = _mm512_set1_epi32(h), lv = _mm512_set1_epi32(l);
            high[r][0] = DotBytes(high[r][0], x, hv);
            high[r][1] = DotBytes(high[r][1], y, hv);
            low[r][0] = DotBytes(low[r][0], x, lv);
            low[r][1] = DotBytes(low[r][1], y, lv);
          }
        }
        TANDEM_UNROLL
        for (int r = 0; r < kRows; ++r) {
          const __m512i offset = _mm512_set1_epi32(offsets[first + r]);
          TANDEM_UNROLL
          for (int i = 0; i < 2; ++i) {
            total[r][part + i] = _mm512_sub_epi32(
                _mm512_add_epi32(_mm512_slli_epi32(high[r][i], 8), low[r][i]), offset);
          }
        }
      }
      TANDEM_UNROLL
      for (int r = 0; r < kRows; ++r) {
        const __m512i* t = total[r];
        const __m512i a = _mm512_shuffle_i32x4(t[0], t[1], 0x44);
        const __m512i b = _mm512_shuffle_i32x4(t[2], t[3], 0x44);
        const __m512i x = _mm512_shuffle_i32x4(t[0], t[1], 0xEE);
        const __m512i y = _mm512_shuffle_i32x4(t[2], t[3], 0xEE);
        const __m512i in_order[4] = {
            _mm512_shuffle_i32x4(a, b, 0x88), _mm512_shuffle_i32x4(a, b, 0xDD),
            _mm512_shuffle_i32x4(x, y, 0x88), _mm512_shuffle_i32x4(x, y, 0xDD)};
        const __m512 step = _mm512_set1_ps(steps[first + r]);
        const __m512 f = _mm512_set1_ps(factor[first + r]);
        float* HWY_RESTRICT to = acc + (first + r) * acc_stride + c;
        for (int64_t i = 0; i < 4 && c + i * kLanes < columns; ++i) {
          const __m512 old = _mm512_mul_ps(f, _mm512_load_ps(to + i * kLanes));
          _mm512_store_ps(to + i * kLanes,
                          _mm512_fmadd_ps(_mm512_cvtepi32_ps(in_order[i]), step, old));
        }
      }
    }
  }
  ahead = fetch;
}

#else

// Named by code that other targets do not instantiate.
template <int RT>
void PackRowsInt8(const float* rows, int64_t stride, int64_t head_dim, float* out, float* steps);
void StageKeys(const int8_t* const* k, int64_t keys, int64_t head_dim, uint8_t* staged);
void StageValues(const int8_t* const* v, int64_t keys, int64_t columns, uint8_t* staged);
template <int RT, int kStride>
void ScoresInt8(const uint8_t* staged, int64_t keys, int64_t stride, const float* q,
                const float* steps, float* scores, Fetcher<int8_t>& ahead);
template <int RT>
void ValuesInt8(const uint8_t* staged, int64_t keys, int64_t columns, float* weights,
                const float* factor, float* acc, int64_t acc_stride, Fetcher<int8_t>& ahead);

#endif

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
