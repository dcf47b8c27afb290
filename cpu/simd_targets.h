// Which instruction sets Highway compiles each SIMD file for: the three of isa.h. Include right
// after defining HWY_TARGET_INCLUDE and before hwy/foreach_target.h:
//
//   #undef HWY_TARGET_INCLUDE
//   #define HWY_TARGET_INCLUDE "cpu/softmax_simd.cc"
//   #include "cpu/simd_targets.h"
//   #include "hwy/foreach_target.h"  // compiles this file once per target
//   #include "hwy/highway.h"
//   HWY_BEFORE_NAMESPACE();
//   namespace tandem::cpu::HWY_NAMESPACE { absl::Status Run(...) {...} }
//   HWY_AFTER_NAMESPACE();
//   #if HWY_ONCE
//   ... list entries: N_AVX3::Run (Isa::kAvx512), N_AVX2::Run, TANDEM_N_SCALAR::Run ...
//   #endif
//
// No file has ISA compiler flags: Highway sets the target per function, so inline code shared with
// other files stays baseline. Lambdas that use vectors need HWY_ATTR before their brace (clang).
#ifndef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS (~(HWY_AVX3 | HWY_AVX2 | HWY_EMU128 | HWY_SCALAR))
#define HWY_COMPILE_ALL_ATTAINABLE
#endif

#include "hwy/detect_targets.h"

// Some compilers cannot do EMU128 (128-bit vectors in plain C++); Highway then falls back to SCALAR
// (one lane).
#undef TANDEM_N_SCALAR
#if HWY_BASELINE_SCALAR == HWY_EMU128
#define TANDEM_N_SCALAR N_EMU128
#else
#define TANDEM_N_SCALAR N_SCALAR
#endif
