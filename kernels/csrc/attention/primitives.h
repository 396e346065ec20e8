// What an instruction set implements for attention; paging, causality and threads (attention/) are shared.
#pragma once

#include <cstdint>

#include "attention/entry.h"
#include "attention/tiles.h"

namespace trimaran {

// Columns of a panel: the width that a product keeps in registers.
constexpr int kPanel = 32;

// C[i][j] = Σ_k A[i][k] · B[k][j], added to C if `accumulate`. A element (i, k) is at a[i·a_row +
// k·a_column]; B has rows of ldb elements, C of ldc floats. n is a multiple of 8 and at most kPanel. Each
// element of C is one sum in ascending k, so that it does not depend on m, n or what else shares the call.
struct Product {
  const float* a;
  int64_t a_row;
  int64_t a_column;
  int64_t ldb;
  float* c;
  int64_t ldc;
  int m;
  int n;
  int64_t k;
  bool accumulate;
};

// Rows of B that share their scales where B is in codes: a block is so many rows of ldb signed bytes, then a
// binary16 a column, with which its codes are multiplied. Both factors are short, so elements are exact.
constexpr int kCodeRows = 32;

// Scores of `tokens` keys against `rows` queries (a multiple of 8, at most kPanel), one online-softmax step
// (arXiv 2205.14135): scores[token · kPanel + row] becomes exp(scale·score - peak), peak and sum of each row
// take the tile in, shrink is what the row's earlier result must be multiplied with. Row r sees the first
// visible[r] tokens of the tile; the others get weight 0.
struct ScoreTile {
  float* scores;
  int tokens;
  int rows;
  float scale;
  const int32_t* visible;
  float* peak;
  float* sum;
  float* shrink;
};

// A row's peak before it saw any token: low enough for every score, and finite so that differences are.
constexpr float kNoPeak = -1e30f;

struct AttentionPrimitives {
  const char* name;
  void (*multiply)(const Product& product, const float* b);
  void (*multiply_half)(const Product& product, const uint16_t* b);  // B is binary16
  void (*multiply_codes)(const Product& product, const uint8_t* b);  // B is in codes; k fills its blocks
  void (*widen_half)(const uint16_t* src, int64_t n, float* dst);    // n: a multiple of 8
  // Blocks of codes of n columns, a multiple of 8, as floats [blocks × kCodeRows, n].
  void (*widen_codes)(const uint8_t* src, int64_t blocks, int n, float* dst);
  // dst[c · ldd + r] = src[r · lds + c] for r < rows, c < columns, both multiples of 8.
  void (*transpose)(const float* src, int64_t lds, int64_t rows, int64_t columns, float* dst, int64_t ldd);
  // One entry of the cache as floats: the latent, padded with zeros to `shape.padded_latent()`, then the
  // rotated key, padded to `shape.padded_rope()`.
  void (*decode_entry)(const EntryShape& shape, const uint8_t* entry, float* dst);
  // Returns whether any row has shrink != 1.
  bool (*softmax)(const ScoreTile& tile);
  const AttentionTiles* tiles;  // nullptr where there are no matrix tiles
};

}  // namespace trimaran
