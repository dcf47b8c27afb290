// GGUF blocks of 256 elements, expanded and quantised with vectors: the same bytes as
// super_blocks.h. Included per target, after hwy/highway.h.
//
// Expanding writes to an Out: a float*, a BF16*, or anything that moves along with `out + i` and
// has a StoreFloats(FloatVec, Out) of its own, which need not store (matmul_gemv_simd.cc
// multiplies).
//
// Quantising: one lane per sub-block. The elements of kLanes sub-blocks are transposed once, and
// every lane then takes super_blocks.h's steps in its order, so that even the roundings of the
// sums are the same.

#if defined(TANDEM_CPU_SUPER_BLOCK_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef TANDEM_CPU_SUPER_BLOCK_VECTORS_INL_H_
#undef TANDEM_CPU_SUPER_BLOCK_VECTORS_INL_H_
#else
#define TANDEM_CPU_SUPER_BLOCK_VECTORS_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/float_vectors-inl.h"
#include "cpu/super_blocks.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tandem::cpu::HWY_NAMESPACE {

// kLanes bytes as integers.
HWY_INLINE hn::Vec<hn::RebindToSigned<FloatTag>> LoadBytes(const uint8_t* from) {
  const hn::Rebind<uint8_t, FloatTag> bytes;
  return hn::PromoteTo(hn::RebindToSigned<FloatTag>(), hn::LoadU(bytes, from));
}

// The 32 elements of a sub-block, q * scale - min; `get` gives the quants from element i on.
template <typename Out, typename Get>
HWY_INLINE void StoreSubBlock(float scale, float min, Out out, Get get) {
  const FloatTag d;
  const FloatVec scales = hn::Set(d, scale), mins = hn::Set(d, min);
  for (int64_t i = 0; i < kSubBlock; i += kLanes) {
    StoreFloats(hn::MulSub(hn::ConvertTo(d, get(i)), scales, mins), out + i);
  }
}

// d * scale and dmin * min of the sub-blocks of q4_k and q5_k.
template <typename Block>
HWY_INLINE void LoadScaleMins(const Block& block, float* HWY_RESTRICT scale,
                              float* HWY_RESTRICT min) {
  const float d = WidenHalf(block.d), dmin = WidenHalf(block.dmin);
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3
  uint32_t low, middle, high;  // UnpackScaleMin for four sub-blocks at a time
  std::memcpy(&low, block.scales, 4);
  std::memcpy(&middle, block.scales + 4, 4);
  std::memcpy(&high, block.scales + 8, 4);
  // Whole words of 64 bits: halves through memory would stall the load that takes both.
  const uint32_t scale_high = (high & 0x0F0F0F0Fu) | (low >> 2 & 0x30303030u);
  const uint32_t min_high = (high >> 4 & 0x0F0F0F0Fu) | (middle >> 2 & 0x30303030u);
  const hn::FixedTag<float, kSubBlocks> d8;
  const auto widen = [&](uint64_t eight) HWY_ATTR {
    const hn::Rebind<uint8_t, decltype(d8)> bytes;
    const hn::RebindToSigned<decltype(d8)> di8;
    const auto packed = hn::BitCast(bytes, hn::Set(hn::FixedTag<uint64_t, 1>(), eight));
    return hn::ConvertTo(d8, hn::PromoteTo(di8, packed));
  };
  const auto scales = widen((low & 0x3F3F3F3Fu) | uint64_t{scale_high} << 32);
  const auto mins = widen((middle & 0x3F3F3F3Fu) | uint64_t{min_high} << 32);
  hn::StoreU(hn::Mul(hn::Set(d8, d), scales), d8, scale);
  hn::StoreU(hn::Mul(hn::Set(d8, dmin), mins), d8, min);
#else
  for (int s = 0; s < kSubBlocks; ++s) {
    const PackedScaleMin packed = UnpackScaleMin(block.scales, s);
    scale[s] = d * static_cast<float>(packed.scale);
    min[s] = dmin * static_cast<float>(packed.min);
  }
#endif
}

template <typename Out>
HWY_INLINE void DequantizeBlockTo(const BlockQ4_K& block, Out out) {
  const hn::RebindToSigned<FloatTag> di;
  float scale[kSubBlocks], min[kSubBlocks];
  LoadScaleMins(block, scale, min);
#pragma GCC unroll 4
  for (int s = 0; s < kSubBlocks; s += 2) {
    const uint8_t* q = block.q + s / 2 * kSubBlock;
    const Out to = out + s * kSubBlock;
    StoreSubBlock(scale[s], min[s], to,
                  [&](int64_t i) HWY_ATTR { return hn::And(LoadBytes(q + i), hn::Set(di, 15)); });
    StoreSubBlock(scale[s + 1], min[s + 1], to + kSubBlock,
                  [&](int64_t i) HWY_ATTR { return hn::ShiftRight<4>(LoadBytes(q + i)); });
  }
}

template <typename Out>
HWY_INLINE void DequantizeBlockTo(const BlockQ5_K& block, Out out) {
  const hn::RebindToSigned<FloatTag> di;
  float scale[kSubBlocks], min[kSubBlocks];
  LoadScaleMins(block, scale, min);
#pragma GCC unroll 4
  for (int s = 0; s < kSubBlocks; s += 2) {
    const uint8_t* q = block.q + s / 2 * kSubBlock;
    const Out to = out + s * kSubBlock;
    // Bit s of the high byte, moved to bit 4.
    const auto fifth = [&](int64_t i, int bit) HWY_ATTR {
      const auto high = hn::ShiftLeftSame(LoadBytes(block.high + i), 4);
      return hn::And(hn::ShiftRightSame(high, bit), hn::Set(di, 16));
    };
    StoreSubBlock(scale[s], min[s], to, [&](int64_t i) HWY_ATTR {
      return hn::Or(hn::And(LoadBytes(q + i), hn::Set(di, 15)), fifth(i, s));
    });
    StoreSubBlock(scale[s + 1], min[s + 1], to + kSubBlock, [&](int64_t i) HWY_ATTR {
      return hn::Or(hn::ShiftRight<4>(LoadBytes(q + i)), fifth(i, s + 1));
    });
  }
}

template <typename Out>
HWY_INLINE void DequantizeBlockTo(const BlockQ6_K& block, Out out) {
  const FloatTag df;
  const hn::RebindToSigned<FloatTag> di;
  const float d = WidenHalf(block.d);
#pragma GCC unroll 16
  for (int s = 0; s < kQ6SubBlocks; ++s) {
    const int begin = s * kQ6SubBlock, h = begin / 128, r = begin % 128;
    const FloatVec scale = hn::Set(df, d * static_cast<float>(block.scales[s]));
    for (int64_t i = 0; i < kQ6SubBlock; i += kLanes) {
      const auto low =
          hn::And(hn::ShiftRightSame(LoadBytes(block.low + 64 * h + r % 64 + i), r / 64 * 4),
                  hn::Set(di, 15));
      const auto high =
          hn::And(hn::ShiftRightSame(LoadBytes(block.high + 32 * h + r % 32 + i), r / 32 * 2),
                  hn::Set(di, 3));
      const auto q = hn::Sub(hn::Or(low, hn::ShiftLeft<4>(high)), hn::Set(di, 32));
      StoreFloats(hn::Mul(hn::ConvertTo(df, q), scale), out + begin + i);
    }
  }
}

template <typename Out>
HWY_INLINE void DequantizeBlockTo(const BlockTQ2_0& block, Out out) {
  const FloatTag df;
  const hn::RebindToSigned<FloatTag> di;
  const FloatVec d = hn::Set(df, WidenHalf(block.d));
#pragma GCC unroll 8
  for (int part = 0; part < 8; ++part) {
    for (int64_t i = 0; i < 32; i += kLanes) {
      const auto bytes = LoadBytes(block.q + part / 4 * 32 + i);
      const auto q = hn::And(hn::ShiftRightSame(bytes, part % 4 * 2), hn::Set(di, 3));
      const auto v = hn::ConvertTo(df, hn::Sub(q, hn::Set(di, 1)));
      StoreFloats(hn::Mul(v, d), out + part * 32 + i);
    }
  }
}

#if HWY_TARGET != HWY_SCALAR && HWY_TARGET != HWY_EMU128

// As NearestInteger, clamped.
HWY_INLINE FloatVec ClampedInteger(FloatVec x, int32_t low, int32_t high) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const auto bits = hn::BitCast(di, hn::Add(x, hn::Set(d, 12582912.0f)));
  const auto q = hn::Sub(hn::And(bits, hn::Set(di, 0x7FFFFF)), hn::Set(di, 0x400000));
  return hn::ConvertTo(d, hn::Min(hn::Max(q, hn::Set(di, low)), hn::Set(di, high)));
}

// to[i][lane] = element i of sub-block `lane`; lanes from `present` on repeat the first.
template <int kCount>
HWY_INLINE void TransposeSubBlocks(const float* x, int64_t present, float* HWY_RESTRICT to) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  const auto lane = hn::Iota(di, 0);
  const auto valid = hn::Lt(lane, hn::Set(di, static_cast<int32_t>(present)));
  const auto index = hn::IfThenElseZero(valid, hn::Mul(lane, hn::Set(di, kCount)));
  for (int i = 0; i < kCount; ++i) hn::Store(hn::GatherIndex(d, x + i, index), d, to + i * kLanes);
}

// FitScaleMin of kLanes sub-blocks.
template <typename Block>
HWY_NOINLINE void FitScaleMins(const float* x, int64_t present, ScaleMinFit* fits) {
  using Traits = ScaleMinTraits<Block>;
  constexpr int kMax = Traits::kMaxQuant;
  const FloatTag d;
  HWY_ALIGN float elements[kSubBlock * kLanes];
  HWY_ALIGN float weights[kSubBlock * kLanes];
  HWY_ALIGN float quants[kSubBlock * kLanes];
  TransposeSubBlocks<kSubBlock>(x, present, elements);
  const auto at = [&](const float* array, int i)
                      HWY_ATTR { return hn::Load(d, array + i * kLanes); };
  FloatVec squares = hn::Zero(d);
  for (int i = 0; i < kSubBlock; ++i) {
    squares = hn::Add(squares, hn::Mul(at(elements, i), at(elements, i)));
  }
  const FloatVec rms = hn::Sqrt(hn::Div(squares, hn::Set(d, static_cast<float>(kSubBlock))));
  FloatVec low = at(elements, 0), high = low, sum_w = hn::Zero(d), sum_x = hn::Zero(d);
  for (int i = 0; i < kSubBlock; ++i) {
    const FloatVec v = at(elements, i);
    const FloatVec weight = hn::Add(rms, hn::Abs(v));
    hn::Store(weight, d, weights + i * kLanes);
    low = hn::IfThenElse(hn::Lt(v, low), v, low);
    high = hn::IfThenElse(hn::Gt(v, high), v, high);
    sum_w = hn::Add(sum_w, weight);
    sum_x = hn::Add(sum_x, hn::Mul(weight, v));
  }
  low = hn::IfThenZeroElse(hn::Gt(low, hn::Zero(d)), low);
  const auto flat = hn::Eq(high, low);

  const auto error = [&](FloatVec scale, FloatVec min) HWY_ATTR {
    FloatVec sum = hn::Zero(d);
    for (int i = 0; i < kSubBlock; ++i) {
      const FloatVec difference =
          hn::Sub(hn::Add(hn::Mul(scale, at(quants, i)), min), at(elements, i));
      sum = hn::Add(sum, hn::Mul(at(weights, i), hn::Mul(difference, difference)));
    }
    return sum;
  };
  FloatVec inverse = hn::Div(hn::Set(d, static_cast<float>(kMax)), hn::Sub(high, low));
  for (int i = 0; i < kSubBlock; ++i) {
    const FloatVec level = hn::Mul(inverse, hn::Sub(at(elements, i), low));
    hn::Store(ClampedInteger(level, 0, kMax), d, quants + i * kLanes);
  }
  FloatVec best_inverse = inverse, best_low = low, best_min = hn::Neg(low);
  FloatVec best_scale = hn::Div(hn::Set(d, 1.0f), inverse);
  FloatVec best_error = error(best_scale, low);
  for (int trial = 0; trial <= Traits::kTrials; ++trial) {
    const float step = Traits::kFirstTrial + 0.1f * static_cast<float>(trial) + kMax;
    inverse = hn::Div(hn::Set(d, step), hn::Sub(high, low));
    FloatVec sum_q = hn::Zero(d), sum_qq = hn::Zero(d), sum_xq = hn::Zero(d);
    for (int i = 0; i < kSubBlock; ++i) {
      const FloatVec v = at(elements, i);
      const FloatVec q = ClampedInteger(hn::Mul(inverse, hn::Sub(v, low)), 0, kMax);
      hn::Store(q, d, quants + i * kLanes);
      const FloatVec wq = hn::Mul(at(weights, i), q);
      sum_q = hn::Add(sum_q, wq);
      sum_qq = hn::Add(sum_qq, hn::Mul(wq, q));
      sum_xq = hn::Add(sum_xq, hn::Mul(wq, v));
    }
    const FloatVec determinant = hn::Sub(hn::Mul(sum_w, sum_qq), hn::Mul(sum_q, sum_q));
    FloatVec scale = hn::Div(hn::Sub(hn::Mul(sum_w, sum_xq), hn::Mul(sum_x, sum_q)), determinant);
    FloatVec min = hn::Div(hn::Sub(hn::Mul(sum_qq, sum_x), hn::Mul(sum_q, sum_xq)), determinant);
    const auto positive = hn::Gt(min, hn::Zero(d));
    min = hn::IfThenZeroElse(positive, min);
    scale = hn::IfThenElse(positive, hn::Div(sum_xq, sum_qq), scale);
    const FloatVec trial_error = error(scale, min);
    const auto better = hn::And(hn::Gt(determinant, hn::Zero(d)), hn::Lt(trial_error, best_error));
    best_scale = hn::IfThenElse(better, scale, best_scale);
    best_min = hn::IfThenElse(better, hn::Neg(min), best_min);
    best_inverse = hn::IfThenElse(better, inverse, best_inverse);
    best_low = hn::IfThenElse(better, low, best_low);
    best_error = hn::IfThenElse(better, trial_error, best_error);
    low = hn::IfThenElse(better, min, low);
  }
  // Sub-blocks of one value, which no trial can better.
  best_scale = hn::IfThenZeroElse(flat, best_scale);
  best_inverse = hn::IfThenZeroElse(flat, best_inverse);
  HWY_ALIGN float results[4][kLanes];
  hn::Store(best_scale, d, results[0]);
  hn::Store(best_min, d, results[1]);
  hn::Store(best_inverse, d, results[2]);
  hn::Store(best_low, d, results[3]);
  for (int64_t lane = 0; lane < present; ++lane) {
    fits[lane] = {results[0][lane], results[1][lane], results[2][lane], results[3][lane]};
  }
}

// to[i] = clamped integers, as bytes.
HWY_INLINE void StoreClamped(FloatVec level, int32_t low, int32_t high, int32_t offset,
                             uint8_t* to) {
  const hn::RebindToSigned<FloatTag> di;
  const hn::Rebind<uint8_t, FloatTag> bytes;
  const auto q = hn::ConvertTo(di, ClampedInteger(level, low, high));
  hn::StoreU(hn::DemoteTo(bytes, hn::Add(q, hn::Set(di, offset))), bytes, to);
}

template <typename Block>
HWY_INLINE void FinishBlock(const float* x, const ScaleMinFit (&fits)[kSubBlocks], Block& block) {
  constexpr int kMax = ScaleMinTraits<Block>::kMaxQuant;
  const FloatTag d;
  float scale[kSubBlocks], min[kSubBlocks];
  PackScaleMins(fits, block, scale, min);
  uint8_t q[Block::kLength];
  for (int s = 0; s < kSubBlocks; ++s) {
    const bool fit_only = scale[s] == 0.0f;
    for (int64_t i = s * kSubBlock; i < (s + 1) * kSubBlock; i += kLanes) {
      const FloatVec v = LoadFloats(x + i);
      const FloatVec level =
          fit_only ? hn::Mul(hn::Set(d, fits[s].inverse), hn::Sub(v, hn::Set(d, fits[s].low)))
                   : hn::Div(hn::Add(v, hn::Set(d, min[s])), hn::Set(d, scale[s]));
      StoreClamped(level, 0, kMax, 0, q + i);
    }
  }
  PackQuants(q, block);
}

// q4_k, q5_k: as many blocks at a time as have kLanes sub-blocks.
template <typename Block>
void QuantizeScaleMinBlocks(const float* x, Block* blocks, int64_t count) {
  constexpr int64_t kGroup = std::max<int64_t>(1, kLanes / kSubBlocks);
  static_assert(kLanes <= kSubBlocks * kGroup);
  ScaleMinFit fits[kGroup][kSubBlocks];
  for (int64_t b = 0; b < count; b += kGroup) {
    const int64_t group = std::min(kGroup, count - b);
    const float* from = x + b * Block::kLength;
    for (int64_t s = 0; s < group * kSubBlocks; s += kLanes) {
      FitScaleMins<Block>(from + s * kSubBlock, std::min(kLanes, group * kSubBlocks - s),
                          &fits[0][0] + s);
    }
    for (int64_t i = 0; i < group; ++i) {
      FinishBlock(from + i * Block::kLength, fits[i], blocks[b + i]);
    }
  }
}

HWY_INLINE void QuantizeBlocksFrom(const float* x, BlockQ4_K* blocks, int64_t count) {
  QuantizeScaleMinBlocks(x, blocks, count);
}
HWY_INLINE void QuantizeBlocksFrom(const float* x, BlockQ5_K* blocks, int64_t count) {
  QuantizeScaleMinBlocks(x, blocks, count);
}

// FitScale of kLanes sub-blocks.
HWY_INLINE void FitScales(const float* x, ScaleFit* fits) {
  const FloatTag d;
  HWY_ALIGN float elements[kQ6SubBlock * kLanes];
  TransposeSubBlocks<kQ6SubBlock>(x, kLanes, elements);
  const auto at = [&](int i) HWY_ATTR { return hn::Load(d, elements + i * kLanes); };
  FloatVec largest = hn::Zero(d), extreme = hn::Zero(d);
  for (int i = 0; i < kQ6SubBlock; ++i) {
    const FloatVec magnitude = hn::Abs(at(i));
    const auto larger = hn::Gt(magnitude, largest);
    largest = hn::IfThenElse(larger, magnitude, largest);
    extreme = hn::IfThenElse(larger, at(i), extreme);
  }
  const auto zero = hn::Lt(largest, hn::Set(d, kZeroBelow));
  FloatVec fit_scale = hn::Zero(d), fit_inverse = hn::Zero(d), best = hn::Zero(d);
  const auto try_step = [&](float step, bool first) HWY_ATTR {
    const FloatVec inverse = hn::Div(hn::Set(d, step), extreme);
    FloatVec xq = hn::Zero(d), qq = hn::Zero(d);
    for (int i = 0; i < kQ6SubBlock; ++i) {
      const FloatVec v = at(i);
      const FloatVec q = ClampedInteger(hn::Mul(inverse, v), -32, 31);
      const FloatVec weight = hn::Mul(v, v);
      xq = hn::Add(xq, hn::Mul(hn::Mul(weight, v), q));
      qq = hn::Add(qq, hn::Mul(hn::Mul(weight, q), q));
    }
    FloatVec scale = hn::Div(xq, qq);
    if (first) {
      fit_scale = hn::IfThenZeroElse(hn::Eq(qq, hn::Zero(d)), scale);
      fit_inverse = inverse;
      best = hn::Mul(fit_scale, xq);
      return;
    }
    const auto better =
        hn::And(hn::Gt(qq, hn::Zero(d)), hn::Gt(hn::Mul(xq, xq), hn::Mul(best, qq)));
    fit_scale = hn::IfThenElse(better, scale, fit_scale);
    fit_inverse = hn::IfThenElse(better, inverse, fit_inverse);
    best = hn::IfThenElse(better, hn::Mul(scale, xq), best);
  };
  try_step(-32.0f, true);
  for (int trial = -9; trial <= 9; ++trial) {
    if (trial != 0) try_step(-(32.0f + 0.1f * static_cast<float>(trial)), false);
  }
  HWY_ALIGN float results[2][kLanes];
  hn::Store(hn::IfThenZeroElse(zero, fit_scale), d, results[0]);
  hn::Store(hn::IfThenZeroElse(zero, fit_inverse), d, results[1]);
  for (int64_t lane = 0; lane < kLanes; ++lane) fits[lane] = {results[0][lane], results[1][lane]};
}

HWY_INLINE void QuantizeBlockFrom(const float* x, BlockQ6_K& block) {
  static_assert(kQ6SubBlocks % kLanes == 0);
  const FloatTag d;
  ScaleFit fits[kQ6SubBlocks];
  for (int64_t s = 0; s < kQ6SubBlocks; s += kLanes) FitScales(x + s * kQ6SubBlock, fits + s);
  float scale[kQ6SubBlocks];
  if (!PackScales(fits, block, scale)) return;
  uint8_t q[BlockQ6_K::kLength];
  for (int s = 0; s < kQ6SubBlocks; ++s) {
    if (fits[s].inverse == 0.0f && scale[s] == 0.0f) {
      std::fill_n(q + s * kQ6SubBlock, kQ6SubBlock, uint8_t{0});
      continue;
    }
    for (int64_t i = s * kQ6SubBlock; i < (s + 1) * kQ6SubBlock; i += kLanes) {
      const FloatVec v = LoadFloats(x + i);
      const FloatVec level = scale[s] == 0.0f ? hn::Mul(hn::Set(d, fits[s].inverse), v)
                                              : hn::Div(v, hn::Set(d, scale[s]));
      StoreClamped(level, -32, 31, 32, q + i);
    }
  }
  PackQuants(q, block);
}

HWY_INLINE void QuantizeBlockFrom(const float* x, BlockTQ2_0& block) {
  const FloatTag d;
  const hn::RebindToSigned<FloatTag> di;
  FloatVec largest = hn::Zero(d);
  for (int64_t i = 0; i < BlockTQ2_0::kLength; i += kLanes) {
    const FloatVec magnitude = hn::Abs(LoadFloats(x + i));
    largest = hn::IfThenElse(hn::Gt(magnitude, largest), magnitude, largest);  // ignores NaN
  }
  const float scale = hn::GetLane(hn::MaxOfLanes(d, largest));
  block.d = ToF16(scale);
  const FloatVec inverse = hn::Set(d, scale != 0.0f ? 1.0f / scale : 0.0f);
  const hn::Rebind<uint8_t, FloatTag> bytes;
  for (int64_t i = 0; i < BlockTQ2_0::kLength / 4; i += kLanes) {
    auto bits = hn::Zero(di);
    for (int part = 3; part >= 0; --part) {
      const FloatVec v = hn::Mul(LoadFloats(x + i / 32 * 128 + part * 32 + i % 32), inverse);
      const auto up = hn::RebindMask(di, hn::Ge(v, hn::Set(d, 0.5f)));
      const auto down = hn::RebindMask(di, hn::Le(v, hn::Set(d, -0.5f)));
      const auto q = hn::IfThenElse(up, hn::Set(di, 2), hn::IfThenZeroElse(down, hn::Set(di, 1)));
      bits = hn::Or(hn::ShiftLeft<2>(bits), q);
    }
    hn::StoreU(hn::DemoteTo(bytes, bits), bytes, block.q + i);
  }
}

#endif

}  // namespace tandem::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // TANDEM_CPU_SUPER_BLOCK_VECTORS_INL_H_
