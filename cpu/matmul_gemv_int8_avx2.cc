// Integer dot products of stored weights with AVX2: vpmaddubsw adds two products of unsigned by
// signed bytes in 16 bits, vpmaddwd two of these sums in 32. Weights of up to 6 bits cannot
// overflow (2 * 63 * 127); the signs of q8_0's are moved to the activations (2 * 128 * 127 =
// 32512). Inner loops: matmul_gemv_int8-inl.h.
#include "cpu/matmul_gemv_int8.h"
#include "cpu/x86_intrinsics.h"
#include "hwy/base.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c")
namespace tandem::cpu {
namespace {

#include "cpu/matmul_gemv_int8_ymm-inl.h"

struct DotProduct {
  TANDEM_MACHINE_INLINE __m256i Dot(__m256i sum, __m256i u, __m256i s) {
    return _mm256_add_epi32(sum,
                            _mm256_madd_epi16(_mm256_maddubs_epi16(u, s), _mm256_set1_epi16(1)));
  }
  TANDEM_MACHINE_INLINE __m256i DotOfSigned(__m256i sum, __m256i w, __m256i x) {
    return Dot(sum, _mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
  }
  TANDEM_MACHINE_INLINE __m256i DotSigned(__m256i first, __m256i second, __m256i x_first,
                                          __m256i x_second, const uint8_t*) {
    return DotOfSigned(DotOfSigned(_mm256_setzero_si256(), first, x_first), second, x_second);
  }
};
using Machine = YmmMachine<DotProduct>;

#include "cpu/matmul_gemv_int8-inl.h"

}  // namespace

Int8Strip Int8StripAvx2(DType dtype, int64_t rows) { return StripOf<Machine>(dtype, rows); }

}  // namespace tandem::cpu
HWY_POP_ATTRIBUTES
