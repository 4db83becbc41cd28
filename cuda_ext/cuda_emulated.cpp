// The CUDA renderer compiled for the CPU (see cuda_emulated.h); built for tests only.
#include "cuda_render.cu"

extern "C" GW_API void gw_emulated_order(uint32_t seed) { order_seed = seed; }
