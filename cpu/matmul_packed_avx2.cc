// The packed integer product with AVX2, which multiplies unsigned by signed bytes and adds pairs in
// *saturating* 16 bits (vpmaddubsw): 255 * 127 * 2 would not fit.
//
// Quants up to 63 fit twice over (63 * 127 * 4 < 2^15), so the pairs of two steps are added before
// they are widened. q8_0's quants of 8 bits are made signed again (q - 128, so there is no offset
// to correct): their magnitudes, at most 128, times the activations with the quants' signs; 128 *
// 127 * 2 < 2^15.
#include "cpu/matmul_packed.h"
#include "cpu/x86_intrinsics.h"
#include "hwy/base.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c")
namespace tandem::cpu {
namespace {

#include "cpu/matmul_packed_ymm-inl.h"

struct Machine : YmmMachine {
  static constexpr int kRows = StripRows(DotIsa::kAvx2);

  template <int kMax>
  TANDEM_MACHINE_INLINE Ints StartFrom(const uint8_t* correction) {
    if constexpr (kMax > 63) return ZeroInts();
    const Quad x = LoadQuad(correction);
    return {x, x};
  }
  // Sums of two neighbours' products, 16 bits each.
  template <int kMax>
  TANDEM_MACHINE_INLINE __m256i Pairs(__m256i weights, __m256i activations) {
    if constexpr (kMax > 63) {
      const __m256i q = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
      return _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(activations, q));
    } else {
      return _mm256_maddubs_epi16(weights, activations);
    }
  }
  template <int kMax>
  TANDEM_MACHINE_INLINE __m256i AddDot(__m256i sum, __m256i even, __m256i odd, __m256i first,
                                       __m256i second) {
    static_assert(kMax <= 63 || kMax == 255);
    const __m256i ones = _mm256_set1_epi16(1);
    const __m256i x = Pairs<kMax>(even, first), y = Pairs<kMax>(odd, second);
    if constexpr (kMax > 63) {
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(x, ones));
      return _mm256_add_epi32(sum, _mm256_madd_epi16(y, ones));
    } else {
      return _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_add_epi16(x, y), ones));
    }
  }
  template <int kMax>
  TANDEM_MACHINE_INLINE void AddDots(Bytes even, Bytes odd, Quad first, Quad second, Ints& sums) {
    sums.low = AddDot<kMax>(sums.low, even.low, odd.low, first, second);
    sums.high = AddDot<kMax>(sums.high, even.high, odd.high, first, second);
  }
};

#undef TANDEM_MACHINE_INLINE

#include "cpu/matmul_packed_tile-inl.h"

}  // namespace

MultiplyStrip MultiplyStripAvx2(DType dtype) { return MultiplyStripFor<Machine>(dtype); }

}  // namespace tandem::cpu
HWY_POP_ATTRIBUTES
