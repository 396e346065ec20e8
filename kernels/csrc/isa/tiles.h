// Matrix tiles: many vectors times packed weights in bf16, for experts with enough tokens.
#pragma once

#include <cstdint>

#include "packed/format.h"
#include "quant/types.h"

namespace trimaran {

constexpr int kBlockVectors = 16;  // vectors side by side in a tile
constexpr int kTileStripes = 2;    // stripes that are multiplied together
constexpr int kLineBytes = 2 * kGroupColumns;
constexpr int kTileBytes = kBlockVectors * kLineBytes;

// Two neighbouring stripes times `blocks` × 16 vectors. A block is its tiles in the order of columns, a tile
// 16 lines (one of each vector) of 32 bf16.
struct TileProduct {
  const uint8_t* stripes;
  int64_t stripe_bytes;
  int64_t n_cells;
  const uint8_t* x;
  int64_t block_bytes;
  int blocks;
};

struct TilePrimitives {
  // With fewer tokens the dot products are faster.
  int least_tokens;
  // x[0 .. 31] to a line, rounded to nearest even.
  void (*round)(const float* x, uint8_t* line);
  // out[stripe][vector][row], vectors being all of all blocks. Weights are rounded to bf16, products added as
  // floats in an order that is the processor's: the result is near that of DotFn, not the same. A NaN or
  // infinity stays in its vector. nullptr where there is no packed layout.
  void (*multiply[kTypeSlots])(const TileProduct& product, float* out);
};

}  // namespace trimaran
