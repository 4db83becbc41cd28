#define GW_ISA avx2
#define GW_USE_AVX2 1
#include "kernel_train.h"

const gw::TrainKernels &gw::train_kernels_avx2() { return gw::avx2::train_table; }
