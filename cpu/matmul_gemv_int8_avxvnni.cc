// Integer dot products of stored weights with AVX-VNNI: vpdpbusd on 256-bit vectors, for processors
// without AVX-512. Inner loops: matmul_gemv_int8-inl.h.
#include "cpu/matmul_gemv_int8.h"
#include "cpu/x86_intrinsics.h"
#include "hwy/base.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c,avxvnni")
namespace tandem::cpu {
namespace {

#include "cpu/matmul_gemv_int8_ymm-inl.h"

struct DotProduct {
  TANDEM_MACHINE_INLINE __m256i Dot(__m256i sum, __m256i u, __m256i s) {
    return _mm256_dpbusd_avx_epi32(sum, u, s);
  }
  // Flipping the sign bit makes signed weights unsigned, with an offset of 128.
  TANDEM_MACHINE_INLINE __m256i DotSigned(__m256i first, __m256i second, __m256i x_first,
                                          __m256i x_second, const uint8_t* start) {
    const __m256i sign = _mm256_set1_epi8(-128);
    return Dot(Dot(Ymm::LoadBytes(start), _mm256_xor_si256(first, sign), x_first),
               _mm256_xor_si256(second, sign), x_second);
  }
};
using Machine = YmmMachine<DotProduct>;

#include "cpu/matmul_gemv_int8-inl.h"

}  // namespace

Int8Strip Int8StripAvxVnni(DType dtype, int64_t rows) { return StripOf<Machine>(dtype, rows); }

}  // namespace tandem::cpu
HWY_POP_ATTRIBUTES
