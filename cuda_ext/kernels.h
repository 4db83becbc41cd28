// The kernels of one instruction set as a table; included once per isa_*.cpp.
#pragma once
#include "kernel_gradient.h"
#include "kernel_project.h"
#include "kernel_raster.h"

namespace gw {
namespace GW_ISA {

inline const Kernels table = {prepare_chunk, project_chunk, raster_any_tile, mark_tile, backward_macro,
                              project_backward_chunk};

}  // namespace GW_ISA
}  // namespace gw
