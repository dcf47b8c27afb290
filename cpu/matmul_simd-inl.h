// SIMD pieces that the MatMul kernels share: widening rows of any dtype to f32, rounding f32 rows
// to the output's dtype, and the epilogue of a finished tile. Included once per instruction set by
// the files that use foreach_target.h.

#if defined(TANDEM_CPU_MATMUL_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_MATMUL_SIMD_INL_H_
#undef TANDEM_CPU_MATMUL_SIMD_INL_H_
#else
#define TANDEM_CPU_MATMUL_SIMD_INL_H_
#endif

#include <cstdint>
#include <type_traits>

#include "core/dtype.h"
#include "cpu/matmul_epilogue.h"
#include "hwy/highway.h"
// After highway.h, whose macros they use.
#include "cpu/block_vectors-inl.h"
#include "cpu/float_vectors-inl.h"
#include "cpu/silu_times-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

using FloatVector = FloatVec;

// The kLanes elements of a block from element `i` on, before scaling, as whole numbers.
HWY_INLINE FloatVector LoadQuants(const BlockQ8_0& block, int64_t i) {
#if HWY_TARGET == HWY_SCALAR
  return hn::Set(FloatTag(), static_cast<float>(block.q[i]));
#else
  const hn::RebindToSigned<FloatTag> di32;
  const hn::Rebind<int8_t, FloatTag> di8;
  return hn::ConvertTo(FloatTag(), hn::PromoteTo(di32, hn::LoadU(di8, block.q + i)));
#endif
}
HWY_INLINE FloatVector LoadQuants(const BlockQ4_0& block, int64_t i) {
  const int64_t half = BlockQ4_0::kLength / 2;
#if HWY_TARGET == HWY_SCALAR
  const int nibble = i < half ? block.q[i] & 15 : block.q[i - half] >> 4;
  return hn::Set(FloatTag(), static_cast<float>(nibble - 8));
#elif HWY_TARGET == HWY_AVX3
  // One table look-up of the low four bits replaces masking, converting and subtracting.
  const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
  const __m512i pair =
      _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block.q)));
  return {_mm512_permutexvar_ps(i < half ? pair : _mm512_srli_epi32(pair, 4), values)};
#else
  const hn::RebindToSigned<FloatTag> di32;
  const hn::Rebind<uint8_t, FloatTag> du8;
  const auto pair = hn::PromoteTo(di32, hn::LoadU(du8, block.q + (i < half ? i : i - half)));
  const auto nibble = i < half ? hn::And(pair, hn::Set(di32, 15)) : hn::ShiftRight<4>(pair);
  return hn::ConvertTo(FloatTag(), hn::Sub(nibble, hn::Set(di32, 8)));
#endif
}

// A block's scale.
HWY_INLINE FloatVector LoadScale(F16 d) { return hn::Set(FloatTag(), WidenHalf(d)); }

// `count` contiguous elements from `from`, widened.
template <typename T>
void WidenRow(const T* HWY_RESTRICT from, int64_t count, float* HWY_RESTRICT to) {
  if constexpr (std::is_same_v<T, BlockQ8_0> || std::is_same_v<T, BlockQ4_0>) {
    for (int64_t b = 0; b < count / T::kLength; ++b) {
      const auto scale = LoadScale(from[b].d);
      for (int64_t i = 0; i < T::kLength; i += kLanes) {
        StoreFloats(hn::Mul(scale, LoadQuants(from[b], i)), to + b * T::kLength + i);
      }
    }
  } else if constexpr (kIsBlock<T>) {
    for (int64_t b = 0; b < count / T::kLength; ++b) {
      DequantizeBlockTo(from[b], to + b * T::kLength);
    }
  } else {
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) StoreFloats(LoadFloats(from + i), to + i);
    for (; i < count; ++i) to[i] = ToFloat(from[i]);
  }
}

// The same for a row of a view: `count` elements from `offset` on, `stride` elements apart.
HWY_INLINE void WidenViewRow(const TensorView& view, int64_t offset, int64_t stride, int64_t count,
                             float* to) {
  DispatchFloat(view.dtype, [&]<typename T>() HWY_ATTR {
    const T* from = view.As<T>() + offset;
    if (stride == 1) return WidenRow(from, count, to);
    for (int64_t i = 0; i < count; ++i) to[i] = ToFloat(from[i * stride]);
  });
}

HWY_INLINE void NarrowToViewRow(const float* from, const TensorView& view, int64_t offset,
                                int64_t stride, int64_t count) {
  DispatchFloat(view.dtype, [&]<typename T>() HWY_ATTR {
    T* to = view.As<T>() + offset;
    if (stride != 1) {
      for (int64_t i = 0; i < count; ++i) to[i * stride] = FromFloat<T>(from[i]);
      return;
    }
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) StoreFloats(LoadFloats(from + i), to + i);
    for (; i < count; ++i) to[i] = FromFloat<T>(from[i]);
  });
}

HWY_INLINE FloatVector ActivateVector(Activation activation, FloatVector x) {
  const FloatTag d;
  const auto one = hn::Set(d, 1.0f);
  switch (activation) {
    case Activation::kSilu: {
      // exp(88) is the last power that neither overflows nor leaves Exp's range; below -88 the true
      // value is under 1e-36 and the f32 formula gives -0.
      const auto low = hn::Lt(x, hn::Set(d, -88.0f));
      const auto exp = hn::Exp(d, hn::Min(hn::Neg(x), hn::Set(d, 88.0f)));
      return hn::IfThenElse(low, hn::Set(d, -0.0f), hn::Div(x, hn::Add(one, exp)));
    }
    case Activation::kGelu: {
      const auto cube = hn::Mul(hn::Mul(x, x), x);
      const auto inner =
          hn::Mul(hn::Set(d, 0.79788456080286536f), hn::MulAdd(hn::Set(d, 0.044715f), cube, x));
      return hn::Mul(hn::Mul(hn::Set(d, 0.5f), x), hn::Add(one, hn::Tanh(d, inner)));
    }
    case Activation::kRelu:
      return hn::IfThenZeroElse(hn::Lt(x, hn::Zero(d)), x);  // NaN stays NaN
    case Activation::kNone:
      break;
  }
  return x;
}

inline constexpr int64_t kMaxTileColumns = 64;

// Row i of a tile of sums becomes act(alpha * sum + bias) + beta * addend, for out[z, m0 + i,
// n0..].
HWY_INLINE void FinishSums(const MatMulArgs& args, const MatMulOperands& operands, int64_t z,
                           int64_t m, int64_t n0, int64_t columns, const float* bias,
                           float* HWY_RESTRICT row) {
  HWY_ALIGN float addend[kMaxTileColumns] = {};
  const bool add = args.addend.present() && args.beta != 0.0f;
  if (add) {
    const int64_t stride = args.addend.stride(-1);
    WidenViewRow(args.addend, operands.addend_batch * z + args.addend.stride(-2) * m + stride * n0,
                 stride, columns, addend);
  }
  const FloatTag d;
  const auto alpha = hn::Set(d, args.alpha);
  const auto beta = hn::Set(d, args.beta);
  for (int64_t j = 0; j < columns; j += kLanes) {
    auto x = hn::Mul(alpha, LoadFloats(row + j));
    if (args.bias.present()) x = hn::Add(x, LoadFloats(bias + j));
    if (args.activation != Activation::kNone) x = ActivateVector(args.activation, x);
    if (add) x = hn::MulAdd(beta, LoadFloats(addend + j), x);
    StoreFloats(x, row + j);
  }
}

HWY_INLINE void LoadBias(const MatMulArgs& args, int64_t n0, int64_t columns, float* bias) {
  if (!args.bias.present()) return;
  WidenViewRow(args.bias, n0 * args.bias.stride(0), args.bias.stride(0), columns, bias);
}

HWY_INLINE void StoreTileRow(const MatMulArgs& args, const MatMulOperands& operands, int64_t z,
                             int64_t m, int64_t n0, int64_t columns, const float* row) {
  const int64_t stride = args.out.stride(-1);
  NarrowToViewRow(row, args.out, operands.out_batch * z + args.out.stride(-2) * m + stride * n0,
                  stride, columns);
}

// Writes out[z, m0 + i, n0 + j] for a tile of sums (rows `tile_stride` floats apart, overwritten).
// columns <= kMaxTileColumns; tile rows have kMaxTileColumns readable floats.
HWY_INLINE void FinishTile(const MatMulArgs& args, const MatMulOperands& operands, int64_t z,
                           int64_t m0, int64_t rows, int64_t n0, int64_t columns,
                           float* HWY_RESTRICT tile, int64_t tile_stride) {
  HWY_ALIGN float bias[kMaxTileColumns] = {};
  LoadBias(args, n0, columns, bias);
  for (int64_t i = 0; i < rows; ++i) {
    float* row = tile + i * tile_stride;
    FinishSums(args, operands, z, m0 + i, n0, columns, bias, row);
    StoreTileRow(args, operands, z, m0 + i, n0, columns, row);
  }
}

// The same for two tiles of one place: out = silu(gate) * up. No batch.
HWY_INLINE void FinishGatedTile(const MatMulArgs& gate, const MatMulArgs& up, int64_t m0,
                                int64_t rows, int64_t n0, int64_t columns,
                                float* HWY_RESTRICT gate_tile, float* HWY_RESTRICT up_tile,
                                int64_t tile_stride) {
  HWY_ALIGN float gate_bias[kMaxTileColumns] = {};
  HWY_ALIGN float up_bias[kMaxTileColumns] = {};
  LoadBias(gate, n0, columns, gate_bias);
  LoadBias(up, n0, columns, up_bias);
  const MatMulOperands operands(gate);
  for (int64_t i = 0; i < rows; ++i) {
    float* gate_row = gate_tile + i * tile_stride;
    float* up_row = up_tile + i * tile_stride;
    FinishSums(gate, operands, 0, m0 + i, n0, columns, gate_bias, gate_row);
    FinishSums(up, operands, 0, m0 + i, n0, columns, up_bias, up_row);
    for (int64_t j = 0; j < columns; j += kLanes) {
      StoreFloats(SiluTimes()(LoadFloats(gate_row + j), LoadFloats(up_row + j)), gate_row + j);
    }
    StoreTileRow(gate, operands, 0, m0 + i, n0, columns, gate_row);
  }
}

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_MATMUL_SIMD_INL_H_
