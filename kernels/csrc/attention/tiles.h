// Products of bf16 matrix tiles, for attention of many queries (attention/tiled.cpp).
#pragma once

#include <cstdint>

namespace trimaran {

// A tile: 16 lines of 32 bf16. Of the left side of a product line r is row r with 32 columns of depth; of the
// right side line i are depths 2 i and 2 i + 1 of 16 columns, a column's two side by side.
constexpr int kTileLines = 16;
constexpr int kTileDepth = 32;
constexpr int64_t kTileWords = kTileLines * kTileDepth;

inline int64_t tiles_of(int64_t n, int size) { return (n + size - 1) / size; }

// C[i][j] (+)= Σ_k left[i][k] · right[k][j]. Tiles of the same rows (columns) lie one after another by depth;
// C is float32, its rows ldc floats apart. The products of an element are rounded and added as the processor
// has it, in an order that depends on nothing but the depth.
struct TiledProduct {
  const uint16_t* left;
  int64_t left_depth;  // tiles from one row of tiles to the next, at least `depth`
  const uint16_t* right;
  int64_t right_depth;
  float* c;
  int64_t ldc;
  int rows;  // all three in tiles
  int columns;
  int depth;
  bool accumulate;
};

struct AttentionTiles {
  // Around a thread's products: its tile registers get their shape, and are given back.
  void (*configure)();
  void (*release)();
  // Rounds src[r · lds + k], r < rows, k < depth, to nearest even and packs it; what fills up the last tiles
  // is 0.
  void (*pack_left)(const float* src, int64_t lds, int rows, int depth, uint16_t* dst);
  // The same of src[k · lds + c], k < depth, c < columns.
  void (*pack_right)(const float* src, int64_t lds, int depth, int columns, uint16_t* dst);
  void (*multiply)(const TiledProduct& product);
  // c[r · 32 + j] *= factors[j] for r < rows and all 32 j.
  void (*scale)(float* c, int rows, const float* factors);
};

}  // namespace trimaran
