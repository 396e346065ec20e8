// Attention primitives with matrix tiles; AVX-512's besides.
#pragma once

#include "attention/primitives.h"
#include "attention/tiles.h"

namespace trimaran::amx {

const AttentionPrimitives& attention_primitives();
const AttentionTiles& attention_tiles();

}  // namespace trimaran::amx
