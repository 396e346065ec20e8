// A few rows of a quantised matrix times any number of float vectors: the inner loop of everything here.
#pragma once

#include <cstdint>

#include "isa/primitives.h"
#include "runtime/matrix.h"

namespace trimaran {

constexpr int kTileRows = 16;         // rows decoded together
constexpr int kTileTokens = 32;       // vectors that share one decoding
constexpr int64_t kRunColumns = 256;  // columns decoded at a time; every block size divides it

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Rows of whole blocks, one after another.
struct RowMatrix {
  const TypeTraits* traits;
  const uint8_t* data;
  int64_t rows;
  int64_t columns;
  size_t row_bytes;
};

// Throws KernelError, naming `argument`, if the type is unknown, if its blocks do not divide `columns`, or if
// the matrix has too few bytes.
RowMatrix view_rows(const Matrix& matrix, int64_t rows, int64_t columns, const char* argument);

// out[token × ld + r] = Σ_c W[first_row + r][c] · x[token][c] for r < rows ≤ kTileRows and all tokens.
// Vectors are padded with zeros to a multiple of kLanes columns. Decodes each run of columns once per
// kTileTokens vectors; needs 32 KiB of stack. A value depends on its own row and vector only, to the bit.
void multiply_rows(const Primitives& primitives, const RowMatrix& matrix, int64_t first_row, int rows,
                   const float* const* x, int tokens, float* out, int64_t ld);

}  // namespace trimaran
