// Weights in either layout, the file's or the packed one, multiplied 16 rows at a time.
#pragma once

#include <cstdint>

#include "isa/primitives.h"
#include "packed/format.h"
#include "runtime/blocked_rows.h"
#include "runtime/matrix.h"
#include "runtime/row_tile.h"

namespace trimaran {

static_assert(kTileRows == kStripeRows);

// What weights are multiplied with: vectors as floats, quantised, or both. Weights in the file's layout read
// the floats (padded with zeros to a multiple of kLanes), packed ones the codes.
struct Vectors {
  const float* const* floats;
  const QuantizedVector* codes;

  Vectors from(int64_t first) const {
    return {floats == nullptr ? nullptr : floats + first, codes == nullptr ? nullptr : codes + first};
  }
};

// A stack of matrices of the same shape and type, one after another.
class Weights {
 public:
  // Throws KernelError, naming `argument`, if the type is unknown or has no packed layout though it comes as
  // such, if its blocks do not divide `columns`, or if there are too few bytes. Memory is not owned.
  Weights(const Matrix& matrix, int64_t n_matrices, int64_t rows, int64_t columns, const char* argument);

  bool packed() const { return format_ != nullptr; }
  GgmlType type() const { return raw_.traits->type; }
  int64_t rows() const { return rows_; }
  int64_t tiles() const { return stripes_of(rows_); }
  int tile_rows(int64_t tile) const;
  uint64_t matrix_bytes() const { return matrix_bytes_; }  // of one matrix of the stack

  // How many tiles in a row a work item should take, of a loop over all tiles of so many matrices by so many
  // threads that multiplies each with `tokens` vectors: memory is read fastest in long pieces, but items must
  // be many enough to balance.
  int64_t run_of_tiles(int threads, int64_t tokens, int64_t matrices = 1) const;

  // out[kTileRows × token + r] = row r of the tile · vector, for r < tile_rows(tile). `next`: start() of the
  // tile that this thread is likely to read after it, if that is not the one behind.
  void multiply(const Primitives& primitives, int64_t matrix, int64_t tile, const Vectors& x, int tokens,
                float* out, const uint8_t* next = nullptr) const;
  // Where a tile lies; nullptr if it is not packed, or beyond the matrix.
  const uint8_t* start(int64_t matrix, int64_t tile) const;

  // out[kTileRows × (vectors × i + v) + r] = row r of tile + i · vector v of a group of x, for i < 2 and all
  // vectors of its blocks. The weights are packed, and there is a tile + 1. `next`: start() of the tile whose
  // pair is likely to be read next.
  void multiply_blocks(const TilePrimitives& tiles, int64_t matrix, int64_t tile, const BlockedRows& x,
                       int group, float* out, const uint8_t* next) const;

 private:
  const uint8_t* stripe(int64_t matrix, int64_t tile) const;
  size_t tile_bytes() const;

  const Format* format_;
  RowMatrix raw_;  // of all matrices; of packed ones only traits, data and columns count
  int64_t rows_;
  uint64_t matrix_bytes_;
};

}  // namespace trimaran
