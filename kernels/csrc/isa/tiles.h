// Matrix tiles: many vectors times packed weights, for experts with enough tokens.
#pragma once

#include <cstdint>

#include "packed/format.h"
#include "quant/types.h"

namespace trimaran {

constexpr int kBlockVectors = 16;  // vectors side by side in a tile
constexpr int kTileStripes = 2;    // stripes that are multiplied together
constexpr int kLineBytes = 2 * kGroupColumns;
constexpr int kTileBytes = kBlockVectors * kLineBytes;

// Columns that lie together in a block, the widest cell's.
constexpr int kStepColumns = 256;
constexpr int kStepGroups = kStepColumns / kGroupColumns;
constexpr int kMostTerms = 2;

// Blocks of 16 vectors: a block is its steps one after another, a step these tiles, a tile 16 lines, one of
// each vector:
//   activations   for each group of 32 columns `terms` tiles of bf16 whose sum is x. Columns 4 i, 4 i + 2,
//                 4 i + 1, 4 i + 3 in this order, as bytes of codes are taken apart in 16-bit words
//   group sums    one tile: for each group the sum of its columns as rounded, twice as (upper, lower) bf16
//   half sums     two tiles: the same for each 16 columns
struct StepLayout {
  int terms;  // 1, or 2

  constexpr int tile(int group, int term) const { return group * terms + term; }
  constexpr int group_sums() const { return kStepGroups * terms; }
  constexpr int half_sums() const { return group_sums() + 1; }
  constexpr int tiles() const { return half_sums() + 2; }
  constexpr int64_t bytes() const { return int64_t{tiles()} * kTileBytes; }
};

// Two neighbouring stripes times `blocks` × 16 vectors.
struct TileProduct {
  const uint8_t* stripes;
  int64_t stripe_bytes;
  int64_t n_cells;
  const uint8_t* x;
  int64_t block_bytes;
  int blocks;
  int terms;
  const uint8_t* next;  // two stripes that are likely to be read after these; nullptr: what lies behind
};

struct TilePrimitives {
  // With fewer tokens the dot products are faster; by type, 0 where there is no packed layout.
  int least_tokens[kTypeSlots];
  // x[0 .. 31] to group `group` of a step, whose first tile has the vector's line at `step`: each term
  // rounded to nearest even, and the sums of what that gives.
  void (*round)(const float* x, int group, int terms, uint8_t* step);
  // out[stripe][vector][row], vectors being all of all blocks. A vector's results depend neither on the other
  // vectors nor on their number, but on the order in which a tile product adds, which is the processor's:
  // they are near DotFn's, not the same. A NaN or infinity stays in its vector. nullptr where there is no
  // packed layout.
  void (*multiply[kTypeSlots])(const TileProduct& product, float* out);
};

}  // namespace trimaran
