#include "runtime/linear.h"

#include <algorithm>

#include "runtime/buffers.h"

namespace trimaran {

Linear::Linear(ThreadPool& pool, const Primitives& primitives, const Matrix& matrix, int64_t rows,
               int64_t columns)
    : pool_(pool), primitives_(primitives), weights_(matrix, 1, rows, columns, "raw"), columns_(columns) {}

void Linear::multiply(const float* x, int64_t n, float* out) {
  if (n == 0) return;
  const std::lock_guard<std::mutex> lock(callers_);
  const Vectors vectors = prepare(x, n);
  const int64_t tiles = weights_.tiles(), run = weights_.run_of_tiles(pool_.size(), n);
  pool_.parallel_for((tiles + run - 1) / run, [&](int64_t item, int) {
    const int64_t end = std::min(tiles, (item + 1) * run);
    for (int64_t tile = item * run; tile < end; ++tile) {
      // Other threads take the items in between.
      const int64_t after = tile + 1 < end ? tile + 1 : (item + pool_.size()) * run;
      multiply_tile(tile, vectors, n, out, weights_.start(0, after));
    }
  });
}

// The vectors in the form that the weights read.
Vectors Linear::prepare(const float* x, int64_t n) {
  floats_.set(pool_, x, DType::f32, n, columns_);
  if (!weights_.packed()) return {floats_.rows(), nullptr};
  codes_.set(pool_, primitives_, floats_.rows(), n, columns_);
  ensure_size(views_, static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) views_[static_cast<size_t>(i)] = codes_.vector(i);
  return {nullptr, views_.data()};
}

void Linear::multiply_tile(int64_t tile, const Vectors& x, int64_t n, float* out, const uint8_t* next) const {
  const int count = weights_.tile_rows(tile);
  alignas(64) float block[kTileTokens * kTileRows];
  for (int64_t first = 0; first < n; first += kTileTokens) {
    const int tokens = static_cast<int>(std::min<int64_t>(kTileTokens, n - first));
    weights_.multiply(primitives_, 0, tile, x.from(first), tokens, block, next);
    for (int t = 0; t < tokens; ++t) {
      std::copy_n(block + t * kTileRows, count, out + (first + t) * rows() + tile * kTileRows);
    }
  }
}

}  // namespace trimaran
