// The packed integer product with AVX-VNNI: vpdpbusd on 32 bytes, as on processors that have no
// AVX-512.
#include "cpu/matmul_packed.h"
#include "cpu/x86_intrinsics.h"
#include "hwy/base.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c,avxvnni")
namespace tandem::cpu {
namespace {

#include "cpu/matmul_packed_ymm-inl.h"

struct Machine : YmmMachine {
  static constexpr int kRows = StripRows(DotIsa::kAvxVnni);

  template <int kMax>
  TANDEM_MACHINE_INLINE Ints StartFrom(const uint8_t* correction) {
    const Quad x = LoadQuad(correction);
    return {x, x};
  }
  TANDEM_MACHINE_INLINE __m256i AddDot(__m256i sum, __m256i weights, __m256i activations) {
    return _mm256_dpbusd_avx_epi32(sum, weights, activations);
  }
  template <int kMax>
  TANDEM_MACHINE_INLINE void AddDots(Bytes even, Bytes odd, Quad first, Quad second, Ints& sums) {
    sums.low = AddDot(AddDot(sums.low, even.low, first), odd.low, second);
    sums.high = AddDot(AddDot(sums.high, even.high, first), odd.high, second);
  }
};

#undef TANDEM_MACHINE_INLINE

#include "cpu/matmul_packed_tile-inl.h"

}  // namespace

MultiplyStrip MultiplyStripAvxVnni(DType dtype) { return MultiplyStripFor<Machine>(dtype); }

}  // namespace tandem::cpu
HWY_POP_ATTRIBUTES
