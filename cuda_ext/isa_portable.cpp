#define GW_ISA portable
#include "kernels.h"

const gw::Kernels &gw::kernels_portable() { return gw::portable::table; }
