#include "runtime/linear.h"

#include <algorithm>

#include "runtime/padded_rows.h"
#include "runtime/quantized_rows.h"
#include "runtime/weights.h"

namespace trimaran {
namespace {

// One call's vectors, in the form that the weights read.
class Inputs {
 public:
  Inputs(ThreadPool& pool, const Primitives& primitives, const Weights& weights, int64_t columns,
         const float* x, int64_t n) {
    floats_.set(pool, x, DType::f32, n, columns);
    if (!weights.packed()) return;
    codes_.set(pool, primitives, floats_.rows(), n, columns);
    for (int64_t i = 0; i < n; ++i) views_.push_back(codes_.vector(i));
  }

  Vectors vectors() const { return {floats_.rows(), views_.data()}; }

 private:
  PaddedRows floats_;
  QuantizedRows codes_;
  std::vector<QuantizedVector> views_;
};

}  // namespace

void linear(ThreadPool& pool, const Primitives& primitives, const Matrix& matrix, int64_t rows,
            int64_t columns, const float* x, int64_t n, float* out) {
  const Weights weights(matrix, 1, rows, columns, "raw");
  const Inputs inputs(pool, primitives, weights, columns, x, n);
  pool.parallel_for(n == 0 ? 0 : weights.tiles(), [&](int64_t tile, int) {
    const int count = weights.tile_rows(tile);
    float block[kTileTokens * kTileRows];
    for (int64_t first = 0; first < n; first += kTileTokens) {
      const int tokens = static_cast<int>(std::min<int64_t>(kTileTokens, n - first));
      weights.multiply(primitives, 0, tile, inputs.vectors().from(first), tokens, block);
      for (int t = 0; t < tokens; ++t) {
        std::copy_n(block + t * kTileRows, count, out + (first + t) * rows + tile * kTileRows);
      }
    }
  });
}

}  // namespace trimaran
