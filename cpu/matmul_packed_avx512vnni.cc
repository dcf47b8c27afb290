// The packed integer product with AVX-512 VNNI: vpdpbusd multiplies 64 weights (unsigned) by 4
// activations (signed, broadcast) into 16 32-bit sums, exactly.
#include "cpu/matmul_packed.h"
#include "cpu/x86_intrinsics.h"
#include "hwy/base.h"

HWY_PUSH_ATTRIBUTES("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace tandem::cpu {
namespace {

#include "cpu/int8_zmm-inl.h"

struct Machine : ZmmMachine {
  using Quad = __m512i;
  static constexpr int kGroups = 2;  // at once
  static constexpr int kRows = StripRows(DotIsa::kAvx512Vnni);

  TANDEM_MACHINE_INLINE Quad LoadQuad(const uint8_t* p) {
    int32_t bits;
    __builtin_memcpy(&bits, p, sizeof(bits));
    return _mm512_set1_epi32(bits);
  }
  template <int kMax>
  TANDEM_MACHINE_INLINE Ints StartFrom(const uint8_t* correction) {
    return LoadQuad(correction);
  }
  template <int kMax>
  TANDEM_MACHINE_INLINE void AddDots(Bytes even, Bytes odd, Quad first, Quad second, Ints& sums) {
    sums = Dot(Dot(sums, even, first), odd, second);
  }
  TANDEM_MACHINE_INLINE Floats LoadFloats(const float* p) { return _mm512_loadu_ps(p); }
  TANDEM_MACHINE_INLINE void StoreFloats(Floats x, float* p) { _mm512_storeu_ps(p, x); }
  TANDEM_MACHINE_INLINE Floats Broadcast(const uint8_t* p) {
    return _mm512_castsi512_ps(LoadQuad(p));
  }
  TANDEM_MACHINE_INLINE Floats MulScalar(Floats x, const uint8_t* p) {
    return _mm512_mul_ps(x, Broadcast(p));
  }
  // z - x * scalar
  TANDEM_MACHINE_INLINE Floats SubtractScaled(Floats z, Floats x, const uint8_t* p) {
    return _mm512_fnmadd_ps(x, Broadcast(p), z);
  }
};

#undef TANDEM_MACHINE_INLINE

#include "cpu/matmul_packed_tile-inl.h"

}  // namespace

MultiplyStrip MultiplyStripAvx512Vnni(DType dtype) { return MultiplyStripFor<Machine>(dtype); }

}  // namespace tandem::cpu
HWY_POP_ATTRIBUTES
