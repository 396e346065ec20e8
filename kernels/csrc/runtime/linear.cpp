#include "runtime/linear.h"

#include <algorithm>

#include "runtime/padded_rows.h"
#include "runtime/row_tile.h"

namespace trimaran {

void linear(ThreadPool& pool, const Primitives& primitives, const Matrix& weights, int64_t rows,
            int64_t columns, const float* x, int64_t n, float* out) {
  const RowMatrix matrix = view_rows(weights, rows, columns, "raw");
  PaddedRows padded;
  padded.set(pool, x, DType::f32, n, columns);
  const int64_t tiles = (rows + kTileRows - 1) / kTileRows;
  pool.parallel_for(n == 0 ? 0 : tiles, [&](int64_t tile, int) {
    const int64_t first = tile * kTileRows;
    const int count = static_cast<int>(std::min<int64_t>(kTileRows, rows - first));
    multiply_rows(primitives, matrix, first, count, padded.rows(), static_cast<int>(n), out + first, rows);
  });
}

}  // namespace trimaran
