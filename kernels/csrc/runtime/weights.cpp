#include "runtime/weights.h"

#include <algorithm>
#include <string>

#include "runtime/status.h"

namespace trimaran {
namespace {

// Hardware prefetching starts anew where a thread leaps: pieces of 16 KiB are read 20 % slower than of 1 MiB.
constexpr size_t kPieceBytes = 256 << 10;
constexpr int64_t kFewTokens = 8;        // more are bound by arithmetic
constexpr int64_t kItemsPerThread = 16;  // at least, so that the last ones to finish cost little

const Format& packed_format(const Matrix& matrix, const char* argument) {
  const Format* format = find_format(matrix.type);
  if (format != nullptr) return *format;
  throw KernelError(std::string(argument) + ": GGUF type " + std::to_string(static_cast<int>(matrix.type)) +
                    " has no packed layout");
}

}  // namespace

Weights::Weights(const Matrix& matrix, int64_t n_matrices, int64_t rows, int64_t columns,
                 const char* argument)
    : format_(nullptr), raw_{}, rows_(rows), matrix_bytes_(0) {
  if (!matrix.packed) {
    raw_ = view_rows(matrix, n_matrices * rows, columns, argument);
    matrix_bytes_ = raw_.row_bytes * static_cast<uint64_t>(rows);
    return;
  }
  // A view of no rows checks the type and the width.
  format_ = &packed_format(matrix, argument);
  raw_ = view_rows({matrix.type, matrix.data, matrix.size, false}, 0, columns, argument);
  matrix_bytes_ = packed_bytes(*format_, rows, columns);
  if (static_cast<uint64_t>(n_matrices) > matrix.size / std::max<uint64_t>(matrix_bytes_, 1)) {
    throw KernelError(std::string(argument) + ": " + std::to_string(matrix.size) + " bytes, but " +
                      std::to_string(n_matrices) + " packed matrices of " + raw_.traits->name + " need " +
                      std::to_string(static_cast<uint64_t>(n_matrices) * matrix_bytes_));
  }
}

int Weights::tile_rows(int64_t tile) const {
  return static_cast<int>(std::min<int64_t>(kTileRows, rows_ - tile * kTileRows));
}

const uint8_t* Weights::stripe(int64_t matrix, int64_t tile) const {
  return raw_.data + static_cast<size_t>(matrix) * matrix_bytes_ +
         static_cast<size_t>(tile) * stripe_bytes(*format_, raw_.columns);
}

size_t Weights::tile_bytes() const {
  return packed() ? stripe_bytes(*format_, raw_.columns) : raw_.row_bytes * kTileRows;
}

int64_t Weights::run_of_tiles(int threads, int64_t tokens, int64_t matrices) const {
  if (tokens > kFewTokens) return 1;
  const auto long_enough = static_cast<int64_t>(kPieceBytes / std::max<size_t>(1, tile_bytes()));
  return std::max<int64_t>(1, std::min(long_enough, matrices * tiles() / (kItemsPerThread * threads)));
}

const uint8_t* Weights::start(int64_t matrix, int64_t tile) const {
  return packed() && tile < tiles() ? stripe(matrix, tile) : nullptr;
}

void Weights::multiply(const Primitives& primitives, int64_t matrix, int64_t tile, const Vectors& x,
                       int tokens, float* out, const uint8_t* next) const {
  if (format_ == nullptr) {
    multiply_rows(primitives, raw_, matrix * rows_ + tile * kTileRows, tile_rows(tile), x.floats, tokens, out,
                  kTileRows);
    return;
  }
  const DotFn dot = primitives.dot[static_cast<int>(format_->type)];
  dot(stripe(matrix, tile), cells_of(*format_, raw_.columns), x.codes, tokens, out, next);
}

void Weights::multiply_blocks(const TilePrimitives& tiles, int64_t matrix, int64_t tile, const BlockedRows& x,
                              int group, float* out, const uint8_t* next) const {
  const auto bytes = static_cast<int64_t>(stripe_bytes(*format_, raw_.columns));
  tiles.multiply[static_cast<int>(format_->type)](
      {stripe(matrix, tile), bytes, cells_of(*format_, raw_.columns), x.group(group), x.block_bytes(),
       x.blocks(group), x.terms(), next},
      out);
}

}  // namespace trimaran
