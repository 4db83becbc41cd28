#define GW_ISA avx512
#define GW_USE_AVX512 1
#include "kernels.h"

const gw::Kernels &gw::kernels_avx512() { return gw::avx512::table; }
