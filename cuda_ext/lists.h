// From projected Gaussians to the depth-ordered list of each tile.
#pragma once
#include "frame.h"
#include "pool.h"

namespace gw {

// Fills frame.order[0..visible-1] with (depth bits << 32 | record), nearest first, equal depths by row.
void sort_by_depth(Frame &frame, int chunks, Pool &pool);

// Fills frame.tile_start and frame.lists. False when the lists would pass 2^31 entries.
bool fill_tile_lists(const ViewSetup &view, Frame &frame, Pool &pool);

}  // namespace gw
