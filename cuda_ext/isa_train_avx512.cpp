#define GW_ISA avx512
#define GW_USE_AVX512 1
#include "kernel_train.h"

const gw::TrainKernels &gw::train_kernels_avx512() { return gw::avx512::train_table; }
