#define GW_ISA avx2
#define GW_USE_AVX2 1
#include "kernels.h"

const gw::Kernels &gw::kernels_avx2() { return gw::avx2::table; }
