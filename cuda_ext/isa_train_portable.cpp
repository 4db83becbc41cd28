#define GW_ISA portable
#include "kernel_train.h"

const gw::TrainKernels &gw::train_kernels_portable() { return gw::portable::train_table; }
