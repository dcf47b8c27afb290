// Instruction sets of the CPU kernels, and what this machine has.
//
// SIMD kernels are compiled once per Isa (see simd_targets.h) and listed once per Isa; `supports`
// refuses those above what the stream allows, so that any of them can be forced for tests.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace tandem::cpu {

enum class Isa : uint8_t {
  kScalar,  // baseline x86-64
  kAvx2,    // AVX2, FMA, F16C, BMI2
  kAvx512,  // AVX-512 F, BW, CD, DQ, VL
};

// Extensions beyond the Isa levels, for kernels that want them.
struct CpuFeatures {
  Isa isa = Isa::kScalar;
  bool avx512_vnni = false;
  bool avx512_bf16 = false;
  bool avx512_fp16 = false;
  bool avx_vnni = false;
  bool amx_bf16 = false;  // products of tiles (amx.h); only with kAvx512
  bool amx_int8 = false;
  // prefetchnta keeps pace with memory. AMD: 0.86 of read bandwidth where requests that keep what
  // they fetch give 0.68. Intel's requests wait for one of the few buffers of L1: 0.34 instead of
  // 0.95 (Emerald Rapids). Others are not known, and taken for slow.
  bool fast_prefetch_once = false;
};

// What the processor (and the operating system: saved registers) supports. The first call asks the
// operating system to let this process use tiles, where the processor has them.
CpuFeatures DetectCpu();

// The features left when nothing above `isa` may be used.
CpuFeatures Restrict(CpuFeatures features, Isa isa);

std::string_view Name(Isa isa);  // "scalar", "avx2", "avx512"
std::optional<Isa> ParseIsa(std::string_view name);

}  // namespace tandem::cpu
