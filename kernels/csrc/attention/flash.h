// One block of queries against one tile of keys: attention without a score matrix (arXiv 2205.14135).
#pragma once

#include <cstdint>

#include "attention/primitives.h"

namespace trimaran {

constexpr int kKeyTile = 64;  // keys that are decoded together; tiles start at multiples of it

// Up to kPanel queries, and what they have gathered so far: out = Σ weight · value, relative to peak.
struct RowBlock {
  const float* queries;  // transposed: [key width, kPanel]
  int rows;
  int64_t visible[kPanel];  // how many of the request's tokens each row sees, in ascending order
  float* out;               // [rows, ld_out], value columns padded to 8
  int64_t ld_out;
  float peak[kPanel];
  float sum[kPanel];

  int padded_rows() const { return EntryShape::padded(rows); }
  int64_t last_visible() const { return visible[rows - 1]; }
  void clear(int value_width);
};

// Keys [tokens, key_width] and, in panels of kPanel columns, values. The values of panel p and token t start
// at values + p · panel_stride + t · ld_values; value_width is a multiple of 8.
struct KeyTile {
  const float* keys;
  int64_t ld_keys;
  int key_width;
  const float* values;
  int64_t ld_values;
  int64_t panel_stride;
  int value_width;
  int64_t first;  // position of its first token
  int tokens;
};

// Lets the block's rows attend to those tokens of the tile that they see. `scores`: kKeyTile × kPanel
// floats of scratch. What a row gets depends on its own query and its own tokens only, to the bit.
void attend_tile(const AttentionPrimitives& primitives, const KeyTile& tile, float scale, float* scores,
                 RowBlock& block);

// Adds what `part` gathered to `into`: the same rows, other tokens.
void merge(const RowBlock& part, int value_width, RowBlock& into);

// out / sum: the weighted mean.
void normalise(int value_width, RowBlock& block);

}  // namespace trimaran
