// The pieces of the product on tiles (matmul_amx.cc): panels of b in bf16 pairs, made out of packed
// quantised weights.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace tandem::cpu {

// `blocks` blocks of 32 elements of K of one packed panel (kPanelColumns features, matmul_packed.h)
// from the beginning of a unit on, as the same columns of a bf16 panel (matmul_panels.h): weights
// are dequantised in f32 and rounded to nearest even. offset: of the format's unsigned quants.
using ExpandUnits = void (*)(const uint8_t* units, int64_t blocks, int offset, void* panel);

// For packed weights of `dtype`; nullptr where it has no packed form, and where the compiler or the
// processor lacks what it needs beside tiles: AVX-512 VBMI and BF16.
ExpandUnits ExpandUnitsFor(DType dtype);

}  // namespace tandem::cpu
