// The activations that a matrix product can end with.
#pragma once

#include <cstdint>

namespace tandem {

enum class Activation : uint8_t { kNone, kSilu, kGelu, kRelu };  // kGelu: the tanh approximation

}  // namespace tandem
