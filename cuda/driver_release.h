// Which release of the GPU's driver is loaded: times measured with another one may not hold.
#pragma once

#include <string>
#include <string_view>

namespace tandem::cuda {

// "550.54.15" out of what the Linux driver says in /proc/driver/nvidia/version; empty if there is
// no such number in it.
std::string ParseDriverRelease(std::string_view text);
// Of the driver that is loaded; empty where that file is not (no driver, other systems).
std::string DriverRelease();

}  // namespace tandem::cuda
