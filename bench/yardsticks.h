// Short pieces of work at the machine's own rates, on the calling thread: what the regression gate
// divides by. Each does a fixed amount of work and takes a few tens of microseconds, so that it can
// take turns with what it is compared with.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "cpu/isa.h"

namespace tandem::bench {

// Fits the second-level cache of every processor with AVX2, beside the operands of a call.
inline constexpr int64_t kYardstickBytes = int64_t{128} << 10;

struct Yardstick {
  std::string_view name;
  double work;  // FLOPs or bytes
  void (*run)(float* memory);
};

// fma: f32 multiply-adds in registers. read: sums of kYardstickBytes. fill: stores to them.
// `memory` of kYardstickBytes, aligned to 64.
std::vector<Yardstick> Yardsticks(cpu::Isa isa);

}  // namespace tandem::bench
