// CUDA as dispatch/ sees it: so far which devices there are, found by ProbeDevices.
#pragma once

#include "cuda/device_probe.h"
