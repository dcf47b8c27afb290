// TANDEM_HOST_DEVICE: code of core/ that kernels of GPUs call too.
#pragma once

#ifdef __CUDACC__
#define TANDEM_HOST_DEVICE __host__ __device__
#else
#define TANDEM_HOST_DEVICE
#endif
