// Packed weights times blocks of vectors with AMX-BF16.
#pragma once

#include "isa/tiles.h"

namespace trimaran::amx {

const TilePrimitives& tile_primitives();

}  // namespace trimaran::amx
