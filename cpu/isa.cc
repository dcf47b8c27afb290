#include "cpu/isa.h"

#include <cpuid.h>

namespace tandem::cpu {

CpuFeatures DetectCpu() {
  CpuFeatures features;
  // __builtin_cpu_supports also checks that the operating system saves the registers.
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi2");
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  const bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
  if (avx2 && f16c) features.isa = Isa::kAvx2;
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (features.isa == Isa::kAvx2 && avx512) features.isa = Isa::kAvx512;
  if (features.isa == Isa::kAvx512) {
    features.avx512_vnni = __builtin_cpu_supports("avx512vnni");
    features.avx512_bf16 = __builtin_cpu_supports("avx512bf16");
  }
  // Not all compilers know these names yet; leaf 7 has them.
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) {
    features.avx512_fp16 = features.isa == Isa::kAvx512 && (edx & (1u << 23));
    if (eax >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx)) {
      features.avx_vnni = features.isa >= Isa::kAvx2 && (eax & (1u << 4));
    }
  }
  return features;
}

CpuFeatures Restrict(CpuFeatures features, Isa isa) {
  if (features.isa > isa) features.isa = isa;
  if (features.isa < Isa::kAvx512) {
    features.avx512_vnni = features.avx512_bf16 = features.avx512_fp16 = false;
  }
  if (features.isa < Isa::kAvx2) features.avx_vnni = false;
  return features;
}

std::string_view Name(Isa isa) {
  switch (isa) {
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    default:
      return "scalar";
  }
}

std::optional<Isa> ParseIsa(std::string_view name) {
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512}) {
    if (Name(isa) == name) return isa;
  }
  return std::nullopt;
}

}  // namespace tandem::cpu
