#include "cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "cpu/amx.h"

namespace tandem::cpu {
namespace {

// May this process use tiles? Linux (5.16 and later) gives the room that a thread's tiles take only
// to processes that ask; all threads, and processes forked later, then have it. Older ones refuse.
bool RequestTiles() {
#if TANDEM_HAVE_AMX
  unsigned low = 0, high = 0;  // of XCR0: which registers the operating system saves
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kTileState = 3u << 17;  // configuration and data
  if ((low & kTileState) != kTileState) return false;
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  constexpr int kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

bool IsAmd() {
  unsigned most = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(0, &most, &ebx, &ecx, &edx) && ebx == signature_AMD_ebx &&
         ecx == signature_AMD_ecx && edx == signature_AMD_edx;
}

}  // namespace

CpuFeatures DetectCpu() {
  CpuFeatures features;
  features.fast_prefetch_once = IsAmd();
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
    if (features.isa == Isa::kAvx512 && (edx & (1u << 24))) {
      static const bool tiles = RequestTiles();
      features.amx_bf16 = tiles && (edx & (1u << 22));
      features.amx_int8 = tiles && (edx & (1u << 25));
    }
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
    features.amx_bf16 = features.amx_int8 = false;
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
